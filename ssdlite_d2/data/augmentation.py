"""SSD's random augmentations (:paper:`SSD`, sec. 2.2 and 3.6): each draws a transform."""

from typing import List, Sequence, Tuple

import numpy as np
from detectron2.config import CfgNode
from detectron2.data.transforms import (
    Augmentation,
    CropTransform,
    NoOpTransform,
    RandomFlip,
    Transform,
)

from ..errors import InputError
from .transforms import ExpandTransform, PhotometricTransform, ResizeTransform

# INPUT.RANDOM_FLIP: Detectron2's words, and "both": each way with probability 1/2.
FLIPS = {
    "none": (),
    "horizontal": ("horizontal",),
    "vertical": ("vertical",),
    "both": ("horizontal", "vertical"),
}


class PhotometricDistortion(Augmentation):
    """Each of brightness, contrast, saturation, hue and channel order with probability 1/2.

    Contrast comes before the colours or after them, with equal chance.
    """

    def __init__(
        self,
        brightness: float = 32.0,
        contrast: Tuple[float, float] = (0.5, 1.5),
        saturation: Tuple[float, float] = (0.5, 1.5),
        hue: float = 18.0,
        swap_channels: bool = True,
    ):
        """
        Args:
            brightness: largest shift in grey levels.
            contrast, saturation: ranges of the factors.
            hue: largest shift in degrees.
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        def drawn(low, high, otherwise):
            return np.random.uniform(low, high) if np.random.randint(2) else otherwise

        return PhotometricTransform(
            brightness=drawn(-self.brightness, self.brightness, 0.0),
            contrast=drawn(*self.contrast, 1.0),
            saturation=drawn(*self.saturation, 1.0),
            hue=drawn(-self.hue, self.hue, 0.0),
            contrast_last=bool(np.random.randint(2)),
            channels=(
                np.random.permutation(3) if self.swap_channels and np.random.randint(2) else None
            ),
        )


class RandomExpand(Augmentation):
    """With some probability, place the picture somewhere on a larger canvas of one colour."""

    def __init__(
        self,
        prob: float = 0.5,
        ratio: Tuple[float, float] = (1.0, 4.0),
        fill: Sequence[float] = (123.0, 117.0, 104.0),
    ):
        """
        Args:
            ratio: range of the canvas's side over the picture's.
            fill: colour of the canvas.
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        if np.random.uniform() >= self.prob:
            return NoOpTransform()
        height, width = image.shape[:2]
        ratio = np.random.uniform(*self.ratio)
        left, top = (np.random.uniform(0, side * (ratio - 1)) for side in (width, height))
        return ExpandTransform(
            int(left), int(top), int(width * ratio), int(height * ratio), self.fill
        )


