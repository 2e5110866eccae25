"""Export a trained model as a bundle that runs without PyTorch and Detectron2.

python -m ssdlite_d2.tools.export --config-file configs/ssdlite_mnv2.yaml --format onnx \
    --output exported --opts MODEL.WEIGHTS model.pth
"""

import argparse
import logging

from detectron2.modeling import build_model

from ..checkpoint import SSDCheckpointer, identity_of
from ..config import load_config
from ..engine import finish_config
from ..evaluation.operating import stored_operating
from ..export import FORMATS, ExportOptions, export_bundle
from .program import parse_args, program


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Export a trained model as a bundle")
    parser.add_argument("--config-file", required=True, metavar="FILE", help="path to config file")
    parser.add_argument(
        "--format", required=True, metavar="FORMAT", help=f"one of {', '.join(FORMATS)}"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the bundle")
    parser.add_argument(
        "--precision",
        default="fp32",
        metavar="P",
        help="fp32, fp16 (the weights) or int8 (static quantization; onnx, openvino, litert, web)",
    )
    parser.add_argument(
        "--batch", default="1", metavar="N", help="images at once, or dynamic (default: 1)"
    )
    parser.add_argument(
        "--layout",
        default="anchors",
        metavar="L",
        help="outputs: anchors (all boxes and scores), nms (suppression inside), frigate (one "
        "output as Frigate reads it; openvino) or detection-postprocess (by TensorFlow Lite's "
        "operator; litert) (default: anchors)",
    )
    parser.add_argument(
        "--nms", action="store_const", dest="layout", const="nms", help="the same as --layout nms"
    )
    parser.add_argument(
        "--resize",
        action="store_true",
        help="the resize in the model: images of any size go in, boxes in their pixels come out",
    )
    parser.add_argument(
        "--calibration",
        metavar="DATASET",
        help="data set for --precision int8 (default: the config's training data)",
    )
    parser.add_argument(
        "--calibration-images", type=int, default=200, metavar="N", help="(default: 200)"
    )
    parser.add_argument(
        "--ap-budget",
        type=float,
        default=0.5,
        metavar="POINTS",
        help="AP that --precision int8 may cost (default: 0.5)",
    )
    parser.add_argument(
        "--parity-dataset",
        metavar="DATASET",
        help="data set of the parity report (default: the config's test data)",
    )
    parser.add_argument(
        "--parity-images",
        type=int,
        metavar="N",
        help="images of the parity report; 0 leaves it out (default: all of up to 200, else 50)",
    )
    parser.add_argument(
        "--allow-difference",
        action="store_true",
        help="export though the report is outside its tolerance",
    )
    parser.add_argument(
        "--runtime",
        metavar="DIR",
        help="for --format web: a folder with onnxruntime-web's files, to be copied into the "
        "bundle (default: the page loads them from a public CDN)",
    )
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")
    return parser


def run(args: argparse.Namespace) -> None:
    values = vars(args)
    options = ExportOptions(**{k: values[k] for k in ExportOptions.__dataclass_fields__})
    options.check()
    cfg = load_config(args.config_file, args.opts)
    cfg.MODEL.DEVICE = "cpu"
    finish_config(cfg)
    model = build_model(cfg)
    if not cfg.MODEL.WEIGHTS:
        logging.getLogger("ssdlite_d2").warning("MODEL.WEIGHTS is empty: the weights are random")
    loaded = SSDCheckpointer(model, identity=identity_of(cfg, model)).load(cfg.MODEL.WEIGHTS)
    export_bundle(cfg, model, args.output, options, stored_operating(loaded) or None)
    print(f"Wrote {args.output}")


def main() -> None:
    args = parse_args(get_parser())
    with program():
        run(args)


if __name__ == "__main__":
    main()
