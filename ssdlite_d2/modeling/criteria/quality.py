"""Losses whose scores also say how well the box fits."""

from typing import Dict, Tuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.structures import Boxes
from torch import Tensor

from ..assigners import Assignment, paired_iou
from ..box_coders import BoxCoder
from ..parts import SSD_CRITERION_REGISTRY
from .boxes import BoxLoss
from .criterion import Criterion
from .losses import (
    at_least_float,
    distribution_focal_loss,
    quality_focal_loss,
    varifocal_loss,
)


class QualityCriterion(Criterion):
    """A class loss with soft targets, a box loss and, for codes of bins, a loss of the bins.

    The target score of a positive anchor in its class is the assignment's quality or, if it has
    none, the IoU of the predicted box with the ground truth. The same quality weighs the box losses
    of the anchor, as in VarifocalNet and PicoDet (GFL takes the predicted score), and its sum is
    what all losses are divided by: a mean in which an anchor counts as much as it is worth, the
    same for each of them, so that the weights of the config alone say how they compare.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        box_loss: BoxLoss,
        prior: float = 0.01,
        cls_weight: float = 1.0,
        dfl_weight: float = 0.25,
    ):
        """
        Args:
            prior: score of every class at the start (:paper:`RetinaNet`, sec. 4.1).
            dfl_weight: of the distribution focal loss, if the box coder has bins.
        """
        super().__init__(num_classes)
        self.box_loss = box_loss
        self.prior = prior
        self.cls_weight = cls_weight
        self.dfl_weight = dfl_weight

    @classmethod
    def from_config(cls, cfg: CfgNode, num_classes: int):
        node = cfg.MODEL.SSD.CRITERION
        return {
            "num_classes": num_classes,
            "box_loss": BoxLoss(cfg, default="giou"),
            "prior": node.PRIOR,
            "cls_weight": node.CLS_WEIGHT,
            "dfl_weight": node.DFL_WEIGHT,
        }

    def class_loss(self, logits: Tensor, labels: Tensor, quality: Tensor) -> Tensor:
        """The sum over all anchors and classes.

        Args:
            logits, labels: (N, R, K) and (N, R).
            quality: (P,) of the positive anchors.
        """
        raise NotImplementedError

    def sums(
        self,
        logits: Tensor,
        deltas: Tensor,
        anchors: Boxes,
        assignment: Assignment,
        box_coder: BoxCoder,
    ) -> Tuple[Dict[str, Tensor], Tensor]:
        positive = assignment.positive(self.num_classes)
        of_positive = anchors.tensor.expand(len(positive), -1, -1)[positive]  # (P, 4)
        codes, boxes = at_least_float(deltas[positive]), assignment.boxes[positive]
        if assignment.quality is None:
            with torch.no_grad():
                quality = paired_iou(box_coder.apply_deltas(codes, of_positive), boxes)
        else:
            quality = assignment.quality[positive]
        losses = {
            "loss_cls": self.cls_weight * self.class_loss(logits, assignment.labels, quality),
            "loss_box_reg": self.box_loss(
                deltas, anchors, assignment.boxes, positive, box_coder, quality
            ),
        }
        if box_coder.bins:
            targets = box_coder.get_deltas(of_positive, boxes)  # (P, 4)
            loss = distribution_focal_loss(codes.unflatten(1, (4, box_coder.bins + 1)), targets)
            losses["loss_dfl"] = self.dfl_weight * (loss * quality).sum()
        return losses, quality.sum()


@SSD_CRITERION_REGISTRY.register(name="quality_focal")
class QualityFocalCriterion(QualityCriterion):
    """Generalized focal loss (Li et al., arXiv:2006.04388)."""

    @configurable
    def __init__(self, *, beta: float = 2.0, **kwargs):
        """
        Args:
            beta: power of the distance of score and quality.
            kwargs: of the parent.
        """
        super().__init__(**kwargs)
        self.beta = beta

    @classmethod
    def from_config(cls, cfg: CfgNode, num_classes: int):
        beta = cfg.MODEL.SSD.CRITERION.QUALITY_FOCAL_BETA
        return {"beta": beta, **super().from_config(cfg, num_classes)}

    def class_loss(self, logits: Tensor, labels: Tensor, quality: Tensor) -> Tensor:
        return quality_focal_loss(logits, labels, quality, self.beta)


@SSD_CRITERION_REGISTRY.register(name="varifocal")
class VarifocalCriterion(QualityCriterion):
    """Varifocal loss (Zhang et al., arXiv:2008.13367)."""

    @configurable
    def __init__(self, *, alpha: float = 0.75, gamma: float = 2.0, **kwargs):
        """
        Args:
            alpha, gamma: weight of what is not the positive class, and power of its score.
            kwargs: of the parent.
        """
        super().__init__(**kwargs)
        self.alpha = alpha
        self.gamma = gamma

    @classmethod
    def from_config(cls, cfg: CfgNode, num_classes: int):
        node = cfg.MODEL.SSD.CRITERION
        own = {"alpha": node.VARIFOCAL_ALPHA, "gamma": node.VARIFOCAL_GAMMA}
        return {**own, **super().from_config(cfg, num_classes)}

    def class_loss(self, logits: Tensor, labels: Tensor, quality: Tensor) -> Tensor:
        return varifocal_loss(logits, labels, quality, self.alpha, self.gamma)
