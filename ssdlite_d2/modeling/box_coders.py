"""Box coders: how the numbers that the network predicts for an anchor are a box.

Boxes are XYXY in pixels of the network input.
"""

import torch
from detectron2.config import configurable
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import Tensor

from .parts import SSD_BOX_CODER_REGISTRY


class BoxCoder:
    """What a box coder has.

    Attributes:
        code_size: numbers D per anchor.
    """

    code_size: int

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """Codes (C, D) of boxes (C, 4) for their anchors (C, 4)."""
        raise NotImplementedError

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Boxes (C, 4) of codes (C, D) for chosen anchors (C, 4)."""
        raise NotImplementedError

    def decode_all(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Boxes (N, R, 4) of codes (N, R, D) for all anchors (R, 4).

        Exported models have it in their graph: operations of fixed shape only.
        """
        raise NotImplementedError


@SSD_BOX_CODER_REGISTRY.register(name="deltas")
class DeltaCoder(Box2BoxTransform, BoxCoder):
    """Detectron2's Box2BoxTransform, the codes of :paper:`SSD`, sec. 2.2: shifts and log scales.

    The weights are the inverse of the paper's variances .1 and .2.
    """

    code_size = 4

    @configurable
    def __init__(self, *, weights=(10.0, 10.0, 5.0, 5.0)):
        """
        Args:
            weights: of dx, dy, dw, dh.
        """
        super().__init__(weights)

    @classmethod
    def from_config(cls, cfg):
        return {"weights": cfg.MODEL.SSD.BOX_CODER.WEIGHTS}

    def decode_all(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        sizes = anchors[:, 2:] - anchors[:, :2]  # (R, 2)
        centers, half_sizes = (anchors[:, :2] + anchors[:, 2:]) / 2, sizes / 2
        weights = sizes.new_tensor(self.weights)
        centers = centers + deltas[..., :2] * (sizes / weights[:2])
        growth = (deltas[..., 2:] * (1 / weights[2:])).clamp(max=self.scale_clamp).exp()
        half_sizes = growth * half_sizes
        return torch.cat((centers - half_sizes, centers + half_sizes), dim=-1)
