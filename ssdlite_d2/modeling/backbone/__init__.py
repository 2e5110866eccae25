from .mobilenetv2 import build_ssd_mobilenetv2_backbone
from .pyramid import SSDBackbone, Tap

__all__ = ["SSDBackbone", "Tap", "build_ssd_mobilenetv2_backbone"]
