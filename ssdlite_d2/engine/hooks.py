"""What a training run does between its iterations."""

import json
import logging
import math
import os
from typing import Any, Callable, Dict, Optional

from detectron2.config import CfgNode
from detectron2.engine import HookBase, hooks
from detectron2.utils.events import EventStorage
from torch import nn

from ..checkpoint import SSDCheckpointer, numbered_checkpoints, read_weights
from ..evaluation.operating import RATES
from ..files import write_atomically
from .guards import StopSignal
from .train_loop import gather_rows

logger = logging.getLogger(__name__)


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
            self.save_after_the_end()

    def save_after_the_end(self, **extra: Any) -> None:
        """Save ``model_final.pth`` when the trainer counts one iteration more than it has done."""
        self.trainer.iter = self.max_iter - 1  # which the checkpoint holds, too
        self.save_final(self.trainer.iter, **extra)
        self.trainer.iter = self.max_iter

    def step(self, iteration: int) -> None:
        last = iteration >= self.max_iter - 1
        if (iteration + 1) % self.period == 0 or (last and self._final is not None):
            self.save_state(iteration)
        if last:
            self.save_final(iteration)

    def save_final(self, iteration: int, **extra: Any) -> None:
        """Save ``model_final.pth``."""
        if self._final is None:
            self.checkpointer.save("model_final", iteration=iteration, **extra)
        else:
            self.checkpointer.export("model_final", self._final, iteration=iteration, **extra)

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

    ``model_best.pth`` has weights only, those that the value belongs to, beside ``iteration``,
    ``best``: {metric, value}, and ``operating``, their evaluation's threshold. ``best.json`` says
    the same. Goes after EvalHook.
    """

    def __init__(self, period: int, checkpointer: SSDCheckpointer, models: Dict[str, nn.Module]):
        """
        Args:
            period: iterations between evaluations.
            models: by the metric of each, such as "bbox/AP" of the weights and "bbox_EMA/AP" of
                their average; the largest value of all counts.
        """
        super().__init__(period, checkpointer, " or ".join(models))
        self._models = models

    def before_train(self) -> None:
        file = os.path.join(self._checkpointer.save_dir, f"{self._file_prefix}.pth")
        if self.trainer.start_iter == 0 or not os.path.isfile(file):
            return
        saved = read_weights(file, mmap=True)
        best = saved.get("best", {})
        if best.get("metric") in self._models:
            self.best_metric, self.best_iter = best["value"], saved["iteration"]

    def _best_checking(self) -> None:
        latest = self.trainer.storage.latest()
        found = {key: latest[key] for key in self._models if key in latest}
        found = {key: pair for key, pair in found.items() if math.isfinite(pair[0])}
        if not found:
            self._logger.warning(f"SOLVER.BEST_METRIC: the evaluation gave no {self._val_metric}")
            return
        metric = max(found, key=found.get)
        value, iteration = found[metric]
        iteration = min(iteration, self.trainer.max_iter - 1)  # after_train counts one more
        if self.best_metric is not None and value <= self.best_metric:
            return
        best = {"metric": metric, "value": value}
        record = {"iteration": iteration}
        record["operating"] = operating_point(self.trainer.storage, metric)
        self._checkpointer.export(self._file_prefix, self._models[metric], best=best, **record)
        content = json.dumps({**best, "weights": kind_of(metric), **record}, indent=1)
        file = os.path.join(self._checkpointer.save_dir, "best.json")
        write_atomically(file, lambda out: out.write(content.encode()))
        self._logger.info(
            f"New best {metric}: {value:.4f}, {kind_of(metric)}, saved as {self._file_prefix}"
        )
        self._update_best(value, iteration)


class OperatingHook(HookBase):
    """Adds to ``model_final.pth`` the threshold of its evaluation, which comes after it is saved.

    Goes after EvalHook.
    """

    def __init__(self, checkpoints: PeriodicCheckpointer, metric: str):
        """
        Args:
            metric: of the weights in that file.
        """
        self._checkpoints, self._metric = checkpoints, metric

    def save(self, iteration: int) -> None:
        """Save the file after an evaluation, and before it the run's whole state."""
        self._checkpoints.save_state(iteration)
        self._checkpoints.save_final(iteration, operating=self._operating())

    def after_train(self) -> None:
        operating = self._operating()
        # not after a failure, not even in the last iteration: the threshold is an older one's then
        if self.trainer.iter == self.trainer.max_iter and operating:
            self._checkpoints.save_after_the_end(operating=operating)

    def _operating(self) -> Dict[str, float]:
        return operating_point(self.trainer.storage, self._metric)


class EarlyStop(BaseException):
    """Ends the training loop, which takes an Exception for a failure."""


class PatienceHook(HookBase):
    """Ends the run when so many evaluations in a row gave no better weights; goes last."""

    def __init__(
        self,
        period: int,
        patience: int,
        best: Optional[BestCheckpointer] = None,
        save: Optional[Callable[[int], None]] = None,
    ):
        """
        Args:
            period: iterations between evaluations.
            patience: evaluations.
            best, save: the main process's: what knows the best, and what saves the end of the run.
        """
        self._period, self._patience, self._best, self._save = period, patience, best, save

    def after_step(self) -> None:
        iteration = self.trainer.iter
        if (iteration + 1) % self._period or iteration + 1 == self.trainer.max_iter:
            return
        best = self._best and self._best.best_iter
        late = best is not None and iteration - best >= self._patience * self._period
        if not gather_rows([float(late)]).any():  # what the main process finds
            return
        if self._save:
            self._save(iteration)
        logger.info(
            f"SOLVER.PATIENCE {self._patience}: training ends after iteration {iteration}, since "
            f"the best weights are those of iteration {best}"
        )
        raise EarlyStop


def operating_point(storage: EventStorage, metric: str) -> Dict[str, float]:
    """``threshold`` and rates of the evaluation that gave a metric; empty when it has none.

    Args:
        metric: such as "bbox_EMA/AP", or "<data set>/bbox/AP".
    """
    *place, task, _ = metric.split("/")
    prefix = "/".join([*place, "operating_EMA" if task.endswith("_EMA") else "operating", ""])
    latest = storage.latest()
    values = {k: latest[prefix + k][0] for k in ("threshold", *RATES) if prefix + k in latest}
    return {key: value for key, value in values.items() if math.isfinite(value)}


def metric_of(cfg: CfgNode, is_average: bool) -> str:
    """The AP of the first test set, of the weights or of their average."""
    name = f"{cfg.DATASETS.TEST[0]}/" if len(cfg.DATASETS.TEST) > 1 else ""
    return f"{name}bbox{'_EMA' if is_average else ''}/AP"


def of_average(metric: str) -> str:
    """The metric of the average of the weights: "bbox_EMA/AP" of "bbox/AP"."""
    task, _, name = metric.rpartition("/")
    return metric if task.endswith("_EMA") else f"{task}_EMA/{name}"


def kind_of(metric: str) -> str:
    """Which weights a metric belongs to."""
    return "the average of the weights" if "_EMA/" in metric else "the weights as trained"


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
