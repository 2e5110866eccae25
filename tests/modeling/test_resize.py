"""INPUT.RESIZE by formulas, written out in plain loops."""

import cv2
import numpy as np
import pytest
import torch

from ssdlite_d2 import InputError
from ssdlite_d2.data.rendering import Rendering
from ssdlite_d2.data.transforms import ResizeTransform
from ssdlite_d2.modeling import InputResize

SIZES = [((7, 9), (5, 4)), ((6, 5), (13, 10)), ((4, 4), (2, 2)), ((1, 3), (3, 1)), ((3, 3), (3, 3))]
METHODS = ["half_pixel", "asymmetric"]


def coordinate(i, source, target, method):
    if method == "half_pixel":
        return max((i + 0.5) * source / target - 0.5, 0)
    return i * source / target  # tf.compat.v1.image.resize_bilinear, align_corners=False


def bilinear(image, size, method):
    """(h, w, C) to (H, W, C), pixel by pixel."""
    result = np.empty((*size, image.shape[2]))
    (h, w), (height, width) = image.shape[:2], size
    for y in range(height):
        for x in range(width):
            v, u = coordinate(y, h, height, method), coordinate(x, w, width, method)
            top, left = int(v), int(u)
            bottom, right = min(top + 1, h - 1), min(left + 1, w - 1)
            upper = image[top, left] * (1 - u + left) + image[top, right] * (u - left)
            lower = image[bottom, left] * (1 - u + left) + image[bottom, right] * (u - left)
            result[y, x] = upper * (1 - v + top) + lower * (v - top)
    return result


@pytest.mark.parametrize("source, target", SIZES)
@pytest.mark.parametrize("method", METHODS)
def test_resize_by_hand(method, source, target):
    image = np.random.default_rng(0).integers(0, 256, (*source, 3), dtype=np.uint8)
    expected = bilinear(image.astype(float), target, method)
    planes = torch.from_numpy(image.transpose(2, 0, 1).copy())[None]
    found = InputResize(target, method)(planes)[0].numpy().transpose(1, 2, 0)
    assert np.abs(found - expected).max() <= 1e-3
    transform = ResizeTransform(source, target, method == "half_pixel")
    assert np.abs(transform.apply_image(image) - expected).max() <= 1
    if min(old / new for old, new in zip(source, target)) < 2:  # else it is decoded smaller
        rendered = Rendering(source, source).then(transform).pixels(lambda reduction: image)
        assert np.abs(rendered - expected).max() <= 1


def test_the_two_differ_and_another_is_an_error():
    image = torch.arange(12.0).view(1, 1, 3, 4).expand(1, 3, 3, 4)
    half, corner = (InputResize((2, 2), method)(image) for method in METHODS)
    assert corner[0, 0].tolist() == [[0, 2], [6, 8]]
    assert half[0, 0].tolist() == [[1.5, 3.5], [7.5, 9.5]]
    with pytest.raises(InputError, match="INPUT.RESIZE is 'area'; it is one of half_pixel, asymm"):
        InputResize((2, 2), "area")


@pytest.mark.parametrize(
    "source", [(375, 500), (200, 130), (150, 150), (301, 299), (2, 700), (1, 1)]
)
def test_opencvs_own_bytes(source):
    """On the widest steps between pixels: noise."""
    image = np.random.default_rng(1).integers(0, 256, (*source, 3), dtype=np.uint8)
    planes = torch.from_numpy(image.transpose(2, 0, 1).copy())[None]
    for size in ((300, 300), (97, 130)):
        expected = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
        for found in (InputResize(size, "opencv")(x)[0] for x in (planes, planes.float())):
            assert np.array_equal(found.numpy().transpose(1, 2, 0), expected)
