"""From a dataset dict to what the model takes."""

import copy
import logging
from typing import Dict, List

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.structures import Boxes, BoxMode, Instances

from ..errors import InputError
from .augmentation import build_augmentation

logger = logging.getLogger(__name__)


class SSDDatasetMapper:
    """Reads a picture, augments it together with its boxes, and makes tensors.

    Unlike Detectron2's DatasetMapper, it hands the boxes to the augmentations, which SSD's crop
    needs, and keeps a box when its centre stays in the picture.
    """

    @configurable
    def __init__(
        self, is_train: bool, *, augmentations: List[T.Augmentation], image_format: str = "RGB"
    ):
        """
        Args:
            is_train: whether the result has ``instances``.
            image_format: as Detectron2's ``read_image`` takes it.
        """
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        logger.info(
            f"Augmentations in {'training' if is_train else 'inference'}: {augmentations or 'none'}"
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True):
        return {
            "is_train": is_train,
            "augmentations": build_augmentation(cfg, is_train),
            "image_format": cfg.INPUT.FORMAT,
        }

    def __call__(self, dataset_dict: Dict) -> Dict:
        """
        Args:
            dataset_dict: of one picture, in Detectron2's format.

        Returns:
            dict: the same without annotations; ``image`` (3, h, w) uint8; in training ``instances``
            with ``gt_boxes`` (M, 4) in pixels of that image and ``gt_classes`` (M,).

        Raises:
            InputError: the picture cannot be read, or is not of the annotated size.
        """
        dataset_dict = copy.deepcopy(dataset_dict)
        image = self._read(dataset_dict)
        annotations = [a for a in dataset_dict.pop("annotations", []) if not a.get("iscrowd", 0)]
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
        sample = T.AugInput(image, boxes=np.asarray(boxes, dtype=np.float64).reshape(-1, 4))
        self.augmentations(sample)
        pixels = np.ascontiguousarray(sample.image.transpose(2, 0, 1))
        dataset_dict["image"] = torch.from_numpy(pixels)
        if self.is_train:
            classes = np.asarray([a["category_id"] for a in annotations], dtype=np.int64)
            dataset_dict["instances"] = make_instances(
                sample.boxes, classes, sample.image.shape[:2]
            )
        return dataset_dict

    def _read(self, dataset_dict: Dict) -> np.ndarray:
        path = dataset_dict["file_name"]
        try:
            image = detection_utils.read_image(path, format=self.image_format)
            detection_utils.check_image_size(dataset_dict, image)
        except detection_utils.SizeMismatchError as error:
            raise InputError(str(error)) from error
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises
            raise InputError(f"picture {path} cannot be read: {_reason(error)}") from error
        return image


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error).splitlines()[0]


def make_instances(boxes: np.ndarray, classes: np.ndarray, size) -> Instances:
    """Ground truth of an augmented picture.

    Args:
        boxes: (M, 4) XYXY, not clipped.
        classes: (M,).
        size: (height, width) of the picture.

    Returns:
        Instances: of boxes whose centre lies in the picture, clipped to it, that then have area.
    """
    height, width = size
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    keep = ((centers > 0) & (centers < (width, height))).all(axis=1)
    clipped = boxes.clip(0, (width, height, width, height)).astype(np.float32)
    keep &= (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.from_numpy(clipped[keep]))
    instances.gt_classes = torch.from_numpy(classes[keep])
    return instances
