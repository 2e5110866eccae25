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
C5 = Tap("c5", block=18, channels=1280, stride=32)


@BACKBONE_REGISTRY.register()
def build_ssd_mobilenetv2_backbone(cfg, input_shape: ShapeSpec) -> SSDBackbone:
    """MobileNetV2 (:paper:`MobileNetV2`) with maps c4, c5 and the extra blocks of the config.

    Raises:
        InputError: an option of MODEL.SSD.BACKBONE is unknown.
    """
    features = mobilenet_v2(norm_layer=norm_builder(cfg)).features
    return build_ssd_backbone(cfg, features, (choose_tap(cfg, C4), C5))
