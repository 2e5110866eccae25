"""RetinaNet's loss."""

from typing import Dict, Tuple

from detectron2.config import configurable
from detectron2.structures import Boxes
from torch import Tensor

from ..assigners import Assignment
from ..box_coders import BoxCoder
from ..parts import SSD_CRITERION_REGISTRY
from .boxes import BoxLoss
from .criterion import Criterion
from .losses import focal_class_loss


@SSD_CRITERION_REGISTRY.register(name="focal")
class FocalCriterion(Criterion):
    """Sigmoid focal loss over all anchors, and a box loss over the positive ones."""

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        box_loss: BoxLoss,
        alpha: float = 0.25,
        gamma: float = 2.0,
        prior: float = 0.01,
        cls_weight: float = 1.0,
    ):
        """
        Args:
            prior: score of every class at the start (:paper:`RetinaNet`, sec. 4.1).
        """
        super().__init__(num_classes)
        self.box_loss = box_loss
        self.alpha = alpha
        self.gamma = gamma
        self.prior = prior
        self.cls_weight = cls_weight

    @classmethod
    def from_config(cls, cfg, num_classes: int):
        node = cfg.MODEL.SSD.CRITERION
        return {
            "num_classes": num_classes,
            "box_loss": BoxLoss(cfg),
            "alpha": node.FOCAL_ALPHA,
            "gamma": node.FOCAL_GAMMA,
            "prior": node.PRIOR,
            "cls_weight": node.CLS_WEIGHT,
        }

    def sums(
        self,
        logits: Tensor,
        deltas: Tensor,
        anchors: Boxes,
        assignment: Assignment,
        box_coder: BoxCoder,
    ) -> Tuple[Dict[str, Tensor], Tensor]:
        positive = assignment.positive(self.num_classes)
        loss_cls = focal_class_loss(logits, assignment.labels, self.alpha, self.gamma)
        return {
            "loss_cls": self.cls_weight * loss_cls,
            "loss_box_reg": self.box_loss(deltas, anchors, assignment.boxes, positive, box_coder),
        }, positive.sum()
