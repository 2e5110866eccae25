"""Precision, recall, F1 and the best threshold: hand-made cases, a plain loop and COCOeval."""

import numpy as np
import pytest

from ssdlite_d2.evaluation import coco
from ssdlite_d2.evaluation.operating import (
    IGNORED,
    NONE,
    average_precision,
    best_threshold,
    box_table,
    choose_threshold,
    match,
    operating_results,
    overall_curve,
    stored_operating,
)
from ssdlite_d2.export.bundled.detector import USUAL_THRESHOLD


def entry(image, category, box, score=None, **keys):
    given = {} if score is None else {"score": score}
    return {"image_id": image, "category_id": category, "bbox": list(box), **given, **keys}


def tables(found, true, images=("a",), categories=(0, 1)):
    return box_table(found, images, categories), box_table(true, images, categories)


def test_matches_and_rates_of_a_case_made_by_hand():
    true = [
        entry("a", 0, (0, 0, 20, 20)),
        entry("a", 1, (100, 100, 50, 50)),
        entry("a", 0, (200, 200, 90, 90), iscrowd=1),
        entry("b", 1, (0, 0, 100, 100)),
    ]
    found = [
        entry("a", 0, (0, 0, 20, 20), 0.9),  # right
        entry("a", 0, (1, 0, 20, 20), 0.8),  # of the same box: wrong
        entry("a", 0, (210, 210, 20, 20), 0.7),  # in the crowd: ignored
        entry("b", 0, (0, 0, 100, 100), 0.6),  # another class: wrong
        entry("b", 1, (0, 0, 100, 49), 0.5),  # IoU 0.49: wrong
        entry("b", 1, (0, 0, 100, 51), 0.4),  # right
    ]
    found, true = tables(found, true, ("a", "b"))
    matched = match(found, true)
    assert matched.tolist() == [0, NONE, IGNORED, NONE, NONE, 3]
    points = overall_curve(found, true, matched)
    assert points.scores.tolist() == [0.9, 0.8, 0.6, 0.5, 0.4]
    assert points.precision == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4, 2 / 5])
    assert points.recall == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1 / 3, 2 / 3])
    assert points.f1 == pytest.approx([1 / 2, 2 / 5, 1 / 3, 2 / 7, 1 / 2])
    assert best_threshold(points) == pytest.approx(0.85)
    results = operating_results(found, true, ["cell", "T-shirt"])
    assert results["threshold"] == pytest.approx(0.85)
    assert results["precision"] == 100 and results["recall"] == pytest.approx(100 / 3)
    assert results["F1-cell"] == 100 and results["recall-T-shirt"] == 0
    assert results["recall_small"] == 100 and results["recall_large"] == 0
    assert np.isnan(results["precision_large"]) and np.isnan(results["precision-T-shirt"])


def test_without_boxes_or_without_detections():
    box = entry("a", 0, (0, 0, 20, 20))
    nothing = operating_results(*tables([], [box]), ["x", "y"])
    assert nothing["threshold"] == 0.5 and nothing["F1"] == 0 and np.isnan(nothing["precision"])
    wrong = operating_results(*tables([{**box, "score": 0.9}], []), ["x", "y"])
    assert wrong["precision"] == 0 and np.isnan(wrong["recall"])
    assert np.isnan(operating_results(*tables([], []), [])["F1"])


def random_case(seed, images=12, classes=3):
    """Noisy boxes of some images, many of one score, and a few crowds, in COCO's format."""
    rng = np.random.default_rng(seed)
    true, found = [], []
    for image in range(images):
        for _ in range(rng.integers(0, 9)):
            box, category = rng.uniform(5, 60, 4), int(rng.integers(classes)) + 4
            true.append(entry(image, category, box, iscrowd=int(rng.random() < 0.1)))
            for _ in range(rng.integers(0, 4)):
                guess = category if rng.random() < 0.8 else 4
                moved = np.abs(box + rng.normal(0, 5, 4)) + 1
                found.append(entry(image, guess, moved, round(float(rng.uniform(0.1, 1)), 1)))
    categories = [{"id": i + 4, "name": str(i)} for i in range(classes)]
    images = [{"id": i} for i in range(images)]
    return {"images": images, "annotations": true, "categories": categories}, found


@pytest.mark.parametrize("seed", range(5))
def test_ap50_is_that_of_cocoeval(seed):
    truth, given = random_case(seed)
    for entries in (truth["annotations"], given):
        for row in entries:
            row["bbox"] = [float(x) for x in row["bbox"]]
    found, true = tables(given, truth["annotations"], range(12), (4, 5, 6))
    matched = match(found, true)
    expected = coco.evaluate_boxes(truth, given).eval["precision"][0, :, :, 0, -1].mean(0)
    assert (expected > 0).all()
    for i, ap in enumerate(expected):
        judged = (found.classes == i) & (matched != IGNORED)
        count = ((true.classes == i) & ~true.crowd).sum()
        ours = average_precision(found.scores[judged], matched[judged] >= 0, count)
        assert ours == pytest.approx(ap, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_the_threshold_is_the_best_of_all_by_a_plain_loop(seed):
    truth, given = random_case(seed)
    found, true = tables(given, truth["annotations"], range(12), (4, 5, 6))

    def loop(threshold):
        """F1, precision and recall of the detections above a score, in percent."""
        right = wrong = 0
        free = {i for i, crowd in enumerate(true.crowd) if not crowd}
        count = len(free)
        for i in np.argsort(-found.scores, kind="stable"):
            if found.scores[i] <= threshold:
                continue
            rivals = []
            for j, (image, class_id) in enumerate(zip(true.images, true.classes)):
                if (image, class_id) == (found.images[i], found.classes[i]):
                    x0, y0, w0, h0 = found.boxes[i]
                    x1, y1, w1, h1 = true.boxes[j]
                    w = max(0.0, min(x0 + w0, x1 + w1) - max(x0, x1))
                    h = max(0.0, min(y0 + h0, y1 + h1) - max(y0, y1))
                    rest = 0 if true.crowd[j] else w1 * h1 - w * h
                    rivals.append((w * h / (w0 * h0 + rest), j))
            best = max(((iou, j) for iou, j in rivals if iou >= 0.5 and j in free), default=None)
            if best:
                free.discard(best[1])
                right += 1
            elif not any(iou >= 0.5 and true.crowd[j] for iou, j in rivals):
                wrong += 1
        f1 = 200 * right / (right + wrong + count)
        return f1, 100 * right / max(right + wrong, 1), 100 * right / count

    results = operating_results(found, true, ["a", "b", "c"])
    ours = tuple(results[key] for key in ("F1", "precision", "recall"))
    assert ours == pytest.approx(loop(results["threshold"]))
    assert results["F1"] == pytest.approx(max(loop(t)[0] for t in np.linspace(-0.05, 0.95, 11)))


@pytest.mark.parametrize(
    "operating, threshold",
    [
        ({"threshold": 0.4, "F1": float("nan"), "more": []}, 0.4),
        ({"threshold": 1.5}, None),
        ({"threshold": "0.4"}, None),
        ({"F1": 50.0}, None),
        ([0.4], None),
        (None, None),
    ],
)
def test_only_a_score_is_taken_for_a_threshold(operating, threshold):
    stored = stored_operating({"operating": operating})
    assert stored == ({} if threshold is None else {"threshold": threshold})
    shown = choose_threshold(None, stored.get("threshold"))
    assert shown == (threshold or 0.3) == (threshold or USUAL_THRESHOLD)
    assert choose_threshold(0.0, threshold) == 0.0
