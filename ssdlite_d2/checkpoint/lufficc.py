"""Names of lufficc/SSD, and of the reference SSDLite (ssdlite-pytorch) that grew from it."""

import re
from itertools import accumulate
from typing import Dict, Tuple

from torch import Tensor, nn

from .rows import background_last, take_columns

State = Dict[str, Tensor]

PREDICTORS = {"cls": "cls_score", "reg": "bbox_pred"}
# Blocks per stage of EfficientNet-B3
EFFICIENTNET_B3 = (2, 3, 3, 5, 5, 6, 2)


def convert_lufficc(state: State, model: nn.Module) -> Tuple[State, Dict[str, str]]:
    """See ``convert``."""
    converted, dropped = {}, {}
    for name, value in state.items():
        if name.endswith("num_batches_tracked"):
            dropped[name] = "a counter that evaluation does not read"
        elif re.match(r"backbone\.(_fc|_conv_head|_bn1|classifier)\.", name):
            dropped[name] = "the trunk's classifier"
        else:
            ours = rename(name, state)
            if ours.startswith("head.cls_score.") and ours in model.state_dict():
                value = _class_rows(name, value, ours, model, dropped)
            if re.search(r"\.fc[12]\.weight$", ours) and value.dim() == 2:
                value = value[:, :, None, None]  # a linear layer there, a 1x1 convolution here
            converted[ours] = value
    return converted, dropped


def _class_rows(name: str, value: Tensor, ours: str, model: nn.Module, dropped: Dict) -> Tensor:
    """A class predictor's rows; what is not the last convolution has none."""
    columns = model.num_classes + 1
    expected = model.state_dict()[ours].shape[0]
    anchors = expected // model.criterion.num_scores
    if not is_last_convolution(ours, model) or len(value) != anchors * columns:
        return value
    if model.criterion.num_scores > model.num_classes:  # with a background
        return take_columns(value, columns, background_last(model.num_classes))
    # The focal loss there has a column for one class more than there is, trained as always absent.
    dropped[f"{name}, column {columns - 1}"] = "a class that no data set has"
    return take_columns(value, columns, range(model.num_classes))


def is_last_convolution(name: str, model: nn.Module) -> bool:
    """Whether a tensor of a predictor belongs to the convolution that gives its outputs."""
    module = model.get_submodule(name.rsplit(".", 1)[0])
    return isinstance(module, nn.Conv2d) and module.groups == 1


def rename(name: str, state: State) -> str:
    """A name of this package for a tensor, or its own when none is known."""
    match = re.match(r"box_head\.predictor\.(cls|reg)_headers\.(\d+)\.(?:conv\.)?(.+)", name)
    if match:
        return f"head.{PREDICTORS[match[1]]}.{match[2]}.{match[3]}"
    match = re.match(r"backbone\.vgg\.(.+)", name)
    if match:
        return f"backbone.features.{match[1]}"
    if name == "backbone.l2_norm.weight":
        return "backbone.tap_norms.c4.weight"
    match = re.match(r"backbone\.extras\.(\d+)\.(weight|bias)", name)
    if match:  # VGG: a flat list of convolutions, two for each block
        block, second = divmod(int(match[1]), 2)
        return f"backbone.extras.{block}.{2 * second}.{match[2]}"
    if name.startswith(("backbone._conv_stem.", "backbone._bn0.", "backbone._blocks.")):
        return _efficientnet(name, state)
    return _mobilenetv3(name, state)


def _mobilenetv3(name: str, state: State) -> str:
    """A flat ``conv`` of 6 or 9 layers there, a ``block`` of nested ones here."""
    match = re.match(r"(backbone\.(?:features|extras)\.\d+)\.conv\.(\d+)\.(.+)", name)
    if not match:
        return name
    prefix, layer, rest = match[1], int(match[2]), match[3]
    if f"{prefix}.conv.7.weight" in state and f"{prefix}.conv.9.weight" not in state:
        has_se = f"{prefix}.conv.5.fc.0.weight" in state
        if f"{prefix}.conv.6.weight" in state:
            return name  # a sandglass block of MobileNeXt
        places = {0: "0.0", 1: "0.1", 3: "1.0", 4: "1.1", 5: "2"}
        places.update({7: f"{2 + has_se}.0", 8: f"{2 + has_se}.1"})
    elif f"{prefix}.conv.5.running_mean" in state and f"{prefix}.conv.3.weight" not in state:
        places = {0: "0.0", 1: "0.1", 4: "1.0", 5: "1.1"}  # no expansion
    else:
        return name  # MobileNetV2
    rest = rest.replace("fc.0.", "fc1.").replace("fc.2.", "fc2.")
    return f"{prefix}.block.{places[layer]}.{rest}"


def _efficientnet(name: str, state: State) -> str:
    match = re.match(r"backbone\._(conv_stem|bn0)\.(.+)", name)
    if match:
        return f"backbone.features.0.{['conv_stem', 'bn0'].index(match[1])}.{match[2]}"
    match = re.match(r"(backbone\._blocks\.(\d+))\._(\w+)\.(.+)", name)
    if not match:
        return name
    number = int(match[2])
    ends = list(accumulate(EFFICIENTNET_B3))
    stage = next((i for i, end in enumerate(ends) if number < end), None)
    if stage is None:
        return name
    block = number - (ends[stage - 1] if stage else 0)
    first = int(f"{match[1]}._expand_conv.weight" in state)  # place of the depthwise convolution
    place = {
        "expand_conv": "0.0",
        "bn0": "0.1",
        "depthwise_conv": f"{first}.0",
        "bn1": f"{first}.1",
        "se_reduce": f"{first + 1}.fc1",
        "se_expand": f"{first + 1}.fc2",
        "project_conv": f"{first + 2}.0",
        "bn2": f"{first + 2}.1",
    }.get(match[3])
    return (
        name if place is None else f"backbone.features.{stage + 1}.{block}.block.{place}.{match[4]}"
    )
