"""Damaged annotation files and configs by seed, and what becomes of each.

python tests/fuzz/fuzzing.py --count 2000 --seed 0
"""

import argparse
import json
import logging
import math
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Dict, NamedTuple

import numpy as np
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.utils.events import EventStorage
from PIL import Image
from torch import nn

from ssdlite_d2 import InputError, load_config
from ssdlite_d2.config_file import find_config
from ssdlite_d2.data.reader import image_reader
from ssdlite_d2.diagnostics.coverage import anchors_of
from ssdlite_d2.engine import SSDTrainer, finish_config
from ssdlite_d2.tools.check_data import describe, find_defects

SECONDS, CHARACTERS = 10, 300  # of a case, and of its line, at most
NUMBERS = [0, -1, 1, 2, 3, 0.5, -0.5, 1e-9, math.nan, math.inf, True]
HUGE = [10**9, 10**30, -(10**9), 1e308]
OTHERS = [None, "", "x", "1", "\0", "\udcff", [], [1], [1, 2], [[]], {}, {"x": 1}, "a" * 2000]
TOKENS = [b"", b"0", b"-1", b"nan", b"1e999", b'"', b"[", b"{", b":", b"\n", b"\0", b"\xff", b"<a>"]
IMAGES = ["a.png", "b.png", "c.png"]
SIZE = (40, 50)


@BACKBONE_REGISTRY.register()
class FuzzBackbone(Backbone):
    """Two maps, as cheap as can be."""

    def __init__(self, cfg, input_shape):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 8, 1), nn.Conv2d(8, 8, 3, 2, 1)

    def forward(self, x):
        c4 = self.first(x)
        return {"c4": c4, "c5": self.second(c4)}

    def output_shape(self):
        return {"c4": ShapeSpec(channels=8, stride=8), "c5": ShapeSpec(channels=8, stride=16)}


def config(**entry: Any) -> Dict[str, Any]:
    """A config that trains on a data set within milliseconds."""
    head = {"HEAD": {"LAST_1X1": False}, "IN_FEATURES": ["c4", "c5"], "NORM": "BN"}
    anchors = {"SIZES": [[8, 16], [16, 32]], "ASPECT_RATIOS": [[2], [2]], "STRIDES": []}
    model = {"BACKBONE": {"NAME": "FuzzBackbone"}, "SSD": head, "ANCHOR_GENERATOR": anchors}
    solver = {"IMS_PER_BATCH": 2, "REFERENCE_WORLD_SIZE": 0, "MAX_ITER": 2, "BASE_LR": 0.001}
    return {
        "_BASE_": find_config("ssdlite_mnv2.yaml"),
        "MODEL": {**model, "WEIGHTS": "", "DEVICE": "cpu"},
        "INPUT": {"SIZE": [32, 32]},
        "DATASETS": {"REGISTER": [{"NAME": "fuzz", **entry}], "TRAIN": ["fuzz"], "TEST": []},
        "DATALOADER": {"NUM_WORKERS": 0},
        "SOLVER": solver,
        "SEED": 1,
    }


def coco(folder: Path) -> Dict[str, Any]:
    height, width = SIZE
    sides = {"height": height, "width": width}
    images = [{"id": i, "file_name": name, **sides} for i, name in enumerate(IMAGES)]
    annotations = [
        {"id": i, "image_id": i % 3, "category_id": 1 + i % 2, "bbox": [i, 2, 20, 25], "iscrowd": 0}
        for i in range(6)
    ]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "c.json").write_text(json.dumps(content))
    return config(FORMAT="coco", JSON="c.json", IMAGES="images")


def voc(folder: Path) -> Dict[str, Any]:
    (folder / "Annotations").mkdir()
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "all.txt").write_text("a\nb\nc\n")
    (folder / "images").rename(folder / "JPEGImages")
    for i, name in enumerate(IMAGES):
        box = f"<xmin>{i + 1}</xmin><ymin>2</ymin><xmax>30</xmax><ymax>35</ymax>"
        objects = f"<object><name>cat</name><difficult>0</difficult><bndbox>{box}</bndbox></object>"
        size = f"<size><width>{SIZE[1]}</width><height>{SIZE[0]}</height><depth>3</depth></size>"
        text = f"<annotation><filename>{name}</filename>{size}{objects}</annotation>"
        (folder / "Annotations" / f"{name[0]}.xml").write_text(text)
    return config(FORMAT="voc", ROOT=".", SPLIT="all")


