"""Reading of weight files, without running what may be stored in them."""

import collections
import pickle
import types
from typing import Any, Dict
from urllib.parse import parse_qs

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..files import open_regular


def _latin1(text: str, encoding: str) -> bytes:
    return text.encode("latin1")  # how Python 3 stores bytes for Python 2


# All that a .pkl file may name: what numpy stores arrays and numbers by, old names and new, and a
# container that has no notation of its own.
KNOWN = {
    (f"numpy.{core}.{module}", name): function
    for core in ("core", "_core")
    for module, name, function in (
        ("multiarray", "_reconstruct", np.zeros(1).__reduce__()[0]),
        ("multiarray", "scalar", np.float32(0).__reduce__()[0]),
        ("numeric", "_frombuffer", np.zeros(1).__reduce_ex__(5)[0]),
    )
}
KNOWN |= {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
    ("collections", "OrderedDict"): collections.OrderedDict,
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in KNOWN:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of an array")
        found = KNOWN[module, name]
        # a function of Python's has attributes, which a file may set: it gets its own
        return (lambda *args: found(*args)) if isinstance(found, types.FunctionType) else found


def read_weights(path: str, mmap: bool = False) -> Dict[str, Any]:
    """What a weight file holds: tensors, or numpy arrays of a ``.pkl`` file, in containers.

    Args:
        mmap: map the tensors of a ``.pth`` file into memory, for a file of which little is used.

    Raises:
        InputError: the file is missing or damaged, or holds anything else, which could run code.
    """
    path = str(path)
    try:
        with open_regular(path) as file:
            if path.endswith(".pkl"):
                content = _PlainUnpickler(file, encoding="latin1").load()
            else:
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is no checkpoint of tensors alone, or is damaged; reading it could run code "
            "that is stored in it, so it is refused"
        ) from error
    except Exception as error:  # a damaged file raises nearly every kind
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} is no checkpoint, or is damaged: {reason}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no state dict")
    return content


def read_checkpoint(path: str, query: str = "") -> Dict[str, Any]:
    """A weight file as DetectionCheckpointer takes it: tensors by name under ``model``.

    Files of Caffe2 (``.pkl``) and pycls (``.pyth``) are marked to be matched by Detectron2's
    heuristics.

    Args:
        query: what followed a "?" in the file's address; ``matching_heuristics=True`` is known.

    Raises:
        InputError: as ``read_weights`` does, or the file holds no state dict.
    """
    content = read_weights(path)
    state = state_of(content, path)
    checkpoint = dict(content) if "model" in content else {}
    if path.endswith((".pkl", ".pyth")) and "__author__" not in content:
        left_out = ("_momentum", "num_batches_tracked")
        state = {name: value for name, value in state.items() if not name.endswith(left_out)}
        author = "Caffe2" if path.endswith(".pkl") else "pycls"
        checkpoint = {"__author__": author, "matching_heuristics": True}
    if query and parse_qs(query) != {"matching_heuristics": ["True"]}:
        raise InputError(f"{path}?{query}: only matching_heuristics=True may follow the ?")
    if query:
        checkpoint["matching_heuristics"] = True
    return {**checkpoint, "model": state}


def state_of(content: Dict[str, Any], path: str) -> Dict[str, Tensor]:
    """The tensors by name in a weight file's content.

    Raises:
        InputError: there are none.
    """
    for key in ("model", "model_state", "state_dict", "blobs"):
        if isinstance(content.get(key), dict):
            content = content[key]
    try:
        arrays = {k: np.array(v) for k, v in content.items() if isinstance(v, np.ndarray)}
        state = {**content, **{name: torch.from_numpy(value) for name, value in arrays.items()}}
    except (TypeError, ValueError) as error:  # arrays of objects, or of another byte order
        raise InputError(f"{path} holds no state dict: {error}") from error
    others = [k for k, v in state.items() if not (isinstance(k, str) and isinstance(v, Tensor))]
    if others:
        raise InputError(f"{path} holds no state dict: {str(others[0])[:80]!r} is no tensor")
    return state
