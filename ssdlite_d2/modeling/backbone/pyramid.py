"""SSD's feature maps: tensors tapped from a classification trunk, and blocks behind it."""

from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn


class Tap(NamedTuple):
    """Where a feature map leaves the trunk.

    Attributes:
        name: name of the map, such as ``"c4"``.
        block: index of the trunk's block.
        channels, stride: of the map.
        inside: None taps the block's output; n taps what the first n layers inside it give. Only a
            block without a residual connection can be tapped inside.
        norm: a layer for the map alone, or None; the trunk goes on from the tensor before it.
    """

    name: str
    block: int
    channels: int
    stride: int
    inside: Optional[int] = None
    norm: Optional[nn.Module] = None


class SSDBackbone(Backbone):
    """A trunk with taps, followed by stride-2 blocks that each give one more map.

    Attributes:
        trunk_prefix: what the names of the trunk's parameters begin with.
        trunk_names: name of a tensor in timm's files, its dots as underscores -> its name in the
            trunk; {}: the trunk is not timm's.
    """

    trunk_prefix = "features."
    trunk_names: Dict[str, str] = {}

    def __init__(
        self,
        features: nn.Module,
        taps: Sequence[Tap],
        extras: nn.ModuleList,
        extra_channels: Sequence[int],
    ):
        """
        Args:
            features: the trunk's blocks. Their names are those of the trunk's own checkpoint files,
                whose tensors load under the model's ``trunk_prefix``.
            taps: in the order of the trunk; the last is its end.
            extras: blocks of stride 2, maps ``extra0``, ``extra1``, ...
            extra_channels: output channels of each.
        """
        super().__init__()
        self.features = features
        self.extras = extras
        self.taps = {tap.block: tap for tap in taps}
        self.tap_norms = nn.ModuleDict({tap.name: tap.norm for tap in taps if tap.norm})
        shapes = {tap.name: ShapeSpec(channels=tap.channels, stride=tap.stride) for tap in taps}
        for i, channels in enumerate(extra_channels):
            shapes[f"extra{i}"] = ShapeSpec(
                channels=channels, stride=taps[-1].stride * 2 ** (i + 1)
            )
        self._shapes = shapes

    def output_shape(self) -> Dict[str, ShapeSpec]:
        return self._shapes

    def forward(self, x: Tensor) -> Dict[str, Tensor]:
        """
        Args:
            x: (N, 3, H, W) normalised images.

        Returns:
            dict: (N, Ci, Hi, Wi) by name, finest first.
        """
        x, outputs = self.trunk_maps(x)
        for i, block in enumerate(self.extras):
            outputs[f"extra{i}"] = x = block(x)
        return outputs

    def trunk_maps(self, x: Tensor) -> Tuple[Tensor, Dict[str, Tensor]]:
        """What comes out of the trunk, and the maps tapped from it by name."""
        outputs = {}
        for i, block in enumerate(self.features):
            tap = self.taps.get(i)
            if tap is None:
                x = block(x)
                continue
            inside = [block] if tap.inside is None else layers_of(block)
            for layer in inside[: tap.inside]:
                x = layer(x)
            outputs[tap.name] = self.tap_norms[tap.name](x) if tap.name in self.tap_norms else x
            for layer in inside[tap.inside :] if tap.inside else ():
                x = layer(x)
        return x, outputs


def layers_of(block: nn.Module) -> List[nn.Module]:
    """The layers inside a mobile block: torchvision's and MobileNeXt's name them so."""
    return list(block.conv if hasattr(block, "conv") else block.block)


def trunk_prefix(model: nn.Module) -> Optional[str]:
    """What the names of the trunk's parameters begin with in a detector.

    None where the backbone does not tell: it has no attribute ``trunk_prefix``.
    """
    prefix = getattr(getattr(model, "backbone", None), "trunk_prefix", None)
    return None if prefix is None else f"backbone.{prefix}"
