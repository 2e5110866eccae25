"""What can go wrong in a training run, and how it ends then."""

import contextlib
import json
import logging
import math
import os
import signal
import sys
import threading
from typing import Dict, Iterator, List, Optional

import torch
from detectron2.utils import comm
from torch import Tensor, nn

from ..errors import InputError

logger = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = 128 + signal.SIGINT  # exit status


class WorkerDied(InputError):
    """A process that loads data has ended."""

    def __init__(self, reason: str):
        super().__init__(
            f"{reason.splitlines()[0]}. It may have run out of memory: lower "
            "DATALOADER.NUM_WORKERS. The checkpoints written before are intact"
        )


class NonFiniteGuard:
    """Stops a run whose loss or gradient is infinite or no number, or leaves such batches out.

    Attributes:
        skipped: batches left out so far.
    """

    def __init__(self, output_dir: str, max_skips: int = 0):
        """
        Args:
            output_dir: gets ``nonfinite_losses.jsonl``, a line for each such batch with the
                iteration, the mean losses and the image files.
            max_skips: batches of a run that may be left out.
        """
        self.file = os.path.join(output_dir, "nonfinite_losses.jsonl")
        self.max_skips = max_skips
        self.skipped = 0

    def remember(self, model: nn.Module) -> Optional[List[Tensor]]:
        """The running statistics before a batch that may spoil them; None if it stops the run."""
        if self.skipped >= self.max_skips:
            return None
        return [buffer.clone() for buffer in model.buffers()]

    def restore(self, model: nn.Module, buffers: List[Tensor]) -> None:
        """Undo what the batch has done to the running statistics."""
        with torch.no_grad():
            for buffer, value in zip(model.buffers(), buffers):
                buffer.copy_(value)

    def skip(self, iteration: int, losses: Dict[str, float], batch: List[Dict]) -> None:
        """Report a batch; called in every process.

        Raises:
            InputError: no batch may be left out any more.
        """
        files = comm.gather([str(image.get("file_name", "?")) for image in batch])
        files = [name for names in files for name in names]
        if comm.is_main_process():
            record = {"iteration": iteration, "losses": losses, "files": files}
            with open(self.file, "a") as out:
                out.write(json.dumps(record) + "\n")
        comm.synchronize()
        shown = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
        what = "gradient" if all(map(math.isfinite, losses.values())) else "loss"
        message = f"the {what} is not finite at iteration {iteration} ({shown}); see {self.file}"
        if self.skipped >= self.max_skips:
            raise InputError(
                f"{message}; lower SOLVER.BASE_LR, set SOLVER.CLIP_GRADIENTS.ENABLED True, or let "
                "SOLVER.MAX_SKIPPED_STEPS such batches be left out"
            )
        self.skipped += 1
        logger.warning(f"{message}: batch left out, {self.skipped} of {self.max_skips}")


class StopSignal:
    """Notes SIGTERM, by which clusters announce that they take a machine away, and Ctrl-C.

    A second Ctrl-C ends the program without waiting for the iteration.

    Attributes:
        received: number of the signal that came, or 0.
    """

    def __init__(self):
        self.received = 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Note the signals inside, in place of ending the process; main thread only."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)

    def _note(self, number: int, _) -> None:
        if number == self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or number


@contextlib.contextmanager
def failures_reported(output_dir: str) -> Iterator[None]:
    """End the program with one line where the user or the machine is at fault.

    The training loop would log such errors with its traceback.
    """
    try:
        yield
    except InputError as error:
        _end(str(error))
    except OSError as error:
        logging.raiseExceptions = False  # a full disk would fail the log file, too
        where = error.filename or f"OUTPUT_DIR {output_dir}"
        _end(f"{where}: {error.strerror or error}; the checkpoints written before are intact")


def _end(message: str) -> None:
    sys.exit(f"error: {message}")
