"""What a training run does between its iterations."""

from typing import Optional

from detectron2.engine import hooks
from torch import nn


class PeriodicCheckpointer(hooks.PeriodicCheckpointer):
    """The parent, whose last file can be the averaged weights.

    ``model_final.pth`` then has nothing but them; the run's whole state at its last iteration is in
    a ``model_<iteration>.pth``, from which a longer run resumes.
    """

    def __init__(self, checkpointer, period: int, final: Optional[nn.Module] = None):
        """
        Args:
            period: iterations between checkpoints.
            final: the model that ``model_final.pth`` has; None: the one in training, with the
                run's whole state.
        """
        super().__init__(checkpointer, period)
        self._final = final

    def step(self, iteration: int) -> None:
        last = iteration >= self.max_iter - 1
        if not last or self._final is None:
            super().step(iteration)
            return
        self.checkpointer.save(f"{self.file_prefix}_{iteration:07d}", iteration=iteration)
        self.checkpointer.export(f"{self.file_prefix}_final", self._final, iteration=iteration)
