"""Names of torchvision's detection models ssdlite320_mobilenet_v3_large and ssd300_vgg16."""

import re
from typing import Dict, Tuple

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from torch import Tensor, nn

from .rows import background_last, take_columns

State = Dict[str, Tensor]

# Columns of the 80 classes among the 91 outputs: background 0, then COCO's own ids with their gaps.
COCO_COLUMNS = [category["id"] for category in COCO_CATEGORIES if category["isthing"]]


def convert_torchvision(state: State, model: nn.Module) -> Tuple[State, Dict[str, str]]:
    """See ``convert``."""
    converted, dropped = {}, {}
    is_vgg = "backbone.scale_weight" in state
    for name, value in state.items():
        if name.endswith("num_batches_tracked"):
            dropped[name] = "a counter that evaluation does not read"
            continue
        ours = _vgg(name) if is_vgg else _mobilenetv3(name)
        if ours.startswith("head.cls_score."):
            value = _class_rows(name, value, ours, model, dropped)
        converted[ours] = value
    return converted, dropped


def _class_rows(name: str, value: Tensor, ours: str, model: nn.Module, dropped: Dict) -> Tensor:
    expected = model.state_dict().get(ours)
    if expected is None or (value.dim() == 4 and value.shape[1] == 1):
        return value  # a depthwise convolution, or not of this model
    anchors = len(expected) // model.criterion.num_scores
    if model.num_classes == 80 and len(value) == 91 * anchors:
        gaps = sorted({*range(1, 91)} - {*COCO_COLUMNS})
        dropped[f"{name}, columns {gaps}"] = "ids that COCO does not use"
        return take_columns(value, 91, [*COCO_COLUMNS, 0])
    columns = model.num_classes + 1
    if len(value) == columns * anchors:
        return take_columns(value, columns, background_last(model.num_classes))
    return value


def _head(name: str) -> str:
    match = re.match(r"head\.(classification|regression)_head\.module_list\.(\d+)\.(.+)", name)
    if not match:
        return name
    kind = {"classification": "cls_score", "regression": "bbox_pred"}[match[1]]
    return f"head.{kind}.{match[2]}.{match[3]}"


def _mobilenetv3(name: str) -> str:
    match = re.match(r"(head\.\w+\.\d+)\.(0\.[01]|1)\.(.+)", _head(name))
    if match:
        place = {"0.0": "0", "0.1": "1", "1": "3"}[match[2]]
        return f"{match[1]}.{place}.{match[3]}"
    match = re.match(r"backbone\.features\.0\.(\d+)\.(.+)", name)
    if match:
        inside = "block.0." if match[1] == "13" else ""  # block 13 is cut after its expansion
        return f"backbone.features.{match[1]}.{inside}{match[2]}"
    match = re.match(r"backbone\.features\.1\.0\.(\d+)\.(.+)", name)
    if match:
        return f"backbone.features.13.block.{match[1]}.{match[2]}"
    match = re.match(r"backbone\.features\.1\.(\d+)\.(.+)", name)
    if match:
        return f"backbone.features.{13 + int(match[1])}.{match[2]}"
    return name.replace("backbone.extra.", "backbone.extras.")


def _vgg(name: str) -> str:
    if name == "backbone.scale_weight":
        return "backbone.tap_norms.c4.weight"
    match = re.match(r"backbone\.extra\.0\.7\.(\d+)\.(.+)", name)  # pooling, fc6, fc7
    if match:
        return f"backbone.features.{30 + int(match[1])}.{match[2]}"
    match = re.match(r"backbone\.extra\.0\.(\d+)\.(.+)", name)  # pool4 to conv5_3
    if match:
        return f"backbone.features.{23 + int(match[1])}.{match[2]}"
    match = re.match(r"backbone\.extra\.(\d+)\.(.+)", name)
    if match:
        return f"backbone.extras.{int(match[1]) - 1}.{match[2]}"
    return _head(name)
