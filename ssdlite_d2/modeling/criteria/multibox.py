"""SSD's own loss."""

from typing import Dict, Tuple

from detectron2.config import configurable
from detectron2.structures import Boxes
from torch import Tensor

from ..assigners import Assignment
from ..box_coders import BoxCoder
from ..parts import SSD_CRITERION_REGISTRY
from .boxes import BoxLoss
from .criterion import Criterion
from .losses import multibox_class_loss


@SSD_CRITERION_REGISTRY.register(name="multibox")
class MultiBoxCriterion(Criterion):
    """Softmax over K + 1 classes, background last, with hard-negative mining (:paper:`SSD`)."""

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        box_loss: BoxLoss,
        neg_pos_ratio: float = 3.0,
        cls_weight: float = 1.0,
    ):
        """
        Args:
            neg_pos_ratio: mined negatives per positive.
        """
        super().__init__(num_classes)
        self.box_loss = box_loss
        self.neg_pos_ratio = neg_pos_ratio
        self.cls_weight = cls_weight

    @classmethod
    def from_config(cls, cfg, num_classes: int):
        node = cfg.MODEL.SSD.CRITERION
        return {
            "num_classes": num_classes,
            "box_loss": BoxLoss(cfg),
            "neg_pos_ratio": node.NEG_POS_RATIO,
            "cls_weight": node.CLS_WEIGHT,
        }

    @property
    def num_scores(self) -> int:
        return self.num_classes + 1

    def scores(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=-1)[..., :-1]

    def ranking(self, logits: Tensor, threshold: float) -> Tuple[Tensor, float]:
        return self.scores(logits), threshold

    def scores_of_ranked(self, values: Tensor) -> Tensor:
        return values

    def sums(
        self,
        logits: Tensor,
        deltas: Tensor,
        anchors: Boxes,
        assignment: Assignment,
        box_coder: BoxCoder,
    ) -> Tuple[Dict[str, Tensor], Tensor]:
        positive = assignment.positive(self.num_classes)
        loss_cls = multibox_class_loss(logits, assignment.labels, self.neg_pos_ratio)
        return {
            "loss_cls": self.cls_weight * loss_cls,
            "loss_box_reg": self.box_loss(deltas, anchors, assignment.boxes, positive, box_coder),
        }, positive.sum()
