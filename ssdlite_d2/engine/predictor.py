"""Detectron2's DefaultPredictor, with weights that are known to fit."""

from detectron2.config import CfgNode
from detectron2.engine import DefaultPredictor

from ..checkpoint import SSDCheckpointer


def build_predictor(cfg: CfgNode) -> DefaultPredictor:
    """A DefaultPredictor for a finished config: BGR picture of any size in, detections out.

    DefaultPredictor(cfg) does the same, but leaves weights that do not fit out with a warning.

    Raises:
        InputError: MODEL.WEIGHTS is missing or does not fit the model.
    """
    cfg = cfg.clone()
    cfg.defrost()
    weights, cfg.MODEL.WEIGHTS = cfg.MODEL.WEIGHTS, ""
    predictor = DefaultPredictor(cfg)
    SSDCheckpointer(predictor.model).load(weights)
    return predictor
