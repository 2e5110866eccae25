"""Detectron2's DefaultPredictor, with weights that are known to fit, for one or many images."""

from typing import Dict, List, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultPredictor

from ..checkpoint import SSDCheckpointer, identity_of
from ..modeling.inference.fused import for_inference


class SSDPredictor(DefaultPredictor):
    """DefaultPredictor that also takes several images at once, and MODEL.SSD.INFERENCE's mode.

    DefaultPredictor(cfg) detects the same, one by one, but leaves weights that do not fit out with
    a warning.
    """

    def __init__(self, cfg: CfgNode):
        """
        Raises:
            InputError: MODEL.WEIGHTS is missing or does not fit the model, or the mode is unknown.
        """
        cfg = cfg.clone()
        cfg.defrost()
        weights, cfg.MODEL.WEIGHTS = cfg.MODEL.WEIGHTS, ""
        super().__init__(cfg)
        SSDCheckpointer(self.model, identity=identity_of(cfg, self.model)).load(weights)
        self.model = for_inference(self.model, cfg.MODEL.SSD.INFERENCE)

    def predict(self, images: Sequence[np.ndarray]) -> List[Dict]:
        """
        Args:
            images: BGR (h, w, 3), of any sizes.

        Returns:
            list[dict]: ``instances`` of each, in its pixels, as the parent's call gives them.
        """
        inputs = []
        for image in images:
            pixels = image[:, :, ::-1] if self.input_format == "RGB" else image
            planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
            height, width = image.shape[:2]
            inputs.append({"image": torch.from_numpy(planes), "height": height, "width": width})
        with torch.inference_mode():
            return self.model(inputs)


def build_predictor(cfg: CfgNode) -> SSDPredictor:
    """A predictor for a finished config: BGR image of any size in, detections out.

    Raises:
        InputError: MODEL.WEIGHTS is missing or does not fit the model.
    """
    return SSDPredictor(cfg)
