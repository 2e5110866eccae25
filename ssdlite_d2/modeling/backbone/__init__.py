from .efficientnet import build_ssd_efficientnet_b3_backbone
from .mobilenetv1 import build_ssd_mobilenetv1_backbone
from .mobilenetv2 import build_ssd_mobilenetv2_backbone
from .mobilenetv3 import build_ssd_mobilenetv3_backbone
from .mobilenetv3_se_last import build_ssd_mobilenetv3_se_last_backbone
from .mobilenext import build_ssd_mobilenext_backbone
from .pan import PAN
from .pyramid import SSDBackbone, Tap, trunk_prefix
from .timm import build_ssd_timm_backbone
from .vgg import build_ssd_vgg16_backbone

__all__ = [
    "PAN",
    "SSDBackbone",
    "Tap",
    "build_ssd_efficientnet_b3_backbone",
    "build_ssd_mobilenetv1_backbone",
    "build_ssd_mobilenetv2_backbone",
    "build_ssd_mobilenetv3_backbone",
    "build_ssd_mobilenetv3_se_last_backbone",
    "build_ssd_mobilenext_backbone",
    "build_ssd_timm_backbone",
    "build_ssd_vgg16_backbone",
    "trunk_prefix",
]
