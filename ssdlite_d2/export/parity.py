"""Whether an exported model says what the PyTorch model says."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes
from tabulate import tabulate

from ..data.reader import image_reader
from ..errors import InputError
from ..modeling import SSD
from .accuracy import Found, average_precision
from .bundled.detector import Detector
from .options import ExportOptions
from .samples import choose_records
from .spec import Spec

# Largest differences tolerated, by precision: of a score, of a box in parts of the input side (or
# of itself where it is larger), and of a detection's coordinates in pixels. Those of int8 are
# reported only: it has a budget of AP instead.
TOLERANCE = {"fp32": (1e-4, 1e-4, 0.5), "fp16": (2e-2, 2e-2, 2.0)}


@dataclass
class Differences:
    """Largest and summed absolute differences of an output."""

    largest: float = 0.0
    total: float = 0.0
    count: int = 0

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        difference = np.abs(a.astype(np.float64) - b)
        if difference.size:
            self.largest = max(self.largest, float(difference.max()))
            self.total += float(difference.sum())
            self.count += difference.size

    def report(self) -> Dict[str, float]:
        return {"max": self.largest, "mean": self.total / max(self.count, 1)}


@dataclass
class Comparison:
    """Differences gathered over images."""

    scores: Differences = field(default_factory=Differences)
    boxes: Differences = field(default_factory=Differences)
    relative_boxes: Differences = field(default_factory=Differences)
    matched_boxes: Differences = field(default_factory=Differences)
    matched_scores: Differences = field(default_factory=Differences)
    images: int = 0
    detections: int = 0
    exported_detections: int = 0
    matched: int = 0

    def add_outputs(self, ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], side: int):
        """Boxes (N, R, 4) and scores (N, R, K) of both sides.

        A box code can make a box of any size: besides pixels, differences are counted in parts of
        the input side, or of the coordinate where that is larger.
        """
        scale = np.abs(ours[0]).clip(min=side)
        self.boxes.add(ours[0], theirs[0])
        self.relative_boxes.add(ours[0] / scale, theirs[0] / scale)
        self.scores.add(ours[1], theirs[1])

    def add_detections(self, ours: Found, theirs: Found, pixels: float) -> None:
        """Pair detections of one class whose corners differ by at most ``pixels``."""
        pairs = match(ours, theirs, pixels)
        self.images += 1
        self.detections += len(ours[1])
        self.exported_detections += len(theirs[1])
        self.matched += len(pairs)
        if pairs:
            a, b = (list(side) for side in zip(*pairs))
            self.matched_boxes.add(ours[0][a], theirs[0][b])
            self.matched_scores.add(ours[1][a], theirs[1][b])

    def report(self) -> Dict:
        return {
            "images": self.images,
            "scores": self.scores.report(),
            "boxes_px": self.boxes.report(),
            "boxes_relative": self.relative_boxes.report(),
            "detections": self.detections,
            "exported_detections": self.exported_detections,
            "matched": self.matched,
            "matched_boxes_px": self.matched_boxes.report(),
            "matched_scores": self.matched_scores.report(),
        }


def match(ours: Found, theirs: Found, pixels: float) -> List[Tuple[int, int]]:
    """Index pairs of detections of one class with corners within ``pixels``, best scores first."""
    free = np.ones(len(theirs[1]), dtype=bool)
    pairs = []
    for i, (box, class_id) in enumerate(zip(ours[0], ours[2])):
        distance = np.abs(theirs[0] - box).max(axis=1, initial=0.0)
        distance[~free | (theirs[2] != class_id)] = np.inf
        if len(distance) and distance.min() <= pixels:
            j = int(distance.argmin())
            free[j] = False
            pairs.append((i, j))
    return pairs


@torch.no_grad()
def raw_outputs(model: SSD, images: np.ndarray, image_format: str) -> Tuple[np.ndarray, ...]:
    """All boxes (N, R, 4) and scores (N, R, K) of the PyTorch model, by Detectron2's decoding.

    Args:
        images: uint8 RGB (N, H, W, 3) of the network's input size.
    """
    inputs = model.preprocess_image([{"image": to_tensor(p, image_format)} for p in images])
    logits, deltas = model.raw_outputs(inputs.tensor)
    anchors = Boxes.cat(model.anchors()).tensor
    boxes = [model.box2box_transform.apply_deltas(d, anchors) for d in deltas]
    return torch.stack(boxes).numpy(), model.criterion.scores(logits).numpy()


def to_tensor(rgb: np.ndarray, image_format: str) -> torch.Tensor:
    """An RGB image (h, w, 3) as the model's (3, h, w)."""
    pixels = rgb[:, :, ::-1] if image_format == "BGR" else rgb
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


@torch.no_grad()
def detect(model: SSD, rgb: np.ndarray, image_format: str, size: Sequence[int]) -> Found:
    """The PyTorch model's detections, in pixels of an image of ``size`` (h, w)."""
    image = {"image": to_tensor(rgb, image_format), "height": size[0], "width": size[1]}
    found = model([image])[0]["instances"]
    return (
        found.pred_boxes.tensor.numpy(),
        found.scores.numpy(),
        found.pred_classes.numpy(),
    )


