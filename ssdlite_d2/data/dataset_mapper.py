"""From a dataset dict to what the model takes."""

import logging
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from detectron2.structures import Boxes, BoxMode, Instances

from ..errors import InputError, one_of
from .augmentation import Resize, build_augmentation, is_composable, to_size
from .reader import image_reader, read_image
from .rendering import Sketch

logger = logging.getLogger(__name__)

IGNORED = -1  # class of a region in which anchors are neither right nor wrong
TREATMENTS = ("keep", "drop", "ignore")
ON_BAD_IMAGE = ("raise", "skip")
SUBSTITUTES = 100  # drawn for a bad image before giving up


class Sample(NamedTuple):
    """An augmented image and its ground truth."""

    image: np.ndarray  # (h, w, 3) uint8
    boxes: np.ndarray  # (M, 4) XYXY, may lie outside
    classes: np.ndarray  # (M,)


class SSDDatasetMapper:
    """Reads an image, augments it together with its boxes, and makes tensors.

    Unlike Detectron2's DatasetMapper, it hands the boxes to the augmentations, which SSD's crop
    needs, and keeps a box when its centre stays in the image. With ``fast`` the transforms are
    drawn first and then rendered in one step (``rendering.py``); boxes come out the same.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: List[T.Augmentation],
        image_format: str = "RGB",
        fast: bool = True,
        crowd: str = "drop",
        difficult: str = "drop",
        mosaic_prob: float = 0.0,
        records: Optional[Sequence[Dict]] = None,
        read: Callable[..., np.ndarray] = read_image,
        on_skip: Optional[Callable[[str, str], None]] = None,
    ):
        """
        Args:
            is_train: whether the result has ``instances``.
            image_format: as ``read_image`` takes it.
            crowd, difficult: whether these objects are trained on as others are ("keep"), are
                background ("drop") or are neither ("ignore": their class becomes -1).
            mosaic_prob: chance of an image made of four, three of them from ``records``.
            records: the data set that mosaics, and substitutes of bad images, are taken from.
            read: as ``read_image``.
            on_skip: is told the file and what is wrong of a bad image, for which another one is
                drawn; without it, a bad image is an error.
        """
        self.is_train = is_train
        self.augmentations = augmentations
        self.image_format = image_format
        self.fast = fast and is_train and all(map(is_composable, augmentations))
        self.crowd = crowd
        self.difficult = difficult
        self.mosaic_prob = mosaic_prob
        self.records = records
        self.read = read
        self.on_skip = on_skip
        if mosaic_prob > 0 and not records:
            raise InputError("INPUT.MOSAIC.PROB needs the data set that it takes images from")
        logger.info(
            f"Augmentations in {'training' if is_train else 'inference'}: {augmentations or 'none'}"
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True, **kwargs):
        for key, node in (("CROWD", cfg.DATASETS.CROWD), ("DIFFICULT", cfg.DATASETS.DIFFICULT)):
            one_of(f"DATASETS.{key}", node, TREATMENTS)
        return {
            "is_train": is_train,
            "augmentations": build_augmentation(cfg, is_train),
            "image_format": cfg.INPUT.FORMAT,
            "fast": cfg.INPUT.FAST,
            "crowd": cfg.DATASETS.CROWD,
            "difficult": cfg.DATASETS.DIFFICULT,
            "read": image_reader(cfg),
            "mosaic_prob": cfg.INPUT.MOSAIC.PROB if is_train and kwargs.get("records") else 0.0,
            **kwargs,
        }

    def __call__(self, dataset_dict: Dict) -> Dict:
        """
        Args:
            dataset_dict: of one image, in Detectron2's format.

        Returns:
            dict: the same without annotations; ``image`` (3, h, w) uint8; in training ``instances``
            with ``gt_boxes`` (M, 4) in pixels of that image and ``gt_classes`` (M,).

        Raises:
            InputError: the image cannot be read, or is not of the annotated size; with
                ``on_skip``, so many in a row cannot.
        """
        for _ in range(SUBSTITUTES):
            try:
                sample = self._sample(dataset_dict)
                break
            except InputError as error:
                if self.on_skip is None:
                    hint = "; INPUT.ON_BAD_IMAGE skip leaves it out" if self.is_train else ""
                    raise InputError(f"{error}{hint}") from error
                self.on_skip(dataset_dict["file_name"], str(error))
                # from the generator that a sample's other draws come from: a resumed run draws the
                # same, which Detectron2's MapDataset, for samples that are None, would not
                dataset_dict = self.records[np.random.randint(len(self.records))]
        else:
            raise InputError(
                f"INPUT.ON_BAD_IMAGE skip: {SUBSTITUTES} images in a row are bad; "
                "ssdlite_d2.tools.check_data lists them"
            )
        mapped = {k: v for k, v in dataset_dict.items() if k != "annotations"}
        # A view: the model wants the channels last, as they are.
        mapped["image"] = torch.from_numpy(sample.image).permute(2, 0, 1)
        if self.is_train:
            size = sample.image.shape[:2]
            mapped["instances"] = make_instances(sample.boxes, sample.classes, size)
        return mapped

    def _sample(self, dataset_dict: Dict) -> Sample:
        if self.mosaic_prob > 0 and np.random.uniform() < self.mosaic_prob:
            return self._mosaic(dataset_dict)
        return self._augment(dataset_dict, self.augmentations)

    def _augment(self, dataset_dict: Dict, augmentations: Sequence[T.Augmentation]) -> Sample:
        size = dataset_dict.get("height"), dataset_dict.get("width")
        is_fast = self.fast and None not in size
        if not is_fast:
            image = self._read(dataset_dict)
            size = image.shape[:2]
        boxes, classes = self._ground_truth(dataset_dict.get("annotations", ()), size)
        sample = Sketch(size, boxes) if is_fast else T.AugInput(image, boxes=boxes)
        T.AugmentationList(augmentations)(sample)
        if is_fast:
            image = sample.rendering.pixels(lambda reduction: self._read(dataset_dict, reduction))
        else:
            image = np.ascontiguousarray(sample.image)
        return Sample(image, sample.boxes, classes)

    def _mosaic(self, dataset_dict: Dict) -> Sample:
        """Four images, each augmented to the size of its quadrant, around a drawn point."""
        height, width = next(a.size for a in self.augmentations if isinstance(a, Resize))
        x, y = (int(np.random.uniform(0.25, 0.75) * side) for side in (width, height))
        others = [self.records[i] for i in np.random.randint(len(self.records), size=3)]
        canvas = np.empty((height, width, 3), dtype=np.uint8)
        boxes, classes = [], []
        corners = ((0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height))
        for record, (x0, y0, x1, y1) in zip((dataset_dict, *others), corners):
            size = (y1 - y0, x1 - x0)
            image, *truth = self._augment(record, to_size(self.augmentations, size))
            tile_boxes, tile_classes = visible(*truth, size)
            canvas[y0:y1, x0:x1] = image
            boxes.append(tile_boxes + (x0, y0, x0, y0))
            classes.append(tile_classes)
        return Sample(canvas, np.concatenate(boxes), np.concatenate(classes))

    def _ground_truth(self, annotations: Sequence[Dict], size) -> Tuple[np.ndarray, np.ndarray]:
        """Boxes (M, 4) XYXY in the image, with area, and their classes (M,)."""
        rows = [(a, treatment_of(a, self.crowd, self.difficult)) for a in annotations]
        rows = [(a, a["category_id"] if t == "keep" else IGNORED) for a, t in rows if t != "drop"]
        boxes = np.array([a["bbox"] for a, _ in rows], dtype=np.float64).reshape(-1, 4)
        classes = np.array([c for _, c in rows], dtype=np.int64)
        modes = np.array([a["bbox_mode"] for a, _ in rows], dtype=np.int64)
        for mode in set(modes.tolist()) - {BoxMode.XYXY_ABS.value}:
            of_mode = modes == mode
            boxes[of_mode] = BoxMode.convert(boxes[of_mode], BoxMode(mode), BoxMode.XYXY_ABS)
        height, width = size
        boxes = np.where(np.isfinite(boxes), boxes, np.nan).clip(0, (width, height) * 2)
        good = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        return boxes[good], classes[good]

    def _read(self, dataset_dict: Dict, reduction: int = 1) -> np.ndarray:
        path = dataset_dict["file_name"]
        image = self.read(path, self.image_format, reduction)
        size = dataset_dict.get("height"), dataset_dict.get("width")
        if None not in size and image.shape[:2] != tuple(-(-side // reduction) for side in size):
            height, width = self.read(path, self.image_format).shape[:2]
            raise InputError(
                f"image {path} is {width} x {height}, but annotated as {size[1]} x {size[0]}"
            )
        return image


def treatment_of(annotation: Dict, crowd: str, difficult: str) -> str:
    """What training does with an object: "keep", "drop" or "ignore"."""
    if annotation.get("difficult", 0):
        return difficult
    return crowd if annotation.get("iscrowd", 0) else "keep"


def visible(
    boxes: np.ndarray, classes: np.ndarray, size: Tuple[int, int]
) -> Tuple[np.ndarray, np.ndarray]:
    """Boxes (M, 4) XYXY whose centre lies in an image of (height, width), clipped to it.

    Returns:
        (M', 4) boxes, which have area, and their classes (M',).
    """
    limits = np.array((size[1], size[0]))
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    clipped = np.minimum(np.maximum(boxes, 0), limits[[0, 1, 0, 1]]).astype(np.float32)
    good = (centers > 0) & (centers < limits) & (clipped[:, 2:] > clipped[:, :2])
    keep = good[:, 0] & good[:, 1]
    return clipped[keep], classes[keep]


def make_instances(boxes: np.ndarray, classes: np.ndarray, size: Tuple[int, int]) -> Instances:
    """Ground truth of an augmented image; see ``visible``."""
    boxes, classes = visible(boxes, classes, size)
    instances = Instances(tuple(size))
    instances.gt_boxes = Boxes(torch.from_numpy(boxes))
    instances.gt_classes = torch.from_numpy(classes)
    return instances
