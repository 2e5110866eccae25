"""Deterministic transforms of pictures and boxes; the random policies are in augmentation.py."""

from typing import Optional, Sequence, Tuple

import cv2
import numpy as np
from detectron2.data.transforms import Transform


class PhotometricTransform(Transform):
    """Brightness, contrast, saturation, hue and channel order of an RGB uint8 picture.

    As in the reference, but saturating to [0, 255] after each part. Boxes stay.
    """

    def __init__(
        self,
        brightness: float = 0.0,
        contrast: float = 1.0,
        saturation: float = 1.0,
        hue: float = 0.0,
        contrast_last: bool = False,
        channels: Optional[Sequence[int]] = None,
    ):
        """
        Args:
            brightness: grey levels added, first of all.
            contrast: factor, after brightness or, with ``contrast_last``, after the colours.
            saturation: factor of HSV's S.
            hue: degrees added to HSV's H.
            channels: new order of the channels, last of all.
        """
        super().__init__()
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue
        self.contrast_last = contrast_last
        self.channels = channels

    def apply_image(self, img: np.ndarray, interp: Optional[str] = None) -> np.ndarray:
        levels = np.arange(256, dtype=np.float32) + self.brightness
        if not self.contrast_last:
            levels = levels.clip(0, 255) * self.contrast
        img = _look_up(img, levels)
        if self.saturation != 1.0 or self.hue != 0.0:
            hsv = cv2.cvtColor(img, cv2.COLOR_RGB2HSV)  # H in steps of 2 degrees, below 180
            hue = (np.arange(256) + round(self.hue / 2)) % 180
            saturation = np.arange(256, dtype=np.float32) * self.saturation
            tables = np.stack((hue, saturation.round().clip(0, 255), np.arange(256)), axis=-1)
            hsv = cv2.LUT(hsv, tables[None].astype(np.uint8))
            img = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
        if self.contrast_last:
            img = _look_up(img, np.arange(256, dtype=np.float32) * self.contrast)
        if self.channels is not None:
            img = img[:, :, list(self.channels)]
        return img

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation

    def inverse(self) -> Transform:
        raise NotImplementedError("colours saturate: the transform has no inverse")


def _look_up(img: np.ndarray, levels: np.ndarray) -> np.ndarray:
    return cv2.LUT(img, levels.round().clip(0, 255).astype(np.uint8))


class ExpandTransform(Transform):
    """Place the picture on a larger canvas (:paper:`SSD`, sec. 3.6).

    Unlike Detectron2's PadTransform, the canvas may have a colour.
    """

    def __init__(
        self, left: int, top: int, width: int, height: int, fill: Sequence[float] = (0.0,) * 3
    ):
        """
        Args:
            left, top: place of the picture on the canvas, pixels.
            width, height: of the canvas.
            fill: colour of the canvas, in the channels of the picture.
        """
        super().__init__()
        self.left = left
        self.top = top
        self.width = width
        self.height = height
        self.fill = fill

    def apply_image(self, img: np.ndarray, interp: Optional[str] = None) -> np.ndarray:
        return self._place(img, np.asarray(self.fill).round())

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self._place(segmentation, 0)

    def _place(self, img: np.ndarray, fill) -> np.ndarray:
        canvas = np.empty((self.height, self.width, *img.shape[2:]), dtype=img.dtype)
        canvas[...] = fill
        h, w = img.shape[:2]
        canvas[self.top : self.top + h, self.left : self.left + w] = img
        return canvas

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords + np.asarray((self.left, self.top), dtype=coords.dtype)


class ResizeTransform(Transform):
    """Stretch to a size, bilinear without antialias (OpenCV's INTER_LINEAR).

    This is what public SSD weights were trained on and what the model does in inference;
    Detectron2's own ResizeTransform filters when it shrinks.
    """

    def __init__(self, old_size: Tuple[int, int], new_size: Tuple[int, int]):
        """
        Args:
            old_size, new_size: (height, width) in pixels.
        """
        super().__init__()
        self.old_size = old_size
        self.new_size = new_size

    def apply_image(self, img: np.ndarray, interp: Optional[int] = None) -> np.ndarray:
        interp = cv2.INTER_LINEAR if interp is None else interp
        return cv2.resize(img, self.new_size[::-1], interpolation=interp)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, interp=cv2.INTER_NEAREST)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        (old_h, old_w), (new_h, new_w) = self.old_size, self.new_size
        return coords * np.asarray((new_w / old_w, new_h / old_h), dtype=coords.dtype)

    def inverse(self) -> Transform:
        return ResizeTransform(self.new_size, self.old_size)
