"""COCO AP of detections on some images of a data set."""

import contextlib
import io
from typing import Dict, Optional, Sequence, Tuple

import numpy as np

from ..evaluation.coco import coco_truth, evaluate_boxes

Found = Tuple[np.ndarray, np.ndarray, np.ndarray]  # boxes (D, 4) XYXY, scores (D,), classes (D,)


def average_precision(records: Sequence[Dict], found: Sequence[Found]) -> Optional[float]:
    """COCO's box AP in points of 100; None when the images have no annotations.

    BoxEvaluator gives the same for a whole data set.

    Args:
        records: dataset dicts with annotations.
        found: detections of each, in its pixels.
    """
    records = [{**record, "image_id": number} for number, record in enumerate(records)]
    classes = {a["category_id"] for record in records for a in record.get("annotations", ())}
    if not classes:
        return None
    detections = [
        {"image_id": n, "category_id": int(c), "bbox": [x0, y0, x1 - x0, y1 - y0], "score": score}
        for n, result in enumerate(found)
        for (x0, y0, x1, y1), score, c in zip(*(np.asarray(x).tolist() for x in result))
    ]
    if not detections:
        return 0.0
    truth = coco_truth(records, range(max(classes) + 1))
    truth["categories"] = [{"id": i, "name": str(i)} for i in sorted(classes)]
    with contextlib.redirect_stdout(io.StringIO()):
        return 100 * float(evaluate_boxes(truth, detections).stats[0])
