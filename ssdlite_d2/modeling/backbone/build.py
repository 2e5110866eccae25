"""What the builders of all trunks have in common."""

from typing import Sequence

from detectron2.config import CfgNode
from torch import nn

from ...errors import InputError
from ..norm import norm_builder
from .extras import build_extras
from .pyramid import SSDBackbone, Tap


def choose_tap(cfg: CfgNode, taps) -> Tap:
    """The c4 that MODEL.SSD.BACKBONE.TAP names.

    Raises:
        InputError: the trunk has no such tap.
    """
    name = cfg.MODEL.SSD.BACKBONE.TAP
    if name not in taps:
        raise InputError(f"MODEL.SSD.BACKBONE.TAP is '{name}'; it is one of {', '.join(taps)}")
    return taps[name]


def build_ssd_backbone(cfg: CfgNode, features: nn.Sequential, taps: Sequence[Tap]) -> SSDBackbone:
    """A trunk with the extra blocks and the padding of the config."""
    node = cfg.MODEL.SSD.BACKBONE
    return SSDBackbone(
        features,
        taps=taps,
        extras=build_extras(taps[-1].channels, node, norm_builder(cfg)),
        extra_channels=node.EXTRA_CHANNELS,
        padding=node.PADDING,
    )
