"""A neck that mixes the maps of a backbone, from coarse to fine and back."""

import math
from typing import Dict, List, Sequence

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn

from ...errors import InputError
from ..layers import ConvFactory, depthwise, fit, init_convolutions, pointwise
from ..norm import norm_builder
from ..parts import SSD_NECK_REGISTRY
from .blocks import guard_strided

KEY = "MODEL.SSD.NECK"


@SSD_NECK_REGISTRY.register(name="pan")
class PAN(Backbone):
    """A path aggregation network (Liu et al. 2018) of depthwise convolutions around a backbone.

    Every map is brought to the same channels. From the coarsest on, each is enlarged and mixed into
    the next finer one; then, from the finest on, each is halved and mixed into the next coarser
    one. One more map comes behind the coarsest, as in PicoDet (Yu et al. 2021): from it before and
    after the mixing. Unlike theirs, a mixture is a 1x1 convolution with one residual depthwise
    block behind it. Outputs are ``p<n>`` of stride 2^n.

    Maps need not be multiples of each other: one that is enlarged gets the size of the finer one.
    """

    @configurable
    def __init__(
        self,
        bottom_up: Backbone,
        *,
        in_features: Sequence[str],
        channels: int,
        convs: ConvFactory,
        kernel: int = 5,
    ):
        """
        Args:
            bottom_up: gives the maps.
            in_features: names of them, finest first, each of twice the stride of the one before.
            channels: of all outputs.
            kernel: side of the depthwise kernels.

        Raises:
            InputError: the backbone has no such maps, or their strides differ otherwise.
        """
        super().__init__()
        shapes = bottom_up.output_shape()
        strides = check_maps(in_features, shapes)
        if hasattr(bottom_up, "trunk_prefix"):
            self.trunk_prefix = f"bottom_up.{bottom_up.trunk_prefix}"
            self.trunk_names = bottom_up.trunk_names
        self.bottom_up = bottom_up
        self.in_features = list(in_features)
        self.laterals = nn.ModuleList(
            convs.pointwise(shapes[name].channels, channels) for name in in_features
        )
        steps = range(len(in_features) - 1)

        def halve() -> nn.Module:
            return convs.separable(channels, channels, kernel, stride=2)

        self.top_down = nn.ModuleList(Mixture(channels, kernel, convs) for _ in steps)
        self.halvings = nn.ModuleList(halve() for _ in steps)
        self.mixtures = nn.ModuleList(Mixture(channels, kernel, convs) for _ in steps)
        self.last_of_lateral = halve()
        self.last_of_output = halve()
        for name, child in self.named_children():
            if name != "bottom_up":
                init_convolutions(child)
                guard_strided(child)
        strides = [*strides, 2 * strides[-1]]
        self._shapes = {f"p{int(math.log2(s))}": ShapeSpec(channels, stride=s) for s in strides}

    @classmethod
    def from_config(cls, cfg, bottom_up: Backbone):
        node = cfg.MODEL.SSD.NECK
        return {
            "bottom_up": bottom_up,
            "in_features": node.IN_FEATURES,
            "channels": node.CHANNELS,
            "convs": ConvFactory(norm_builder(cfg), node.ACTIVATION, f"{KEY}.ACTIVATION"),
            "kernel": node.KERNEL_SIZE,
        }

    def output_shape(self) -> Dict[str, ShapeSpec]:
        return self._shapes

    def forward(self, x: Tensor) -> Dict[str, Tensor]:
        """
        Args:
            x: (N, 3, H, W) normalised images.

        Returns:
            dict: (N, channels, Hi, Wi) by name, finest first.
        """
        maps = self.bottom_up(x)
        inner = [lateral(maps[name]) for lateral, name in zip(self.laterals, self.in_features)]
        coarsest = inner[-1]
        for i in reversed(range(len(inner) - 1)):
            inner[i] = self.top_down[i](inner[i], fit(inner[i + 1], inner[i]))
        outputs: List[Tensor] = inner[:1]
        for halve, mix, finer in zip(self.halvings, self.mixtures, inner[1:]):
            outputs.append(mix(finer, fit(halve(outputs[-1]), finer)))
        outputs.append(self.last_of_lateral(coarsest) + self.last_of_output(outputs[-1]))
        return dict(zip(self._shapes, outputs))


class Mixture(nn.Module):
    """Two maps (N, C, Hi, Wi) to one: a 1x1 convolution of both, and a residual block."""

    def __init__(self, channels: int, kernel: int, convs: ConvFactory):
        super().__init__()
        self.reduce = convs.pointwise(2 * channels, channels)
        self.block = nn.Sequential(
            convs.activated(depthwise(channels, kernel)),
            pointwise(channels, channels),
            convs.norm(channels),  # linear at its end, as MobileNetV2's
        )

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        x = self.reduce(torch.cat((x, other), dim=1))
        return x + self.block(x)


def check_maps(names: Sequence[str], shapes: Dict[str, ShapeSpec]) -> List[int]:
    """The strides of a neck's maps.

    Raises:
        InputError: the backbone lacks a map, or strides do not double from one to the next.
    """
    unknown = [name for name in names if name not in shapes]
    if unknown or not names:
        raise InputError(
            f"{KEY}.IN_FEATURES names {', '.join(unknown) or 'no map'}; "
            f"the backbone has {', '.join(shapes)}"
        )
    strides = [shapes[name].stride for name in names]
    if any(b != 2 * a for a, b in zip(strides, strides[1:])):
        raise InputError(
            f"{KEY}.IN_FEATURES {', '.join(names)} have strides {', '.join(map(str, strides))}; "
            "each must be twice the one before"
        )
    return strides
