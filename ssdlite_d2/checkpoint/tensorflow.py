"""Names of TensorFlow's Object Detection API: SSDLite with MobileNetV2, as of 2018."""

import re
from typing import Dict, Optional, Tuple

import torch
from torch import Tensor, nn

from .rows import take_columns
from .torchvision_ssd import COCO_COLUMNS

State = Dict[str, Tensor]

NORM = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
TRUNK = "FeatureExtractor/MobilenetV2/"
TRAINING = r"global_step|.*/(Momentum|RMSProp|Adam|ExponentialMovingAverage)(_\d)?"


def convert_tensorflow(state: State, model: nn.Module) -> Tuple[State, Dict[str, str]]:
    """See ``convert``. Kernels turn from HWIO to OIHW, box codes from (y, x, h, w) to (x, y, w, h).

    The scores are sigmoids of the classes behind a background that they do not need; of COCO's 80
    classes there are 90 columns, as many as its ids go.
    """
    converted, dropped = {}, {}
    for name, value in state.items():
        if re.fullmatch(TRAINING, name):
            dropped[name] = "a variable of training"
            continue
        ours = rename(name)
        if ours is None:
            converted[name] = value  # reported as without a place
            continue
        if name.endswith("depthwise_weights"):
            value = value.permute(2, 3, 0, 1)  # (h, w, C, 1) to (C, 1, h, w)
        elif name.endswith("weights"):
            value = value.permute(3, 2, 0, 1)
        if "/ClassPredictor/" in name:
            value = _class_rows(name, value, ours, model, dropped)
        elif "/BoxEncodingPredictor/" in name and len(value) % 4 == 0:
            value = take_columns(value, 4, (1, 0, 3, 2))
        converted[ours] = value.contiguous()
    for name in model.state_dict():  # the depthwise bias that TensorFlow has not
        if name not in converted and re.fullmatch(r"head\.\w+\.\d+\.0\.bias", name):
            converted[name] = torch.zeros_like(model.state_dict()[name])
    return converted, dropped


def _class_rows(name: str, value: Tensor, ours: str, model: nn.Module, dropped: Dict) -> Tensor:
    """The rows of the model's K classes; those of another number of classes as they are."""
    anchors = len(model.state_dict().get(ours, ())) // model.num_classes
    if model.num_classes == 80 and len(value) == 91 * anchors:
        dropped[f"{name}, background and unused ids"] = "no class of COCO's 80"
        return take_columns(value, 91, COCO_COLUMNS)
    if len(value) == (model.num_classes + 1) * anchors:
        dropped[f"{name}, background"] = "no class"
        return take_columns(value, model.num_classes + 1, range(1, model.num_classes + 1))
    return value


def is_variable(name: str) -> bool:
    """Whether a constant of a frozen graph was a variable, by its name."""
    return name.endswith(("/weights", "/depthwise_weights", "/biases", *(f"/{n}" for n in NORM)))


def rename(name: str) -> Optional[str]:
    """A name of this package for a variable, or None when none is known."""
    match = re.fullmatch(r"(.+?)/(?:BatchNorm/(\w+)|(?:depthwise_)?weights|biases)", name)
    if not match:
        return None
    place = _trunk(match[1]) if match[1].startswith(TRUNK) else _predictor(match[1])
    if place is None:
        return None
    convolution, norm = place
    if match[2]:
        return f"{norm}.{NORM[match[2]]}" if norm and match[2] in NORM else None
    return f"{convolution}.{'bias' if name.endswith('biases') else 'weight'}"


def _trunk(scope: str) -> Optional[Tuple[str, str]]:
    """Names of the convolution and the norm that a scope of the trunk holds."""
    scope = scope[len(TRUNK) :]
    if scope in ("Conv", "Conv_1"):
        prefix = f"backbone.features.{0 if scope == 'Conv' else 18}"
        return f"{prefix}.0", f"{prefix}.1"
    match = re.fullmatch(r"expanded_conv(?:_(\d+))?/(expand|depthwise|project)", scope)
    if match:
        number = int(match[1] or 0)
        prefix = f"backbone.features.{number + 1}.conv"
        layer = ["expand", "depthwise", "project"].index(match[2]) - (number == 0)
        if match[2] == "project":
            return f"{prefix}.{layer}", f"{prefix}.{layer + 1}"
        return f"{prefix}.{layer}.0", f"{prefix}.{layer}.1"
    match = re.fullmatch(r"layer_19_([12])_Conv2d_(\d)_\dx\d_(?:s2_)?\d+(_depthwise)?", scope)
    if match:
        layer = 0 if match[1] == "1" else 1 if match[3] else 2
        prefix = f"backbone.extras.{int(match[2]) - 2}.{layer}"
        return f"{prefix}.0", f"{prefix}.1"
    return None


def _predictor(scope: str) -> Optional[Tuple[str, str]]:
    match = re.fullmatch(r"BoxPredictor_(\d)/(Class|BoxEncoding)Predictor(_depthwise)?", scope)
    if not match:
        return None
    kind = {"Class": "cls_score", "BoxEncoding": "bbox_pred"}[match[2]]
    prefix = f"head.{kind}.{match[1]}"
    return (f"{prefix}.0", f"{prefix}.1") if match[3] else (f"{prefix}.3", "")
