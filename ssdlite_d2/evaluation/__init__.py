from .coco import BoxEvaluator
from .report import merge_results, report_results
from .voc import VOCEvaluator

__all__ = ["BoxEvaluator", "VOCEvaluator", "merge_results", "report_results"]
