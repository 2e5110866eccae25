from .boxes import BoxLoss
from .criterion import Criterion
from .focal import FocalCriterion
from .multibox import MultiBoxCriterion

__all__ = ["BoxLoss", "Criterion", "FocalCriterion", "MultiBoxCriterion"]
