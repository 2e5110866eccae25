from .voc import VOCEvaluator

__all__ = ["VOCEvaluator"]
