"""Reading of other projects' weight files: tensors by their names there."""

import os
from typing import Dict

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..files import read_regular
from .reading import read_weights, state_of
from .tensorflow import is_variable


def read_source(path: str) -> Dict[str, Tensor]:
    """A file's tensors by name: a PyTorch file, an ``.npz``, or TensorFlow's checkpoint or graph.

    Raises:
        InputError: the file is missing or broken, or would need to run code to be read.
    """
    if path.endswith(".npz"):
        return _read_npz(path)
    if path.endswith(".pb"):
        return _read_graph(path)
    if path.endswith((".index", ".ckpt")) or os.path.isfile(path + ".index"):
        return _read_tensorflow(path)
    state = state_of(read_weights(path), path)
    return {name.removeprefix("module."): value for name, value in state.items()}


def _read_npz(path: str) -> Dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise InputError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    except Exception as error:  # zipfile's own kinds
        raise InputError(f"{path} is no .npz file: {error}") from error


def _read_graph(path: str) -> Dict[str, Tensor]:
    """The constants of a frozen graph that were variables.

    TensorBoard, which Detectron2 needs, has TensorFlow's formats of messages.
    """
    try:
        from tensorboard.compat.proto.graph_pb2 import GraphDef
        from tensorboard.util.tensor_util import make_ndarray
    except ImportError as error:
        raise InputError(f"{path} needs TensorBoard: pip install tensorboard") from error
    try:
        graph = GraphDef.FromString(read_regular(path))
        nodes = [n for n in graph.node if n.op == "Const" and is_variable(n.name)]
        values = {n.name: make_ndarray(n.attr["value"].tensor) for n in nodes}
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # of protobuf, and what arrays of a wrong size raise
        raise InputError(f"{path} is no frozen graph of TensorFlow, or is damaged") from error
    if not values:
        raise InputError(f"{path} has no weights: it is no frozen graph of a trained model")
    return {name: torch.from_numpy(np.array(value)) for name, value in values.items()}


def _read_tensorflow(path: str) -> Dict[str, Tensor]:
    try:
        import tensorflow as tf
    except ImportError as error:
        raise InputError(
            f"{path} needs TensorFlow: pip install tensorflow, or give the frozen graph (.pb) or "
            "an .npz of name -> array"
        ) from error
    reader = tf.train.load_checkpoint(path.removesuffix(".index"))
    values = {n: reader.get_tensor(n) for n in reader.get_variable_to_shape_map()}
    return {name: torch.from_numpy(np.array(value)) for name, value in values.items()}
