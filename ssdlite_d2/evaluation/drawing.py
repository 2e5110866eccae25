"""Named boxes on images: a class has the same colour wherever it is drawn."""

import colorsys
from typing import Dict, Optional, Sequence, Tuple

import numpy as np
from detectron2.structures import BoxMode, Instances
from detectron2.utils.visualizer import Visualizer

SMALLEST_SIDE = 480  # pixels; smaller images are enlarged, for the labels to be legible


def colour_of(class_id: int) -> Tuple[float, float, float]:
    """RGB from 0 to 1 of a class, grey for those below 0; bundles draw in the same."""
    if class_id < 0:
        return (0.5, 0.5, 0.5)
    return colorsys.hsv_to_rgb(class_id * 0.618034 % 1, 0.85, 0.95)  # hues far apart


class OpaqueBoxes(Visualizer):
    """The parent, whose boxes take on half the colour of what is below them."""

    def draw_box(self, box_coord, alpha: float = 1.0, **options):
        return super().draw_box(box_coord, alpha, **options)


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    classes: Sequence[int],
    labels: Sequence[str],
    enlarge: bool = True,
) -> np.ndarray:
    """
    Args:
        image: RGB (h, w, 3).
        boxes: (M, 4) XYXY in its pixels.
        classes, labels: M ids and texts.

    Returns:
        RGB, as large as the image, or with a short side of SMALLEST_SIDE.
    """
    scale = max(1.0, SMALLEST_SIDE / min(image.shape[:2])) if enlarge else 1.0
    drawn = OpaqueBoxes(np.ascontiguousarray(image), scale=scale).overlay_instances(
        boxes=boxes, labels=labels, assigned_colors=[colour_of(c) for c in classes]
    )
    return drawn.get_image()


def draw_detections(
    image: np.ndarray, found: Instances, names: Optional[Sequence[str]], enlarge: bool = True
) -> np.ndarray:
    """``draw_boxes`` of detections on the CPU, with names by class id and scores."""
    classes = found.pred_classes.tolist()
    labels = [f"{_name(c, names)} {s:.0%}" for c, s in zip(classes, found.scores.tolist())]
    return draw_boxes(image, found.pred_boxes.tensor.numpy(), classes, labels, enlarge)


def side_by_side(
    image: np.ndarray, found: Instances, record: Dict, names: Optional[Sequence[str]]
) -> np.ndarray:
    """An RGB image twice: with detections, and with the boxes of its dataset dict."""
    annotations = record.get("annotations", ())
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    classes = [a["category_id"] for a in annotations]
    labels = [_name(c, names) for c in classes]
    true = draw_boxes(image, np.array(boxes).reshape(-1, 4), classes, labels)
    return np.hstack((draw_detections(image, found, names), true))


def _name(class_id: int, names: Optional[Sequence[str]]) -> str:
    return names[class_id] if names and 0 <= class_id < len(names) else str(class_id)
