import numpy as np
import pytest
from conftest import bare_config
from detectron2.data.transforms import (
    AugInput,
    AugmentationList,
    CropTransform,
    NoOpTransform,
    RandomFlip,
)
from hypothesis import given
from hypothesis import strategies as st

from ssdlite_d2 import InputError
from ssdlite_d2.data import build_augmentation
from ssdlite_d2.data.augmentation import (
    PhotometricDistortion,
    RandomExpand,
    RandomIoUCrop,
    Resize,
    centers_inside,
    window_ious,
)
from ssdlite_d2.data.dataset_mapper import make_instances
from ssdlite_d2.data.transforms import ExpandTransform

IMAGE = np.zeros((240, 320, 3), dtype=np.uint8)
BOXES = np.array([[30.0, 40, 130, 160], [200, 100, 300, 220], [150, 20, 190, 60]])


@pytest.fixture(autouse=True)
def seed():
    np.random.seed(0)


def test_ious_by_hand():
    windows = np.array([[0, 0, 10, 10], [0, 0, 5, 10]])
    boxes = np.array([[5.0, 0, 10, 10], [20, 20, 30, 30]])
    assert window_ious(windows, boxes).tolist() == [[0.5, 0], [0, 0]]
    assert centers_inside(windows, boxes).tolist() == [[True, False], [False, False]]


@pytest.mark.parametrize("min_iou", [0.1, 0.3, 0.5, 0.7])
def test_crop_keeps_its_promises(min_iou, monkeypatch):
    """One box reaches the drawn minimum, one has its centre inside, the shape is allowed."""
    monkeypatch.setattr(np.random, "randint", lambda n: 1)  # always the minimum of the list
    crop = RandomIoUCrop(min_ious=(min_iou,))
    sizes = []
    for _ in range(100):
        transform = crop.get_transform(IMAGE, BOXES)
        x, y, w, h = transform.x0, transform.y0, transform.w, transform.h
        assert 0 <= x < x + w <= 320 and 0 <= y < y + h <= 240
        assert 0.48 <= h / w <= 2.08  # after rounding to pixels
        window = np.array([[x, y, x + w, y + h]])
        assert window_ious(window, BOXES).max() >= min_iou
        assert centers_inside(window, BOXES).any()
        sizes.append((w, h))
    assert len(set(sizes)) > 50


def test_crop_draws_every_mode_equally_often():
    """On a picture that one box fills, every window's IoU is its share of the picture."""
    boxes = np.array([[0.0, 0, 320, 240]])
    crop = RandomIoUCrop(min_ious=(0.3,))
    drawn = [crop.get_transform(IMAGE, boxes) for _ in range(3000)]
    windows = [t for t in drawn if isinstance(t, CropTransform)]
    assert 1 / 3 - 0.03 <= 1 - len(windows) / 3000 <= 1 / 3 + 0.03  # the whole picture
    below = np.mean([t.w * t.h < 0.3 * 320 * 240 for t in windows])
    # half of the windows are free; a free one is below 0.3 with a chance measured apart
    free = crop._draw_windows(240, 320)
    for _ in range(200):
        free = np.concatenate((free, crop._draw_windows(240, 320)))
    holds_centre = centers_inside(free, boxes)[:, 0]
    small = (free[:, 2:] - free[:, :2]).prod(axis=1) < 0.3 * 320 * 240
    assert below == pytest.approx(0.5 * small[holds_centre].mean(), abs=0.03)


def test_crop_leaves_pictures_without_boxes_whole():
    for _ in range(20):
        transform = RandomIoUCrop().get_transform(IMAGE, np.zeros((0, 4)))
        assert isinstance(transform, NoOpTransform)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (10, 10000)])
def test_crop_ends_on_pictures_of_any_shape(size):
    height, width = size
    image = np.zeros((*size, 3), dtype=np.uint8)
    for _ in range(20):
        boxes = np.array([[0.0, 0, width, height]])
        sample = AugInput(image, boxes=boxes)
        RandomIoUCrop()(sample)
        assert min(sample.image.shape[:2]) >= 1


def test_expand_frequency_and_ratio():
    drawn = [RandomExpand(0.5).get_transform(IMAGE) for _ in range(2000)]
    ratios = [t.width / 320 for t in drawn if isinstance(t, ExpandTransform)]
    assert 0.45 <= len(ratios) / 2000 <= 0.55
    assert 0.99 <= min(ratios) and max(ratios) <= 4
    assert np.mean(ratios) == pytest.approx(2.5, abs=0.1)
    for t in drawn:
        if isinstance(t, ExpandTransform):
            assert t.left + 320 <= t.width and t.top + 240 <= t.height


