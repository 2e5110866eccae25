"""Losses of the boxes of positive anchors, which several criteria share."""

from typing import Optional

import torch
from detectron2.config import CfgNode
from detectron2.layers import ciou_loss, diou_loss
from detectron2.structures import Boxes
from fvcore.nn import giou_loss
from torch import Tensor

from ...errors import InputError, one_of
from ..box_coders import BoxCoder
from .losses import at_least_float, smooth_l1_loss

IOU_LOSSES = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}


class BoxLoss:
    """MODEL.SSD.CRITERION.BOX_LOSS with its weight: of the codes, or of the decoded boxes."""

    def __init__(self, cfg: CfgNode, default: str = "smooth_l1"):
        """
        Args:
            default: the loss, if the config names none.

        Raises:
            InputError: the loss is unknown, or does not fit the box coder.
        """
        node = cfg.MODEL.SSD.CRITERION
        known = ("smooth_l1", *IOU_LOSSES)
        name = one_of("MODEL.SSD.CRITERION.BOX_LOSS", node.BOX_LOSS or default, known)
        if name == "smooth_l1" and cfg.MODEL.SSD.BOX_CODER.BINS:
            raise InputError(
                "MODEL.SSD.CRITERION.BOX_LOSS smooth_l1 is for codes without bins: take giou, or "
                "MODEL.SSD.BOX_CODER.BINS 0"
            )
        self.iou_loss = IOU_LOSSES.get(name)
        self.beta = node.SMOOTH_L1_BETA
        self.weight = node.BOX_WEIGHT

    def __call__(
        self,
        deltas: Tensor,
        anchors: Boxes,
        boxes: Tensor,
        positive: Tensor,
        box_coder: BoxCoder,
        weights: Optional[Tensor] = None,
    ) -> Tensor:
        """The sum over the P positive anchors.

        Args:
            deltas: (N, R, D).
            anchors: R boxes.
            boxes: (N, R, 4) ground truth of every anchor.
            positive: (N, R) bool.
            weights: (P,) of the positive anchors; None: 1.
        """
        of_positive = anchors.tensor.expand(len(positive), -1, -1)[positive]  # (P, 4)
        deltas, boxes = at_least_float(deltas[positive]), boxes[positive]
        if self.iou_loss is None:
            targets = box_coder.get_deltas(of_positive, boxes)
            loss = smooth_l1_loss(deltas, targets, self.beta)  # (P,)
        else:
            decoded = box_coder.apply_deltas(deltas, of_positive)
            # not NaN, on which Detectron2's losses stop with an assertion; the sum stays NaN
            loss = self.iou_loss(regular(decoded), boxes.to(decoded)) + 0 * decoded.sum(dim=1)
        return self.weight * (loss.sum() if weights is None else (loss * weights).sum())


def regular(boxes: Tensor) -> Tensor:
    """Boxes (P, 4) for which Detectron2's losses are defined: their sides have a ratio.

    No NaN, within 10,000 pixels, and sides of at least 0.01 pixels.
    """
    near, far = boxes.nan_to_num().clamp(min=-1e4, max=1e4).chunk(2, dim=1)
    return torch.cat((near, torch.maximum(far, near + 0.01)), dim=1)
