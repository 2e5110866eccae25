"""Fit the sizes of a config's anchors to the boxes that its training sees, after augmentation.

python -m ssdlite_d2.tools.fit_anchors --config-file mine.yaml --output mine_fitted.yaml
"""

import argparse
import json
import os
from typing import Dict, List

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from tabulate import tabulate

from ..config import find_config, load_config
from ..diagnostics.anchor_fitting import Level, fit_shapes
from ..diagnostics.coverage import (
    TrainingBoxes,
    anchor_coverage,
    anchor_generator_of,
    anchors_of,
    training_boxes,
)
from ..engine import finish_config
from ..errors import InputError
from .program import one_line_errors, parse_args

SMALL, LARGE = 32, 96  # sides in pixels: COCO's size groups, here of the network input


def fit_anchors(
    cfg: CfgNode, data: TrainingBoxes, balance: bool = True, steps: int = 1000, seed: int = 0
) -> List[List[List[int]]]:
    """MODEL.ANCHOR_GENERATOR.BOXES for a finished config: as many per level as it has.

    Args:
        balance: every class weighs the same, as in AP; otherwise every box.
    """
    per_class = np.bincount(data.classes)
    weights = 1 / per_class[data.classes] if balance else np.ones(len(data.boxes))
    threshold = cfg.MODEL.SSD.ASSIGNER.IOU_THRESHOLD
    shapes = fit_shapes(levels_of(cfg), data.boxes, weights, threshold, steps, seed)
    return [np.maximum(s.round(), 1).astype(int).tolist() for s in shapes]


def levels_of(cfg: CfgNode) -> List[Level]:
    """The grids and anchor shapes of a finished config's feature maps, finest first."""
    generator, features = anchor_generator_of(cfg)
    levels = []
    for i, feature in enumerate(features):
        x, y = generator.cell_centers(i, tuple(feature.shape[-2:]), cfg.INPUT.SIZE)
        cell = list(generator.cell_anchors)[i].numpy()
        stride = max(side / n for side, n in zip(cfg.INPUT.SIZE, feature.shape[-2:]))
        levels.append(Level((x.numpy(), y.numpy()), stride, cell[:, 2:] - cell[:, :2]))
    return levels


def coverage_table(
    cfg: CfgNode, data: TrainingBoxes, columns: Dict[str, np.ndarray], threshold: float
) -> str:
    """Share of boxes matched, and mean best IoU, of each column's anchors by class and size.

    Args:
        columns: name -> (M,) best IoU of the boxes.
    """
    classes = range(data.classes.max() + 1)
    names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes", classes)
    sides = np.sqrt((data.boxes[:, 2:] - data.boxes[:, :2]).prod(axis=1))
    groups = [
        ("all", sides > 0),
        *((name, data.classes == i) for i, name in zip(classes, names)),
        (f"small, side < {SMALL} px", sides < SMALL),
        (f"medium, < {LARGE} px", (sides >= SMALL) & (sides < LARGE)),
        ("large", sides >= LARGE),
    ]
    rows = [
        [name, of_group.sum()]
        + [f"{(iou[of_group] >= threshold).mean():.1%}" for iou in columns.values()]
        + [f"{iou[of_group].mean():.3f}" for iou in columns.values()]
        for name, of_group in groups
        if of_group.any()
    ]
    header = ["", "boxes", *(f"{what}\n{c}" for what in ("matched", "best IoU") for c in columns)]
    return tabulate(rows, header, disable_numparse=True, colalign=["left"] + ["right"] * 5)


def yaml_block(cfg: CfgNode, boxes: List[List[List[int]]]) -> str:
    """The lines to put into a config."""
    lines = [
        f"      - {shapes}  # {name}" for name, shapes in zip(cfg.MODEL.SSD.IN_FEATURES, boxes)
    ]
    return "\n".join(["MODEL:", "  ANCHOR_GENERATOR:", "    BOXES:", *lines, ""])


def write_config(path: str, base: str, block: str, output_dir: str) -> None:
    """Write a config that is ``base`` with the fitted boxes and another output folder."""
    if os.path.realpath(path) == os.path.realpath(base):
        raise InputError(f"--output {path} is the --config-file; name another file")
    try:
        base = os.path.relpath(base, os.path.dirname(os.path.abspath(path)))
        with open(path, "w") as file:
            file.write(f"_BASE_: {json.dumps(base)}\n{block}OUTPUT_DIR: {json.dumps(output_dir)}\n")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error


def run(args: argparse.Namespace) -> None:
    cfg = load_config(args.config_file, args.opts)
    cfg.MODEL.DEVICE = "cpu"
    finish_config(cfg)
    if cfg.MODEL.ANCHOR_GENERATOR.NAME != "SSDAnchorGenerator":
        raise InputError(
            f"MODEL.ANCHOR_GENERATOR.NAME is {cfg.MODEL.ANCHOR_GENERATOR.NAME}; only "
            "SSDAnchorGenerator's boxes can be fitted"
        )
    data = training_boxes(cfg, seed=args.seed)
    if not len(data.boxes):
        raise InputError(f"DATASETS.TRAIN {tuple(cfg.DATASETS.TRAIN)} has no boxes to fit to")
    before = anchor_coverage(anchors_of(cfg), data.boxes)
    fitted = fit_anchors(cfg, data, not args.count_boxes, args.steps, args.seed)
    cfg.MODEL.ANCHOR_GENERATOR.BOXES = fitted
    after = anchor_coverage(anchors_of(cfg), data.boxes)
    threshold = cfg.MODEL.SSD.ASSIGNER.IOU_THRESHOLD
    print(f"{', '.join(cfg.DATASETS.TRAIN)} at {cfg.INPUT.SIZE[0]} x {cfg.INPUT.SIZE[1]} pixels:")
    print(f"boxes of augmented images that an anchor matches at IoU {threshold}, and best IoU\n")
    print(coverage_table(cfg, data, {"before": before, "fitted": after}, threshold))
    block = yaml_block(cfg, fitted)
    print(f"\n{block}")
    if args.output:
        folder = f"{cfg.OUTPUT_DIR}_fitted"
        write_config(args.output, find_config(args.config_file), block, folder)
        print(f"Written to {args.output}, which stands on {args.config_file}; OUTPUT_DIR {folder}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Fit anchor sizes to the training sets")
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--output", metavar="FILE", help="a config to write, with the fitted boxes")
    parser.add_argument(
        "--count-boxes",
        action="store_true",
        help="every box weighs the same; otherwise every class does, as in AP",
    )
    parser.add_argument("--steps", type=int, default=1000, help="trials of the search per level")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")
    with one_line_errors():
        run(parse_args(parser))


if __name__ == "__main__":
    main()
