from .assigner import Assigner, Assignment, ignore_regions
from .max_iou import MaxIoUAssigner, SSDMatcher

__all__ = ["Assigner", "Assignment", "MaxIoUAssigner", "SSDMatcher", "ignore_regions"]
