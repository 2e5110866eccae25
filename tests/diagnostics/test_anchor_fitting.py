import math

import numpy as np
import pytest

from ssdlite_d2.diagnostics.anchor_fitting import (
    STRIDES_PER_SIDE,
    Level,
    assign_levels,
    fit_shapes,
    fitness,
    k_means,
    shape_ious,
)
from ssdlite_d2.diagnostics.coverage import anchor_coverage


def make_level(stride, shapes, size=320):
    centers = (np.arange(size // stride) + 0.5) * stride
    return Level((centers, centers), stride, np.array(shapes, dtype=float))


def boxes_of(sizes, seed=0):
    """Boxes (M, 4) of these sizes anywhere in the image."""
    corners = np.random.default_rng(seed).uniform(0, 320 - sizes)
    return np.concatenate((corners, corners + sizes), axis=1)


def planted(*shapes, count=200, seed=0):
    """(M, 2) sizes around shapes, 5% of spread."""
    noise = np.random.default_rng(seed).normal(0, 0.05, (len(shapes), count, 2))
    return (np.array(shapes)[:, None] * np.exp(noise)).reshape(-1, 2)


def test_ious_of_shapes_by_hand():
    sizes, offsets = (
        np.array([[10.0, 10], [10, 10], [10, 10]]),
        np.array([[0.0, 0], [5, 0], [0, 8]]),
    )
    ious = shape_ious(sizes, np.array([[10.0, 10], [20, 10]]), offsets)
    assert ious == pytest.approx(np.array([[1, 0.5], [1 / 3, 0.5], [2 / 18, 20 / 280]]))


def test_ious_of_shapes_are_those_of_the_anchors_on_the_grid():
    level = make_level(32, [[40, 60], [90, 30]])
    boxes = boxes_of(np.random.default_rng(1).uniform(10, 150, (300, 2)))
    x, y = (c.ravel() for c in np.meshgrid(*level.centers))
    half = level.shapes[:, None] / 2
    low, high = (np.stack((x, y), axis=1) + sign * half for sign in (-1, 1))  # (A, cells, 2)
    anchors = np.concatenate((low, high), axis=2).reshape(-1, 4)
    ious = shape_ious(boxes[:, 2:] - boxes[:, :2], level.shapes, level.offsets(boxes))
    assert ious.max(axis=1) == pytest.approx(anchor_coverage(anchors, boxes), abs=1e-5)


def test_a_box_of_enough_strides_meets_its_own_shape_wherever_it_lies():
    level = make_level(32, [[32 * STRIDES_PER_SIDE] * 2])
    boxes = boxes_of(np.repeat(level.shapes * 1.0001, 5000, axis=0))
    inside = (boxes[:, :2] + boxes[:, 2:] > 32).all(1) & (boxes[:, :2] + boxes[:, 2:] < 608).all(1)
    offsets = level.offsets(boxes[inside])
    ious = shape_ious(level.shapes.repeat(len(offsets), axis=0), level.shapes, offsets)
    assert 0.5 <= ious.min() < 0.51
    assert STRIDES_PER_SIDE == pytest.approx(2.72, abs=0.01)


def test_boxes_go_to_the_coarsest_level_that_surely_meets_them():
    sizes = np.array([[10.0, 10], [43, 43], [44, 44], [80, 96], [300, 20], [320, 320]])
    assert assign_levels(sizes, [16, 32, 64]).tolist() == [0, 0, 0, 1, 0, 2]


def test_k_means_finds_planted_shapes():
    shapes = [[20, 25], [60, 50], [60, 140]]
    sizes = planted(*shapes)
    found = k_means(sizes, np.ones(len(sizes)), 3, np.random.default_rng(0))
    assert found[found.prod(axis=1).argsort()] == pytest.approx(np.array(shapes), rel=0.02)


def test_fitting_finds_planted_shapes_on_their_levels():
    fine, coarse = [[46, 60], [70, 50]], [[90, 130], [140, 110]]
    boxes = boxes_of(planted(*fine, *coarse))
    levels = [make_level(16, [[30, 30]] * 2), make_level(32, [[60, 60]] * 2)]
    levels.append(make_level(64, [[200, 200]]))
    fitted = fit_shapes(levels, boxes, np.ones(len(boxes)))
    assert fitted[0] == pytest.approx(np.array(fine), rel=0.07)
    assert fitted[1] == pytest.approx(np.array(coarse), rel=0.07)
    assert (fitted[2] == [[200, 200]]).all()  # no box is of its size


def test_search_covers_more_than_k_means_alone():
    sizes = np.random.default_rng(2).uniform(14, 60, (1000, 2))  # hard: about one to four strides
    boxes, weights = boxes_of(sizes), np.ones(1000)
    level = make_level(16, [[20, 20]] * 3)

    def reached(steps):
        (shapes,) = fit_shapes([level], boxes, weights, steps=steps)
        return fitness(shape_ious(sizes, shapes, level.offsets(boxes)).max(axis=1), weights, 0.5)

    assert reached(500) > reached(0) + 0.01


def test_weights_draw_shapes_to_the_rare_class():
    sizes = np.concatenate((planted([50, 60], count=950), planted([20, 25], count=50, seed=1)))
    level, boxes = make_level(16, [[30, 30]] * 2), boxes_of(sizes)
    rare = np.arange(1000) >= 950
    ious = {}
    for name, weights in (("boxes", np.ones(1000)), ("classes", np.where(rare, 19.0, 1.0))):
        (shapes,) = fit_shapes([level], boxes, weights)
        best = shape_ious(sizes, shapes, level.offsets(boxes)).max(axis=1)
        ious[name] = best[rare].mean()
    assert ious["classes"] >= ious["boxes"] > 0.3


def test_fitness_is_the_share_matched_plus_the_mean_iou():
    iou, weights = np.array([0.2, 0.5, 0.9]), np.array([1.0, 1.0, 2.0])
    assert math.isclose(fitness(iou, weights, 0.5), 3 / 4 + 2.5 / 4)


def test_one_seed_gives_one_result():
    boxes = boxes_of(planted([50, 60], [60, 50]))
    level, weights = make_level(16, [[30, 30]] * 3), np.ones(len(boxes))
    first, again, other = (fit_shapes([level], boxes, weights, seed=s)[0] for s in (0, 0, 1))
    assert (first == again).all() and (first != other).any()


def test_few_boxes_leave_the_shapes_as_they_are():
    boxes = boxes_of(np.array([[50.0, 60]] * 19))
    (kept,) = fit_shapes([make_level(16, [[30, 30], [40, 40]])], boxes, np.ones(19))
    assert kept.tolist() == [[30, 30], [40, 40]]
