"""MobileNetV2 for SSD; the trunk is torchvision's."""

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torchvision.models import mobilenet_v2

from ...errors import InputError
from ..norm import norm_builder
from .extras import inverted_residual_extras
from .pyramid import SSDBackbone, Tap

C4 = {
    "block": Tap("c4", block=13, channels=96, stride=16),
    "expansion": Tap("c4", block=14, channels=576, stride=16, inside=1),
}
C5 = Tap("c5", block=18, channels=1280, stride=32)


@BACKBONE_REGISTRY.register()
def build_ssd_mobilenetv2_backbone(cfg, input_shape: ShapeSpec) -> SSDBackbone:
    """MobileNetV2 (:paper:`MobileNetV2`) with maps c4, c5 and the extra blocks of the config.

    Raises:
        InputError: MODEL.SSD.BACKBONE.TAP is unknown.
    """
    node = cfg.MODEL.SSD.BACKBONE
    if node.TAP not in C4:
        raise InputError(f"MODEL.SSD.BACKBONE.TAP is '{node.TAP}'; it is one of {', '.join(C4)}")
    norm = norm_builder(cfg)
    return SSDBackbone(
        mobilenet_v2(norm_layer=norm).features,
        taps=(C4[node.TAP], C5),
        extras=inverted_residual_extras(
            C5.channels, node.EXTRA_CHANNELS, node.EXTRA_EXPANSION, norm
        ),
        extra_channels=node.EXTRA_CHANNELS,
    )
