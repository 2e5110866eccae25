"""What is wrong with detections: TIDE's kinds of errors, what each costs, and confused classes.

After "TIDE: A General Toolbox for Identifying Object Detection Errors" (arXiv:2008.08115).
"""

from typing import Dict, NamedTuple

import numpy as np

from ..evaluation.operating import IGNORED, NONE, BoxTable, average_precision, pairwise_iou

FOREGROUND, BACKGROUND = 0.5, 0.1  # IoU of a match; at most that of a box with the background
CLASS, BOX, BOTH, DUPLICATE, BACKDROP, MISSED = range(6)
KINDS = {
    "classification": "the box is right, the class is another",
    "localisation": "the class is right, the box overlaps by an IoU of 0.1 to 0.5",
    "both": "another class, and an IoU of 0.1 to 0.5",
    "duplicate": "the object has been found already, with a higher score",
    "background": "there is no object",
    "missed": "an object that no detection above is near",
}


class Errors(NamedTuple):
    """
    Attributes:
        kinds: (D,) number of the detection's kind in KINDS; NONE of one that is right or ignored.
        targets: (D,) row of the true box that a better class or box would find, or NONE.
        missed: (M,) bool, true boxes that are not found and no detection's target.
    """

    kinds: np.ndarray
    targets: np.ndarray
    missed: np.ndarray


def find_errors(found: BoxTable, true: BoxTable, matched: np.ndarray) -> Errors:
    """
    Args:
        matched: (D,) of ``operating.match`` at IoU 0.5.
    """
    kinds, targets = np.full(len(matched), NONE), np.full(len(matched), NONE)
    used = np.zeros(len(true.images), dtype=bool)
    used[matched[matched >= 0]] = True
    for image in np.unique(found.images[matched == NONE]):
        d, t = found.of_image(image), true.of_image(image)
        d = np.arange(d.start, d.stop)[matched[d] == NONE]
        t = np.arange(t.start, t.stop)[~true.crowd[t]]
        kinds[d], nearest = _kinds_of_image(found, true, d, t, used[t])
        targets[d[nearest >= 0]] = t[nearest[nearest >= 0]]
    aimed = np.flatnonzero(targets >= 0)
    targets[aimed[used[targets[aimed]]]] = NONE  # which no correction would find again
    covered = used | true.crowd
    covered[targets[targets >= 0]] = True
    return Errors(kinds, targets, ~covered)


def _kinds_of_image(found: BoxTable, true: BoxTable, d: np.ndarray, t: np.ndarray, used):
    """Kinds (D,) of wrong detections, tested in TIDE's order, and the true box (D,) they mean."""
    if not len(t):
        return np.full(len(d), BACKDROP), np.full(len(d), NONE)
    overlaps = pairwise_iou(found.boxes[d], true.boxes[t], true.crowd[t])
    same = found.classes[d][:, None] == true.classes[t]
    own, other = overlaps * same, overlaps * ~same
    is_box = (own.max(1) >= BACKGROUND) & (own.max(1) <= FOREGROUND)
    is_class = other.max(1) >= FOREGROUND
    tests = [is_box, is_class, (own * used).max(1) >= FOREGROUND, overlaps.max(1) <= BACKGROUND]
    kinds = np.select(tests, [BOX, CLASS, DUPLICATE, BACKDROP], BOTH)
    return kinds, np.select(tests[:2], [own.argmax(1), other.argmax(1)], NONE)


def error_costs(
    found: BoxTable, true: BoxTable, matched: np.ndarray, errors: Errors, num_classes: int
) -> Dict[str, float]:
    """AP50, in points of 100, that would be gained if all errors of one kind were corrected.

    Each kind alone, so that the sum is neither the distance to 100 nor bounded by it. A detection
    of another class or place is corrected when it is the best scored one of a true box that is not
    found, and else removed; those of other kinds are removed; missed boxes are no longer asked for.
    """
    hits, judged = matched >= 0, matched != IGNORED
    counts = np.bincount(true.classes[~true.crowd], minlength=num_classes)
    base = mean_ap50(found.classes, found.scores, hits, judged, counts)
    order = np.argsort(-found.scores, kind="stable")
    order = order[errors.targets[order] >= 0]
    best = np.zeros(len(hits), dtype=bool)
    best[order[np.unique(errors.targets[order], return_index=True)[1]]] = True
    costs = {}
    for kind, name in enumerate(KINDS):
        of_kind = errors.kinds == kind
        fixed = of_kind & best
        classes, asked = found.classes.copy(), counts
        classes[fixed] = true.classes[errors.targets[fixed]]
        if kind == MISSED:
            asked = counts - np.bincount(true.classes[errors.missed], minlength=num_classes)
        kept = judged & (~of_kind | fixed)
        costs[name] = mean_ap50(classes, found.scores, hits | fixed, kept, asked, counts) - base
    return costs


def mean_ap50(classes, scores, hits, kept, counts, over=None) -> float:
    """Mean AP at IoU 0.5, in points of 100, of the classes with boxes; NaN when there are none.

    Args:
        classes, scores, hits, kept: (D,)
        counts: (K,) true boxes by class.
        over: (K,) counts that tell which classes have boxes, if others than these.
    """
    of_class = (kept & (classes == i) for i in range(len(counts)))
    found = [average_precision(scores[of], hits[of], n) for of, n in zip(of_class, counts)]
    with_boxes = np.nan_to_num(found)[(counts if over is None else over) > 0]
    return 100 * float(with_boxes.mean()) if len(with_boxes) else float("nan")


def confusion_matrix(
    found: BoxTable, true: BoxTable, matched: np.ndarray, threshold: float, num_classes: int
) -> np.ndarray:
    """(K + 1, K + 1) counts: true class by the class found, at IoU 0.5, above a score.

    Detections that find a box of their class come first, on the diagonal; the others then take
    free boxes of any class, in falling score. Row K: what is found where nothing is; column K: what
    is not found.
    """
    matrix = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    kept = (found.scores > threshold) & (matched != IGNORED)
    hits = matched[kept & (matched >= 0)]
    np.add.at(matrix, (true.classes[hits], true.classes[hits]), 1)
    free = ~true.crowd
    free[hits] = False
    for image in np.unique(np.concatenate((found.images[kept], true.images[free]))):
        d, t = found.of_image(image), true.of_image(image)
        d = np.arange(d.start, d.stop)[kept[d] & (matched[d] == NONE)]
        t = np.arange(t.start, t.stop)[free[t]]
        overlaps = pairwise_iou(found.boxes[d], true.boxes[t], true.crowd[t])
        for i, row in zip(d, overlaps):
            j = int(row.argmax()) if len(t) else 0
            meant = num_classes
            if len(t) and row[j] >= FOREGROUND:
                meant, overlaps[:, j] = true.classes[t[j]], 0.0
                free[t[j]] = False
            matrix[meant, found.classes[i]] += 1
    np.add.at(matrix, (true.classes[free], num_classes), 1)
    return matrix
