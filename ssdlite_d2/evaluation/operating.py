"""Precision, recall and F1 of detections, and the score to operate a detector at.

Detections are matched as COCO's evaluation does, in falling score, each to the free true box of its
class with the largest IoU.
"""

from typing import Any, Dict, NamedTuple, Optional, Sequence

import numpy as np

NONE, IGNORED = -1, -2  # in the place of a match: no true box; a crowd region
SIZES = {"small": 32.0**2, "medium": 96.0**2, "large": np.inf}  # COCO's upper areas, in pixels
USUAL = 0.3  # threshold where nothing tells one; bundles have the same
RATES = ("precision", "recall", "F1")


class BoxTable(NamedTuple):
    """Boxes of a data set, sorted by image and then by falling score.

    Attributes:
        images: (B,) number of the image, in the order of ``image_ids``.
        classes: (B,) class ids from 0.
        boxes: (B, 4) XYWH in pixels of the image.
        scores: (B,); 1 for true boxes.
        crowd: (B,) bool, regions to ignore; False for detections.
    """

    images: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    crowd: np.ndarray

    def of_image(self, image: int) -> slice:
        return slice(*np.searchsorted(self.images, [image, image + 1]))


class Curve(NamedTuple):
    """Precision, recall and F1 of the detections of at least a score, as fractions.

    Attributes:
        scores: (P,) distinct scores, falling.
        precision, recall, f1: (P,)
    """

    scores: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray


def box_table(
    entries: Sequence[Dict], image_ids: Sequence, category_ids: Sequence[int]
) -> BoxTable:
    """Annotations or results in COCO's format as a table.

    Args:
        image_ids: in the order of the evaluation; entries of other images are left out.
        category_ids: COCO's id of each class; entries of others are left out.
    """
    number = {name: i for i, name in enumerate(image_ids)}
    class_of = {name: i for i, name in enumerate(category_ids)}
    kept = [e for e in entries if e["image_id"] in number and e["category_id"] in class_of]
    images = np.array([number[e["image_id"]] for e in kept], dtype=np.int64)
    scores = np.array([e.get("score", 1.0) for e in kept], dtype=np.float64)
    order = np.lexsort((-scores, images))
    columns = (
        images,
        np.array([class_of[e["category_id"]] for e in kept], dtype=np.int64),
        np.array([e["bbox"] for e in kept], dtype=np.float64).reshape(-1, 4),
        scores,
        np.array([bool(e.get("iscrowd", 0)) for e in kept], dtype=bool),
    )
    return BoxTable(*(column[order] for column in columns))


