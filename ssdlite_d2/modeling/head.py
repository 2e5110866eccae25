"""SSD's predictors: per feature map, one for class scores and one for box codes."""

import math
from typing import Callable, List, Optional, Sequence, Tuple

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from .norm import norm_builder
from .parts import SSD_HEAD_REGISTRY


@SSD_HEAD_REGISTRY.register(name="ssd")
class SSDHead(nn.Module):
    """A 3x3 convolution per feature map and output (:paper:`SSD`, sec. 2.1)."""

    @configurable
    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        num_anchors: Sequence[int],
        num_scores: int,
        code_size: int = 4,
        score_prior: Optional[float] = None,
    ):
        """
        Args:
            in_channels: channels of each of the L feature maps.
            num_anchors: anchors per cell Ai of each map.
            num_scores: class scores per anchor Kc, of the criterion.
            code_size: numbers per box D, of the box coder.
            score_prior: sigmoid score of every class at the start (:paper:`RetinaNet`, sec. 4.1);
                None leaves the class predictors as the box predictors.
        """
        super().__init__()
        self.num_levels = len(in_channels)
        levels = list(enumerate(zip(in_channels, num_anchors)))
        self.cls_score = nn.ModuleList(self.predictor(i, c, a * num_scores) for i, (c, a) in levels)
        self.bbox_pred = nn.ModuleList(self.predictor(i, c, a * code_size) for i, (c, a) in levels)
        self.reset_parameters(score_prior)

    @classmethod
    def from_config(cls, cfg, input_shape: List[ShapeSpec], **kwargs):
        return {"in_channels": [shape.channels for shape in input_shape], **kwargs}

    def predictor(self, level: int, in_channels: int, out_channels: int) -> nn.Module:
        """What predicts ``out_channels`` from map ``level``; its last part is a Conv2d."""
        return nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)

    def reset_parameters(self, score_prior: Optional[float] = None) -> None:
        """Initialise as the paper's successors do: Xavier, zero bias, and the focal prior.

        The prior is for the last convolution only. The reference SSDLite also sets it on the
        depthwise convolution before, whose outputs then all lie below the ReLU6.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if score_prior is not None:
            for predictor in self.cls_score:
                last = [m for m in predictor.modules() if isinstance(m, nn.Conv2d)][-1]
                set_prior(last, score_prior)

    def forward(self, features: List[Tensor]) -> Tuple[List[Tensor], List[Tensor]]:
        """
        Args:
            features: L maps (N, Ci, Hi, Wi).

        Returns:
            L class logits (N, Ai * Kc, Hi, Wi) and L box codes (N, Ai * D, Hi, Wi).
        """
        logits = [predict(x) for predict, x in zip(self.cls_score, features)]
        deltas = [predict(x) for predict, x in zip(self.bbox_pred, features)]
        return logits, deltas


@SSD_HEAD_REGISTRY.register(name="ssdlite")
class SSDLiteHead(SSDHead):
    """Depthwise-separable predictors (:paper:`MobileNetV2`, sec. 6.2)."""

    @configurable
    def __init__(
        self,
        *,
        norm: Callable[[int], nn.Module],
        depthwise_bias: bool = True,
        last_1x1: bool = True,
        **kwargs,
    ):
        """
        Args:
            norm: builds a normalisation layer from its channels.
            depthwise_bias, last_1x1: see the config keys MODEL.SSD.HEAD.
            kwargs: of the parent.
        """
        self.norm = norm
        self.depthwise_bias = depthwise_bias
        self.last_1x1 = last_1x1
        super().__init__(**kwargs)

    @classmethod
    def from_config(cls, cfg, input_shape: List[ShapeSpec], **kwargs):
        return {
            "norm": norm_builder(cfg),
            "depthwise_bias": cfg.MODEL.SSD.HEAD.DEPTHWISE_BIAS,
            "last_1x1": cfg.MODEL.SSD.HEAD.LAST_1X1,
            **super().from_config(cfg, input_shape, **kwargs),
        }

    def predictor(self, level: int, in_channels: int, out_channels: int) -> nn.Module:
        if self.last_1x1 and level == self.num_levels - 1:
            return nn.Conv2d(in_channels, out_channels, kernel_size=1)
        return nn.Sequential(
            nn.Conv2d(
                in_channels,
                in_channels,
                kernel_size=3,
                padding=1,
                groups=in_channels,
                bias=self.depthwise_bias,
            ),
            self.norm(in_channels),
            nn.ReLU6(inplace=True),
            nn.Conv2d(in_channels, out_channels, kernel_size=1),
        )


def set_prior(conv: nn.Conv2d, score: float) -> None:
    """Let a predictor give every class the same sigmoid score at the start."""
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.constant_(conv.bias, -math.log((1 - score) / score))
