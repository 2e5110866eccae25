"""Make a checkpoint of this package from public SSD weights.

python -m ssdlite_d2.tools.convert_checkpoint --source lufficc \
    --config-file configs/ssd300_vgg16_voc.yaml vgg_ssd300_voc0712.pth converted.pth
"""

import argparse
import os
from collections import Counter
from pathlib import Path
from typing import Dict

import numpy as np
import torch
from detectron2.modeling import build_model
from torch import Tensor

from ..checkpoint.convert import SOURCES, convert
from ..checkpoint.reading import read_weights, state_of
from ..checkpoint.tensorflow import is_variable
from ..config import load_config
from ..engine import finish_config
from ..errors import InputError
from ..files import write_atomically
from .program import one_line_errors, parse_args


def read_source(path: str) -> Dict[str, Tensor]:
    """A file's tensors by name: a PyTorch file, an ``.npz``, or TensorFlow's checkpoint or graph.

    Raises:
        InputError: the file is missing or broken, or would need to run code to be read.
    """
    if path.endswith(".npz"):
        return _read_npz(path)
    if path.endswith((".pb", ".index", ".ckpt")) or os.path.isfile(path + ".index"):
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


def _read_tensorflow(path: str) -> Dict[str, Tensor]:
    try:
        import tensorflow as tf
    except ImportError as error:
        raise InputError(
            f"{path} needs TensorFlow: pip install tensorflow, or give an .npz of name -> array"
        ) from error
    if path.endswith(".pb"):
        graph = tf.compat.v1.GraphDef.FromString(Path(path).read_bytes())
        constants = (node for node in graph.node if node.op == "Const")
        values = {n.name: tf.make_ndarray(n.attr["value"].tensor) for n in constants}
        values = {n: v for n, v in values.items() if is_variable(n)}  # not shapes and the like
    else:
        reader = tf.train.load_checkpoint(path.removesuffix(".index"))
        values = {n: reader.get_tensor(n) for n in reader.get_variable_to_shape_map()}
    return {name: torch.from_numpy(np.array(value)) for name, value in values.items()}


def run(args: argparse.Namespace) -> None:
    cfg = load_config(args.config_file, args.opts)
    cfg.MODEL.DEVICE = "cpu"
    finish_config(cfg)
    source = read_source(args.input)
    converted = convert(args.source, source, build_model(cfg))
    content = {"model": converted.state, "__author__": "ssdlite_d2"}
    write_atomically(args.output, lambda out: torch.save(content, out))
    print(f"{len(source)} tensors read, {len(converted.state)} written to {args.output}")
    for reason, count in Counter(converted.dropped.values()).items():
        names = [name for name, r in converted.dropped.items() if r == reason]
        print(f"  dropped, {reason}: {count} ({names[0]}{', ...' if count > 1 else ''})")


def main() -> None:
    parser = argparse.ArgumentParser(description="Convert public SSD weights")
    parser.add_argument("--source", required=True, metavar="NAME", help=", ".join(SOURCES))
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("input", help="the public file")
    parser.add_argument("output", help="the checkpoint to write, .pth")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")
    with one_line_errors():
        run(parse_args(parser))


if __name__ == "__main__":
    main()
