"""A head that looks at every map through a few convolutions before it predicts."""

from typing import List, Optional, Sequence, Tuple

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ..errors import InputError
from .head import set_prior
from .layers import ConvFactory, depthwise, init_convolutions, pointwise
from .norm import norm_builder
from .parts import SSD_HEAD_REGISTRY

KEY = "MODEL.SSD.HEAD"


@SSD_HEAD_REGISTRY.register(name="tower")
class TowerHead(nn.Module):
    """Convolutions for every map, then a 1x1 convolution each for class scores and box codes.

    With ``shared`` maps have the same convolutions but norms of their own, since the statistics of
    the maps differ: the modules of a map are then built of the first map's convolutions, so that
    folding the norms in gives every map its own.
    """

    @configurable
    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        num_anchors: Sequence[int],
        num_scores: int,
        code_size: int = 4,
        score_prior: Optional[float] = None,
        convs: ConvFactory,
        channels: int = 96,
        num_convs: int = 2,
        kernel: int = 5,
        depthwise: bool = True,
        separate: bool = False,
        shared: bool = False,
    ):
        """
        Args:
            in_channels, num_anchors, num_scores, code_size, score_prior: as SSDHead's.
            channels, num_convs, kernel: of the towers.
            depthwise: towers are of depthwise-separable convolutions, else of plain ones.
            separate: a tower each for scores and boxes.
            shared: maps share their convolutions.

        Raises:
            InputError: maps of different kinds cannot share.
        """
        super().__init__()
        if shared and len({*zip(in_channels, num_anchors)}) > 1:
            raise InputError(
                f"{KEY}.SHARED needs maps of the same channels and anchors per cell; "
                f"they have {list(in_channels)} and {list(num_anchors)}"
            )
        self.convs = convs
        self.tower_options = (channels, num_convs, kernel, depthwise)
        towers = [[] for _ in range(1 + separate)]
        scores, codes = [], []
        for level, (inputs, anchors) in enumerate(zip(in_channels, num_anchors)):
            first = level == 0 or not shared
            for tower in towers:
                tower.append(self.tower(inputs, None if first else tower[0]))
            width = channels if num_convs else inputs
            scores.append(nn.Conv2d(width, anchors * num_scores, 1) if first else scores[0])
            codes.append(nn.Conv2d(width, anchors * code_size, 1) if first else codes[0])
        self.cls_tower = nn.ModuleList(towers[0])  # for boxes as well, if there is no other
        self.bbox_tower = nn.ModuleList(towers[1]) if separate else None
        self.cls_score = nn.ModuleList(scores)
        self.bbox_pred = nn.ModuleList(codes)
        self.reset_parameters(score_prior)

    @classmethod
    def from_config(cls, cfg, input_shape: List[ShapeSpec], **kwargs):
        node = cfg.MODEL.SSD.HEAD
        return {
            "in_channels": [shape.channels for shape in input_shape],
            "convs": ConvFactory(norm_builder(cfg), node.ACTIVATION, f"{KEY}.ACTIVATION"),
            "channels": node.CHANNELS,
            "num_convs": node.NUM_CONVS,
            "kernel": node.KERNEL_SIZE,
            "separate": node.SEPARATE,
            "shared": node.SHARED,
            **kwargs,
        }

    def tower(self, inputs: int, other: Optional[nn.Sequential]) -> nn.Sequential:
        """The layers for one map; with those of ``other``'s convolutions if there is one."""
        channels, num_convs, kernel, separable = self.tower_options
        if other is not None:
            return nn.Sequential(*(self.convs.activated(layer[0]) for layer in other))
        layers = []
        for _ in range(num_convs):
            if separable:
                layers += [depthwise(inputs, kernel), pointwise(inputs, channels)]
            else:
                layers.append(nn.Conv2d(inputs, channels, kernel, padding=kernel // 2, bias=False))
            inputs = channels
        return nn.Sequential(*map(self.convs.activated, layers))

    def reset_parameters(self, score_prior: Optional[float] = None) -> None:
        """He's initialisation; predictors start near zero, and scores at the prior."""
        init_convolutions(self)
        for predictor in (*self.cls_score, *self.bbox_pred):
            nn.init.normal_(predictor.weight, std=0.01)
        for predictor in self.cls_score if score_prior is not None else ():
            set_prior(predictor, score_prior)

    def forward(self, features: List[Tensor]) -> Tuple[List[Tensor], List[Tensor]]:
        """
        Args:
            features: L maps (N, Ci, Hi, Wi).

        Returns:
            L class logits (N, Ai * Kc, Hi, Wi) and L box codes (N, Ai * D, Hi, Wi).
        """
        of_scores = [tower(x) for tower, x in zip(self.cls_tower, features)]
        of_boxes = of_scores
        if self.bbox_tower is not None:
            of_boxes = [tower(x) for tower, x in zip(self.bbox_tower, features)]
        logits = [predict(x) for predict, x in zip(self.cls_score, of_scores)]
        deltas = [predict(x) for predict, x in zip(self.bbox_pred, of_boxes)]
        return logits, deltas
