"""Speed of the training mapper beside torchvision's, Detectron2's and bare reading.

All sides read the same files in this process, on one thread, by turns. Images are those of the
config's training sets as they are, and encoded again as JPEG of the given quality. Augmentation is
SSD's own, whatever the config has, since torchvision's recipe is that.
"""

import argparse
import contextlib
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Callable, Dict, Iterator, List

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from torchvision import tv_tensors
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from ssdlite_d2.config import load_config
from ssdlite_d2.data import SSDDatasetMapper, build_train_loader
from ssdlite_d2.data.build import load_train_records
from ssdlite_d2.data.dataset_mapper import make_instances
from ssdlite_d2.data.rendering import Sketch
from ssdlite_d2.engine import finish_config
from ssdlite_d2.errors import InputError
from ssdlite_d2.tools.benchmark.timing import alternate, report

OURS, FLOOR = "ssdlite_d2", "cv2.imread"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config-file",
        default="ssdlite_mnv2_bccd.yaml",
        metavar="FILE",
        help="whose training images (default: %(default)s)",
    )
    parser.add_argument("--images", type=int, default=100, help="how many (default: 100)")
    parser.add_argument("--rounds", type=int, default=7, help="turns (default: 7)")
    parser.add_argument("--quality", type=int, default=95, help="JPEG quality (default: 95)")
    parser.add_argument("--workers", type=int, default=2, help="to compare with one (default: 2)")
    parser.add_argument("--opts", nargs="*", default=[], help="config options, as KEY VALUE pairs")


def with_the_papers_augmentation(cfg: CfgNode, opts: List[str]) -> CfgNode:
    """The config with SSD's own augmentation, as torchvision's recipe has it, and overrides."""
    defaults = load_config("Base-SSD.yaml").INPUT
    for key in ("EXPAND", "IOU_CROP", "PHOTOMETRIC", "RANDOM_FLIP"):
        cfg.INPUT[key] = defaults[key]
    cfg.merge_from_list(opts)
    return cfg


def run(args: argparse.Namespace) -> None:
    load_config(args.config_file, args.opts)  # names what is wrong with them
    cfg = with_the_papers_augmentation(load_config(args.config_file), args.opts)
    finish_config(cfg)
    records = load_train_records(cfg)[: args.images]
    with one_thread():
        rows = compare(cfg, records, args.rounds, "as they are")
        with tempfile.TemporaryDirectory() as folder:
            encoded = encode(records, Path(folder), args.quality)
            name = f"quality {args.quality}"
            rows += compare(cfg, encoded, args.rounds, name)
            parts = profile(cfg, encoded, name)
        rows += parts + compare_workers(cfg, args.workers, args.rounds)
    report(f"Training mapper, {len(records)} images, by turns", rows, args.json)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """All libraries on one thread, as in a loader's worker."""
    before = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before[0])
        torch.set_num_threads(before[1])


def encode(records: List[Dict], folder: Path, quality: int) -> List[Dict]:
    """The same records with images encoded as JPEG of a quality."""
    encoded = []
    for index, record in enumerate(records):
        path = str(folder / f"{index}.jpg")
        flags = [cv2.IMWRITE_JPEG_QUALITY, quality]
        if not cv2.imwrite(path, cv2.imread(record["file_name"]), flags):
            raise InputError(f"cannot write {path}")
        encoded.append({**record, "file_name": path})
    return encoded


def compare(cfg: CfgNode, records: List[Dict], rounds: int, name: str) -> List[Dict]:
    """Rows of milliseconds per image."""
    textbook = cfg.clone()
    textbook.INPUT.FAST = False
    mappers = {
        OURS: SSDDatasetMapper(cfg, True),
        f"{OURS}, INPUT.FAST False": SSDDatasetMapper(textbook, True),
        "torchvision v2": torchvision_mapper(cfg),
        "Detectron2": detectron2_mapper(cfg),
        FLOOR: lambda record: cv2.imread(record["file_name"]),
    }
    sides = {side: over_all(mapper, records) for side, mapper in mappers.items()}
    seconds = {side: np.median(s) for side, s in alternate(sides, rounds).items()}
    return [
        {
            "images": name,
            "side": side,
            "ms": 1000 * s / len(records),
            "per second": len(records) / s,
            f"/ {OURS}": s / seconds[OURS],
            f"/ {FLOOR}": s / seconds[FLOOR],
        }
        for side, s in seconds.items()
    ]


def over_all(mapper: Callable[[Dict], object], records: List[Dict]) -> Callable[[], None]:
    """A call that maps every record."""

    def call() -> None:
        for record in records:
            mapper(record)

    return call


