"""Detectron2's DefaultPredictor, with weights that are known to fit, for one or many images."""

from typing import Dict, List, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultPredictor

from ..checkpoint import SSDCheckpointer, identity_of
from ..errors import InputError
from ..evaluation.operating import stored_operating
from ..modeling.inference.fused import for_inference
from .config_checks import settle_device


class SSDPredictor(DefaultPredictor):
    """DefaultPredictor that also takes several images at once, and MODEL.SSD.INFERENCE's mode.

    DefaultPredictor(cfg) detects the same, one by one, but leaves weights that do not fit out with
    a warning.

    Attributes:
        threshold: the score to operate at, that of the best F1 when the weights were evaluated;
            None where they do not tell.
    """

    def __init__(self, cfg: CfgNode):
        """
        Raises:
            InputError: MODEL.WEIGHTS is missing or does not fit the model, or the mode is unknown.
        """
        cfg = cfg.clone()
        cfg.defrost()
        settle_device(cfg)
        weights, cfg.MODEL.WEIGHTS = cfg.MODEL.WEIGHTS, ""
        super().__init__(cfg)
        checkpointer = SSDCheckpointer(self.model, identity=identity_of(cfg, self.model))
        self.threshold = stored_operating(checkpointer.load(weights)).get("threshold")
        self.model = for_inference(self.model, cfg.MODEL.SSD.INFERENCE)

    def __call__(self, original_image: np.ndarray) -> Dict:
        check_image(original_image)
        return super().__call__(original_image)

    def predict(self, images: Sequence[np.ndarray]) -> List[Dict]:
        """
        Args:
            images: BGR (h, w, 3), of any sizes.

        Returns:
            list[dict]: ``instances`` of each, in its pixels, as the parent's call gives them.

        Raises:
            InputError: an image is of another kind.
        """
        inputs = []
        for image in images:
            check_image(image)
            pixels = image[:, :, ::-1] if self.input_format == "RGB" else image
            planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
            height, width = image.shape[:2]
            inputs.append({"image": torch.from_numpy(planes), "height": height, "width": width})
        with torch.inference_mode():
            return self.model(inputs)


def check_image(image: np.ndarray) -> None:
    """
    Raises:
        InputError: the image is not uint8 (h, w, 3), of which nothing tells what it means.
    """
    if not isinstance(image, np.ndarray):
        raise InputError(f"an image is a {type(image).__name__}; a numpy array is needed")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InputError(
            f"an image is {image.dtype} {image.shape}; BGR of uint8 (height, width, 3) is needed, "
            "as cv2.imread(file) gives it"
        )


def build_predictor(cfg: CfgNode) -> SSDPredictor:
    """A predictor for a finished config: BGR image of any size in, detections out.

    Raises:
        InputError: MODEL.WEIGHTS is missing or does not fit the model.
    """
    return SSDPredictor(cfg)