def test_photometric_frequencies():
    drawn = [PhotometricDistortion().get_transform(IMAGE) for _ in range(2000)]
    for happened in (
        [t.brightness != 0 for t in drawn],
        [t.contrast != 1 for t in drawn],
        [t.saturation != 1 for t in drawn],
        [t.hue != 0 for t in drawn],
        [t.contrast_last for t in drawn],
        [t.channels is not None for t in drawn],
    ):
        assert 0.45 <= np.mean(happened) <= 0.55
    assert max(abs(t.brightness) for t in drawn) <= 32
    assert max(abs(t.hue) for t in drawn) <= 18


def test_configured_order():
    names = [type(a).__name__ for a in build_augmentation(bare_config(), is_train=True)]
    assert names == [
        "PhotometricDistortion",
        "RandomExpand",
        "RandomIoUCrop",
        "Resize",
        "RandomFlip",
    ]
    assert build_augmentation(bare_config(), is_train=False) == []
    off = ["INPUT.PHOTOMETRIC.ENABLED", False, "INPUT.EXPAND.PROB", 0.0]
    off += ["INPUT.IOU_CROP.ENABLED", False, "INPUT.RANDOM_FLIP", "none"]
    augmentations = build_augmentation(bare_config(3, *off), is_train=True)
    assert [type(a) for a in augmentations] == [Resize]


@pytest.mark.parametrize("word, ways", [("horizontal", 2), ("vertical", 2), ("both", 4)])
def test_flips_are_drawn_in_every_way_named(word, ways):
    cfg = bare_config(3, "INPUT.RANDOM_FLIP", word)
    flips = AugmentationList([a for a in build_augmentation(cfg, True) if type(a) is RandomFlip])
    np.random.seed(0)
    seen = set()
    for _ in range(40):
        sample = AugInput(np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
        flips(sample)
        seen.add(sample.image.tobytes())
    assert len(seen) == ways


def test_an_unknown_flip_is_named():
    with pytest.raises(InputError, match="INPUT.RANDOM_FLIP is 'sideways'.*both"):
        build_augmentation(bare_config(3, "INPUT.RANDOM_FLIP", "sideways"), is_train=True)


@given(st.integers(0, 2**31))
def test_a_drawn_mask_and_its_box_agree(seed):
    """Paint a box, augment both, and find the paint where the box says, to a pixel or two."""
    np.random.seed(seed)
    x0, y0 = np.random.randint(0, 200), np.random.randint(0, 150)
    x1, y1 = x0 + np.random.randint(40, 120), y0 + np.random.randint(40, 90)
    image = IMAGE.copy()
    image[y0:y1, x0:x1] = 255
    cfg = bare_config(3, "INPUT.PHOTOMETRIC.ENABLED", False)
    cfg.MODEL.PIXEL_MEAN = [0.0, 0.0, 0.0]
    sample = AugInput(image, boxes=np.array([[x0, y0, x1, y1]], dtype=np.float64))
    AugmentationList(build_augmentation(cfg, is_train=True))(sample)
    instances = make_instances(sample.boxes, np.array([0]), sample.image.shape[:2])
    assert sample.image.shape == (320, 320, 3)
    assert len(instances) == 1  # a crop without a box's centre is not drawn
    ys, xs = np.nonzero(sample.image[..., 0] > 127)
    painted = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    # one source pixel is up to 320 / (0.3 * 240) pixels of the result
    assert np.abs(painted - instances.gt_boxes.tensor[0].numpy()).max() <= 3


@given(
    st.lists(st.tuples(*[st.floats(-100, 400, allow_nan=False)] * 4), max_size=8),
    st.integers(0, 2**31),
)
def test_any_boxes_end_inside_with_area_and_in_order(corners, seed):
    np.random.seed(seed)
    boxes = np.array(corners).reshape(-1, 4)
    boxes = np.concatenate((boxes[:, :2], boxes[:, :2] + np.abs(boxes[:, 2:]) + 1), axis=1)
    sample = AugInput(IMAGE, boxes=boxes.copy())
    AugmentationList(build_augmentation(bare_config(), is_train=True))(sample)
    instances = make_instances(sample.boxes, np.arange(len(boxes)), (320, 320))
    found = instances.gt_boxes.tensor.numpy()
    assert (found >= 0).all() and (found <= 320).all()
    assert (found[:, 2:] > found[:, :2]).all()
    assert (np.diff(instances.gt_classes.numpy()) > 0).all()
