"""The pixels of an augmented image in one step, from transforms drawn without any pixel.

In textbook order every transform makes a whole new image, though most of its pixels are cropped
or shrunk away again. All of SSD's geometry is one stretch and shift per axis, so here it is
composed first; then the file is decoded at the smallest size that still suffices, the part of it
that is seen is resampled once, and colour is changed on what is left.
"""

import math
from types import SimpleNamespace
from typing import Callable, NamedTuple, Sequence, Tuple

import cv2
import numpy as np
from detectron2.data import transforms as T

from .transforms import ExpandTransform, PhotometricTransform, ResizeTransform, warp


class Axis(NamedTuple):
    """Result coordinate x shows source coordinate ``start + step * x``."""

    start: float = 0.0
    step: float = 1.0


class Rendering(NamedTuple):
    """What is to be seen of an image."""

    source: Tuple[int, int]  # its (height, width)
    size: Tuple[int, int]  # (height, width) of the result
    x: Axis = Axis()
    y: Axis = Axis()
    fill: Sequence[float] = (0.0, 0.0, 0.0)  # colour where the image is not
    colours: Tuple[PhotometricTransform, ...] = ()
    flips: Tuple[bool, bool] = (False, False)  # horizontally, vertically; last of all
    half_pixel: bool = True  # how it is resampled; see ResizeTransform

    def then(self, transform: T.Transform) -> "Rendering":
        """The same with one more transform.

        Raises:
            TypeError: a transform, or its place in the order, that cannot be composed.
        """
        if isinstance(transform, T.TransformList):
            rendering = self
            for part in transform.transforms:
                rendering = rendering.then(part)
            return rendering
        if isinstance(transform, T.NoOpTransform):
            return self
        kind = type(transform)
        is_flip = kind in (T.HFlipTransform, T.VFlipTransform)
        if kind not in _THEN or (any(self.flips) and not is_flip):
            raise TypeError(f"{kind.__name__} cannot be composed here")
        return _THEN[kind](self, transform)

    def pixels(self, read: Callable[[int], np.ndarray]) -> np.ndarray:
        """
        Args:
            read: gives the source image, its size divided by its argument, 1, 2, 4 or 8.

        Returns:
            (H, W, 3) uint8.
        """
        reduction = 1
        while reduction < 8 and min(self.x.step, self.y.step) >= 2 * reduction:
            reduction *= 2
        image = read(reduction)
        left, right = _seen(self.x, self.source[1], self.size[1])
        top, bottom = _seen(self.y, self.source[0], self.size[0])
        whole = (left, top, right, bottom) == (0, 0, *self.size[::-1])
        result = self._resample(image, reduction, left, top, right, bottom)
        for colour in self.colours:
            result = colour.apply_image(result)
        if not whole:
            borders = top, self.size[0] - bottom, left, self.size[1] - right
            fill = np.asarray(self.fill).round().tolist()
            result = cv2.copyMakeBorder(result, *borders, cv2.BORDER_CONSTANT, value=fill)
        horizontal, vertical = self.flips
        if horizontal or vertical:
            result = cv2.flip(result, (-1 if vertical else 1) if horizontal else 0)
        return result

    def _resample(self, image, reduction, left, top, right, bottom) -> np.ndarray:
        """The pixels [left, right) x [top, bottom) of the result."""
        width, height = right - left, bottom - top
        if not width or not height:
            return np.empty((height, width, 3), dtype=np.uint8)
        edges = [
            (axis.start + axis.step * at) / reduction
            for axis, at in ((self.x, left), (self.y, top), (self.x, right), (self.y, bottom))
        ]
        x0, y0, x1, y1 = map(round, edges)
        is_whole = max(abs(n - edge) for n, edge in zip((x0, y0, x1, y1), edges)) < 1e-6
        if is_whole and x0 >= 0 and y0 >= 0 and x1 <= image.shape[1] and y1 <= image.shape[0]:
            image, edges = image[y0:y1, x0:x1], [0.0, 0.0]
            if self.half_pixel:
                return cv2.resize(image, (width, height))
        steps = self.x.step / reduction, self.y.step / reduction
        # Pixel i has its centre at i + 1/2 and shows that place; else it shows the place of the
        # source's pixel i * step.
        x, y = (
            edge + (step if self.half_pixel else 1 / reduction) / 2 - 0.5
            for edge, step in zip(edges, steps)
        )
        matrix = np.array([[steps[0], 0, x], [0, steps[1], y]])
        return warp(image, matrix, (height, width))


