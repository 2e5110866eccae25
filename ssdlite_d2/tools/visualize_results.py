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
from ..engine.visuals import side_by_side
from ..errors import InputError
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
        default=0.3,
        metavar="T",
        help="smallest score of a detection that is drawn (default: 0.3)",
    )
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")
    return parser


def run(args: argparse.Namespace) -> None:
    cfg = load_config(args.config_file, args.opts)
    cfg.MODEL.SSD.POSTPROCESS.SCORE_THRESH = args.confidence_threshold
    finish_config(cfg)
    if not cfg.DATASETS.TEST:
        raise InputError("DATASETS.TEST names no data set")
    predictor = build_predictor(cfg)
    name = cfg.DATASETS.TEST[0]
    with dataset_errors((name,)):
        records = DatasetCatalog.get(name)
    # the images with the most objects of each stretch of the data set: spread, and not empty
    stretches = np.array_split(np.arange(len(records)), min(args.count, len(records)))
    chosen = [max(s, key=lambda i: len(records[i]["annotations"])) for s in stretches]
    records, read = [records[i] for i in chosen], image_reader(cfg)
    paths = drawing_paths([record["file_name"] for record in records], args.output, ".jpg")
    for record, path in zip(tqdm.tqdm(records), paths):
        image = read(record["file_name"], "BGR")
        instances = predictor(image)["instances"].to("cpu")
        drawn = side_by_side(image[:, :, ::-1], instances, record, MetadataCatalog.get(name))
        if not cv2.imwrite(str(path), drawn[:, :, ::-1]):
            raise InputError(f"--output: cannot write {path}")
    print(f"Detections (left) and true boxes (right), {len(paths)} images of '{name}':")
    print("\n".join(f"  {path}" for path in paths))


def main() -> None:
    args = parse_args(get_parser())
    with program():
        run(args)


if __name__ == "__main__":
    main()
