"""VGG16 for SSD; the trunk is torchvision's."""

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from ...errors import one_of
from ..norm import norm_builder
from .blocks import L2Norm
from .build import build_ssd_backbone
from .pyramid import SSDBackbone, Tap


@BACKBONE_REGISTRY.register()
def build_ssd_vgg16_backbone(cfg, input_shape: ShapeSpec) -> SSDBackbone:
    """VGG16 as :paper:`SSD` changes it (sec. 3): c4 is conv4_3, c5 the convolution that was fc7.

    The third pooling rounds up, the fifth has stride 1, and fc6 is dilated.

    Raises:
        InputError: an option of MODEL.SSD.BACKBONE is unknown.
    """
    features = make_layers(cfgs["D"])[:-1]  # up to conv5_3
    features[16].ceil_mode = True
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    fully_connected = (
        nn.MaxPool2d(kernel_size=3, stride=1, padding=1),
        nn.Conv2d(512, 1024, kernel_size=3, padding=6, dilation=6),
        nn.ReLU(inplace=True),
        nn.Conv2d(1024, 1024, kernel_size=1),
        nn.ReLU(inplace=True),
    )
    for layer in fully_connected:
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    norms = {"l2": L2Norm, "batch": norm_builder(cfg)}
    tap_norm = one_of("MODEL.SSD.BACKBONE.TAP_NORM", cfg.MODEL.SSD.BACKBONE.TAP_NORM, norms)
    taps = (
        Tap("c4", block=22, channels=512, stride=8, norm=norms[tap_norm](512)),
        Tap("c5", block=34, channels=1024, stride=16),
    )
    return build_ssd_backbone(cfg, nn.Sequential(*features, *fully_connected), taps)
