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
    i m / n, as TensorFlow 1 has it. (The names are those of ONNX's Resize.)
    """

    methods = ("half_pixel", "asymmetric")

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
        return F.interpolate(images.float(), size, mode="bilinear", align_corners=False)


def _asymmetric(images: Tensor, axis: int, length: int) -> Tensor:
    """Axis 2 or 3 of images resized to a length; with plain operators, which every format has."""
    source = images.shape[axis]  # a tensor where a graph is traced
    at = torch.arange(length, device=images.device) * source / length
    low = at.floor().long()
    high = (low + 1).clamp(max=source - 1)
    before, after = (images.index_select(axis, index).float() for index in (low, high))
    share = (at - low).view((-1, 1) if axis == 2 else (-1,))
    return before + (after - before) * share
