"""Parts that several trunks share and torchvision does not have as they are needed."""

import math
from functools import partial
from typing import Callable, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.mobilenetv3 import InvertedResidual, InvertedResidualConfig
from torchvision.ops import SqueezeExcitation


class Conv2dSame(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding: the odd row and column at bottom and right."""

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        sizes = map(int, x.shape[:1:-1])  # constants in exported graphs
        for size, kernel, stride in zip(sizes, self.kernel_size[::-1], self.stride[::-1]):
            total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(x, pads))


class StridedConv2d(nn.Conv2d):
    """A strided convolution whose weight gradient is right in bfloat16 on small maps, too.

    On the CPU, the gradient of taps that see nothing but padding is uninitialised memory. In
    training, small maps are padded beforehand: no tap sees padding then. See
    docs/pytorch-bf16-depthwise.md.
    """

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
        is_small = min(x.shape[2:]) < max(self.kernel_size) + max(self.stride)
        if not (self.training and is_small and x.device.type == "cpu"):
            return super()._conv_forward(x, weight, bias)
        height, width = self.padding
        x = F.pad(x, (width, width, height, height))
        return F.conv2d(x, weight, bias, self.stride, 0, self.dilation, self.groups)


def guard_strided(module: nn.Module) -> None:
    """Make every strided Conv2d of a module a StridedConv2d, in place; names stay."""
    for child in module.modules():
        if type(child) is nn.Conv2d and max(child.stride) > 1:
            child.__class__ = StridedConv2d


def pad_same(module: nn.Module) -> None:
    """Give every strided convolution of a module SAME padding, in place.

    At stride 1 symmetric padding of odd kernels is the same already.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d) and max(child.stride) > 1 and max(child.kernel_size) > 1:
            same = Conv2dSame(
                child.in_channels,
                child.out_channels,
                child.kernel_size,
                child.stride,
                groups=child.groups,
                bias=child.bias is not None,
            )
            same.load_state_dict(child.state_dict())
            setattr(module, name, same)
        else:
            pad_same(child)


class ActivatedSqueezeExcitation(SqueezeExcitation):
    """Squeeze-excite followed by the activation that usually comes before it."""

    def __init__(self, *args, after: nn.Module, **kwargs):
        super().__init__(*args, **kwargs)
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(super().forward(x))


def se_before_activation(config: InvertedResidualConfig, norm: Callable) -> InvertedResidual:
    """torchvision's MobileNetV3 block with squeeze-excite before the depthwise's activation."""
    activation = nn.Hardswish if config.use_hs else nn.ReLU
    layer = partial(
        ActivatedSqueezeExcitation, scale_activation=nn.Hardsigmoid, after=activation(inplace=True)
    )
    residual = InvertedResidual(config, norm, se_layer=layer)
    if config.use_se:
        depthwise = residual.block[-3]
        depthwise[2] = nn.Identity()
    return residual


class L2Norm(nn.Module):
    """Scales the vector of channels at every place to a learnt length (:paper:`SSD`, sec. 3.1)."""

    def __init__(self, channels: int, scale: float = 20.0):
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), scale))

    def forward(self, x: Tensor) -> Tensor:
        # not F.normalize, whose expansion LiteRT's converter turns to another layout than its input
        length = x.norm(dim=1, keepdim=True).clamp(min=1e-12)
        return x / length * self.weight.view(1, -1, 1, 1)