def _seen(axis: Axis, source: int, size: int) -> Tuple[int, int]:
    """First and last + 1 pixel of the result along an axis whose centre lies in the image."""
    first, end = (
        min(size, max(0, math.ceil((edge - axis.start) / axis.step - 0.5))) for edge in (0, source)
    )
    return first, end


def _then_colour(rendering: Rendering, colour: PhotometricTransform) -> Rendering:
    left, right = _seen(rendering.x, rendering.source[1], rendering.size[1])
    top, bottom = _seen(rendering.y, rendering.source[0], rendering.size[0])
    if (left, top, right, bottom) != (0, 0, *rendering.size[::-1]):
        raise TypeError("colours after the canvas would change its fill")
    return rendering._replace(colours=(*rendering.colours, colour))


def _then_expand(rendering: Rendering, expand: ExpandTransform) -> Rendering:
    x, y = rendering.x, rendering.y
    return rendering._replace(
        x=x._replace(start=x.start - x.step * expand.left),
        y=y._replace(start=y.start - y.step * expand.top),
        size=(expand.height, expand.width),
        fill=expand.fill,
    )


def _then_crop(rendering: Rendering, crop: T.CropTransform) -> Rendering:
    x, y = rendering.x, rendering.y
    return rendering._replace(
        x=x._replace(start=x.start + x.step * crop.x0),
        y=y._replace(start=y.start + y.step * crop.y0),
        size=(crop.h, crop.w),
    )


def _then_resize(rendering: Rendering, resize: ResizeTransform) -> Rendering:
    (old_h, old_w), (new_h, new_w) = resize.old_size, resize.new_size
    return rendering._replace(
        x=rendering.x._replace(step=rendering.x.step * old_w / new_w),
        y=rendering.y._replace(step=rendering.y.step * old_h / new_h),
        size=(new_h, new_w),
        half_pixel=resize.half_pixel,
    )


def _then_flip(rendering: Rendering, flip: T.Transform) -> Rendering:
    horizontal, vertical = rendering.flips
    if isinstance(flip, T.HFlipTransform):
        return rendering._replace(flips=(not horizontal, vertical))
    return rendering._replace(flips=(horizontal, not vertical))


_THEN = {
    PhotometricTransform: _then_colour,
    ExpandTransform: _then_expand,
    T.CropTransform: _then_crop,
    ResizeTransform: _then_resize,
    T.HFlipTransform: _then_flip,
    T.VFlipTransform: _then_flip,
}


class Sketch(T.AugInput):
    """What augmentations see of an image that is not decoded: boxes, and an image with a shape.

    Its ``rendering`` grows with every transform.
    """

    def __init__(self, size: Tuple[int, int], boxes: np.ndarray):
        """
        Args:
            size: (height, width) of the image.
            boxes: (M, 4) XYXY.
        """
        self.rendering = Rendering(tuple(size), tuple(size))
        self.boxes = boxes

    @property
    def image(self) -> SimpleNamespace:
        """Only a ``shape``."""
        return SimpleNamespace(shape=(*self.rendering.size, 3))

    def transform(self, tfm: T.Transform) -> None:
        if not isinstance(tfm, T.NoOpTransform):
            self.rendering = self.rendering.then(tfm)
            self.boxes = tfm.apply_box(self.boxes)
