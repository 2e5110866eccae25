"""SSD's feature maps: tensors tapped from a classification trunk, and blocks behind it."""

from typing import Dict, NamedTuple, Optional, Sequence

from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn


class Tap(NamedTuple):
    """Where a feature map leaves the trunk.

    Attributes:
        name: name of the map, such as ``"c4"``.
        block: index of the trunk's block.
        channels, stride: of the map.
        inside: None taps the block's output; n taps what the first n children of its ``conv`` give.
            Only a block without a residual connection can be tapped inside.
    """

    name: str
    block: int
    channels: int
    stride: int
    inside: Optional[int] = None


class SSDBackbone(Backbone):
    """A trunk with taps, followed by stride-2 blocks that each give one more map."""

    def __init__(
        self,
        features: nn.Sequential,
        taps: Sequence[Tap],
        extras: Sequence[nn.Module],
        extra_channels: Sequence[int],
    ):
        """
        Args:
            features: the trunk's blocks. Their names are those of the trunk's own checkpoint files,
                whose tensors load under the prefix ``backbone.``.
            taps: in the order of the trunk; the last is its end.
            extras: blocks of stride 2, maps ``extra0``, ``extra1``, ...
            extra_channels: output channels of each.
        """
        super().__init__()
        self.features = features
        self.extras = nn.ModuleList(extras)
        self.taps = {tap.block: tap for tap in taps}
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
            x: (N, 3, H, W) normalised pictures.

        Returns:
            dict: (N, Ci, Hi, Wi) by name, finest first.
        """
        outputs = {}
        for i, block in enumerate(self.features):
            tap = self.taps.get(i)
            if tap is not None and tap.inside is not None:
                outputs[tap.name] = x = block.conv[: tap.inside](x)
                x = block.conv[tap.inside :](x)
                continue
            x = block(x)
            if tap is not None:
                outputs[tap.name] = x
        for i, block in enumerate(self.extras):
            outputs[f"extra{i}"] = x = block(x)
        return outputs
