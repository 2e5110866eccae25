"""Parameters and multiply-adds of a config's model.

python -m ssdlite_d2.tools.analyze --config-file configs/ssdlite_mnv2.yaml
"""

import argparse
from typing import Dict

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch.utils.flop_counter import FlopCounterMode

from ..config import load_config
from ..engine import finish_config
from .program import one_line_errors, parse_args


def analyze(cfg: CfgNode) -> Dict[str, int]:
    """Counts of a finished config's model for one image of the input size.

    Returns:
        dict: ``parameters``; ``madds``, the multiply-adds of convolutions and linear layers;
        ``anchors``; ``bytes``, of the parameters and buffers as float32.
    """
    model = build_model(cfg).eval()
    image = torch.zeros(1, 3, *model.input_size, device=model.device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        logits, _ = model.raw_outputs(image)
    network = torch.nn.ModuleList([model.backbone, model.head])  # not what training alone has
    parameters = list(network.parameters())  # each once, shared or not
    return {
        "parameters": sum(p.numel() for p in parameters),
        "madds": counter.get_total_flops() // 2,
        "anchors": logits.shape[1],
        "bytes": sum(v.numel() * v.element_size() for v in (*parameters, *network.buffers())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Count a model's parameters and multiply-adds")
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")
    args = parse_args(parser)
    with one_line_errors():
        cfg = load_config(args.config_file, args.opts)
        finish_config(cfg)
        cfg.MODEL.DEVICE = "meta"  # shapes are enough
        counts = analyze(cfg)
    height, width = cfg.INPUT.SIZE
    print(f"input         {height} x {width}, {cfg.MODEL.SSD.NUM_CLASSES} classes")
    print(f"parameters    {counts['parameters']:,}")
    print(f"multiply-adds {counts['madds']:,} ({counts['madds'] / 1e9:.3f} G)")
    print(f"anchors       {counts['anchors']:,}")
    print(f"size          {counts['bytes'] / 1e6:.1f} MB as float32")


if __name__ == "__main__":
    main()
