"""SSD's random augmentations (:paper:`SSD`, sec. 2.2 and 3.6): each draws a transform."""

import copy
from typing import List, Sequence, Tuple

import numpy as np
from detectron2.config import CfgNode
from detectron2.data.transforms import (
    Augmentation,
    CropTransform,
    NoOpTransform,
    RandomFlip,
    Transform,
    TransformList,
)

from ..errors import one_of
from .transforms import ExpandTransform, PhotometricTransform, ResizeTransform

# INPUT.RANDOM_FLIP: Detectron2's words, and "both": each way with its own chance.
FLIPS = {
    "none": (),
    "horizontal": ("horizontal",),
    "vertical": ("vertical",),
    "both": ("horizontal", "vertical"),
}


class PhotometricDistortion(Augmentation):
    """Each of brightness, contrast, saturation, hue and channel order with some probability.

    Contrast comes before the colours or after them, with equal chance.
    """

    def __init__(
        self,
        brightness: float = 32.0,
        contrast: Tuple[float, float] = (0.5, 1.5),
        saturation: Tuple[float, float] = (0.5, 1.5),
        hue: float = 18.0,
        swap_channels: bool = True,
        prob: float = 0.5,
    ):
        """
        Args:
            brightness: largest shift in grey levels.
            contrast, saturation: ranges of the factors.
            hue: largest shift in degrees.
            prob: chance of each.
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        def happens():
            return np.random.uniform() < self.prob

        def drawn(low, high, otherwise):
            return np.random.uniform(low, high) if happens() else otherwise

        return PhotometricTransform(
            brightness=drawn(-self.brightness, self.brightness, 0.0),
            contrast=drawn(*self.contrast, 1.0),
            saturation=drawn(*self.saturation, 1.0),
            hue=drawn(-self.hue, self.hue, 0.0),
            contrast_last=bool(np.random.randint(2)),
            channels=np.random.permutation(3) if self.swap_channels and happens() else None,
        )


class RandomExpand(Augmentation):
    """With some probability, place the image somewhere on a larger canvas of one colour."""

    def __init__(
        self,
        prob: float = 0.5,
        ratio: Tuple[float, float] = (1.0, 4.0),
        fill: Sequence[float] = (123.0, 117.0, 104.0),
    ):
        """
        Args:
            ratio: range of the canvas's side over the image's.
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
        canvas = int(width * ratio), int(height * ratio)
        return ExpandTransform(int(left), int(top), *canvas, self.fill, width, height)


class RandomIoUCrop(Augmentation):
    """Crop to a window that one box, at least, overlaps by a drawn IoU.

    Equal chances for the whole image, each minimum IoU, and any window. Of the windows drawn for
    it, the first is taken whose best IoU with a box reaches the minimum and that holds the centre
    of a box; when none does, another minimum is drawn. An image without boxes stays whole.

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
            scale: range of the window's sides over the image's.
            aspect_ratio: range of the window's height over its width.
            trials: windows drawn per minimum.
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray, boxes: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        modes = (None, *self.min_ious, 0.0)  # whole image, minimum IoUs, any window
        while len(boxes):
            min_iou = modes[np.random.randint(len(modes))]
            if min_iou is None:
                break
            windows = self._draw_windows(height, width)
            fits = centers_inside(windows, boxes).any(axis=1)
            if min_iou > 0:
                fits &= (window_ious(windows, boxes) >= min_iou).any(axis=1)
            if fits.any():
                x0, y0, x1, y1 = windows[fits.argmax()].tolist()
                return CropTransform(x0, y0, x1 - x0, y1 - y0, width, height)
        return NoOpTransform()

    def _draw_windows(self, height: int, width: int) -> np.ndarray:
        """(up to trials, 4) integer XYXY windows of allowed shape inside the image."""
        u = np.random.uniform(size=(self.trials, 4))
        image = np.array((width, height))
        low, high = self.scale
        sides = (low + (high - low) * u[:, :2]) * image
        corners = u[:, 2:] * (image - sides)
        windows = np.concatenate((corners, corners + sides), axis=1).astype(np.int64)
        ratio = sides[:, 1] / sides[:, 0]
        pixels = windows[:, 2:] - windows[:, :2]
        good = (ratio >= self.aspect_ratio[0]) & (ratio <= self.aspect_ratio[1])
        good &= (pixels[:, 0] > 0) & (pixels[:, 1] > 0)
        windows = windows[good]
        # No window of a very long or small image may fit the limits: then the image is one.
        return windows if len(windows) else np.array([[0, 0, width, height]])


def window_ious(windows: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(T, M) IoU of T windows and M boxes, XYXY."""
    shared = np.minimum(windows[:, None, 2:], boxes[:, 2:])
    shared -= np.maximum(windows[:, None, :2], boxes[:, :2])
    np.maximum(shared, 0, out=shared)
    shared = shared[..., 0] * shared[..., 1]
    sides = [b[:, 2:] - b[:, :2] for b in (windows, boxes)]
    areas = [s[:, 0] * s[:, 1] for s in sides]
    return shared / (areas[0][:, None] + areas[1] - shared)


