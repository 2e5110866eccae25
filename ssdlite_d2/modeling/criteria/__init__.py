from .boxes import BoxLoss
from .criterion import Criterion
from .focal import FocalCriterion
from .multibox import MultiBoxCriterion
from .quality import QualityFocalCriterion, VarifocalCriterion

__all__ = [
    "BoxLoss",
    "Criterion",
    "FocalCriterion",
    "MultiBoxCriterion",
    "QualityFocalCriterion",
    "VarifocalCriterion",
]