def pairwise_iou(found: np.ndarray, true: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """(D, M) IoU of XYWH boxes (D, 4) and (M, 4); of a crowd region, the covered share of a box."""
    starts = np.maximum(found[:, None, :2], true[None, :, :2])
    ends = np.minimum((found[:, :2] + found[:, 2:])[:, None], (true[:, :2] + true[:, 2:])[None])
    common = np.clip(ends - starts, 0, None).prod(2)
    area = found[:, 2:].prod(1)[:, None]
    union = np.where(crowd[None], area, area + true[:, 2:].prod(1)[None] - common)
    return common / np.maximum(union, 1e-12)


def match(found: BoxTable, true: BoxTable, iou: float = 0.5) -> np.ndarray:
    """(D,) row of the true box that a detection finds, or NONE, or IGNORED."""
    matched = np.full(len(found.scores), NONE)
    for image in np.unique(found.images):
        d, t = found.of_image(image), true.of_image(image)
        crowd = true.crowd[t]
        overlaps = pairwise_iou(found.boxes[d], true.boxes[t], crowd)
        overlaps *= found.classes[d][:, None] == true.classes[t][None]
        chosen = _match_image(overlaps, crowd, iou)
        matched[d] = np.where(chosen >= 0, chosen + t.start, chosen)
    return matched


def _match_image(overlaps: np.ndarray, crowd: np.ndarray, iou: float) -> np.ndarray:
    """``match`` for one image's overlaps (D, M), which is used up."""
    chosen = np.full(len(overlaps), NONE)
    for i in np.flatnonzero((overlaps >= iou).any(1)):
        plain = np.where(crowd, 0.0, overlaps[i])
        best = len(plain) - 1 - plain[::-1].argmax()  # of equal ones the last, as COCO's
        if plain[best] >= iou:
            chosen[i] = best
            overlaps[:, best] = 0.0
        elif (overlaps[i] >= iou).any():
            chosen[i] = IGNORED
    return chosen


def curve(scores: np.ndarray, hits: np.ndarray, count: int) -> Curve:
    """
    Args:
        scores, hits: (D,) of the detections that are not ignored, and whether they find a box.
        count: of true boxes.
    """
    order = np.argsort(-scores, kind="stable")
    scores, found = scores[order], np.cumsum(hits[order])
    last = np.append(scores[1:] != scores[:-1], True)[: len(scores)]  # of those with one score
    scores, found, given = scores[last], found[last], np.flatnonzero(last) + 1
    precision, recall = found / given, found / max(count, 1)
    return Curve(scores, precision, recall, 2 * found / (given + count))


def average_precision(scores: np.ndarray, hits: np.ndarray, count: int) -> float:
    """COCO's AP at one IoU, a fraction, of arguments as ``curve`` has; NaN without true boxes."""
    if not count:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(hits[order])
    precision = np.append(found / np.arange(1, len(found) + 1), 0.0)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float(precision[np.searchsorted(found / count, np.linspace(0, 1, 101))].mean())


def best_threshold(of: Curve) -> Optional[float]:
    """The score of the best F1, halfway to the next one below; None when nothing is right."""
    if not of.f1.any():
        return None
    best = int(of.f1.argmax())
    return float(np.append(of.scores, 0.0)[best : best + 2].mean())


def overall_curve(found: BoxTable, true: BoxTable, matched: np.ndarray) -> Curve:
    """The curve of all classes together: every box counts the same."""
    judged = matched != IGNORED
    return curve(found.scores[judged], matched[judged] >= 0, int((~true.crowd).sum()))


def operating_results(
    found: BoxTable, true: BoxTable, classes: Sequence[str], threshold: Optional[float] = None
) -> Dict[str, float]:
    """Precision, recall and F1, in percent, of the detections above a score.

    Args:
        threshold: None: that of the best F1 of all boxes; 0.5 where nothing is right.

    Returns:
        dict: ``threshold``; ``precision``, ``recall``, ``F1``, the same as ``F1_small`` and so on
        by COCO's sizes and as ``F1-<class>`` by class. NaN where nothing can be counted. The size
        of a detection is its true box's, or else its own.
    """
    matched = match(found, true)
    if threshold is None:
        threshold = best_threshold(overall_curve(found, true, matched))
        threshold = 0.5 if threshold is None else threshold
    kept = (found.scores > threshold) & (matched != IGNORED)
    hits, sought = matched[kept] >= 0, ~true.crowd
    true_sizes, sizes = size_of(true.boxes), size_of(found.boxes[kept])
    sizes[hits] = true_sizes[matched[kept][hits]]
    results = {"threshold": threshold, **_rates(hits, sought.sum())}
    for i, name in enumerate(SIZES):
        count = (true_sizes[sought] == i).sum()
        results.update(_rates(hits[sizes == i], count, f"_{name}"))
    for i, name in enumerate(classes):
        count = (true.classes[sought] == i).sum()
        results.update(_rates(hits[found.classes[kept] == i], count, f"-{name}"))
    return results


def size_of(boxes: np.ndarray) -> np.ndarray:
    """(B,) which of SIZES XYWH boxes have."""
    return np.searchsorted(list(SIZES.values()), boxes[:, 2:].prod(1), side="right")


def _rates(hits: np.ndarray, count: int, suffix: str = "") -> Dict[str, float]:
    right, given = int(hits.sum()), len(hits)
    parts = {"precision": (right, given), "recall": (right, count)}
    parts["F1"] = (2 * right, given + count)
    return {
        f"{name}{suffix}": 100.0 * some / of if of else float("nan")
        for name, (some, of) in parts.items()
    }


def stored_operating(content: Dict[str, Any]) -> Dict[str, float]:
    """``threshold`` and the rates there of a checkpoint's content; empty when it tells none."""
    operating = content.get("operating")
    if not isinstance(operating, dict):
        return {}
    known = {key: operating.get(key) for key in ("threshold", *RATES)}
    values = {k: v for k, v in known.items() if isinstance(v, float) and np.isfinite(v)}
    return values if 0 <= values.get("threshold", -1.0) <= 1 else {}


def choose_threshold(given: Optional[float], stored: Optional[float]) -> float:
    """The score above which detections are shown: what the user gave, or what the weights tell."""
    return next((value for value in (given, stored) if value is not None), USUAL)
