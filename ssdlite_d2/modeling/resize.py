"""How images come to the size of the network input."""

from typing import Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import one_of


class InputResize:
    """Stretch images to one size, bilinear without antialias.

    ``methods`` differ in the point of the image that pixel i of n shows, by its coordinate among
    m pixels: "half_pixel", (i + 1/2) m / n - 1/2, as OpenCV and PyTorch have it; "asymmetric",
    i m / n, as TensorFlow 1 has it. (The names are those of ONNX's Resize.) "opencv" is half_pixel
    in whole grey levels: bit for bit what OpenCV makes of uint8.
    """

    methods = ("half_pixel", "asymmetric", "opencv")

    def __init__(self, size: Sequence[int], method: str = "half_pixel"):
        """
        Args:
            size: (H, W) in pixels.

        Raises:
            InputError: the method, INPUT.RESIZE, is unknown.
        """
        self.size = tuple(int(n) for n in size)
        self.method = one_of("INPUT.RESIZE", method, self.methods)

    def __call__(self, images: Tensor, size: Optional[Tuple[int, int]] = None) -> Tensor:
        """(N, 3, h, w) of any type to (N, 3, H, W) float32, or to another ``size``."""
        size = size or self.size
        if self.method == "asymmetric":
            return _asymmetric(_asymmetric(images, 2, size[0]), 3, size[1])
        if self.method == "opencv":
            return _opencv(images, size)
        return F.interpolate(images.float(), size, mode="bilinear", align_corners=False)


def _opencv(images: Tensor, size: Tuple[int, int]) -> Tensor:
    """Rows first, in whole numbers: weights are in 2048ths, and what is behind a point is cut."""
    x = images.int()
    for axis, length in ((3, size[1]), (2, size[0])):
        source = x.shape[axis]
        at = torch.arange(length, device=x.device, dtype=torch.float64)
        at = ((at + 0.5) * source / length - 0.5).float()
        if axis == 3:
            at = at.clamp(min=0).clamp(max=source - 1)
        low = at.floor()
        index = (i.long().clamp(min=0).clamp(max=source - 1) for i in (low, low + 1))
        pixels = [x.index_select(axis, i) for i in index]
        weights = [(w * 2048).round().int() for w in (1 - (at - low), at - low)]
        if axis == 3:  # up to 255 * 2048
            x = pixels[0] * weights[0] + pixels[1] * weights[1]
        else:
            x = sum(_floor(_floor(p, 16) * w[:, None], 65536) for p, w in zip(pixels, weights))
    return _floor(x + 2, 4).float()


def _floor(x: Tensor, divisor: int) -> Tensor:
    return torch.div(x, divisor, rounding_mode="floor")


def _asymmetric(images: Tensor, axis: int, length: int) -> Tensor:
    """Axis 2 or 3 of images resized to a length; with plain operators, which every format has."""
    source = images.shape[axis]  # a tensor where a graph is traced
    at = torch.arange(length, device=images.device) * source / length
    low = at.floor().long()
    high = (low + 1).clamp(max=source - 1)
    before, after = (images.index_select(axis, index).float() for index in (low, high))
    share = (at - low).view((-1, 1) if axis == 2 else (-1,))
    return before + (after - before) * share
