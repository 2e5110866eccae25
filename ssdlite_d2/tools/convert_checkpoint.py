"""Make a checkpoint of this package from public SSD weights.

python -m ssdlite_d2.tools.convert_checkpoint --source lufficc \
    --config-file configs/ssd300_vgg16_voc.yaml vgg_ssd300_voc0712.pth converted.pth
"""

import argparse
from collections import Counter

import torch
from detectron2.modeling import build_model

from ..checkpoint.convert import SOURCES, convert
from ..checkpoint.sources import read_source
from ..config import load_config
from ..engine import finish_config
from ..files import write_atomically
from .program import one_line_errors, parse_args


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
