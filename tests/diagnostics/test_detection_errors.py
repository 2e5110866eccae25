"""Kinds of errors, what they cost, and confused classes, on cases made by hand."""

import numpy as np
import pytest

from ssdlite_d2.diagnostics.detection_errors import (
    KINDS,
    confusion_matrix,
    error_costs,
    find_errors,
    mean_ap50,
)
from ssdlite_d2.evaluation.operating import NONE, box_table, match

TRUE = {  # class and XYWH in image 0; nothing is in image 1
    "right": (0, (0, 0, 100, 100)),
    "confused": (0, (200, 0, 100, 100)),
    "shifted": (1, (400, 0, 100, 100)),
    "both": (1, (600, 0, 100, 100)),
    "missed": (1, (800, 0, 100, 100)),
    "crowd": (1, (1000, 0, 100, 100)),
}
FOUND = [  # image, class, XYWH, score, kind
    (0, 0, (0, 0, 100, 100), 0.9, None),
    (0, 0, (0, 0, 100, 90), 0.8, "duplicate"),
    (0, 1, (200, 0, 100, 100), 0.7, "classification"),
    (0, 1, (440, 0, 100, 100), 0.6, "localisation"),  # IoU 60 / 140
    (0, 1, (445, 0, 100, 100), 0.55, "localisation"),
    (0, 0, (640, 0, 100, 100), 0.5, "both"),
    (0, 1, (0, 500, 100, 100), 0.4, "background"),
    (0, 1, (1010, 0, 50, 50), 0.3, None),  # in the crowd
    (1, 0, (0, 0, 100, 100), 0.2, "background"),
]


@pytest.fixture
def case():
    """Detections, true boxes and matches."""
    true = [
        {"image_id": 0, "category_id": c, "bbox": box, "iscrowd": name == "crowd"}
        for name, (c, box) in TRUE.items()
    ]
    found = [
        {"image_id": i, "category_id": c, "bbox": box, "score": score}
        for i, c, box, score, _ in FOUND
    ]
    tables = [box_table(entries, (0, 1), (0, 1)) for entries in (found, true)]
    return (*tables, match(*tables))


def test_each_error_is_of_its_kind(case):
    found, true, matched = case
    errors = find_errors(found, true, matched)
    kinds = [None if kind == NONE else list(KINDS)[kind] for kind in errors.kinds]
    assert kinds == [kind for *_, kind in FOUND]
    assert errors.targets.tolist() == [-1, -1, 1, 2, 2, -1, -1, -1, -1]
    missed = [name for name, is_missed in zip(TRUE, errors.missed) if is_missed]
    assert missed == ["both", "missed"]  # "both" is not covered, as in TIDE


def test_costs_are_ap_gained_by_hand(case):
    found, true, matched = case
    costs = error_costs(found, true, matched, find_errors(found, true, matched), 2)

    def ap(*precisions):
        """Mean AP of two classes, each a list of (share of the 101 recalls, precision)."""
        return 100 * sum(n * p for of_class in precisions for n, p in of_class) / 101 / 2

    base = ap([(51, 1.0)], [])  # class 0: one of two, without an error above it
    counts = np.array([2, 3])
    judged = matched >= NONE
    assert mean_ap50(found.classes, found.scores, matched >= 0, judged, counts) == (
        pytest.approx(base)
    )
    # the second box of class 0 is found behind a duplicate: 2 of 3
    assert costs["classification"] == pytest.approx(ap([(51, 1.0), (50, 2 / 3)], []) - base)
    # the better of two takes the box, behind a detection of the wrong class, and the other goes
    assert costs["localisation"] == pytest.approx(ap([(51, 1.0)], [(34, 1 / 2)]) - base)
    # asks one box less: nothing of class 1 is found all the same
    assert costs["missed"] == pytest.approx(0)
    assert costs["duplicate"] == costs["both"] == costs["background"] == pytest.approx(0)
    assert set(costs) == set(KINDS)


def test_confused_classes_are_counted_above_the_score(case):
    found, true, matched = case
    matrix = confusion_matrix(found, true, matched, 0.45, 2)
    # rows: class 0, class 1, nothing; columns: found as class 0, as class 1, not found
    assert matrix.tolist() == [[1, 1, 0], [0, 0, 3], [2, 2, 0]]
    assert confusion_matrix(found, true, matched, 0.95, 2).tolist() == [
        [0, 0, 2],
        [0, 0, 3],
        [0, 0, 0],
    ]
    hits = matched >= 0
    low = confusion_matrix(found, true, matched, 0.0, 2)
    assert np.trace(low) == hits.sum() and low[:2].sum() == (~true.crowd).sum()


def test_nothing_found_and_nothing_there():
    nothing = box_table([], (0,), (0, 1))
    box = box_table(
        [{"image_id": 0, "category_id": 1, "bbox": (0, 0, 9, 9), "score": 0.5}], (0,), (0, 1)
    )
    for found, true in ((nothing, box), (box, nothing), (nothing, nothing)):
        matched = match(found, true)
        errors = find_errors(found, true, matched)
        assert errors.missed.sum() == len(true.images)
        assert (errors.kinds == list(KINDS).index("background")).sum() == len(found.images)
        costs = error_costs(found, true, matched, errors, 2)
        assert len(costs) == len(KINDS)
        assert confusion_matrix(found, true, matched, 0.1, 2).sum() == len(found.images) + len(
            true.images
        )
