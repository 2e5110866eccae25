"""RetinaNet's loss."""

from detectron2.config import configurable
from torch import Tensor

from ..parts import SSD_CRITERION_REGISTRY
from .criterion import AnchorCriterion
from .losses import focal_class_loss


@SSD_CRITERION_REGISTRY.register(name="focal")
class FocalCriterion(AnchorCriterion):
    """Sigmoid focal loss over all anchors, and a box loss over the positive ones."""

    @configurable
    def __init__(self, *, alpha: float = 0.25, gamma: float = 2.0, prior: float = 0.01, **kwargs):
        """
        Args:
            prior: score of every class at the start (:paper:`RetinaNet`, sec. 4.1).
            kwargs: of the parent.
        """
        super().__init__(**kwargs)
        self.alpha = alpha
        self.gamma = gamma
        self.prior = prior

    @classmethod
    def from_config(cls, cfg, num_classes: int):
        node = cfg.MODEL.SSD.CRITERION
        own = {"alpha": node.FOCAL_ALPHA, "gamma": node.FOCAL_GAMMA, "prior": node.PRIOR}
        return {**own, **super().from_config(cfg, num_classes)}

    def class_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return focal_class_loss(logits, labels, self.alpha, self.gamma)
