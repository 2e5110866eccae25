"""The convolutions that necks and heads are made of."""

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import one_of
from .norm import Norm

ACTIVATIONS = {
    "relu6": nn.ReLU6,
    "relu": nn.ReLU,
    "leaky_relu": lambda inplace: nn.LeakyReLU(0.1, inplace),
    "hardswish": nn.Hardswish,
}


class ConvFactory:
    """Builds convolutions that a norm and an activation follow."""

    def __init__(self, norm: Norm, activation: str, key: str):
        """
        Args:
            norm: builds a normalisation layer from its channels.
            activation: one of ACTIVATIONS.
            key: the config key of the activation, for the error.

        Raises:
            InputError: the activation is unknown.
        """
        self.norm = norm
        self._activation = ACTIVATIONS[one_of(key, activation, ACTIVATIONS)]

    def activated(self, conv: nn.Conv2d) -> nn.Sequential:
        """A convolution, its norm, its activation."""
        return nn.Sequential(conv, self.norm(conv.out_channels), self._activation(inplace=True))

    def pointwise(self, inputs: int, outputs: int) -> nn.Sequential:
        return self.activated(pointwise(inputs, outputs))

    def separable(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
        """Depthwise, then 1x1, both activated (:paper:`MobileNet`, sec. 3.1)."""
        return nn.Sequential(
            self.activated(depthwise(inputs, kernel, stride)), self.pointwise(inputs, outputs)
        )


def pointwise(inputs: int, outputs: int) -> nn.Conv2d:
    """A 1x1 convolution."""
    return nn.Conv2d(inputs, outputs, 1, bias=False)


def depthwise(channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution of each channel alone; at stride 2 the map is half as large, rounded up."""
    return nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False)


def init_convolutions(module: nn.Module) -> None:
    """He's initialisation by what reaches an output; a depthwise one has few inputs."""
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d):
            nn.init.kaiming_normal_(conv.weight, mode="fan_in", nonlinearity="relu")
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)


def fit(x: Tensor, like: Tensor) -> Tensor:
    """A map (N, C, h, w) at the size of another one, by the nearest cell."""
    size, wanted = ([int(n) for n in y.shape[-2:]] for y in (x, like))
    if size == wanted:
        return x
    if wanted == [2 * n for n in size]:  # a factor is a constant in exported graphs
        return F.interpolate(x, scale_factor=2.0, mode="nearest")
    return F.interpolate(x, wanted, mode="nearest")