def yolo(folder: Path) -> Dict[str, Any]:
    (folder / "labels").mkdir()
    for name in IMAGES:
        (folder / "labels" / f"{name[0]}.txt").write_text("1 0.5 0.5 0.4 0.6\n0 0.3 0.3 0.2 0.2\n")
    data = {"path": ".", "train": "images", "names": {0: "cat", 1: "dog"}}
    (folder / "data.yaml").write_text(yaml.safe_dump(data))
    return config(FORMAT="yolo", DATA="data.yaml", SPLIT="train")


FORMATS: Dict[str, Callable[[Path], Dict[str, Any]]] = {"coco": coco, "voc": voc, "yolo": yolo}
KINDS = (*FORMATS, "config")


def places(tree: Any) -> list:
    """All (container, key) of a tree of mappings and lists."""
    found, keys = [], []
    if isinstance(tree, dict):
        keys = list(tree)
    elif isinstance(tree, list):
        keys = list(range(len(tree)))
    for key in keys:
        found += [(tree, key), *places(tree[key])]
    return found


def damage_tree(tree: Any, draw: random.Random, values: list) -> Any:
    """A tree with one to three of its values deleted, replaced or doubled."""
    tree = json.loads(json.dumps(tree))
    for _ in range(draw.choice((1, 1, 2, 3))):
        container, key = draw.choice(places(tree) or [([0], 0)])
        action = draw.choice(("replace", "replace", "delete", "double", "swap"))
        if action == "replace":
            container[key] = draw.choice(values)
        elif action == "delete":
            del container[key]
        elif action == "swap":
            other, place = draw.choice(places(tree))
            container[key] = json.loads(json.dumps(other[place]))
        elif isinstance(container, list):
            container.append(container[key])
        else:
            container[f"{key}2"] = container[key]
    return tree


def damage_bytes(data: bytes, draw: random.Random) -> bytes:
    """Bytes with one to three spots flipped, cut, doubled, or replaced by a token."""
    for _ in range(draw.choice((1, 1, 2, 3))):
        start = draw.randrange(len(data) + 1)
        end = min(len(data), start + draw.choice((1, 1, 2, 5, 20)))
        numbers = list(re.finditer(rb"\d+", data))
        action = draw.choice(("flip", "cut", "double", "token", "number", "number", "truncate"))
        if action == "flip" and start < len(data):
            data = data[:start] + bytes([data[start] ^ 1 << draw.randrange(8)]) + data[start + 1 :]
        elif action == "cut":
            data = data[:start] + data[end:]
        elif action == "double":
            data = data[:end] + data[start:]
        elif action == "token":
            data = data[:start] + draw.choice(TOKENS) + data[end:]
        elif action == "number" and numbers:
            span = draw.choice(numbers).span()
            data = data[: span[0]] + draw.choice(TOKENS) + data[span[1] :]
        elif action == "truncate":
            data = data[:start]
    return data


def damage_config(content: Dict[str, Any], draw: random.Random) -> bytes:
    if draw.random() < 0.3:
        return damage_bytes(yaml.safe_dump(content).encode(), draw)
    return yaml.safe_dump(damage_tree(content, draw, NUMBERS + OTHERS)).encode()


def damage_file(path: Path, draw: random.Random) -> None:
    if path.suffix == ".json" and draw.random() < 0.6:
        tree = damage_tree(json.loads(path.read_text()), draw, NUMBERS + HUGE + OTHERS)
        path.write_text(json.dumps(tree))
    elif path.suffix == ".yaml" and draw.random() < 0.6:
        tree = damage_tree(yaml.safe_load(path.read_text()), draw, NUMBERS + HUGE + OTHERS)
        path.write_text(yaml.safe_dump(tree))
    else:
        path.write_bytes(damage_bytes(path.read_bytes(), draw))


