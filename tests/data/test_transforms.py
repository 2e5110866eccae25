import colorsys

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssdlite_d2.data.transforms import ExpandTransform, PhotometricTransform, ResizeTransform


def pixel(*rgb):
    return np.array([[rgb]], dtype=np.uint8)


def test_photometric_default_changes_nothing():
    image = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    assert np.array_equal(PhotometricTransform().apply_image(image), image)
    boxes = np.array([[1.0, 2, 3, 4]])
    assert np.array_equal(PhotometricTransform(brightness=9).apply_box(boxes), boxes)


def test_photometric_parts_by_hand():
    image = pixel(10, 100, 250)
    assert PhotometricTransform(brightness=20).apply_image(image).tolist() == [[[30, 120, 255]]]
    assert PhotometricTransform(contrast=0.5).apply_image(image).tolist() == [[[5, 50, 125]]]
    assert PhotometricTransform(channels=(2, 0, 1)).apply_image(image).tolist() == [
        [[250, 10, 100]]
    ]
    both = PhotometricTransform(brightness=-20, contrast=2.0)
    assert both.apply_image(image).tolist() == [[[0, 160, 255]]]


@pytest.mark.parametrize("hue, saturation", [(16, 1.0), (-18, 1.0), (0, 0.5), (10, 1.5)])
def test_photometric_colours_are_hsv(hue, saturation):
    image = pixel(200, 120, 60)
    h, s, v = colorsys.rgb_to_hsv(*(image[0, 0] / 255))
    expected = colorsys.hsv_to_rgb((h + hue / 360) % 1, min(s * saturation, 1), v)
    found = PhotometricTransform(hue=hue, saturation=saturation).apply_image(image)[0, 0]
    assert np.abs(found - np.array(expected) * 255).max() <= 6  # uint8 H has steps of 2 degrees


def test_expand_fills_with_a_colour_per_channel():
    transform = ExpandTransform(2, 1, 5, 4, fill=(10, 20, 30))
    image = np.full((2, 3, 3), 99, dtype=np.uint8)
    canvas = transform.apply_image(image)
    assert canvas.shape == (4, 5, 3)
    assert (canvas[1:3, 2:5] == 99).all()
    assert canvas[0, 0].tolist() == canvas[3, 4].tolist() == [10, 20, 30]
    assert transform.apply_box(np.array([[0.0, 0, 3, 2]])).tolist() == [[2, 1, 5, 3]]
    assert transform.apply_segmentation(image[..., 0]).tolist()[0] == [0] * 5


def test_resize_is_opencvs_bilinear():
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    transform = ResizeTransform((48, 64), (20, 30))
    assert np.array_equal(transform.apply_image(image), cv2.resize(image, (30, 20)))
    assert transform.apply_box(np.array([[0.0, 0, 64, 48]])).tolist() == [[0, 0, 30, 20]]


@given(
    st.tuples(*[st.integers(1, 500)] * 4),
    st.lists(st.tuples(*[st.floats(-50, 600)] * 4), min_size=1, max_size=4),
)
def test_resize_inverse_returns_the_box(sizes, boxes):
    boxes = np.array([[*np.sort((a, c)), *np.sort((b, d))] for a, b, c, d in boxes])[
        :, [0, 2, 1, 3]
    ]
    transform = ResizeTransform(sizes[:2], sizes[2:])
    assert np.allclose(transform.inverse().apply_box(transform.apply_box(boxes)), boxes, atol=1e-6)
