"""COCO AP of detections on some images of a data set."""

import contextlib
import io
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
from detectron2.structures import BoxMode
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

Found = Tuple[np.ndarray, np.ndarray, np.ndarray]  # boxes (D, 4) XYXY, scores (D,), classes (D,)


def average_precision(records: Sequence[Dict], found: Sequence[Found]) -> Optional[float]:
    """COCO's box AP in points of 100; None when the images have no annotations.

    Detectron2's COCOEvaluator gives the same for a whole data set; it cannot take a part of one
    that is not in COCO format.

    Args:
        records: dataset dicts with annotations.
        found: detections of each, in its pixels.
    """
    truth = _truth(records)
    rows = [
        [number, *_xywh(box), score, class_id]
        for number, detections in enumerate(found, 1)
        for box, score, class_id in zip(*detections)
    ]
    if not truth.anns:
        return None
    if not rows:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(np.array(rows, dtype=np.float64)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * float(evaluation.stats[0])


def _truth(records: Sequence[Dict]) -> COCO:
    """Dataset dicts as pycocotools has a data set; images are numbered from 1."""
    annotations: List[Dict] = []
    for number, record in enumerate(records, 1):
        for a in record.get("annotations", ()):
            box = BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYWH_ABS)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": a["category_id"],
                    "bbox": list(box),
                    "area": box[2] * box[3],
                    "iscrowd": a.get("iscrowd", 0),
                }
            )
    truth = COCO()
    truth.dataset = {
        "images": [{"id": n} for n in range(1, len(records) + 1)],
        "annotations": annotations,
        "categories": [{"id": i} for i in sorted({a["category_id"] for a in annotations})],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth


def _xywh(box: np.ndarray) -> List[float]:
    x0, y0, x1, y1 = (float(v) for v in box)
    return [x0, y0, x1 - x0, y1 - y0]