def make_case(folder: Path, kind: str, seed: int) -> Path:
    """Writes a damaged data set or config into a folder; returns the config."""
    draw = random.Random(f"{kind} {seed}")
    (folder / "images").mkdir(parents=True)
    for i, name in enumerate(IMAGES):
        pixels = np.random.default_rng(i).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / name, compress_level=0)
    content = FORMATS[kind if kind in FORMATS else draw.choice(list(FORMATS))](folder)
    file, text = folder / "config.yaml", yaml.safe_dump(content).encode()
    if kind == "config":
        text = damage_config(content, draw)
    else:
        suffixes = (".json", ".xml", ".txt", ".yaml")
        files = sorted(p for p in folder.rglob("*") if p.suffix in suffixes)
        damage_file(draw.choice(files), draw)
    file.write_bytes(text)
    return file


class Outcome(NamedTuple):
    """What became of a case: "trained", "refused" or "failed", why, and the seconds it took."""

    name: str
    reason: str
    seconds: float


def use(file: Path) -> None:
    """What check_data and train_net do with a config: look at all data, train two steps."""
    output = str(file.parent / "output")
    cfg = load_config(str(file), ["DATALOADER.NUM_WORKERS", 0, "OUTPUT_DIR", output])
    finish_config(cfg)
    names = [name for name in cfg.DATASETS.TRAIN]
    records: Dict[str, list] = {}
    find_defects(names, records, 1, image_reader(cfg))
    for name in names:
        describe(records[name], MetadataCatalog.get(name).thing_classes, cfg, anchors_of(cfg))
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    trainer = SSDTrainer(cfg)
    with EventStorage() as storage:
        trainer.iter, trainer.storage = 0, storage
        for trainer.iter in range(2):
            trainer.run_step()
            trainer.scheduler.step()
            storage.step()
    for name, value in trainer.model.state_dict().items():
        if not value.isfinite().all():
            raise FloatingPointError(f"{name} is not finite after two steps")


def run_case(kind: str, seed: int) -> Outcome:
    """One case in a folder of its own; all that it registers is taken back."""
    folder, start = Path(tempfile.mkdtemp(prefix="fuzz")), time.perf_counter()
    os.environ["DETECTRON2_DATASETS"] = str(folder)
    known = set(DatasetCatalog.list())
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    name, reason = "trained", ""
    try:
        use(make_case(folder, kind, seed))
    except InputError as error:
        name, reason = "refused", f"error: {error}".replace(str(folder), "...")
    except SystemExit as end:
        name, reason = "refused", str(end.code).replace(str(folder), "...")
    except (Exception, RecursionError):
        name, reason = "failed", traceback.format_exc()
    finally:
        signal.alarm(0)
        for added in set(DatasetCatalog.list()) - known:
            DatasetCatalog.remove(added)
            MetadataCatalog.remove(added)
        shutil.rmtree(folder)
    if name == "refused" and ("\n" in reason or len(reason) > CHARACTERS):
        name = "failed"
    return Outcome(name, reason, time.perf_counter() - start)


def too_long(*_) -> None:
    raise TimeoutError(f"took more than {SECONDS} s")


def run_cases(count: int, seed: int, report: Callable[[str, int, Outcome], None]) -> Counter:
    """Counts of outcomes by kind; each failure, or all, go to ``report``."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    counts = Counter()
    for i in range(count):
        kind = KINDS[i % len(KINDS)]
        outcome = run_case(kind, seed + i)
        counts[kind, outcome.name] += 1
        report(kind, seed + i, outcome)
    logging.disable(logging.NOTSET)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--verbose", action="store_true", help="print every outcome")
    args = parser.parse_args()
    slowest = 0.0

    def report(kind: str, seed: int, outcome: Outcome) -> None:
        nonlocal slowest
        slowest = max(slowest, outcome.seconds)
        if outcome.name == "failed" or args.verbose:
            print(f"{kind} {seed}: {outcome.name} {outcome.reason}", flush=True)

    counts = run_cases(args.count, args.seed, report)
    for kind in KINDS:
        row = ", ".join(f"{counts[kind, name]} {name}" for name in ("trained", "refused", "failed"))
        print(f"{kind}: {row}")
    print(f"slowest: {slowest:.2f} s")
    sys.exit(int(any(name == "failed" for _, name in counts)))


if __name__ == "__main__":
    main()
