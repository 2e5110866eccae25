"""MobileNetV2 for SSD; the trunk is torchvision's."""

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torchvision.models import mobilenet_v2

from ..norm import norm_builder
from .build import build_ssd_backbone, choose_tap
from .pyramid import SSDBackbone, Tap

C4 = {
    "block": Tap("c4", block=13, channels=96, stride=16),
    "expansion": Tap("c4", block=14, channels=576, stride=16, inside=1),
}
C3 = Tap("c3", block=6, channels=32, stride=8)


@BACKBONE_REGISTRY.register()
def build_ssd_mobilenetv2_backbone(cfg, input_shape: ShapeSpec) -> SSDBackbone:
    """MobileNetV2 (:paper:`MobileNetV2`) with maps c3, c4, c5 and the extra blocks of the config.

    Raises:
        InputError: an option of MODEL.SSD.BACKBONE is unknown.
    """
    features = mobilenet_v2(norm_layer=norm_builder(cfg)).features
    last = cfg.MODEL.SSD.BACKBONE.LAST_CONV
    c5 = Tap("c5", block=18 if last else 17, channels=1280 if last else 320, stride=32)
    return build_ssd_backbone(cfg, features[: c5.block + 1], (C3, choose_tap(cfg, C4), c5))
