"""Weights of other projects to this package's names, completely or not at all."""

from typing import Callable, Dict, List, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import InputError, one_of
from .lufficc import convert_lufficc
from .pytorch_ssd import convert_pytorch_ssd
from .tensorflow import convert_tensorflow
from .torchvision_ssd import convert_torchvision

State = Dict[str, Tensor]


class Converted(NamedTuple):
    """What became of a source's tensors.

    Attributes:
        state: under the model's names.
        dropped: reason by name in the source.
    """

    state: State
    dropped: Dict[str, str]


# Each takes the source's state dict and the model to fill, and returns (state, dropped); a tensor
# that it does not know stays under its own name and is reported below.
SOURCES: Dict[str, Callable] = {
    "ssdlite-pytorch": convert_lufficc,
    "lufficc": convert_lufficc,
    "pytorch-ssd": convert_pytorch_ssd,
    "torchvision": convert_torchvision,
    "tensorflow": convert_tensorflow,
}


def convert(source: str, state: State, model: nn.Module) -> Converted:
    """Rename and reorder a source's tensors for a model.

    Raises:
        InputError: a tensor of the source has no place, or one of the model gets no value.
    """
    converted, dropped = SOURCES[one_of("--source", source, SOURCES)](state, model)
    expected = {k: v for k, v in model.state_dict().items() if not k.endswith("batches_tracked")}
    unused = sorted(set(converted) - set(expected))
    missing = sorted(set(expected) - set(converted))
    others = {k: v for k, v in expected.items() if k in converted and converted[k].shape != v.shape}
    if not (unused or missing):
        _check_classes(others, converted, model)
    wrong = [f"{k} {tuple(converted[k].shape)} for {tuple(v.shape)}" for k, v in others.items()]
    problems = [
        f"{len(names)} tensors {what}: {_some(names)}"
        for names, what in (
            (unused, "of the file have no place in the model"),
            (missing, "of the model are not in the file"),
            (wrong, "have another shape"),
        )
        if names
    ]
    if problems:
        raise InputError("the file does not fit the config: " + "; ".join(problems))
    counters = {
        name: torch.zeros_like(value)
        for name, value in model.state_dict().items()
        if name.endswith("batches_tracked")
    }
    return Converted({**converted, **counters}, dropped)


def _check_classes(others: State, converted: State, model: nn.Module) -> None:
    """Raises InputError when the class scores are all that differs; the sources have K + 1 each."""
    if not others or not all(name.startswith("head.cls_score.") for name in others):
        return
    name, expected = next(iter(others.items()))
    columns, rest = divmod(len(converted[name]) * model.criterion.num_scores, len(expected))
    if not rest:
        raise InputError(
            f"the file is of {columns - 1} classes, the config of {model.num_classes}; set "
            "CLASSES in DATASETS.REGISTER, or MODEL.SSD.NUM_CLASSES"
        )


def _some(names: List[str]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
