"""Box coders: how the numbers that the network predicts for an anchor are a box.

Boxes are XYXY in pixels of the network input.
"""

import math
from typing import Tuple

import torch
from detectron2.config import configurable
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import Tensor

from .parts import SSD_BOX_CODER_REGISTRY


class BoxCoder:
    """What a box coder has.

    Attributes:
        code_size: numbers D per anchor.
        bins: B of a coder whose codes are, per side, logits of B + 1 bins; 0: it has no bins.
    """

    code_size: int
    bins: int = 0

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """Codes (C, D) of boxes (C, 4) for their anchors (C, 4).

        With bins: (C, 4), the place among the bins, in [0, B], of each side.
        """
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


@SSD_BOX_CODER_REGISTRY.register(name="distances")
class DistanceCoder(BoxCoder):
    """Distances of a box's left, top, right and bottom from the anchor's centre.

    Their unit is the anchor's width, for left and right, or height, for top and bottom: what a
    multiple of the stride is to FCOS and GFL, and it fits several anchors per cell. Boxes that do
    not contain the centre cannot be coded: such a side gets the least distance.

    Without bins a code c is the distance ``exp(c) / 2``; the codes 0 are the anchor itself. With B
    bins (Li et al., arXiv:2006.04388) each side has B + 1 logits, and the mean of the bins 0 to B
    by their softmax is the distance in ``reach / B``.
    """

    # as Detectron2's deltas: a side of at most 1000 / 16 anchors, and of no less than the inverse
    max_log = math.log(1000 / 16)

    @configurable
    def __init__(self, *, bins: int = 0, reach: float = 1.4):
        """
        Args:
            bins: B; 0: none.
            reach: with bins, the greatest distance, in sides of the anchor.
        """
        self.bins = bins
        self.reach = reach
        self.code_size = 4 * (bins + 1)

    @classmethod
    def from_config(cls, cfg):
        node = cfg.MODEL.SSD.BOX_CODER
        return {"bins": node.BINS, "reach": node.REACH}

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        centers, sides = _center_and_sides(src_boxes)
        distances = torch.cat((centers - target_boxes[:, :2], target_boxes[:, 2:] - centers), dim=1)
        distances = distances / sides
        if self.bins:
            return (distances * (self.bins / self.reach)).clamp(min=0, max=self.bins)
        limit = math.exp(self.max_log)
        return (2 * distances).clamp(min=1 / limit, max=limit).log()

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        return self._decode(deltas, boxes)

    def decode_all(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        return self._decode(deltas, anchors)

    def _decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """(..., D) and (R, 4) to (..., 4)."""
        centers, sides = _center_and_sides(anchors)
        if self.bins:
            place = torch.arange(self.bins + 1, dtype=deltas.dtype, device=deltas.device)
            share = deltas.reshape(*deltas.shape[:-1], 4, self.bins + 1).softmax(dim=-1)
            distances = (share * place).sum(dim=-1) * (sides * (self.reach / self.bins))
        else:
            distances = deltas.clamp(min=-self.max_log, max=self.max_log).exp() * (sides / 2)
        return torch.cat((centers - distances[..., :2], centers + distances[..., 2:]), dim=-1)


def _center_and_sides(anchors: Tensor) -> Tuple[Tensor, Tensor]:
    """Centres (R, 2), and (R, 4): width, height, width, height."""
    sides = anchors[:, 2:] - anchors[:, :2]
    return (anchors[:, :2] + anchors[:, 2:]) / 2, torch.cat((sides, sides), dim=1)
