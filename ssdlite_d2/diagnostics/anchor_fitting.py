"""Box sizes for the anchors of each feature map, fitted to the boxes of a data set.

Letters: M boxes, A anchors per cell, L levels. All lengths are in pixels of the network input.
"""

import math
from typing import List, NamedTuple, Sequence, Tuple

import numpy as np

# A box of at least so many strides a side meets some anchor of its own shape at IoU 0.5 wherever
# it lies. At worst the centres are half a stride apart in x and in y; with d the half stride over
# the side, IoU = (1 - d)^2 / (2 - (1 - d)^2) is 0.5 at d = 1 - sqrt(2 / 3).
STRIDES_PER_SIDE = 0.5 / (1 - math.sqrt(2 / 3))  # 2.72


class Level(NamedTuple):
    """The grid of one feature map and the anchors of a cell."""

    centers: Tuple[np.ndarray, np.ndarray]  # x (Wi,) and y (Hi,)
    stride: float
    shapes: np.ndarray  # (A, 2) widths and heights

    def offsets(self, boxes: np.ndarray) -> np.ndarray:
        """(M, 2) distance in x and y from each box's centre to the next cell's."""
        middles = (boxes[:, :2] + boxes[:, 2:]) / 2
        gaps = [abs(middles[:, i, None] - self.centers[i]).min(axis=1) for i in (0, 1)]
        return np.stack(gaps, axis=1)


def shape_ious(sizes: np.ndarray, shapes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """(M, A) IoU of M boxes with A anchor shapes whose centres are offset.

    Args:
        sizes: (M, 2) widths and heights of the boxes.
        shapes: (A, 2) of the anchors.
        offsets: (M, 2) distance of the centres in x and y.
    """
    a, b = sizes[:, None], shapes[None]
    sides = np.minimum(np.minimum(a, b), (a + b) / 2 - offsets[:, None]).clip(min=0)
    shared = sides.prod(axis=2)
    return shared / (a.prod(axis=2) + b.prod(axis=2) - shared)


def assign_levels(sizes: np.ndarray, strides: Sequence[float]) -> np.ndarray:
    """(M,) the coarsest level that surely meets each box (see STRIDES_PER_SIDE), else the finest.

    Args:
        sizes: (M, 2).
        strides: L, ascending.
    """
    sides = np.sqrt(sizes.prod(axis=1))
    met = sides[:, None] >= STRIDES_PER_SIDE * np.asarray(strides)[None]  # (M, L)
    return (met.sum(axis=1) - 1).clip(min=0)


def k_means(sizes: np.ndarray, weights: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """(k, 2) shapes: k-means with distance 1 - IoU, as in :paper:`YOLO9000`, sec. 2.

    Args:
        sizes: (M, 2), at least k of them different.
        weights: (M,).
    """
    concentric = np.zeros_like(sizes)
    shapes = sizes[rng.choice(len(sizes), 1, p=weights / weights.sum())]
    while len(shapes) < k:  # k-means++
        far = weights * (1 - shape_ious(sizes, shapes, concentric).max(axis=1)) ** 2
        shapes = np.concatenate((shapes, sizes[rng.choice(len(sizes), 1, p=far / far.sum())]))
    for _ in range(100):
        nearest = shape_ious(sizes, shapes, concentric).argmax(axis=1)
        total = np.bincount(nearest, weights, k)
        means = [np.bincount(nearest, weights * sizes[:, i], k) for i in (0, 1)]
        moved = np.stack(means, axis=1) / total.clip(min=1e-12)[:, None]
        moved[total == 0] = shapes[total == 0]
        if np.allclose(moved, shapes):
            break
        shapes = moved
    return shapes


def fitness(best_iou: np.ndarray, weights: np.ndarray, threshold: float) -> float:
    """Share of boxes that reach the matching threshold, plus the mean best IoU."""
    return float(((best_iou >= threshold) + best_iou) @ weights / weights.sum())


def fit_shapes(
    levels: Sequence[Level],
    boxes: np.ndarray,
    weights: np.ndarray,
    threshold: float = 0.5,
    steps: int = 1000,
    seed: int = 0,
) -> List[np.ndarray]:
    """Anchor shapes for each level that cover the boxes of its size, as many as it has.

    k-means, then a random search that moves one shape at a time and keeps what covers more, the
    anchors standing on their real grid. A level with fewer boxes than ten per shape keeps its
    shapes.

    Args:
        levels: L, finest first.
        boxes: (M, 4) XYXY.
        weights: (M,) of the boxes.
        threshold: IoU at which a box is matched.
        steps: trials of the search on each level.

    Returns:
        L arrays (A, 2); fitted ones are in the order of their areas.
    """
    rng = np.random.default_rng(seed)
    sizes = boxes[:, 2:] - boxes[:, :2]
    level_of = assign_levels(sizes, [level.stride for level in levels])
    fitted = []
    for i, level in enumerate(levels):
        own = level_of == i
        k = len(level.shapes)
        if own.sum() < 10 * k or len(np.unique(sizes[own], axis=0)) < k:
            fitted.append(level.shapes)
            continue
        shapes = k_means(sizes[own], weights[own], k, rng)
        offsets = level.offsets(boxes[own])
        shapes = search(shapes, sizes[own], offsets, weights[own], threshold, steps, rng)
        fitted.append(shapes[shapes.prod(axis=1).argsort()])
    return fitted


def search(
    shapes: np.ndarray,
    sizes: np.ndarray,
    offsets: np.ndarray,
    weights: np.ndarray,
    threshold: float,
    steps: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """(A, 2) shapes of no smaller ``fitness``; arguments as in ``shape_ious``, ``fit_shapes``."""
    shapes = shapes.copy()
    ious = shape_ious(sizes, shapes, offsets)
    best = fitness(ious.max(axis=1), weights, threshold)
    for step in range(steps):
        a = rng.integers(len(shapes))
        spread = 0.3 * (1 - step / steps) + 0.02  # of the logarithms of width and height
        moved = shapes[a] * np.exp(rng.normal(0, spread, 2))
        trial = ious.copy()
        trial[:, a] = shape_ious(sizes, moved[None], offsets)[:, 0]
        reached = fitness(trial.max(axis=1), weights, threshold)
        if reached > best:
            best, ious, shapes[a] = reached, trial, moved
    return shapes
