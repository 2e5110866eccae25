"""Blocks behind the trunk."""

from typing import Callable, List, Sequence

from torch import nn
from torchvision.models.mobilenetv2 import InvertedResidual

from ...errors import InputError


def inverted_residual_extras(
    in_channels: int,
    channels: Sequence[int],
    expansions: Sequence[float],
    norm: Callable[[int], nn.Module],
) -> List[nn.Module]:
    """Stride-2 inverted residuals with a linear output, as in the reference SSDLite.

    Args:
        in_channels: of the trunk's last map.
        channels: output channels of each block.
        expansions: width inside each block, as a ratio of its input channels.

    Raises:
        InputError: the lists differ in length.
    """
    if len(channels) != len(expansions):
        raise InputError(
            f"MODEL.SSD.BACKBONE.EXTRA_CHANNELS has {len(channels)} entries and EXTRA_EXPANSION "
            f"has {len(expansions)}"
        )
    blocks = []
    for out_channels, expansion in zip(channels, expansions):
        blocks.append(InvertedResidual(in_channels, out_channels, 2, expansion, norm_layer=norm))
        in_channels = out_channels
    for block in blocks:
        for module in block.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
    return blocks
