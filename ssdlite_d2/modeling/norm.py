"""Normalisation layers from the config."""

from typing import Callable

from detectron2.layers import get_norm
from torch import nn

Norm = Callable[[int], nn.Module]


def norm_builder(cfg) -> Norm:
    """``channels -> module`` by MODEL.SSD.NORM, NORM_EPS and NORM_MOMENTUM.

    PyTorch's SyncBatchNorm knows GPUs only; on CPU processes Detectron2's NaiveSyncBatchNorm, which
    computes the same, takes its place.
    """
    node = cfg.MODEL.SSD
    name = node.NORM
    if name == "SyncBN" and not cfg.MODEL.DEVICE.startswith("cuda"):
        name = "naiveSyncBN"

    def build(channels: int) -> nn.Module:
        norm = get_norm(name, channels)
        for key, value in (("eps", node.NORM_EPS), ("momentum", node.NORM_MOMENTUM)):
            if hasattr(norm, key):
                setattr(norm, key, value)
        return norm

    return build
