"""What a model's outputs look like: a thin layer over the exported detector."""

import json
from pathlib import Path
from typing import Callable, Dict, NamedTuple, Optional, Tuple

from torch import nn

from .formats import save_openvino
from .graph import ExportedSSD, WithNMS
from .litert import OperatorInputs, finish_operator
from .spec import Spec


class Layout(NamedTuple):
    """One layout.

    Attributes:
        outputs: of the model, by name, with their meaning.
        wrap: makes the module to export from an ExportedSSD.
        formats: those that have it; empty is every format.
        finish: changes the written, and perhaps quantized, model in a bundle's folder, and writes
            files beside it; gets the module, too.
    """

    outputs: Dict[str, str]
    wrap: Callable[[ExportedSSD], nn.Module] = lambda detector: detector
    formats: Tuple[str, ...] = ()
    finish: Optional[Callable[[Path, Spec, nn.Module], None]] = None


def finish_frigate(folder: Path, spec: Spec, module: Optional[nn.Module] = None) -> None:
    """Make an OpenVINO model one that Frigate reads, and write what it reads beside it."""
    import openvino

    path = folder / spec.file
    model = openvino.Core().read_model(str(path))
    detected = detection_output(model, spec)
    copy = path.with_name("detected.xml")  # the file itself is in use
    save_openvino(detected, copy)
    del model, detected
    for suffix in (".xml", ".bin"):
        copy.with_suffix(suffix).replace(path.with_suffix(suffix))
    lines = [f"{i} {name}\n" for i, name in enumerate(spec.classes)]
    (folder / "labelmap.txt").write_text("".join(lines), "utf-8")
    height, width = spec.input["size"]
    text = FRIGATE.format(height=height, width=width, names=json.dumps(spec.classes))
    (folder / "frigate.yml").write_text(text, "utf-8")


FRIGATE = """\
# Lines for Frigate's config.yml. Copy model.xml, model.bin and labelmap.txt into its /config.
detectors:
  ov:
    type: openvino
    device: CPU
model:
  path: /config/model.xml
  labelmap_path: /config/labelmap.txt
  model_type: ssd
  width: {width}
  height: {height}
  input_tensor: nhwc
  input_pixel_format: rgb
objects:
  track: {names}
"""


def detection_output(model, spec: Spec):
    """An openvino.Model with boxes (1, R, 4) and scores (1, R, K) as one with rows (1, 1, N, 7).

    A row is (0, class, score, xmin, ymin, xmax, ymax), the box in parts of the image, 0 to 1; the
    best come first, and what is left of N has score 0. OpenVINO's DetectionOutput does what the
    PyTorch model does and has a fixed shape, but its rows come class by class.
    """
    import numpy as np
    import openvino
    from openvino import opset8 as ops

    def constant(values, kind=np.float32):
        return ops.constant(np.array(values, kind))

    limits = spec.detections
    height, width = spec.input["size"]
    boxes, scores = (model.output(name).get_node().input_value(0) for name in ("boxes", "scores"))
    _, anchors, classes = scores.get_partial_shape().to_shape()
    scores = best_scores(scores, limits, ops, constant)
    parts = ops.divide(boxes, constant([width, height] * 2))
    found = ops.detection_output(
        ops.reshape(parts, constant([1, -1], np.int64), False),
        ops.reshape(scores, constant([1, -1], np.int64), False),
        constant(np.zeros((1, 1, 4 * anchors))),  # priors: the boxes are decoded already
        {
            "background_label_id": -1,
            "code_type": "caffe.PriorBoxParameter.CORNER",
            "variance_encoded_in_target": True,
            "share_location": True,
            "normalized": True,
            "confidence_threshold": limits["score_threshold"],
            "nms_threshold": limits["nms_threshold"],
            "clip_before_nms": limits["clip_before_nms"],
            "top_k": limits["candidates_per_class"] or -1,
            "keep_top_k": [min(limits["max_detections"], anchors * classes)],
        },
    )  # (1, 1, N, 7)
    number, label, score, *corners = ops.split(found, constant(3, np.int64), 7).outputs()
    x0, y0, x1, y1 = (ops.clamp(x, 0.0, 1.0) for x in corners)
    # rows behind the last detection have -1 for the image or nothing but zeros; neither has area
    area = ops.logical_and(ops.greater(x1, x0), ops.greater(y1, y0))
    good = ops.logical_and(area, ops.greater_equal(number, constant(0.0)))
    score = ops.select(good, score, constant(0.0))
    rows = ops.concat([ops.multiply(label, constant(0.0)), label, score, x0, y0, x1, y1], 3)
    count = limits["max_detections"]
    order = ops.topk(score, constant(min(count, anchors * classes), np.int64), 2, "max", "value")
    index = ops.reshape(order.output(1), constant([-1], np.int64), False)
    rows = ops.gather(rows, index, constant(2, np.int64))
    rows.output(0).set_names({"detections"})
    return openvino.Model([rows], model.get_parameters(), "ssd")


def best_scores(scores, limits: Dict, ops, constant):
    """Scores (1, R, K) with 0 for all that are not among the candidates.

    As in the PyTorch model, the limit of each class comes first, then that of the image.
    """
    import numpy as np

    def least(values, count, axis):
        best = ops.topk(values, constant(count, np.int64), axis, "max", "value").output(0)
        return ops.reduce_min(best, constant([axis], np.int64), keep_dims=True)

    _, anchors, classes = scores.get_partial_shape().to_shape()
    per_class, per_image = limits["candidates_per_class"], limits["candidates"]
    if 0 < per_class < anchors:
        enough = ops.greater_equal(scores, least(scores, per_class, 1))
        scores = ops.select(enough, scores, constant(0.0))
    if per_image < anchors * classes:
        flat = ops.reshape(scores, constant([1, -1], np.int64), False)
        enough = ops.greater_equal(flat, least(flat, per_image, 1))
        scores = ops.select(enough, flat, constant(0.0))
    return scores


LAYOUTS: Dict[str, Layout] = {
    "anchors": Layout(
        {"boxes": "XYXY in pixels of the input", "scores": "one per anchor and class"}
    ),
    "nms": Layout(
        {
            "boxes": "XYXY in pixels of the input",
            "scores": "best first, 0 for none",
            "classes": "-1 for none",
        },
        WithNMS,
        ("onnx", "openvino", "torchscript"),
    ),
    "frigate": Layout(
        {
            "detections": "rows (0, class, score, xmin, ymin, xmax, ymax), sides in parts of the "
            "image, best first, score 0 for none"
        },
        formats=("openvino",),
        finish=finish_frigate,
    ),
    "detection-postprocess": Layout(
        {
            "boxes": "sides ymin, xmin, ymax, xmax in parts of the image",
            "classes": "numbers, in float",
            "scores": "best first",
            "count": "of the detections; the rows behind them mean nothing",
        },
        OperatorInputs,
        ("litert",),
        finish_operator,
    ),
}
