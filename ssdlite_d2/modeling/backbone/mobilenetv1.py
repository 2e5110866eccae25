"""MobileNetV1 for SSD."""

from typing import List

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import nn

from ..norm import Norm, norm_builder
from .build import build_ssd_backbone
from .pyramid import SSDBackbone, Tap

# output channels and stride of every depthwise-separable block (:paper:`MobileNet`, table 1)
BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5)
BLOCKS = (*BLOCKS, (1024, 2), (1024, 1))
TAPS = (
    Tap("c3", block=5, channels=256, stride=8),
    Tap("c4", block=11, channels=512, stride=16),
    Tap("c5", block=13, channels=1024, stride=32),
)


def mobilenetv1_features(norm: Norm) -> nn.Sequential:
    """The blocks of MobileNetV1 at width 1, with ReLU."""

    def layer(inputs: int, outputs: int, kernel: int, **options) -> List[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        return [conv, norm(outputs), nn.ReLU(inplace=True)]

    channels = 32
    blocks = [layer(3, channels, 3, stride=2)]
    for outputs, stride in BLOCKS:
        depthwise = layer(channels, channels, 3, stride=stride, groups=channels)
        blocks.append([*depthwise, *layer(channels, outputs, 1)])
        channels = outputs
    return nn.Sequential(*(nn.Sequential(*layers) for layers in blocks))


@BACKBONE_REGISTRY.register()
def build_ssd_mobilenetv1_backbone(cfg, input_shape: ShapeSpec) -> SSDBackbone:
    """MobileNetV1 (Howard et al. 2017) with maps c3, c4, c5 and the extra blocks of the config."""
    return build_ssd_backbone(cfg, mobilenetv1_features(norm_builder(cfg)), TAPS)
