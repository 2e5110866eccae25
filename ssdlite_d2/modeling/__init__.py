from .anchors import SSDAnchorGenerator
from .backbone import SSDBackbone
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
]
