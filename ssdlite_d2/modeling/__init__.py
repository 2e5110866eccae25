from .anchors import SSDAnchorGenerator
from .backbone import SSDBackbone, build_ssd_mobilenetv2_backbone
from .head import SSDHead, SSDLiteHead
from .matcher import SSDMatcher
from .ssd import SSD, SSDLite

__all__ = [
    "SSD",
    "SSDAnchorGenerator",
    "SSDBackbone",
    "SSDHead",
    "SSDLite",
    "SSDLiteHead",
    "SSDMatcher",
    "build_ssd_mobilenetv2_backbone",
]
