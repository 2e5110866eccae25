from .assigner import Assigner, Assignment, ignore_regions
from .atss import ATSSAssigner
from .candidates import CandidateAssigner, paired_iou
from .max_iou import MaxIoUAssigner, SSDMatcher
from .task_aligned import TaskAlignedAssigner

__all__ = [
    "ATSSAssigner",
    "Assigner",
    "Assignment",
    "CandidateAssigner",
    "MaxIoUAssigner",
    "SSDMatcher",
    "TaskAlignedAssigner",
    "ignore_regions",
    "paired_iou",
]
