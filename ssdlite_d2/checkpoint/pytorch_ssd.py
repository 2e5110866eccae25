"""Names of qfgaohao/pytorch-ssd, and of dusty-nv's jetson-inference, which trains with it."""

import re
from typing import Dict, List, Tuple

from torch import Tensor, nn

from ..errors import InputError
from ..files import read_regular
from .rows import background_last, take_columns

State = Dict[str, Tensor]

# MobileNetV2: layers of a flat block there, nested ones here; with and without an expansion.
EXPANDED = {"0": "0.0", "1": "0.1", "3": "1.0", "4": "1.1", "6": "2", "7": "3"}
PLAIN = {"0": "0.0", "1": "0.1", "3": "1", "4": "2"}
# MobileNetV3: layers of a block there; norms of its squeeze-excite are behind its convolutions.
V3 = {f"{kind}{i + 1}": f"block.{i}.{j}" for i in range(3) for j, kind in enumerate(("conv", "bn"))}
V3 |= {f"se.se.{i}": f"block.3.{place}" for i, place in zip("1245", ("1.0", "1.1", "2.0", "2.1"))}
V3 |= {"shortcut.0": "shortcut.0", "shortcut.1": "shortcut.1"}


def convert_pytorch_ssd(state: State, model: nn.Module) -> Tuple[State, Dict[str, str]]:
    """See ``convert``. The background is the first class there."""
    converted, dropped = {}, {}
    for name, value in state.items():
        if name.endswith("num_batches_tracked"):
            dropped[name] = "a counter that evaluation does not read"
            continue
        ours = rename(name, state)
        # a depthwise convolution and its norm have other rows than classes
        if re.fullmatch(r"classification_headers\.\d+\.(3\.)?(weight|bias)", name):
            value = _background_last(value, ours, model)
        converted[ours] = value
    return converted, dropped


def _background_last(value: Tensor, ours: str, model: nn.Module) -> Tensor:
    columns = model.num_classes + 1
    anchors = len(model.state_dict().get(ours, ())) // columns
    if len(value) != anchors * columns:
        return value  # of another number of classes, which is reported
    return take_columns(value, columns, background_last(model.num_classes))


def rename(name: str, state: State) -> str:
    """A name of this package for a tensor, or its own when none is known."""
    match = re.fullmatch(r"(classification|regression)_headers\.(.+)", name)
    if match:
        return f"head.{'cls_score' if match[1] == 'classification' else 'bbox_pred'}.{match[2]}"
    if name.startswith("source_layer_add_ons.0."):
        return name.replace("source_layer_add_ons.0", "backbone.tap_norms.c4")
    match = re.fullmatch(r"(base_net|extras)\.(\d+)\.(.+)", name)
    if not match:
        return name
    folder = "features" if match[1] == "base_net" else "extras"
    number, rest = int(match[2]), match[3]
    if folder == "features" and "base_net.3.conv1.weight" in state:  # MobileNetV3
        if number in (0, 1, 18, 19):  # two layers on their own before the 15 blocks and behind
            number, rest = number // 18 * 16, f"{number % 18}.{rest}"
        else:
            number -= 2
    return f"backbone.{folder}.{number}.{_inside(name, rest, state)}"


def _inside(name: str, rest: str, state: State) -> str:
    """A tensor's name inside a block; those of VGG and MobileNetV1 are the same."""
    match = re.fullmatch(r"conv\.(\d)\.(\w+)", rest)
    if match:
        is_expanded = name.removesuffix(rest) + "conv.6.weight" in state
        place = (EXPANDED if is_expanded else PLAIN).get(match[1])
        return f"conv.{place}.{match[2]}" if place else rest
    place, _, leaf = rest.rpartition(".")
    return f"{V3[place]}.{leaf}" if place in V3 else rest


def read_labels(path: str) -> List[str]:
    """Class names of a ``labels.txt``: one a line, the background first.

    Raises:
        InputError: it is missing, or is no such list.
    """
    try:
        names = [line.strip() for line in read_regular(path).decode().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    while names and not names[-1]:
        names.pop()
    if len(names) < 2 or names[0].upper() != "BACKGROUND":
        raise InputError(f"{path} is no list of classes: its first line must be BACKGROUND")
    return names[1:]
