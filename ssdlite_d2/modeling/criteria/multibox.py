"""SSD's own loss."""

from typing import Tuple

from detectron2.config import configurable
from torch import Tensor

from ..parts import SSD_CRITERION_REGISTRY
from .criterion import AnchorCriterion
from .losses import multibox_class_loss


@SSD_CRITERION_REGISTRY.register(name="multibox")
class MultiBoxCriterion(AnchorCriterion):
    """Softmax over K + 1 classes, background last, with hard-negative mining (:paper:`SSD`)."""

    @configurable
    def __init__(self, *, neg_pos_ratio: float = 3.0, **kwargs):
        """
        Args:
            neg_pos_ratio: mined negatives per positive.
            kwargs: of the parent.
        """
        super().__init__(**kwargs)
        self.neg_pos_ratio = neg_pos_ratio

    @classmethod
    def from_config(cls, cfg, num_classes: int):
        own = {"neg_pos_ratio": cfg.MODEL.SSD.CRITERION.NEG_POS_RATIO}
        return {**own, **super().from_config(cfg, num_classes)}

    @property
    def num_scores(self) -> int:
        return self.num_classes + 1

    def scores(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=-1)[..., :-1]

    def ranking(self, logits: Tensor, threshold: float) -> Tuple[Tensor, float]:
        return self.scores(logits), threshold

    def scores_of_ranked(self, values: Tensor) -> Tensor:
        return values

    def class_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return multibox_class_loss(logits, labels, self.neg_pos_ratio)
