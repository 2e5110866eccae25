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
    RandomScaleJitter,
    Resize,
    centers_inside,
    window_ious,
)
from ssdlite_d2.data.transforms import ExpandTransform

IMAGE = np.zeros((240, 320, 3), dtype=np.uint8)
AUGMENTATIONS = [  # without colour, which has no inverse; with the canvas and crop, or the jitter
    build_augmentation(bare_config(3, "INPUT.PHOTOMETRIC.ENABLED", False, *opts), is_train=True)
    for opts in ([], ["INPUT.SCALE_JITTER.ENABLED", True])
]
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
    """On an image that one box fills, every window's IoU is its share of the image."""
    boxes = np.array([[0.0, 0, 320, 240]])
    crop = RandomIoUCrop(min_ious=(0.3,))
    drawn = [crop.get_transform(IMAGE, boxes) for _ in range(3000)]
    windows = [t for t in drawn if isinstance(t, CropTransform)]
    assert 1 / 3 - 0.03 <= 1 - len(windows) / 3000 <= 1 / 3 + 0.03  # the whole image
    below = np.mean([t.w * t.h < 0.3 * 320 * 240 for t in windows])
    # half of the windows are free; a free one is below 0.3 with a chance measured apart
    free = crop._draw_windows(240, 320)
    for _ in range(200):
        free = np.concatenate((free, crop._draw_windows(240, 320)))
    holds_centre = centers_inside(free, boxes)[:, 0]
    small = (free[:, 2:] - free[:, :2]).prod(axis=1) < 0.3 * 320 * 240
    assert below == pytest.approx(0.5 * small[holds_centre].mean(), abs=0.03)


def drawn_by_definition(rng, boxes, width=320, height=240):
    """SSD's crop as the paper defines it (sec. 2.2), one window at a time; XYXY."""
    while True:
        min_iou = rng.choice([None, 0.1, 0.3, 0.5, 0.7, 0.9, 0])
        if min_iou is None:
            return 0, 0, width, height
        for _ in range(50):
            w, h = rng.uniform(0.3 * width, width), rng.uniform(0.3 * height, height)
            if not 0.5 <= h / w <= 2:
                continue
            x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
            window = [int(x), int(y), int(x + w), int(y + h)]
            best, holds_centre = 0, False
            for x0, y0, x1, y1 in boxes:
                shared = max(0, min(x1, window[2]) - max(x0, window[0]))
                shared *= max(0, min(y1, window[3]) - max(y0, window[1]))
                area = (window[2] - window[0]) * (window[3] - window[1])
                best = max(best, shared / ((x1 - x0) * (y1 - y0) + area - shared))
                cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
                holds_centre |= window[0] < cx < window[2] and window[1] < cy < window[3]
            if best >= min_iou and holds_centre:
                return tuple(window)


def test_crop_is_distributed_as_defined():
    """5,000 draws each: whole images, scale, aspect ratio and boxes kept."""
    rng, crop, found = np.random.default_rng(0), RandomIoUCrop(), []
    for _ in range(5000):
        t = crop.get_transform(IMAGE, BOXES)
        whole = isinstance(t, NoOpTransform)
        found.append((0, 0, 320, 240) if whole else (t.x0, t.y0, t.x0 + t.w, t.y0 + t.h))
    found = np.array(found)
    expected = np.array([drawn_by_definition(rng, BOXES.tolist()) for _ in range(5000)])
    sides = [w[:, 2:] - w[:, :2] for w in (found, expected)]
    for quantity, bins in (
        (lambda s: (s == (320, 240)).all(axis=1), [0, 0.5, 1]),  # whole images
        (lambda s: np.sqrt(s.prod(axis=1) / (320 * 240)), np.linspace(0.3, 1, 9)),  # scale
        (lambda s: np.log2(s[:, 1] / s[:, 0]), np.linspace(-1.1, 1.1, 9)),  # aspect ratio
    ):
        shares = [np.histogram(quantity(s), bins)[0] / 5000 for s in sides]
        assert np.abs(shares[0] - shares[1]).max() < 0.03
    kept = [centers_inside(w, BOXES).mean() for w in (found, expected)]
    assert kept[0] == pytest.approx(kept[1], abs=0.02)


def test_every_mode_of_the_crop_is_drawn_as_often(monkeypatch):
    modes, draw = [], np.random.randint
    monkeypatch.setattr(np.random, "randint", lambda n: modes.append(draw(n)) or modes[-1])
    crop = RandomIoUCrop()
    while len(modes) < 5000:
        crop.get_transform(IMAGE, BOXES)
    shares = np.bincount(modes, minlength=7) / len(modes)
    assert np.abs(shares - 1 / 7).max() < 0.02


def test_scale_jitter_keeps_the_shape_and_its_range():
    jitter = RandomScaleJitter((320, 320), (0.5, 2.0))
    scales = []
    for _ in range(500):
        sample = AugInput(IMAGE, boxes=BOXES.copy())
        expand, crop = jitter(sample).transforms
        height, width = sample.image.shape[:2]
        assert abs(height - width) <= 1  # as 320 x 320
        scales.append(320 / width)  # pixels of the result per pixel of the image; 1: it fits
        assert crop.x0 + crop.w <= expand.width and crop.y0 + crop.h <= expand.height
    assert 0.49 <= min(scales) < 0.55 and 1.9 < max(scales) <= 2.02
    assert np.mean(scales) == pytest.approx(1.25, abs=0.06)


def test_probabilities_are_those_of_the_config():
    keys = ["INPUT.PHOTOMETRIC.PROB", 1.0, "INPUT.FLIP_PROB", 0.0, "INPUT.EXPAND.PROB", 1.0]
    colour, expand, _, _, flip = build_augmentation(bare_config(3, *keys), is_train=True)
    for _ in range(20):
        drawn = colour.get_transform(IMAGE)
        assert drawn.brightness and drawn.hue and drawn.channels is not None
        assert isinstance(expand.get_transform(IMAGE), ExpandTransform)
        assert isinstance(flip.get_transform(IMAGE), NoOpTransform)


def test_crop_leaves_images_without_boxes_whole():
    for _ in range(20):
        transform = RandomIoUCrop().get_transform(IMAGE, np.zeros((0, 4)))
        assert isinstance(transform, NoOpTransform)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (10, 10000)])
def test_crop_ends_on_images_of_any_shape(size):
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
    jitter = build_augmentation(bare_config(3, "INPUT.SCALE_JITTER.ENABLED", True), is_train=True)
    assert [type(a).__name__ for a in jitter] == [
        "PhotometricDistortion",
        "RandomScaleJitter",
        "Resize",
        "RandomFlip",
    ]


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


@pytest.mark.parametrize("augmentations", AUGMENTATIONS, ids=["crop", "jitter"])
@given(st.lists(st.tuples(*[st.floats(-500, 500)] * 4), min_size=1, max_size=4), st.integers(0, 99))
def test_inverse_of_any_draw_returns_the_boxes(augmentations, boxes, seed):
    np.random.seed(seed)
    transforms = AugmentationList(augmentations)(AugInput(IMAGE, boxes=BOXES.copy()))
    boxes = np.array([[*np.sort((a, c)), *np.sort((b, d))] for a, b, c, d in boxes])[
        :, [0, 2, 1, 3]
    ]
    back = transforms.inverse().apply_box(transforms.apply_box(boxes))
    assert np.allclose(back, boxes, atol=1e-6)
