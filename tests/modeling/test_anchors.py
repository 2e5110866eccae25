import pytest
import torch
from conftest import bare_config
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_anchor_generator
from detectron2.structures import Boxes
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList

from ssdlite_d2 import InputError
from ssdlite_d2.modeling import SSDAnchorGenerator

RATIOS = [[2, 3]] * 6


def maps(grids):
    return [torch.zeros(1, 8, *g) for g in grids]


def pairs(scales, size):
    return [[a * size, b * size] for a, b in zip(scales, scales[1:])]


@pytest.mark.parametrize(
    "size, grids, scales, ratios, steps, count",
    [
        # torchvision's ssdlite320_mobilenet_v3_large
        (320, [20, 10, 5, 3, 2, 1], (0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0), RATIOS, None, 3234),
        # torchvision's ssd300_vgg16
        (
            300,
            [38, 19, 10, 5, 3, 1],
            (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05),
            [[2], [2, 3], [2, 3], [2, 3], [2], [2]],
            [8, 16, 32, 64, 100, 300],
            8732,
        ),
    ],
)
def test_anchors_equal_torchvisions(size, grids, scales, ratios, steps, count):
    theirs = DefaultBoxGenerator(ratios, scales=list(scales), steps=steps)
    features = maps([(g, g) for g in grids])
    expected = theirs(ImageList(torch.zeros(1, 3, size, size), [(size, size)]), features)[0]
    ours = SSDAnchorGenerator(
        sizes=pairs(scales, size),
        aspect_ratios=ratios,
        feature_strides=[16] * 6,
        strides=steps or [],
        clip="size",
    )
    anchors = Boxes.cat(ours(features, (size, size))).tensor
    assert len(anchors) == count
    assert (anchors - expected).abs().max() <= 1e-4


def test_cell_anchors_by_hand():
    generator = SSDAnchorGenerator(sizes=[[9, 16]], aspect_ratios=[[4]], feature_strides=[10])
    boxes = generator(maps([(1, 2)]), (10, 20))[0].tensor
    assert generator.num_anchors == [4]
    # centre of the second cell: (15, 5); squares of 9 and 12, then 18 x 4.5 and 4.5 x 18
    expected = [
        [10.5, 0.5, 19.5, 9.5],
        [9, -1, 21, 11],
        [6, 2.75, 24, 7.25],
        [12.75, -4, 17.25, 14],
    ]
    assert torch.allclose(boxes[4:], torch.tensor(expected))


def test_non_square_input_has_centres_on_its_own_grid():
    generator = SSDAnchorGenerator(sizes=[[9, 16]], aspect_ratios=[[]], feature_strides=[16])
    boxes = generator(maps([(3, 5)]), (48, 100))[0]
    centers = boxes.get_centers()[::2]  # one of the two squares
    assert torch.equal(centers[0], torch.tensor([10.0, 8.0]))
    assert torch.equal(centers[-1], torch.tensor([90.0, 40.0]))


def test_explicit_strides_are_kept():
    generator = SSDAnchorGenerator(
        sizes=[[9, 16]], aspect_ratios=[[]], feature_strides=[128], strides=[120]
    )
    assert generator(maps([(3, 3)]), (320, 320))[0].get_centers()[-1].tolist() == [300, 300]


@pytest.mark.parametrize(
    "clip, expected",
    [
        ("none", [-15, -15, 25, 25]),
        ("corners", [0, 0, 20, 20]),
        ("size", [-5, -5, 15, 15]),
        ("center", [-5, -5, 15, 15]),
    ],
)
def test_clip_modes(clip, expected):
    generator = SSDAnchorGenerator(
        sizes=[[40, 40]], aspect_ratios=[[]], feature_strides=[10], clip=clip
    )
    assert generator(maps([(2, 2)]), (20, 20))[0].tensor[0].tolist() == expected


def test_anchors_are_built_once_per_size():
    generator = SSDAnchorGenerator(sizes=[[9, 16]], aspect_ratios=[[]], feature_strides=[16])
    first = generator(maps([(3, 3)]), (48, 48))[0].tensor
    assert generator(maps([(3, 3)]), (48, 48))[0].tensor is first
    assert not torch.equal(generator(maps([(3, 3)]), (51, 51))[0].tensor, first)


def test_offset_of_the_packaged_config_is_half_a_stride():
    shapes = [ShapeSpec(channels=8, stride=16)] * 6
    assert build_anchor_generator(bare_config(), shapes).offset == 0.5


@pytest.mark.parametrize(
    "keys, words",
    [
        ({"sizes": [[9, 16]] * 2}, "SIZES has 2 entries for 3 feature maps"),
        ({"aspect_ratios": [[2]] * 4}, "ASPECT_RATIOS has 4 entries for 3 feature maps"),
        ({"strides": [8.0]}, "STRIDES has 1 entries for 3 feature maps"),
        ({"sizes": [[9, 16, 25]] * 3}, "SIZES has an entry [9, 16, 25]"),
        ({"clip": "yes"}, "CLIP is 'yes'"),
    ],
)
def test_lists_that_do_not_fit_are_named(keys, words):
    good = {"sizes": [[9, 16]] * 3, "aspect_ratios": [[2]] * 3, "feature_strides": [8, 16, 32]}
    with pytest.raises(InputError) as error:
        SSDAnchorGenerator(**{**good, **keys})
    assert words in str(error.value)
