"""Draw a model's detections beside the true boxes on images of its test set.

python -m ssdlite_d2.tools.visualize_results --config-file configs/ssdlite_mnv2_bccd.yaml \
    --output drawn --opts MODEL.WEIGHTS model.pth
"""

import argparse

import cv2
import numpy as np
import tqdm
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..config import load_config
from ..data.datasets import dataset_errors
from ..data.reader import image_reader
from ..engine import build_predictor, finish_config
from ..errors import InputError
from ..evaluation.drawing import side_by_side
from ..evaluation.operating import USUAL, choose_threshold
from .drawings import drawing_paths
from .program import parse_args, program


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Draw detections (left) and true boxes (right)")
    parser.add_argument("--config-file", required=True, metavar="FILE", help="path to config file")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the images")
    parser.add_argument("--count", type=int, default=8, help="how many images (default: 8)")
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        metavar="T",
        help="smallest score of a detection that is drawn (default: that of the best F1 at the "
        f"last evaluation, as the weights' file has it, else {USUAL})",
    )
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")
    return parser


def run(args: argparse.Namespace) -> None:
    cfg = load_config(args.config_file, args.opts)
    if args.confidence_threshold is not None:
        cfg.MODEL.SSD.POSTPROCESS.SCORE_THRESH = args.confidence_threshold
    finish_config(cfg)
    if not cfg.DATASETS.TEST:
        raise InputError("DATASETS.TEST names no data set")
    predictor = build_predictor(cfg)
    threshold = choose_threshold(args.confidence_threshold, predictor.threshold)
    name = cfg.DATASETS.TEST[0]
    with dataset_errors((name,)):
        records = DatasetCatalog.get(name)
    # the images with the most objects of each stretch of the data set: spread, and not empty
    stretches = np.array_split(np.arange(len(records)), min(args.count, len(records)))
    chosen = [max(s, key=lambda i: len(records[i]["annotations"])) for s in stretches]
    records, read = [records[i] for i in chosen], image_reader(cfg)
    paths = drawing_paths([record["file_name"] for record in records], args.output, ".jpg")
    names = MetadataCatalog.get(name).get("thing_classes")
    for record, path in zip(tqdm.tqdm(records), paths):
        image = read(record["file_name"], "BGR")
        instances = predictor(image)["instances"].to("cpu")
        instances = instances[instances.scores > threshold]
        drawn = side_by_side(image[:, :, ::-1], instances, record, names)
        if not cv2.imwrite(str(path), drawn[:, :, ::-1]):
            raise InputError(f"--output: cannot write {path}")
    print(f"Detections above {threshold:.2f} (left) and true boxes (right) in '{name}':")
    print("\n".join(f"  {path}" for path in paths))


def main() -> None:
    args = parse_args(get_parser())
    with program():
        run(args)


if __name__ == "__main__":
    main()
