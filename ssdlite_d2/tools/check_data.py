"""Read every image and box of a config's data sets and report what is wrong with them.

python -m ssdlite_d2.tools.check_data --config-file configs/ssdlite_mnv2_bccd.yaml
"""

import argparse
import json
import logging
import os
import sys
from collections import Counter
from typing import Callable, Dict, List

import numpy as np
import tqdm
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from tabulate import tabulate

from ..config import load_config
from ..data.datasets.annotations import Problem
from ..data.reader import image_reader
from ..diagnostics.coverage import anchor_coverage, anchors_of
from ..diagnostics.defects import (
    KINDS,
    boxes_of,
    check_boxes,
    check_images,
    load_records,
    read_all_facts,
)
from ..engine import finish_config
from ..errors import InputError
from .program import parse_args, program

SAMPLE = 20_000  # boxes of a set that are compared with the anchors, at most
SHOWN = 20  # defects of each kind that are printed
LINE = 300  # characters of each, at most
REMARKS = {
    "images without boxes": "DATALOADER.FILTER_EMPTY_ANNOTATIONS False trains on them",
    "crowds": "regions that evaluation ignores; DATASETS.CROWD is about training",
}
SIZES = ((0, 16), (16, 32), (32, 96), (96, 10**6))  # pixels of the network input


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="kinds of defects: " + "; ".join(f"{k}: {v}" for k, v in KINDS.items()),
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="path to config file")
    parser.add_argument(
        "--ignore",
        nargs="+",
        default=[],
        choices=list(KINDS),
        metavar="KIND",
        help="kinds of defects that are in order",
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="processes (default: one per core)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the report there as well")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")
    return parser


def find_defects(names: List[str], records: Dict[str, List[Dict]], workers: int, read: Callable):
    """All problems of the sets, by name; fills ``records`` with their dataset dicts."""
    found = {}
    for name in names:
        records[name], found[name] = load_records(name)
        for record in records[name]:
            found[name] += check_boxes(record)
    paths = [record["file_name"] for name in names for record in records[name]]
    facts = tqdm.tqdm(read_all_facts(paths, workers, read), total=len(paths), unit="image")
    for name, problems in check_images(records, facts).items():
        found[name] += problems
    return found


def describe(records: List[Dict], classes: List[str], cfg: CfgNode, anchors: np.ndarray) -> Dict:
    """Counts and sizes of a data set, in pixels of the network input."""
    height, width = cfg.INPUT.SIZE
    scales = [(width / max(r["width"], 1), height / max(r["height"], 1)) * 2 for r in records]
    boxes = [boxes_of(record) * scale for record, scale in zip(records, scales)]
    ids = np.array([a["category_id"] for r in records for a in r["annotations"]], dtype=int)
    per_image = np.array([len(b) for b in boxes], dtype=int)
    boxes = np.concatenate([np.zeros((0, 4)), *boxes])
    sizes = np.sqrt(np.prod((boxes[:, 2:] - boxes[:, :2]).clip(0), axis=1))
    sampled = np.random.default_rng(0).permutation(len(boxes))[:SAMPLE]
    matched = np.full(len(boxes), np.nan)  # where it was not looked at
    matched[sampled] = (
        anchor_coverage(anchors, boxes[sampled]) >= cfg.MODEL.SSD.ASSIGNER.IOU_THRESHOLD
    )
    by_class = [
        {"class": name, "boxes": int(of.sum()), **_quantiles(sizes[of]), **_share(matched[of])}
        for name, of in ((name, ids == i) for i, name in enumerate(classes))
    ]
    groups = [
        {"size": f"{low}-{high} px" if high < 10**6 else f"{low} px and more"}
        | {"boxes": int(of.sum()), **_share(matched[of])}
        for (low, high), of in ((s, (sizes >= s[0]) & (sizes < s[1])) for s in SIZES)
    ]
    return {
        "images": len(records),
        "images without boxes": int((per_image == 0).sum()),
        "boxes": len(boxes),
        "crowds": sum(bool(a.get("iscrowd", 0)) for r in records for a in r["annotations"]),
        "classes without a box": [row["class"] for row in by_class if not row["boxes"]],
        "boxes per image": _quantiles(per_image),
        "classes": by_class,
        "sizes": groups,
    }


def _quantiles(values: np.ndarray) -> Dict[str, float]:
    names = ("smallest", "5 %", "median", "95 %", "largest")
    if not len(values):
        return dict.fromkeys(names)
    found = np.quantile(values, (0, 0.05, 0.5, 0.95, 1))
    return {name: round(float(value), 1) for name, value in zip(names, found)}


def _share(matched: np.ndarray) -> Dict[str, float]:
    """Boxes that some anchor overlaps by the matching threshold; the others get one anchor each."""
    matched = matched[np.isfinite(matched)]
    return {"matched": round(float(matched.mean()), 3) if len(matched) else None}


def show(name: str, problems: List[Problem], facts: Dict) -> None:
    print(f"\n== {name}: {facts['images']} images, {facts['boxes']} boxes")
    for key in ("images without boxes", "crowds"):
        if facts[key]:
            print(f"{facts[key]} {key}: {REMARKS[key]}")
    if unused := facts["classes without a box"]:
        more = f" and {len(unused) - SHOWN} more" if len(unused) > SHOWN else ""
        print(f"classes without a box: {', '.join(unused[:SHOWN])}{more}"[:LINE])
    counts = Counter()
    for problem in problems:
        counts[problem.kind] += 1
        if counts[problem.kind] <= SHOWN:
            print(f"{problem.kind}: {problem.file}: {problem.reason}"[:LINE])
    for kind, n in counts.items():
        if n > SHOWN:
            print(f"{kind}: {n - SHOWN} more; --json FILE keeps all")
    print("defects: " + (", ".join(f"{n} {kind}" for kind, n in counts.items()) or "none"))
    print(tabulate([facts["boxes per image"]], headers="keys"), "boxes per image", sep="\n")
    print("\nSquare roots of box areas in pixels of the network input; matched: the share that an")
    print("anchor overlaps by MODEL.SSD.ASSIGNER.IOU_THRESHOLD.")
    print(tabulate(facts["classes"], headers="keys"))
    print(tabulate(facts["sizes"], headers="keys"))


def run(args: argparse.Namespace) -> int:
    """Returns the number of defects."""
    cfg = load_config(args.config_file, args.opts)
    finish_config(cfg)
    names = list(dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)))
    if not names:
        raise InputError("DATASETS.TRAIN and DATASETS.TEST name no data set")
    records: Dict[str, List[Dict]] = {}
    found = find_defects(names, records, args.workers, image_reader(cfg))
    anchors = anchors_of(cfg)
    report = {}
    for name in names:
        problems = [p for p in found[name] if p.kind not in args.ignore]
        classes = list(MetadataCatalog.get(name).thing_classes)
        report[name] = describe(records[name], classes, cfg, anchors)
        show(name, problems, report[name])
        report[name]["defects"] = [p._asdict() for p in problems]
    if args.json:
        try:
            with open(args.json, "w") as file:
                json.dump(report, file, indent=1)
        except OSError as error:
            raise InputError(f"--json: {args.json}: {error.strerror}") from error
    return sum(len(facts["defects"]) for facts in report.values())


def main() -> None:
    args = parse_args(get_parser())
    with program(logging.ERROR):
        defects = run(args)
    print(f"\n{defects} defects")
    sys.exit(int(defects > 0))


if __name__ == "__main__":
    main()
