"""One training iteration: batch, losses, gradients, update."""

import contextlib
import signal
import threading
import time
from typing import Any, Dict, List, Optional

import numpy as np
import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..data.samplers import seed_generators
from ..errors import InputError
from .guards import NonFiniteGuard, WorkerDied


class TrainLoop(SimpleTrainer):
    """SimpleTrainer and AMPTrainer in one, on GPUs and CPUs, with gradient accumulation.

    Unlike them it looks at the losses and gradients of all processes before the weights change, and
    draws the network's own random numbers from the seed and the iteration, so that a resumed run
    draws the same.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader,
        optimizer: torch.optim.Optimizer,
        *,
        guard: NonFiniteGuard,
        accumulate: int = 1,
        amp_dtype: Optional[torch.dtype] = None,
    ):
        """
        Args:
            data_loader: its ``dataset`` is a TrainingStream.
            guard: decides what happens when a loss or gradient is not finite.
            accumulate: parts that a batch comes in, one forward and backward pass each.
            amp_dtype: ``torch.float16`` or ``torch.bfloat16`` for mixed precision.
        """
        super().__init__(model, data_loader, optimizer)
        self.guard = guard
        self.accumulate = accumulate
        self.amp_dtype = amp_dtype
        self._core = getattr(model, "module", model)
        self._device = next(model.parameters()).device
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        scaled = amp_dtype == torch.float16
        self.grad_scaler = torch.amp.GradScaler(self._device.type) if scaled else None

    def run_step(self) -> None:
        start = time.perf_counter()
        batch = self._next_batch()
        data_time = time.perf_counter() - start
        seed_generators(self.data_loader.dataset.seed, self.iter, comm.get_rank())
        buffers = self.guard.remember(self._core)
        self.optimizer.zero_grad()
        losses = self._gradients(batch)
        row = [*losses.values(), self._gradient_norm(), data_time]
        table = gather_rows(row)  # (processes, losses + 2)
        means = dict(zip(losses, table.mean(axis=0).tolist()))
        if not np.isfinite(table).all():
            self.guard.skip(self.iter, means, batch)
            self.guard.restore(self._core, buffers)
            self.optimizer.zero_grad()
            return
        self._record(means, data_time, table[:, -1].max())
        self._update()

    def _next_batch(self) -> List[Dict]:
        try:
            batch = next(self._data_loader_iter)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise WorkerDied(str(error)) from error
        except (ConnectionError, EOFError) as error:  # amid handing a batch over
            raise WorkerDied(f"A DataLoader worker has ended ({error!r})") from error
        if threading.current_thread() is threading.main_thread():
            # The loader has a worker's death raised wherever the program is, even amid an update of
            # the weights. Without that, the next batch tells.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return batch

    def _gradients(self, batch: List[Dict]) -> Dict[str, float]:
        """Run forward and backward, in parts; returns the losses of the whole batch.

        Each part is weighted by what its losses were divided by, over the first part's; divided by
        the sum of these weights, gradients are those of one batch.
        """
        size = -(-len(batch) // self.accumulate)
        parts = [batch[i : i + size] for i in range(0, len(batch), size)]
        total, first, whole = {}, None, 0.0
        for i, part in enumerate(parts):
            with self._local_gradients(i + 1 < len(parts)):
                losses, weight = self._forward(part), 1.0
                if len(parts) > 1:
                    count = self._count(part)
                    whole += count
                    first = first or self._divisor(count)
                    weight = self._divisor(count) / first
                self._backward(sum(losses.values()) * weight)
            for name, loss in losses.items():
                total[name] = total.get(name, 0.0) + loss.detach() * weight
        if len(parts) > 1:
            share = first / self._divisor(whole)
            torch._foreach_mul_([p.grad for p in self._parameters if p.grad is not None], share)
            total = {name: loss * share for name, loss in total.items()}
        return {name: loss.item() for name, loss in total.items()}

    def _count(self, part: List[Dict]) -> float:
        """What the losses of a part are a mean over.

        SSD tells it as ``batch_normalizer``. Losses of other meta-architectures are taken as means
        over the images, so that those of parts are averaged.
        """
        count = getattr(self._core, "batch_normalizer", None)
        return float(len(part) if count is None else count)

    def _divisor(self, count: float) -> float:
        """A count as SSD divides by it: without any positive anchor, by one of the job."""
        return max(count, 1 / comm.get_world_size())

    def _local_gradients(self, local: bool):
        """Leaves gradients of a part that is not the last to the process that computed them."""
        if local and isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return contextlib.nullcontext()

    def _forward(self, part: List[Dict]) -> Dict[str, Tensor]:
        half = self.amp_dtype is not None
        try:
            with torch.autocast(self._device.type, self.amp_dtype, enabled=half):
                return self.model(part)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise InputError(
                f"batch norm gets {len(part)} image of a map of 1 x 1; raise SOLVER.IMS_PER_BATCH, "
                "lower SOLVER.ACCUMULATE_STEPS, or set MODEL.SSD.NORM to GN or FrozenBN"
            ) from error

    def _backward(self, loss: Tensor) -> None:
        (self.grad_scaler.scale(loss) if self.grad_scaler else loss).backward()

    def _gradient_norm(self) -> float:
        """Of all gradients; 0 with float16, whose GradScaler leaves out what is not finite."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if self.grad_scaler or not gradients:
            return 0.0
        return torch.stack(torch._foreach_norm(gradients)).norm().item()

    def _update(self) -> None:
        self.after_backward()
        if self.grad_scaler is None:
            self.optimizer.step()
            return
        self.grad_scaler.unscale_(self.optimizer)  # before the optimizer clips
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _record(self, losses: Dict[str, float], data_time: float, slowest: float) -> None:
        """Put into the storage what SimpleTrainer puts there."""
        storage = get_event_storage()
        storage.put_scalar("rank_data_time", data_time)
        if comm.is_main_process():
            storage.put_scalar("data_time", slowest)
            storage.put_scalar("total_loss", sum(losses.values()))
            storage.put_scalars(**losses)

    def state_dict(self) -> Dict[str, Any]:
        state = super().state_dict()
        if self.grad_scaler:
            state["grad_scaler"] = self.grad_scaler.state_dict()
        return {**state, "skipped": self.guard.skipped}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.guard.skipped = state.get("skipped", 0)
        if self.grad_scaler and "grad_scaler" in state:
            self.grad_scaler.load_state_dict(state["grad_scaler"])


def gather_rows(row: List[float]) -> np.ndarray:
    """(processes, n): a row of n numbers from every process, in each of them."""
    if comm.get_world_size() == 1:
        return np.array([row])
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    mine = torch.tensor(row, dtype=torch.float64, device=device)
    rows = [torch.empty_like(mine) for _ in range(comm.get_world_size())]
    torch.distributed.all_gather(rows, mine)
    return torch.stack(rows).cpu().numpy()
