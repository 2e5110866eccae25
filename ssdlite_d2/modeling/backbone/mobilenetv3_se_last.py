"""MobileNetV3-Large with squeeze-excite at the end of its blocks, as pytorch-ssd has it."""

from functools import partial

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from ..norm import Norm, norm_builder
from .build import build_ssd_backbone
from .pyramid import SSDBackbone, Tap

# Kernel, width inside, output channels, squeeze-excite, stride. Unlike the paper's table 1, the
# last stage has its stride and its width of 960 one block later.
BLOCKS = (
    (3, 16, 16, False, 1),
    (3, 64, 24, False, 2),
    (3, 72, 24, False, 1),
    (5, 72, 40, True, 2),
    (5, 120, 40, True, 1),
    (5, 120, 40, True, 1),
    (3, 240, 80, False, 2),
    (3, 200, 80, False, 1),
    (3, 184, 80, False, 1),
    (3, 184, 80, False, 1),
    (3, 480, 112, True, 1),
    (3, 672, 112, True, 1),
    (5, 672, 160, True, 1),
    (5, 672, 160, True, 2),
    (5, 960, 160, True, 1),
)
FIRST_HARDSWISH = 6  # block with it; those before have ReLU
TAPS = (
    Tap("c3", block=6, channels=40, stride=8),
    Tap("c4", block=12, channels=112, stride=16),
    Tap("c5", block=16, channels=960, stride=32),
)


class NormedSqueezeExcitation(nn.Sequential):
    """Squeeze-excite whose 1x1 convolutions have norms instead of biases."""

    def __init__(self, channels: int, norm: Norm):
        middle = channels // 4
        super().__init__(
            nn.AdaptiveAvgPool2d(1),
            Conv2dNormActivation(channels, middle, 1, norm_layer=norm),
            Conv2dNormActivation(middle, channels, 1, norm_layer=norm, activation_layer=None),
            nn.Hardsigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * super().forward(x)


class SELastBlock(nn.Module):
    """1x1, depthwise, 1x1, squeeze-excite.

    At stride 1 its input is added, through a 1x1 convolution where the channels differ.
    """

    def __init__(self, inputs, kernel, width, outputs, has_se, stride, activation, norm: Norm):
        super().__init__()
        conv = partial(Conv2dNormActivation, norm_layer=norm, activation_layer=activation)
        linear = partial(conv, activation_layer=None)
        layers = [conv(inputs, width, 1), conv(width, width, kernel, stride, groups=width)]
        layers.append(linear(width, outputs, 1))
        if has_se:
            layers.append(NormedSqueezeExcitation(outputs, norm))
        self.block = nn.Sequential(*layers)
        self.has_shortcut = stride == 1
        is_same = stride > 1 or inputs == outputs
        self.shortcut = nn.Identity() if is_same else linear(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        return y + self.shortcut(x) if self.has_shortcut else y


def features(norm: Norm) -> nn.Sequential:
    """The stem, the blocks and the last 1x1 convolution."""
    channels = 16
    outside = partial(Conv2dNormActivation, norm_layer=norm, activation_layer=nn.Hardswish)
    blocks = [outside(3, channels, 3, stride=2)]
    for i, block in enumerate(BLOCKS):
        activation = nn.ReLU if i < FIRST_HARDSWISH else nn.Hardswish
        blocks.append(SELastBlock(channels, *block, activation, norm))
        channels = block[2]
    blocks.append(outside(channels, 960, 1))
    for module in nn.Sequential(*blocks).modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
    return nn.Sequential(*blocks)


@BACKBONE_REGISTRY.register()
def build_ssd_mobilenetv3_se_last_backbone(cfg, input_shape: ShapeSpec) -> SSDBackbone:
    """MobileNetV3-Large of pytorch-ssd with maps c3, c4, c5 and the extra blocks of the config.

    It is for that project's weights; ``build_ssd_mobilenetv3_backbone`` is the paper's.
    """
    return build_ssd_backbone(cfg, features(norm_builder(cfg)), TAPS)
