"""Deterministic transforms of images and boxes; the random policies are in augmentation.py."""

from typing import Optional, Sequence, Tuple

import cv2
import numpy as np
from detectron2.data.transforms import CropTransform, Transform

LEVELS = np.arange(256, dtype=np.float32)


class PhotometricTransform(Transform):
    """Brightness, contrast, saturation, hue and channel order of an RGB uint8 image.

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
        levels = LEVELS + self.brightness if self.brightness else LEVELS
        contrasted = levels.clip(0, 255) * self.contrast if self.contrast != 1.0 else levels
        if self.contrast_last and self.has_colour and contrasted is not levels:
            img = self._change_colour(_look_up(img, levels))
            img = _look_up(img, LEVELS * self.contrast)
        else:
            img = self._change_colour(_look_up(img, contrasted))
        if self.channels is not None:  # a matrix product is OpenCV's fastest way to reorder
            img = cv2.transform(img, np.eye(3, dtype=np.float32)[list(self.channels)])
        return img

    @property
    def has_colour(self) -> bool:
        """Whether saturation or hue change."""
        return self.saturation != 1.0 or self.hue != 0.0

    def _change_colour(self, img: np.ndarray) -> np.ndarray:
        if not self.has_colour:
            return img
        hsv = cv2.cvtColor(img, cv2.COLOR_RGB2HSV_FULL)  # H in 256ths of a turn
        hue = (LEVELS + self.hue * 256 / 360).round() % 256
        saturation = (LEVELS * self.saturation).round().clip(0, 255)
        hsv = cv2.LUT(hsv, np.stack((hue, saturation, LEVELS), axis=-1)[None].astype(np.uint8))
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)

    def apply_box(self, box: np.ndarray) -> np.ndarray:
        return box

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation

    def inverse(self) -> Transform:
        raise NotImplementedError("colours saturate: the transform has no inverse")


def _look_up(img: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Every grey level replaced; ``levels`` has 256 numbers, LEVELS itself for no change."""
    if levels is LEVELS:
        return img
    return cv2.LUT(img, levels.round().clip(0, 255).astype(np.uint8))


class ExpandTransform(Transform):
    """Place the image on a larger canvas (:paper:`SSD`, sec. 3.6).

    Unlike Detectron2's PadTransform, the canvas may have a colour.
    """

    def __init__(
        self,
        left: int,
        top: int,
        width: int,
        height: int,
        fill: Sequence[float] = (0.0,) * 3,
        orig_w: Optional[int] = None,
        orig_h: Optional[int] = None,
    ):
        """
        Args:
            left, top: place of the image on the canvas, pixels.
            width, height: of the canvas.
            fill: colour of the canvas, in the channels of the image.
            orig_w, orig_h: of the image; for the inverse only.
        """
        super().__init__()
        self.left = left
        self.top = top
        self.width = width
        self.height = height
        self.fill = fill
        self.orig_w = orig_w
        self.orig_h = orig_h

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

    def apply_box(self, box: np.ndarray) -> np.ndarray:
        return box + np.asarray((self.left, self.top) * 2, dtype=box.dtype)

    def inverse(self) -> Transform:
        if self.orig_w is None or self.orig_h is None:
            raise NotImplementedError("orig_w and orig_h are needed for the inverse")
        place = self.left, self.top, self.orig_w, self.orig_h
        return CropTransform(*place, orig_w=self.width, orig_h=self.height)


class ResizeTransform(Transform):
    """Stretch to a size, bilinear without antialias (OpenCV's INTER_LINEAR).

    This is what public SSD weights were trained on and what the model does in inference;
    Detectron2's own ResizeTransform filters when it shrinks.
    """

    def __init__(
        self, old_size: Tuple[int, int], new_size: Tuple[int, int], half_pixel: bool = True
    ):
        """
        Args:
            old_size, new_size: (height, width) in pixels.
            half_pixel: False is INPUT.RESIZE "asymmetric": pixel i shows the coordinate i * scale
                of the image, and not its centre. Boxes are scaled in both.
        """
        super().__init__()
        self.old_size = old_size
        self.new_size = new_size
        self.half_pixel = half_pixel

    def apply_image(self, img: np.ndarray, interp: Optional[int] = None) -> np.ndarray:
        interp = cv2.INTER_LINEAR if interp is None else interp
        if self.half_pixel:
            return cv2.resize(img, self.new_size[::-1], interpolation=interp)
        (old_h, old_w), (new_h, new_w) = self.old_size, self.new_size
        matrix = np.array([[old_w / new_w, 0, 0], [0, old_h / new_h, 0]])
        return warp(img, matrix, self.new_size, interp)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, interp=cv2.INTER_NEAREST)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        (old_h, old_w), (new_h, new_w) = self.old_size, self.new_size
        return coords * np.asarray((new_w / old_w, new_h / old_h), dtype=coords.dtype)

    def apply_box(self, box: np.ndarray) -> np.ndarray:
        (old_h, old_w), (new_h, new_w) = self.old_size, self.new_size
        return box * np.asarray((new_w / old_w, new_h / old_h) * 2, dtype=box.dtype)

    def inverse(self) -> Transform:
        return ResizeTransform(self.new_size, self.old_size, self.half_pixel)


def warp(
    img: np.ndarray, matrix: np.ndarray, size: Tuple[int, int], interp: int = cv2.INTER_LINEAR
) -> np.ndarray:
    """(h, w, C) to ``size`` (H, W); pixel (x, y, 1) shows the image at ``matrix`` (2, 3) times it.

    Outside of the image its border goes on.
    """
    flags = interp | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(img, matrix, size[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)
