"""MobileNetV3-Large for SSD; the trunk is torchvision's."""

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torchvision.models.mobilenetv3 import InvertedResidual, MobileNetV3, _mobilenet_v3_conf

from ..norm import norm_builder
from .blocks import se_before_activation
from .build import build_ssd_backbone, choose_tap
from .pyramid import SSDBackbone, Tap

C4 = {
    "block": Tap("c4", block=12, channels=112, stride=16),
    "expansion": Tap("c4", block=13, channels=672, stride=16, inside=1),
}
C3 = Tap("c3", block=6, channels=40, stride=8)


@BACKBONE_REGISTRY.register()
def build_ssd_mobilenetv3_backbone(cfg, input_shape: ShapeSpec) -> SSDBackbone:
    """MobileNetV3-Large (Howard et al. 2019) with maps c3, c4, c5 and the extra blocks.

    MODEL.SSD.BACKBONE.REDUCED_TAIL halves the channels of its last stage, as in table 6 of the
    paper; SE_BEFORE_ACTIVATION moves squeeze-excite, as some public weights need.

    Raises:
        InputError: an option of MODEL.SSD.BACKBONE is unknown.
    """
    node = cfg.MODEL.SSD.BACKBONE
    setting, last = _mobilenet_v3_conf("mobilenet_v3_large", reduced_tail=node.REDUCED_TAIL)
    block = se_before_activation if node.SE_BEFORE_ACTIVATION else InvertedResidual
    trunk = MobileNetV3(setting, last, block=block, norm_layer=norm_builder(cfg))
    block, channels = (16, 960) if node.LAST_CONV else (15, 160)
    c5 = Tap("c5", block, channels // 2 if node.REDUCED_TAIL else channels, stride=32)
    return build_ssd_backbone(cfg, trunk.features[: block + 1], (C3, choose_tap(cfg, C4), c5))