class RandomIoUCrop(Augmentation):
    """Crop to a window that one box, at least, overlaps by a drawn IoU.

    Equal chances for the whole picture, each minimum IoU, and any window. Of the windows drawn for
    it, the first is taken whose best IoU with a box reaches the minimum and that holds the centre
    of a box; when none does, another minimum is drawn. A picture without boxes stays whole.

    Detectron2's MinIoURandomCrop wants *every* box to reach the minimum.
    """

    def __init__(
        self,
        min_ious: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
        scale: Tuple[float, float] = (0.3, 1.0),
        aspect_ratio: Tuple[float, float] = (0.5, 2.0),
        trials: int = 50,
    ):
        """
        Args:
            scale: range of the window's sides over the picture's.
            aspect_ratio: range of the window's height over its width.
            trials: windows drawn per minimum.
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray, boxes: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        modes = (None, *self.min_ious, 0.0)  # whole picture, minimum IoUs, any window
        while len(boxes):
            min_iou = modes[np.random.randint(len(modes))]
            if min_iou is None:
                break
            windows = self._draw_windows(height, width)
            fits = window_ious(windows, boxes).max(axis=1) >= min_iou
            fits &= centers_inside(windows, boxes).any(axis=1)
            if fits.any():
                x0, y0, x1, y1 = windows[fits.argmax()].tolist()
                return CropTransform(x0, y0, x1 - x0, y1 - y0, width, height)
        return NoOpTransform()

    def _draw_windows(self, height: int, width: int) -> np.ndarray:
        """(up to trials, 4) integer XYXY windows of allowed shape inside the picture."""
        u = np.random.uniform(size=(self.trials, 4))
        low, high = self.scale
        w, h = ((low + (high - low) * u[:, i]) * side for i, side in enumerate((width, height)))
        left, top = u[:, 2] * (width - w), u[:, 3] * (height - h)
        windows = np.stack((left, top, left + w, top + h), axis=1).astype(np.int64)
        ratio = h / w
        good = (ratio >= self.aspect_ratio[0]) & (ratio <= self.aspect_ratio[1])
        good &= (windows[:, 2:] > windows[:, :2]).all(axis=1)
        windows = windows[good]
        # No window of a very long or small picture may fit the limits: then the picture is one.
        return windows if len(windows) else np.array([[0, 0, width, height]])


def window_ious(windows: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(T, M) IoU of T windows and M boxes, XYXY."""
    low = np.maximum(windows[:, None, :2], boxes[None, :, :2])
    high = np.minimum(windows[:, None, 2:], boxes[None, :, 2:])
    shared = (high - low).clip(min=0).prod(axis=2)
    areas = [(b[:, 2:] - b[:, :2]).prod(axis=1) for b in (windows, boxes)]
    return shared / (areas[0][:, None] + areas[1][None] - shared)


def centers_inside(windows: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(T, M) whether the centre of each of M boxes lies strictly inside each of T windows."""
    centers = ((boxes[:, :2] + boxes[:, 2:]) / 2)[None]
    windows = windows[:, None]
    return ((centers > windows[..., :2]) & (centers < windows[..., 2:])).all(axis=2)


class Resize(Augmentation):
    """Stretch to one size; see ``ResizeTransform``."""

    def __init__(self, size: Tuple[int, int]):
        """
        Args:
            size: (height, width) in pixels.
        """
        super().__init__()
        self.size = tuple(size)

    def get_transform(self, image: np.ndarray) -> Transform:
        return ResizeTransform(image.shape[:2], self.size)


def build_augmentation(cfg: CfgNode, is_train: bool) -> List[Augmentation]:
    """Colour, expand, crop, resize and flip in training; nothing in inference.

    The order is the reference's. In inference the model resizes.
    """
    if not is_train:
        return []
    node, augmentations = cfg.INPUT, []
    if node.PHOTOMETRIC.ENABLED:
        augmentations.append(
            PhotometricDistortion(
                node.PHOTOMETRIC.BRIGHTNESS,
                node.PHOTOMETRIC.CONTRAST,
                node.PHOTOMETRIC.SATURATION,
                node.PHOTOMETRIC.HUE,
                node.PHOTOMETRIC.SWAP_CHANNELS,
            )
        )
    if node.EXPAND.PROB > 0:
        fill = cfg.MODEL.PIXEL_MEAN
        augmentations.append(RandomExpand(node.EXPAND.PROB, node.EXPAND.RATIO, fill))
    if node.IOU_CROP.ENABLED:
        crop = node.IOU_CROP
        augmentations.append(
            RandomIoUCrop(crop.MIN_IOUS, crop.SCALE, crop.ASPECT_RATIO, crop.TRIALS)
        )
    augmentations.append(Resize(node.SIZE))
    if node.RANDOM_FLIP not in FLIPS:
        raise InputError(
            f"INPUT.RANDOM_FLIP is '{node.RANDOM_FLIP}'; it is one of {', '.join(FLIPS)}"
        )
    for way in FLIPS[node.RANDOM_FLIP]:
        augmentations.append(RandomFlip(**{"horizontal": False, "vertical": False, way: True}))
    return augmentations