def torchvision_mapper(cfg: CfgNode) -> Callable[[Dict], object]:
    """torchvision's SSD recipe on uint8 tensors."""
    transform = v2.Compose(
        [
            v2.RandomPhotometricDistort(),
            v2.RandomZoomOut(fill=list(cfg.MODEL.PIXEL_MEAN)),
            v2.RandomIoUCrop(),
            v2.RandomHorizontalFlip(),
            v2.Resize(tuple(cfg.INPUT.SIZE), antialias=False),
            v2.SanitizeBoundingBoxes(),
        ]
    )
    truth = SSDDatasetMapper(cfg, True)._ground_truth

    def mapper(record: Dict):
        image = decode_image(record["file_name"], ImageReadMode.RGB)
        size = image.shape[-2:]
        boxes, classes = truth(record["annotations"], size)
        boxes = tv_tensors.BoundingBoxes(torch.from_numpy(boxes), format="XYXY", canvas_size=size)
        target = {"boxes": boxes, "labels": torch.from_numpy(classes)}
        return transform(tv_tensors.Image(image), target)

    return mapper


def detectron2_mapper(cfg: CfgNode) -> DatasetMapper:
    """Detectron2's mapper with its own nearest steps; its crop does not look at boxes."""
    augmentations = [
        T.RandomBrightness(0.875, 1.125),
        T.RandomContrast(0.5, 1.5),
        T.RandomSaturation(0.5, 1.5),
        T.RandomApply(T.RandomExtent((1.0, 4.0), (0.5, 0.5)), 0.5),
        T.RandomCrop("relative_range", (0.3, 0.3)),
        T.Resize(tuple(cfg.INPUT.SIZE)),
        T.RandomFlip(),
    ]
    return DatasetMapper(True, augmentations=augmentations, image_format=cfg.INPUT.FORMAT)


def profile(cfg: CfgNode, records: List[Dict], name: str) -> List[Dict]:
    """Where the time of one image goes, over five passes."""
    mapper, seconds = SSDDatasetMapper(cfg, True), defaultdict(float)

    def timed(part: str, call: Callable):
        start = time.perf_counter()
        result = call()
        seconds[part] += time.perf_counter() - start
        return result

    passes = 5
    for record in records * passes:
        size = record["height"], record["width"]
        truth = timed("boxes", lambda: mapper._ground_truth(record["annotations"], size))  # noqa: B023
        sketch = Sketch(size, truth[0])
        timed("drawing", lambda: T.AugmentationList(mapper.augmentations)(sketch))  # noqa: B023
        read = timed_reader(mapper, record, timed)
        colours, plain = sketch.rendering.colours, sketch.rendering._replace(colours=())
        image = timed("geometry", lambda: plain.pixels(read))  # noqa: B023
        for colour in colours:
            timed("colour, if all is seen", lambda: colour.apply_image(image))  # noqa: B023
        timed("tensors", lambda: make_instances(sketch.boxes, truth[1], image.shape[:2]))  # noqa: B023
    seconds["geometry"] -= seconds["decoding"]
    return [
        {"images": name, "side": f"  {part}", "ms": 1000 * s / passes / len(records)}
        for part, s in seconds.items()
    ]


def timed_reader(mapper: SSDDatasetMapper, record: Dict, timed: Callable) -> Callable:
    return lambda reduction: timed("decoding", lambda: mapper._read(record, reduction))


def compare_workers(cfg: CfgNode, workers: int, rounds: int, batches: int = 25) -> List[Dict]:
    """Rows of milliseconds per image that loaders with one and more workers deliver."""
    size = cfg.SOLVER.IMS_PER_BATCH
    sides = {}
    for count in (1, workers):
        other = cfg.clone()
        other.DATALOADER.NUM_WORKERS = count
        sides[f"loader, {count} workers"] = lambda other=other: time_loader(other, batches)
    seconds = defaultdict(list)
    for _ in range(rounds):
        for side, call in sides.items():
            seconds[side].append(call())
    medians = {side: np.median(s) / batches / size for side, s in seconds.items()}
    first = next(iter(medians.values()))
    return [
        {"side": side, "ms": 1000 * s, "per second": 1 / s, "/ one worker's speed": first / s}
        for side, s in medians.items()
    ]


def time_loader(cfg: CfgNode, batches: int) -> float:
    """Seconds that batches take once the workers are running."""
    stream = iter(build_train_loader(cfg))
    for _ in range(2 * cfg.DATALOADER.NUM_WORKERS + 1):  # what was fetched ahead
        next(stream)
    start = time.perf_counter()
    for _ in range(batches):
        next(stream)
    return time.perf_counter() - start
