"""Make a checkpoint of this package from public SSD weights.

python -m ssdlite_d2.tools.convert_checkpoint --source lufficc \
    --config-file configs/ssd300_vgg16_voc.yaml vgg_ssd300_voc0712.pth converted.pth
"""

import argparse
from collections import Counter
from pathlib import Path
from typing import List

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from ..checkpoint.convert import SOURCES, convert
from ..checkpoint.pytorch_ssd import read_labels
from ..checkpoint.sources import read_source
from ..config import load_config
from ..data.datasets import resolve_classes
from ..engine import finish_config
from ..errors import InputError
from ..files import write_atomically
from .program import one_line_errors, parse_args


def run(args: argparse.Namespace) -> None:
    cfg = load_config(args.config_file, args.opts)
    labels = find_labels(args)
    if labels:
        set_classes(cfg, labels)
    config = cfg.dump()
    cfg.MODEL.DEVICE = "cpu"
    finish_config(cfg)
    source = read_source(args.input)
    converted = convert(args.source, source, build_model(cfg))
    content = {"model": converted.state, "__author__": "ssdlite_d2"}
    if labels:
        content["ssd"] = {"classes": labels}
        write_config(config, Path(args.output))
    write_atomically(args.output, lambda out: torch.save(content, out))
    print(f"{len(source)} tensors read, {len(converted.state)} written to {args.output}")
    if labels:
        print(f"  {len(labels)} classes: {', '.join(labels)}; config.yaml lies beside it")
    for reason, count in Counter(converted.dropped.values()).items():
        names = [name for name, r in converted.dropped.items() if r == reason]
        print(f"  dropped, {reason}: {count} ({names[0]}{', ...' if count > 1 else ''})")


def find_labels(args: argparse.Namespace) -> List[str]:
    """The classes of --labels, or of labels.txt beside a file of pytorch-ssd; [] without either."""
    beside = Path(args.input).with_name("labels.txt")
    if args.labels or (args.source == "pytorch-ssd" and beside.is_file()):
        return read_labels(args.labels or str(beside))
    return []


def set_classes(cfg: CfgNode, labels: List[str]) -> None:
    """Give the config these classes: by a data set to fill in, unless its own have them."""
    if tuple(labels) != resolve_classes(cfg):
        entry = {"NAME": "labels", "FORMAT": "coco", "JSON": "annotations.json", "IMAGES": "images"}
        cfg.DATASETS.REGISTER = [{**entry, "CLASSES": labels}]
        cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("labels",)


def write_config(config: str, output: Path) -> None:
    """Write config.yaml beside a checkpoint, so that the checkpoint can be named in its place.

    Raises:
        InputError: another one is there, or it cannot be written.
    """
    path, content = output.with_name("config.yaml"), config.encode()
    if path.exists() and path.read_bytes() != content:
        raise InputError(f"{path} is of another model: write {output.name} to a folder of its own")
    write_atomically(str(path), lambda out: out.write(content))


def main() -> None:
    parser = argparse.ArgumentParser(description="Convert public SSD weights")
    parser.add_argument("--source", required=True, metavar="NAME", help=", ".join(SOURCES))
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument(
        "--labels",
        metavar="FILE",
        help="names of the classes, one a line, BACKGROUND first (default: labels.txt beside a "
        "file of pytorch-ssd); config.yaml is written beside the output then",
    )
    parser.add_argument("input", help="the public file")
    parser.add_argument("output", help="the checkpoint to write, .pth")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")
    with one_line_errors():
        run(parse_args(parser))


if __name__ == "__main__":
    main()
