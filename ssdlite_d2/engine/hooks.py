"""What a training run does between its iterations."""

import math
import os
from typing import Callable, Optional

from detectron2.engine import HookBase, hooks
from torch import nn

from ..checkpoint import SSDCheckpointer, numbered_checkpoints, read_weights
from .guards import StopSignal
from .train_loop import gather_rows


class PeriodicCheckpointer(hooks.PeriodicCheckpointer):
    """The parent, which can keep the newest files only and end with the averaged weights.

    The parent's own ``max_to_keep`` knows the files of this process only: those that a run wrote
    before it was resumed would stay for ever.

    Saves ``model_<iteration>.pth`` and, at the end, ``model_final.pth``. When that is the average,
    it has nothing else, and the run's whole state is in a ``model_<iteration>.pth`` beside it.
    """

    def __init__(
        self,
        checkpointer: SSDCheckpointer,
        period: int,
        keep: int = 0,
        final: Optional[nn.Module] = None,
    ):
        """
        Args:
            period: iterations between checkpoints.
            keep: how many of the newest are kept; 0: all.
            final: the model that ``model_final.pth`` has; None: the one in training, with the
                run's whole state.
        """
        super().__init__(checkpointer, period)
        self._keep = keep
        self._final = final

    def before_train(self) -> None:
        """Save the ``model_final.pth`` of a run that was killed just before it."""
        super().before_train()
        if self.trainer.start_iter == self.max_iter:
            self.trainer.iter = self.max_iter - 1
            self.save_final(self.trainer.iter)
            self.trainer.iter = self.max_iter

    def step(self, iteration: int) -> None:
        last = iteration >= self.max_iter - 1
        if (iteration + 1) % self.period == 0 or (last and self._final is not None):
            self.save_state(iteration)
        if last:
            self.save_final(iteration)

    def save_final(self, iteration: int) -> None:
        """Save ``model_final.pth``."""
        if self._final is None:
            self.checkpointer.save("model_final", iteration=iteration)
        else:
            self.checkpointer.export("model_final", self._final, iteration=iteration)

    def save_state(self, iteration: int) -> None:
        """Save ``model_<iteration>.pth`` and delete what is not kept, of other iterations."""
        name = checkpoint_name(iteration)
        self.checkpointer.save(name, iteration=iteration)
        files = numbered_checkpoints(self.checkpointer.save_dir)
        others = [file for file in files if file.stem != name]
        for file in others[: max(0, len(others) + 1 - self._keep)] if self._keep else []:
            file.unlink()


class BestCheckpointer(hooks.BestCheckpointer):
    """The parent, which remembers its best value across runs and knows the averaged weights.

    ``model_best.pth`` has weights only, those that the value belongs to, beside ``iteration`` and
    ``best``: {metric, value}. Goes after EvalHook.
    """

    def __init__(self, period: int, checkpointer: SSDCheckpointer, metric: str, model: nn.Module):
        """
        Args:
            period: iterations between evaluations.
            metric: such as "bbox/AP"; larger is better.
            model: whose results have that name.
        """
        super().__init__(period, checkpointer, metric)
        self._model = model

    def before_train(self) -> None:
        file = os.path.join(self._checkpointer.save_dir, f"{self._file_prefix}.pth")
        if self.trainer.start_iter == 0 or not os.path.isfile(file):
            return
        saved = read_weights(file, mmap=True)
        best = saved.get("best", {})
        if best.get("metric") == self._val_metric:
            self.best_metric, self.best_iter = best["value"], saved["iteration"]

    def _best_checking(self) -> None:
        value, iteration = self.trainer.storage.latest().get(self._val_metric, (math.nan, 0))
        if not math.isfinite(value):
            self._logger.warning(f"SOLVER.BEST_METRIC: the evaluation gave no {self._val_metric}")
            return
        if self.best_metric is not None and value <= self.best_metric:
            return
        best = {"metric": self._val_metric, "value": value}
        self._checkpointer.export(self._file_prefix, self._model, iteration=iteration, best=best)
        self._logger.info(f"New best {self._val_metric}: {value:.4f}, saved as {self._file_prefix}")
        self._update_best(value, iteration)


class PreciseBN(hooks.PreciseBN):
    """The parent on the same batches every time, so that a resumed run has the same statistics."""

    def update_stats(self) -> None:
        self._data_iter = None
        super().update_stats()


class StopHook(HookBase):
    """Ends the run after the iteration in which a signal to stop came to any of its processes."""

    def __init__(self, stop: StopSignal, end: Callable[[int, int], None]):
        """
        Args:
            end: saves the run's state and ends the program, given the last iteration and the
                signal's number; called in every process.
        """
        self._stop = stop
        self._end = end

    def after_step(self) -> None:
        # Processes may hear of it in different iterations: they stop together.
        numbers = gather_rows([float(self._stop.received)])
        if numbers.any():
            self._end(self.trainer.iter, int(numbers[numbers > 0].min()))  # SIGINT before SIGTERM


def checkpoint_name(iteration: int) -> str:
    """Name of the checkpoint after an iteration, without its suffix."""
    return f"model_{iteration:07d}"
