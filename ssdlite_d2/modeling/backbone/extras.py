"""Blocks behind the trunk, each of stride 2 or so, by MODEL.SSD.BACKBONE.EXTRA_BLOCK."""

from typing import Callable, List

from detectron2.config import CfgNode
from torch import nn
from torchvision.models import mobilenetv3
from torchvision.models._utils import _make_divisible
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.ops import Conv2dNormActivation

from ...errors import InputError, one_of
from .blocks import se_before_activation

Norm = Callable[[int], nn.Module]


def inverted_residual(inputs: int, outputs: int, expansion: float, norm: Norm) -> nn.Module:
    """MobileNetV2's block, linear at its end; ``expansion`` is its width over its inputs."""
    return InvertedResidual(inputs, outputs, 2, expansion, norm_layer=norm)


def inverted_residual_v3(inputs: int, outputs: int, expansion: float, norm: Norm) -> nn.Module:
    """MobileNetV3's block with squeeze-excite before its activation, as lufficc/SSD has it."""
    return se_before_activation(_mobilenetv3(inputs, outputs, expansion, has_se=True), norm)


def inverted_residual_hardswish(
    inputs: int, outputs: int, expansion: float, norm: Norm
) -> nn.Module:
    """MobileNetV3's block without squeeze-excite, as pytorch-ssd has it."""
    config = _mobilenetv3(inputs, outputs, expansion, has_se=False)
    return mobilenetv3.InvertedResidual(config, norm)


def _mobilenetv3(inputs: int, outputs: int, expansion: float, has_se: bool):
    width = _make_divisible(inputs * expansion, 8)
    return mobilenetv3.InvertedResidualConfig(inputs, 3, width, outputs, has_se, "HS", 2, 1, 1.0)


def depthwise(inputs: int, outputs: int, expansion: float, norm: Norm) -> nn.Module:
    """1x1, depthwise 3x3, 1x1, each with ReLU6; ``expansion`` is the width over the outputs."""
    width, relu = int(outputs * expansion), nn.ReLU6
    options = {"norm_layer": norm, "activation_layer": relu}
    return nn.Sequential(
        Conv2dNormActivation(inputs, width, 1, **options),
        Conv2dNormActivation(width, width, 3, stride=2, groups=width, **options),
        Conv2dNormActivation(width, outputs, 1, **options),
    )


def sandglass(inputs: int, outputs: int, expansion: float, norm: Norm) -> nn.Module:
    """Depthwise 3x3, 1x1 to a narrow linear middle, 1x1: the reference's behind MobileNeXt."""
    width = int(inputs * expansion)
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, 2, 1, groups=inputs, bias=False),
        norm(inputs),
        nn.ReLU6(inplace=True),
        nn.Conv2d(inputs, width, 1, bias=False),
        norm(width),
        nn.Conv2d(width, outputs, 1, bias=False),
        norm(outputs),
        nn.ReLU6(inplace=True),
    )


BLOCKS = {
    "inverted_residual": inverted_residual,
    "inverted_residual_v3": inverted_residual_v3,
    "inverted_residual_hardswish": inverted_residual_hardswish,
    "depthwise": depthwise,
    "sandglass": sandglass,
}


def conv_extras(inputs: int, cfg: CfgNode) -> List[nn.Module]:
    """1x1 to half of the outputs, then a larger convolution (:paper:`SSD`, fig. 2); no norm.

    EXTRA_CONVS has (kernel, stride, padding) of the latter.
    """
    blocks = []
    for outputs, (kernel, stride, padding) in zip(cfg.EXTRA_CHANNELS, cfg.EXTRA_CONVS):
        blocks.append(
            nn.Sequential(
                nn.Conv2d(inputs, outputs // 2, 1),
                nn.ReLU(inplace=True),
                nn.Conv2d(outputs // 2, outputs, kernel, stride, padding),
                nn.ReLU(inplace=True),
            )
        )
        inputs = outputs
    return blocks


def build_extras(inputs: int, cfg: CfgNode, norm: Norm) -> nn.ModuleList:
    """The extra blocks of a MODEL.SSD.BACKBONE node behind a trunk of ``inputs`` channels.

    Raises:
        InputError: the block is unknown, or the lists differ in length.
    """
    key = "MODEL.SSD.BACKBONE"
    known = (*BLOCKS, "conv")
    one_of(f"{key}.EXTRA_BLOCK", cfg.EXTRA_BLOCK, known)
    other = "EXTRA_CONVS" if cfg.EXTRA_BLOCK == "conv" else "EXTRA_EXPANSION"
    if len(cfg.EXTRA_CHANNELS) != len(cfg[other]):
        raise InputError(
            f"{key}.EXTRA_CHANNELS has {len(cfg.EXTRA_CHANNELS)} entries and {other} has "
            f"{len(cfg[other])}"
        )
    if cfg.EXTRA_BLOCK == "conv":
        blocks = conv_extras(inputs, cfg)
    else:
        blocks = []
        for outputs, expansion in zip(cfg.EXTRA_CHANNELS, cfg.EXTRA_EXPANSION):
            blocks.append(BLOCKS[cfg.EXTRA_BLOCK](inputs, outputs, expansion, norm))
            inputs = outputs
    extras = nn.ModuleList(blocks)
    for module in extras.modules():
        if isinstance(module, nn.Conv2d):
            if module.bias is None:
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif cfg.EXTRA_BLOCK == "conv":
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
    return extras
