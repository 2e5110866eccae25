"""What a criterion is: it knows what class scores are, and what an assignment costs."""

import math
from typing import Dict, Optional, Tuple

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes
from detectron2.utils import comm
from torch import Tensor

from ..assigners import Assignment
from ..box_coders import BoxCoder
from .boxes import BoxLoss


class Criterion:
    """The losses of a batch, and how logits become scores: here by a sigmoid, for K classes.

    Attributes:
        num_classes: foreground classes K.
        num_scores: logits per anchor Kc.
        prior: score of every class at the start of training; None leaves it to the head.
    """

    prior: Optional[float] = None

    def __init__(self, num_classes: int):
        self.num_classes = num_classes

    @property
    def num_scores(self) -> int:
        return self.num_classes

    def scores(self, logits: Tensor) -> Tensor:
        """Logits (..., Kc) to scores (..., K) in [0, 1]."""
        return logits.sigmoid()

    def ranking(self, logits: Tensor, threshold: float) -> Tuple[Tensor, float]:
        """Values (..., K) in the order of the scores, and the one of a score ``threshold``.

        Here logits: comparing one is quicker than computing its sigmoid.
        """
        return logits, _logit(threshold)

    def scores_of_ranked(self, values: Tensor) -> Tensor:
        """Scores of values that ``ranking`` gave."""
        return values.sigmoid()

    def sums(
        self,
        logits: Tensor,
        deltas: Tensor,
        anchors: Boxes,
        assignment: Assignment,
        box_coder: BoxCoder,
    ) -> Tuple[Dict[str, Tensor], Tensor]:
        """Losses by name, each summed over the batch, and the number to divide them by.

        Args:
            logits, deltas: (N, R, Kc) and (N, R, D).
            anchors: R boxes.
        """
        raise NotImplementedError

    def __call__(self, *args) -> Tuple[Dict[str, Tensor], Tensor]:
        """``sums``, whose number is averaged over the processes of the job.

        Divided by it, losses have, after the processes' gradients are averaged, the gradient of one
        process with the whole batch. (The reference counts per process.)
        """
        losses, count = self.sums(*args)
        count = count.detach().float()
        world = comm.get_world_size()
        if world > 1:
            torch.distributed.all_reduce(count)
        return losses, count / world


class AnchorCriterion(Criterion):
    """A class loss, and a box loss over the positive anchors, whose number both are divided by."""

    def __init__(self, *, num_classes: int, box_loss: BoxLoss, cls_weight: float = 1.0):
        super().__init__(num_classes)
        self.box_loss = box_loss
        self.cls_weight = cls_weight

    @classmethod
    def from_config(cls, cfg: CfgNode, num_classes: int):
        weight = cfg.MODEL.SSD.CRITERION.CLS_WEIGHT
        return {"num_classes": num_classes, "box_loss": BoxLoss(cfg), "cls_weight": weight}

    def class_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The sum over all anchors; logits (N, R, Kc), labels (N, R) of the assignment."""
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
        return {
            "loss_cls": self.cls_weight * self.class_loss(logits, assignment.labels),
            "loss_box_reg": self.box_loss(deltas, anchors, assignment.boxes, positive, box_coder),
        }, positive.sum()


def _logit(score: float) -> float:
    if score <= 0:
        return -math.inf
    return math.log(score / (1 - score)) if score < 1 else math.inf
