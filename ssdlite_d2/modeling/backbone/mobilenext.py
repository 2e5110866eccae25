"""MobileNeXt for SSD (Zhou et al. 2020, "Rethinking bottleneck structure")."""

import math
from typing import Callable, List

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import Tensor, nn
from torchvision.models._utils import _make_divisible

from ..norm import norm_builder
from .build import build_ssd_backbone
from .pyramid import SSDBackbone, Tap

# reduction of the middle, output channels, blocks, stride of the first (table 2 of the paper)
STAGES = (
    (2, 96, 1, 2),
    (6, 144, 1, 1),
    (6, 192, 3, 2),
    (6, 288, 3, 2),
    (6, 384, 4, 1),
    (6, 576, 4, 2),
    (6, 960, 3, 1),
    (6, 1280, 1, 1),
)
TAPS = (
    Tap("c3", block=5, channels=192, stride=8),
    Tap("c4", block=13, channels=576, stride=16, inside=5),  # before the stride-2 depthwise
    Tap("c5", block=20, channels=1280, stride=32, inside=8),
)

Norm = Callable[[int], nn.Module]


def depthwise(channels: int, stride: int, norm: Norm) -> List[nn.Module]:
    """A 3x3 convolution of each channel, and its norm."""
    return [
        nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False),
        norm(channels),
    ]


def pointwise(inputs: int, outputs: int, norm: Norm) -> List[nn.Module]:
    """A 1x1 convolution and its norm."""
    return [nn.Conv2d(inputs, outputs, 1, bias=False), norm(outputs)]


class SandglassBlock(nn.Module):
    """Depthwise at the wide ends, a narrow linear middle; layers in the order of its authors."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, reduction: int, norm: Norm, both: bool = False
    ):
        """
        Args:
            reduction: inputs over the channels of the middle, at least a sixth of the outputs.
            both: keep both depthwise convolutions though the block changes the channels.
        """
        super().__init__()
        middle = inputs // reduction
        if middle < outputs / 6:
            middle = _make_divisible(math.ceil(outputs / 6), 16)
        first = inputs == outputs or reduction == 2 or both
        second = first or stride == 2
        self.identity = inputs == outputs and stride == 1
        layers = [*depthwise(inputs, 1, norm), nn.ReLU6(inplace=True)] if first else []
        layers += pointwise(inputs, middle, norm)
        layers += [*pointwise(middle, outputs, norm), nn.ReLU6(inplace=True)]
        layers += depthwise(outputs, stride, norm) if second else []
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.identity else self.conv(x)


def mobilenext_features(norm: Norm) -> nn.Sequential:
    """The blocks of MobileNeXt at width 1."""
    channels = 32
    stem = nn.Conv2d(3, channels, 3, 2, 1, bias=False)
    blocks = [nn.Sequential(stem, norm(channels), nn.ReLU6(inplace=True))]
    for reduction, outputs, count, stride in STAGES:
        for i in range(count):
            both = count == 1 and stride == 1
            blocks.append(
                SandglassBlock(channels, outputs, stride if i == 0 else 1, reduction, norm, both)
            )
            channels = outputs
    for module in nn.Sequential(*blocks).modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    return nn.Sequential(*blocks)


@BACKBONE_REGISTRY.register()
def build_ssd_mobilenext_backbone(cfg, input_shape: ShapeSpec) -> SSDBackbone:
    """MobileNeXt with maps c3, c4, c5 (c4, c5 from inside its blocks) and the extra blocks."""
    return build_ssd_backbone(cfg, mobilenext_features(norm_builder(cfg)), TAPS)
