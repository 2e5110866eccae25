"""What the builders of all trunks have in common."""

from typing import Sequence

from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from ...errors import InputError, one_of
from ..norm import norm_builder
from .blocks import guard_strided, pad_same
from .extras import build_extras
from .pyramid import SSDBackbone, Tap


def choose_tap(cfg: CfgNode, taps) -> Tap:
    """The c4 that MODEL.SSD.BACKBONE.TAP names.

    Raises:
        InputError: the trunk has no such tap.
    """
    return taps[one_of("MODEL.SSD.BACKBONE.TAP", cfg.MODEL.SSD.BACKBONE.TAP, taps)]


def build_ssd_backbone(cfg: CfgNode, features: nn.Sequential, taps: Sequence[Tap]) -> SSDBackbone:
    """A trunk with the extra blocks and the padding of the config.

    Raises:
        InputError: an option of MODEL.SSD.BACKBONE is unknown, or its lists differ in length.
    """
    node = cfg.MODEL.SSD.BACKBONE
    one_of("MODEL.SSD.BACKBONE.PADDING", node.PADDING, ("symmetric", "same"))
    extras = build_extras(taps[-1].channels, node, norm_builder(cfg))
    if node.PADDING == "same":
        pad_same(features)
        if node.EXTRA_BLOCK != "conv":  # whose padding EXTRA_CONVS says
            pad_same(extras)
    for module in (features, extras):
        guard_strided(module)
    freeze(features, node.FREEZE_AT, node.FREEZE_NORM)
    return SSDBackbone(features, taps, extras, node.EXTRA_CHANNELS)


def freeze(features: nn.Sequential, blocks: int, norms: bool) -> None:
    """Keep the first blocks of a trunk, and all its batch norms if wanted, as they are loaded.

    Raises:
        InputError: the trunk has not so many blocks.
    """
    if not 0 <= blocks <= len(features):
        raise InputError(
            f"MODEL.SSD.BACKBONE.FREEZE_AT is {blocks}; the trunk has {len(features)} blocks"
        )
    for i, block in enumerate(features):
        if norms or i < blocks:
            features[i] = FrozenBatchNorm2d.convert_frozen_batchnorm(block)
        if i < blocks:
            features[i].requires_grad_(False)
