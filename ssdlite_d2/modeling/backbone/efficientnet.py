"""EfficientNet-B3 for SSD; the trunk is torchvision's."""

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torchvision.models import efficientnet_b3

from ..norm import norm_builder
from .build import build_ssd_backbone
from .pyramid import SSDBackbone, Tap

TAPS = (
    Tap("c3", block=3, channels=48, stride=8),
    Tap("c4", block=5, channels=136, stride=16),
    Tap("c5", block=7, channels=384, stride=32),
)


@BACKBONE_REGISTRY.register()
def build_ssd_efficientnet_b3_backbone(cfg, input_shape: ShapeSpec) -> SSDBackbone:
    """EfficientNet-B3 (Tan and Le 2019) without its last convolution: maps c3, c4, c5, extras."""
    features = efficientnet_b3(norm_layer=norm_builder(cfg)).features[:-1]
    return build_ssd_backbone(cfg, features, TAPS)
