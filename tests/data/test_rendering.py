"""The fast mapper against textbook order, on the same draws."""

import functools

import cv2
import numpy as np
import pytest
import torch
from conftest import ASSETS, bare_config
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from hypothesis import given, settings
from hypothesis import strategies as st

from ssdlite_d2.data import SSDDatasetMapper
from ssdlite_d2.data.rendering import Rendering
from ssdlite_d2.data.transforms import ExpandTransform, PhotometricTransform, ResizeTransform

IMAGES = sorted((ASSETS / "bccd" / "JPEGImages").iterdir())


@functools.cache
def arguments(*opts):
    return SSDDatasetMapper.from_config(bare_config(3, *opts), True)


def make(*opts, **kwargs):
    return SSDDatasetMapper(**{**arguments(*opts), **kwargs})


def record(path=IMAGES[0], size=(480, 640), boxes=((50, 60, 200, 180), (300, 200, 420, 330))):
    annotations = [
        {"bbox": list(b), "bbox_mode": BoxMode.XYXY_ABS, "category_id": i % 3}
        for i, b in enumerate(boxes)
    ]
    return {
        "file_name": str(path),
        "height": size[0],
        "width": size[1],
        "annotations": annotations,
    }


def reader_of(image):
    """A reader of an image in memory."""

    def read(path, image_format="RGB", reduction=1):
        size = tuple(-(-n // reduction) for n in image.shape[1::-1])
        return cv2.resize(image, size, interpolation=cv2.INTER_AREA)

    return read


@pytest.mark.parametrize(
    "opts",
    [
        [],
        ["INPUT.SCALE_JITTER.ENABLED", True],
        ["INPUT.RANDOM_FLIP", "vertical", "INPUT.SIZE", (300, 500)],
        ["INPUT.RESIZE", "asymmetric", "INPUT.RANDOM_FLIP", "both"],
    ],
)
def test_fast_equals_textbook(opts):
    """Boxes to the bit, pixels by less than half a grey level in the mean."""
    fast, slow = make(*opts), make(*opts, fast=False)
    assert fast.fast and not slow.fast
    means = []
    for seed in range(30):
        one = record(IMAGES[seed % len(IMAGES)])
        np.random.seed(seed)
        a = fast(one)
        np.random.seed(seed)
        b = slow(one)
        assert torch.equal(a["instances"].gt_boxes.tensor, b["instances"].gt_boxes.tensor)
        assert torch.equal(a["instances"].gt_classes, b["instances"].gt_classes)
        assert a["image"].shape == b["image"].shape
        means.append((a["image"].float() - b["image"].float()).abs().mean())
    assert torch.stack(means).mean() < 0.5
    assert max(means) < 1.5


def test_crops_and_flips_alone_are_equal_to_the_bit():
    """Nothing is shrunk by 2 or more here, so nothing is decoded smaller."""
    opts = ["INPUT.EXPAND.PROB", 0.0, "INPUT.PHOTOMETRIC.ENABLED", False, "INPUT.SIZE", (300, 400)]
    fast, slow = make(*opts), make(*opts, fast=False)
    for seed in range(20):
        images = []
        for side in (fast, slow):
            np.random.seed(seed)
            images.append(side(record())["image"])
        assert torch.equal(*images)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.booleans())
def test_a_drawn_mask_and_its_box_agree(seed, fast):
    """Paint a box, map the image, and find the paint where the box says, to a pixel."""
    np.random.seed(seed)
    x0, y0 = np.random.randint(0, 700), np.random.randint(0, 600)
    x1, y1 = x0 + np.random.randint(150, 400), y0 + np.random.randint(150, 300)
    image = np.zeros((960, 1200, 3), dtype=np.uint8)
    image[y0:y1, x0:x1] = 255
    opts = ["INPUT.PHOTOMETRIC.ENABLED", False, "MODEL.PIXEL_MEAN", (0.0,) * 3]
    one = record(size=(960, 1200), boxes=[(x0, y0, x1, y1)])
    mapped = make(*opts, fast=fast, read=reader_of(image))(one)
    assert len(mapped["instances"]) == 1  # a crop without a box's centre is not drawn
    ys, xs = np.nonzero(mapped["image"][0].numpy() > 127)
    painted = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    assert np.abs(painted - mapped["instances"].gt_boxes.tensor[0].numpy()).max() <= 1


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(*[st.floats(-1e6, 1e6) | st.floats(-50, 400)] * 4), max_size=8),
    st.integers(0, 2**31),
    st.booleans(),
)
def test_any_boxes_end_inside_with_area_and_in_order(boxes, seed, fast):
    np.random.seed(seed)
    one = record(size=(240, 320), boxes=boxes)
    for i, annotation in enumerate(one["annotations"]):
        annotation["category_id"] = i
    image = np.zeros((240, 320, 3), dtype=np.uint8)
    truth = make(fast=fast, read=reader_of(image))(one)["instances"]
    found = truth.gt_boxes.tensor
    assert (found >= 0).all() and (found <= 320).all()
    assert (found[:, 2:] > found[:, :2]).all()
    assert (truth.gt_classes.diff() > 0).all()


def test_jpegs_are_decoded_no_larger_than_they_are_seen():
    asked = []

    def read(path, image_format="RGB", reduction=1):
        asked.append(reduction)
        return reader_of(np.zeros((960, 1280, 3), dtype=np.uint8))(path, image_format, reduction)

    plain = ["INPUT.EXPAND.PROB", 0.0, "INPUT.IOU_CROP.ENABLED", False]
    for size, reduction in (((960, 1280), 1), ((481, 641), 1), ((480, 640), 2), ((100, 100), 8)):
        make(*plain, "INPUT.SIZE", size, read=read)(record(size=(960, 1280)))
        assert asked[-1] == reduction


def test_what_cannot_be_composed_is_refused():
    plain = Rendering((48, 64), (48, 64))
    expanded = plain.then(ExpandTransform(9, 9, 99, 99))
    with pytest.raises(TypeError, match="fill"):
        expanded.then(PhotometricTransform())
    with pytest.raises(TypeError, match="CropTransform"):
        plain.then(T.HFlipTransform(64)).then(T.CropTransform(0, 0, 9, 9))
    with pytest.raises(TypeError, match="RotationTransform"):
        plain.then(T.RotationTransform(48, 64, 10))


def test_other_augmentations_take_the_textbook_way():
    augmentations = [T.RandomRotation([10, 10]), *arguments()["augmentations"]]
    other = make(augmentations=augmentations)
    assert not other.fast
    assert other(record())["image"].shape == (3, 320, 320)


def test_a_image_that_is_not_seen_at_all_leaves_the_fill():
    shifted = Rendering((10, 10), (10, 10)).then(ExpandTransform(20, 20, 40, 40, (7, 8, 9)))
    corner = shifted.then(T.CropTransform(0, 0, 10, 10)).then(ResizeTransform((10, 10), (5, 5)))
    pixels = corner.pixels(lambda reduction: np.zeros((10, 10, 3), dtype=np.uint8))
    assert pixels.shape == (5, 5, 3) and (pixels == (7, 8, 9)).all()