def parity_dataset(cfg: CfgNode, options: ExportOptions) -> str:
    """
    Raises:
        InputError: neither the options nor the config name one.
    """
    name = options.parity_dataset or next(iter(cfg.DATASETS.TEST), None)
    if name is None:
        raise InputError(
            "the parity report needs images and DATASETS.TEST names no data set; name one with "
            "--parity-dataset, or leave the report out with --parity-images 0"
        )
    return name


def parity_records(cfg: CfgNode, options: ExportOptions) -> List[Dict]:
    """
    Raises:
        InputError: there are no images.
    """
    name = parity_dataset(cfg, options)
    try:
        return choose_records(name, options.parity_images, "--parity-dataset")
    except InputError as error:
        raise InputError(f"{error}; --parity-images 0 leaves the report out") from error


def check_parity(
    cfg: CfgNode,
    model: SSD,
    folder: Path,
    spec: Spec,
    options: ExportOptions,
    records: Sequence[Dict],
) -> Dict:
    """Compare a bundle with the PyTorch model on images of a data set.

    Raw outputs and detections are compared on the very same pixels, those of the network's input;
    AP is that of both sides' own way from the image to the boxes.
    """
    detector, read = Detector(folder, spec=spec.values()), image_reader(cfg)
    comparison = Comparison()
    ours, theirs = [], []  # detections on the whole way from the image
    pixels = TOLERANCE.get(options.precision, TOLERANCE["fp16"])[2]
    for record in records:
        image = read(record["file_name"], "BGR")
        size = image.shape[:2]
        prepared = detector.prepare([image])
        outputs = detector.run(prepared)
        if options.layout == "anchors" and not options.resize:
            expected = raw_outputs(model, prepared[:1], cfg.INPUT.FORMAT)
            comparison.add_outputs(expected, [x[:1] for x in outputs], max(model.input_size))
        exported = detector([image])[0]
        same_pixels = detect(model, prepared[0], cfg.INPUT.FORMAT, size)
        comparison.add_detections(same_pixels, exported, pixels)
        ours.append(detect(model, image[:, :, ::-1], cfg.INPUT.FORMAT, size))
        theirs.append(exported)
    return {
        "dataset": parity_dataset(cfg, options),
        "precision": options.precision,
        **comparison.report(),
        "AP": average_precision(records, ours),
        "exported_AP": average_precision(records, theirs),
    }


def violations(report: Dict, options: ExportOptions) -> List[str]:
    """In words, what lies outside the tolerance."""
    found = []
    if options.precision == "int8":
        if report["AP"] is not None and report["AP"] - report["exported_AP"] > options.ap_budget:
            found.append(
                f"AP {report['exported_AP']:.2f} is more than {options.ap_budget} below "
                f"{report['AP']:.2f}"
            )
        return found
    score, part, pixels = TOLERANCE[options.precision]
    if report["scores"]["max"] > score:
        found.append(f"scores differ by {report['scores']['max']:.1e} (tolerance {score:.0e})")
    if report["boxes_relative"]["max"] > part:
        found.append(
            f"boxes differ by {report['boxes_relative']['max']:.1e} of the input side or of "
            f"themselves (tolerance {part:.0e})"
        )
    counts = {report[key] for key in ("detections", "exported_detections", "matched")}
    if options.precision == "fp32" and len(counts) > 1:
        found.append(
            f"of {report['detections']} detections {report['matched']} are matched within "
            f"{pixels} px by the exported {report['exported_detections']}"
        )
    return found


def remarks(report: Dict, options: ExportOptions) -> List[str]:
    """What the two APs say, in sentences."""
    if report["AP"] is None:
        return []
    change = report["exported_AP"] - report["AP"]
    text = f"AP {report['exported_AP']:.2f}, PyTorch {report['AP']:.2f}: {change:+.2f}"
    if options.precision == "int8":
        kept = "not kept" if -change > options.ap_budget else "kept"
        return [f"{text}, budget {options.ap_budget:g}: {kept}"]
    if round(change, 2) == 0 or options.resize:
        return [text]
    return [
        text,
        "The bundle resizes images in whole grey levels (OpenCV), PyTorch in float, which changes "
        "scores a little; the table above compares both on the same pixels.",
    ]


def write_parity(folder: Path, report: Dict, options: ExportOptions) -> None:
    """Write parity.json and print the table.

    Raises:
        InputError: the model is outside its tolerance, and the options do not allow it.
    """
    report["violations"] = violations(report, options)
    report["remarks"] = remarks(report, options)
    (folder / "parity.json").write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))
    if report["violations"] and not options.allow_difference:
        raise InputError(
            "the exported model differs from the PyTorch model: "
            f"{'; '.join(report['violations'])}; --allow-difference exports it all the same"
        )


def table(report: Dict) -> str:
    """The report for a terminal."""
    rows = [
        (label, report[key]["max"], report[key]["mean"])
        for label, key in (
            ("scores, all anchors", "scores"),
            ("boxes, all anchors (px of the input)", "boxes_px"),
            ("scores of matched detections", "matched_scores"),
            ("boxes of matched detections (px)", "matched_boxes_px"),
        )
    ]
    lines = [
        f"Exported model against PyTorch on {report['images']} images of '{report['dataset']}'",
        tabulate(rows, headers=("difference", "max", "mean"), floatfmt=".2e"),
        f"detections {report['detections']}, exported {report['exported_detections']}, "
        f"matched {report['matched']}",
    ]
    return "\n".join([*lines, *report["remarks"]])
