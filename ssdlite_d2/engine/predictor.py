"""Detectron2's DefaultPredictor, with weights that are known to fit, for one or many images."""

from typing import Dict, List, Sequence, Union

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultPredictor

from ..checkpoint import ZOO, SSDCheckpointer, identity_of
from ..config import load_config
from ..errors import InputError, one_of
from ..modeling.inference.fused import for_inference
from .setup import finish_config


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

    def __call__(self, original_image: np.ndarray) -> Dict:
        check_image(original_image)
        return super().__call__(original_image)

    def predict(
        self, images: Union[np.ndarray, Sequence[np.ndarray]], score_threshold: float = 0.0
    ) -> Union[Dict, List[Dict]]:
        """
        Args:
            images: BGR (h, w, 3), one or several of any sizes.
            score_threshold: detections have a score above; above POSTPROCESS.SCORE_THRESH anyway.

        Returns:
            dict: ``instances`` of the image, in its pixels, as the parent's call gives them; of
            several images a list of them.

        Raises:
            InputError: an image is of another kind.
        """
        if isinstance(images, np.ndarray) and images.ndim < 4:
            return self.predict([images], score_threshold)[0]
        inputs = []
        for image in images:
            check_image(image)
            pixels = image[:, :, ::-1] if self.input_format == "RGB" else image
            planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
            height, width = image.shape[:2]
            inputs.append({"image": torch.from_numpy(planes), "height": height, "width": width})
        with torch.inference_mode():
            found = [output["instances"] for output in self.model(inputs)]
        return [{"instances": x[x.scores > score_threshold]} for x in found]


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


def load_zoo(name: str, *opts) -> SSDPredictor:
    """A predictor with weights that others have trained, by their name in ``checkpoint.zoo.ZOO``.

    Args:
        opts: alternating config keys and values, such as ``"MODEL.DEVICE", "cuda"``.

    Raises:
        InputError: the name or a key is unknown, or the weights can be had nowhere.
    """
    weights = ZOO[one_of("the name", name, ZOO)]
    cfg = load_config(weights.config, ["MODEL.WEIGHTS", f"zoo://{name}", *opts])
    finish_config(cfg)
    return build_predictor(cfg)
