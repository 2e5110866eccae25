"""An exponential moving average of the weights."""

from typing import List

import torch
from detectron2.engine import HookBase
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class ModelEMA(AveragedModel):
    """PyTorch's AveragedModel with a decay that grows in the first iterations.

    After update n the average is ``d * average + (1 - d) * weights`` with
    ``d = min(decay, (1 + n) / (10 + n))``, so that a short run is not an average with its own
    random start. Running statistics of norms are averaged as well; counters are copied.

    ``module`` is the averaged model, in evaluation mode.
    """

    def __init__(self, model: nn.Module, decay: float = 0.999):
        """
        Args:
            model: not wrapped for data-parallel training; it is copied.
            decay: weight of the old average, once warm.
        """

        def average(averages: List[Tensor], weights: List[Tensor], count: Tensor) -> None:
            update_average(averages, weights, min(decay, warm_decay(int(count))))

        super().__init__(model, multi_avg_fn=average, use_buffers=True)
        self.module.eval()


def warm_decay(updates: int) -> float:
    """The largest decay after so many updates: a window that grows with the run."""
    return (1 + updates) / (10 + updates)


@torch.no_grad()
def update_average(averages: List[Tensor], weights: List[Tensor], decay: float) -> None:
    """Move averages towards weights, in place; integers are copied."""
    if averages[0].is_floating_point():
        torch._foreach_lerp_(averages, weights, 1 - decay)
    else:
        torch._foreach_copy_(averages, weights)


class EMAHook(HookBase):
    """Updates the average after every iteration; goes before whatever saves or evaluates it."""

    def __init__(self, ema: ModelEMA, model: nn.Module):
        """
        Args:
            model: the weights in training, perhaps wrapped for data-parallel training.
        """
        self._ema = ema
        self._model = getattr(model, "module", model)

    def after_step(self) -> None:
        self._ema.update_parameters(self._model)
