"""Draw what the network sees in training: augmented images with their boxes, on contact sheets.

python -m ssdlite_d2.tools.visualize_data --config-file configs/ssdlite_mnv2_bccd.yaml --output seen
"""

import argparse
import os
from pathlib import Path
from typing import Dict, Iterator, List, Sequence

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MetadataCatalog
from detectron2.utils.env import seed_all_rng

from ..config import load_config
from ..data.build import build_collator, build_train_mapper, load_train_records
from ..data.dataset_mapper import IGNORED
from ..engine import finish_config
from ..errors import InputError
from ..evaluation.drawing import draw_boxes
from .drawings import make_folder, refuse_sources
from .program import parse_args, program

GAP = 4  # pixels between the images of a sheet


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", required=True, metavar="FILE", help="path to config file")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the sheets")
    parser.add_argument("--count", type=int, default=24, help="how many images (default: 24)")
    parser.add_argument(
        "--repeat", type=int, default=1, help="how many draws of each image (default: 1)"
    )
    parser.add_argument("--columns", type=int, default=4, help="images per row (default: 4)")
    parser.add_argument("--rows", type=int, default=3, help="rows per sheet (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")
    return parser


def training_samples(cfg: CfgNode, records: List[Dict], count: int, repeat: int) -> Iterator[Dict]:
    """What the training loader makes of images spread over the training sets."""
    records = DatasetFromList(records, copy=False)
    mapper, collate = build_train_mapper(cfg, records), build_collator(cfg)
    for index in np.linspace(0, len(records) - 1, min(count, len(records))).astype(int):
        for _ in range(repeat):
            sample = mapper(records[int(index)])
            if sample is not None:
                yield collate([sample])[0]


def draw(sample: Dict, cfg: CfgNode) -> np.ndarray:
    """A training sample with its boxes as a BGR image; regions to ignore are grey."""
    image = sample["image"].permute(1, 2, 0).numpy()
    if cfg.INPUT.FORMAT == "BGR":
        image = image[:, :, ::-1]
    names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes
    truth = sample["instances"]
    classes = truth.gt_classes.tolist()
    labels = ["ignored" if c == IGNORED else names[c] for c in classes]
    boxes = truth.gt_boxes.tensor.numpy()
    return draw_boxes(image, boxes, classes, labels, enlarge=False)[:, :, ::-1]


def make_sheet(images: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Images (h, w, 3) of any sizes side by side, row by row, on white."""
    height, width = (max(p.shape[axis] for p in images) + GAP for axis in (0, 1))
    rows = -(-len(images) // columns)
    sheet = np.full((rows * height + GAP, columns * width + GAP, 3), 255, dtype=np.uint8)
    for index, image in enumerate(images):
        y, x = (GAP + n * step for n, step in zip(divmod(index, columns), (height, width)))
        sheet[y : y + image.shape[0], x : x + image.shape[1]] = image
    return sheet


def run(args: argparse.Namespace) -> List[Path]:
    """Returns the sheets' paths."""
    cfg = load_config(args.config_file, args.opts)
    finish_config(cfg)
    seed_all_rng(args.seed)
    output, per_sheet = Path(args.output), args.columns * args.rows
    records = load_train_records(cfg)
    folders = {os.path.dirname(record["file_name"]): record["file_name"] for record in records}
    refuse_sources(list(folders.values()), output)
    make_folder(output)
    cfg.OUTPUT_DIR = str(output)  # where a list of skipped images goes
    images = [
        draw(sample, cfg) for sample in training_samples(cfg, records, args.count, args.repeat)
    ]
    paths = []
    for start in range(0, len(images), per_sheet):
        paths.append(output / f"sheet{len(paths):03d}.jpg")
        sheet = make_sheet(images[start : start + per_sheet], args.columns)
        if not cv2.imwrite(str(paths[-1]), sheet):
            raise InputError(f"--output: cannot write {paths[-1]}")
    print(f"{len(images)} training images:")
    print("\n".join(f"  {path}" for path in paths))
    return paths


def main() -> None:
    args = parse_args(get_parser())
    with program():
        run(args)


if __name__ == "__main__":
    main()
