"""What the builders of all trunks have in common."""

from typing import Optional, Sequence, Type

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


def build_ssd_backbone(
    cfg: CfgNode,
    features: nn.Module,
    taps: Sequence[Tap],
    *,
    kind: Type[SSDBackbone] = SSDBackbone,
    blocks: Optional[Sequence[str]] = None,
    same: bool = False,
) -> SSDBackbone:
    """A trunk with the extra blocks and the padding of the config.

    Args:
        features: the trunk; a Sequential, unless ``kind`` runs it in its own way.
        blocks: names of the parts that FREEZE_AT counts; None: those of the Sequential.
        same: the trunk has SAME padding whatever the config says.

    Raises:
        InputError: an option of MODEL.SSD.BACKBONE is unknown, or its lists differ in length.
    """
    node = cfg.MODEL.SSD.BACKBONE
    one_of("MODEL.SSD.BACKBONE.PADDING", node.PADDING, ("symmetric", "same"))
    extras = build_extras(taps[-1].channels, node, norm_builder(cfg))
    if node.PADDING == "same" or same:
        pad_same(features)
    if node.PADDING == "same" and node.EXTRA_BLOCK != "conv":  # whose padding EXTRA_CONVS says
        pad_same(extras)
    for module in (features, extras):
        guard_strided(module)
    names = list(features._modules) if blocks is None else blocks
    freeze(features, names, node.FREEZE_AT, node.FREEZE_NORM)
    return kind(features, taps, extras, node.EXTRA_CHANNELS)


def freeze(features: nn.Module, blocks: Sequence[str], count: int, norms: bool) -> None:
    """Keep the first blocks of a trunk, and all its batch norms if wanted, as they are loaded.

    Args:
        blocks: names of all blocks, in their order.

    Raises:
        InputError: the trunk has not so many blocks.
    """
    if not 0 <= count <= len(blocks):
        raise InputError(
            f"MODEL.SSD.BACKBONE.FREEZE_AT is {count}; the trunk has {len(blocks)} blocks"
        )
    for i, name in enumerate(blocks):
        block = features.get_submodule(name)
        if norms or i < count:
            block = FrozenBatchNorm2d.convert_frozen_batchnorm(block)
            parent, _, place = name.rpartition(".")
            setattr(features.get_submodule(parent), place, block)
        if i < count:
            block.requires_grad_(False)