def centers_inside(windows: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(T, M) whether the centre of each of M boxes lies strictly inside each of T windows."""
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = (centers > windows[:, None, :2]) & (centers < windows[:, None, 2:])
    return inside[..., 0] & inside[..., 1]


class RandomScaleJitter(Augmentation):
    """Large-scale jitter: shrink or enlarge the image, keeping its shape, then crop or pad.

    (Simple Copy-Paste, Ghiasi et al. 2021, sec. 3.) At a scale of 1 the image just fits into the
    result. What does not fit is cropped at a random place; what is left over is filled.
    """

    def __init__(
        self,
        size: Tuple[int, int],
        scale: Tuple[float, float] = (0.1, 2.0),
        fill: Sequence[float] = (123.0, 117.0, 104.0),
    ):
        """
        Args:
            size: (height, width) whose shape the result has; its pixels are the image's.
            scale: range of the scale.
            fill: colour of what is left over.
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        sides = np.array(image.shape[:2])
        scale = np.random.uniform(*self.scale) * (self.size / sides).min()
        window = np.maximum(1, np.round(self.size / scale)).astype(int)  # in the image's pixels
        canvas = np.maximum(window, sides)
        place = (np.random.uniform(size=2) * (canvas - sides + 1)).astype(int)
        corner = (np.random.uniform(size=2) * (canvas - window + 1)).astype(int)
        return TransformList(
            [
                ExpandTransform(
                    *place[::-1].tolist(),
                    *canvas[::-1].tolist(),
                    self.fill,
                    *sides[::-1].tolist(),
                ),
                CropTransform(
                    *corner[::-1].tolist(), *window[::-1].tolist(), *canvas[::-1].tolist()
                ),
            ]
        )


class Resize(Augmentation):
    """Stretch to one size; see ``ResizeTransform``."""

    def __init__(self, size: Tuple[int, int], half_pixel: bool = True):
        """
        Args:
            size: (height, width) in pixels.
            half_pixel: as ResizeTransform has it.
        """
        super().__init__()
        self.size = tuple(size)
        self.half_pixel = half_pixel

    def get_transform(self, image: np.ndarray) -> Transform:
        return ResizeTransform(image.shape[:2], self.size, self.half_pixel)


def build_augmentation(cfg: CfgNode, is_train: bool) -> List[Augmentation]:
    """Colour, expand, crop (or scale jitter), resize and flip in training; nothing in inference.

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
                node.PHOTOMETRIC.PROB,
            )
        )
    fill = cfg.MODEL.PIXEL_MEAN
    if node.SCALE_JITTER.ENABLED:
        augmentations.append(RandomScaleJitter(node.SIZE, node.SCALE_JITTER.SCALE, fill))
    elif node.EXPAND.PROB > 0:
        augmentations.append(RandomExpand(node.EXPAND.PROB, node.EXPAND.RATIO, fill))
    if node.IOU_CROP.ENABLED and not node.SCALE_JITTER.ENABLED:
        crop = node.IOU_CROP
        augmentations.append(
            RandomIoUCrop(crop.MIN_IOUS, crop.SCALE, crop.ASPECT_RATIO, crop.TRIALS)
        )
    augmentations.append(Resize(node.SIZE, node.RESIZE != "asymmetric"))
    for way in FLIPS[one_of("INPUT.RANDOM_FLIP", node.RANDOM_FLIP, FLIPS)]:
        ways = {"horizontal": False, "vertical": False, way: True}
        augmentations.append(RandomFlip(node.FLIP_PROB, **ways))
    return augmentations


def to_size(augmentations: Sequence[Augmentation], size: Tuple[int, int]) -> List[Augmentation]:
    """The same augmentations with a result of another (height, width)."""
    changed = []
    for augmentation in augmentations:
        if isinstance(augmentation, (Resize, RandomScaleJitter)):
            augmentation = copy.copy(augmentation)
            augmentation.size = size
        changed.append(augmentation)
    return changed


def is_composable(augmentation: Augmentation) -> bool:
    """Whether ``rendering.py`` knows what an augmentation draws."""
    kinds = (
        PhotometricDistortion,
        RandomExpand,
        RandomIoUCrop,
        RandomScaleJitter,
        Resize,
        RandomFlip,
    )
    return type(augmentation) in kinds
