"""Inference of one model in PyTorch, in every runtime present and beside torchvision's ssdlite320.

A call goes from an image of the network's size to its final boxes, unless the row says otherwise.
The last row is what the arithmetic alone would take.

python -m ssdlite_d2.tools.benchmark inference --config-file configs/ssdlite_mnv2_bccd.yaml \\
    --int8 --ap-images 72 --plot speed.png --opts MODEL.WEIGHTS model.pth
"""

import argparse
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

from ...config import load_config
from ...data.reader import image_reader
from ...engine import build_predictor, finish_config
from ...engine.predictor import SSDPredictor
from ...errors import InputError
from ...export import FORMATS, ExportOptions, export_bundle
from ...export.accuracy import Found, average_precision
from ...export.bundled.detector import Detector
from ...export.parity import parity_dataset, raw_outputs
from ...export.samples import choose_records
from ...modeling import SSD
from ...modeling.inference.fused import MODES
from ..analyze import analyze
from .timing import alternate, report

BATCH = 8  # images at once, for the throughput
CALLS = 20  # of a turn: one after the other, as a device runs a model
CANDIDATES = 10_000  # of the worst case
FLOOR = "its multiply-adds at a matrix product's rate, float32"
FLOOR_SIDE = 2048  # of the matrices

MEMORY_OF_BUNDLE = """
import sys, numpy
sys.path.insert(0, sys.argv[1])
from detector import Detector
detector = Detector(sys.argv[1], precision=sys.argv[2] or None)
image = numpy.zeros((*detector.input_size, 3), numpy.uint8)
for _ in range(3):
    detector([image])
print(next(x.split()[1] for x in open("/proc/self/status") if x.startswith("VmHWM")))
"""
MEMORY_OF_PREDICTOR = """
import sys, numpy
from ssdlite_d2 import load_config
from ssdlite_d2.engine import build_predictor
cfg = load_config(sys.argv[1])
predictor = build_predictor(cfg)
for _ in range(3):
    predictor.predict([numpy.zeros((*cfg.INPUT.SIZE, 3), numpy.uint8)])
print(next(x.split()[1] for x in open("/proc/self/status") if x.startswith("VmHWM")))
"""


class Side(NamedTuple):
    """One row of the table.

    Attributes:
        call: one measured call.
        detect: BGR images to their detections; None for what is measured for its time only.
        size: of the model, MB.
        memory: command whose last line is the peak memory in KiB, or None.
    """

    call: Callable[[], object]
    detect: Optional[Callable[[List[np.ndarray]], List[Found]]] = None
    size: Optional[float] = None
    memory: Optional[List[str]] = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config-file", default="ssdlite_mnv2.yaml", metavar="FILE")
    parser.add_argument(
        "--rounds", type=int, default=6, help=f"turns of {CALLS} calls (default: 6)"
    )
    parser.add_argument("--bundle", nargs="*", default=[], metavar="DIR", help="also these bundles")
    parser.add_argument("--int8", action="store_true", help="also INT8, quantized for this run")
    parser.add_argument(
        "--ap-images", type=int, default=0, metavar="N", help="AP on so many test images"
    )
    parser.add_argument("--plot", metavar="FILE", help="AP against latency, as an image")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")


def run(args: argparse.Namespace) -> None:
    if args.plot and not args.ap_images:
        raise InputError("--plot shows AP: it needs --ap-images")
    for bundle in args.bundle:
        if not (Path(bundle) / "model.json").is_file():
            raise InputError(f"--bundle: {bundle} has no model.json")
    cfg = load_config(args.config_file, args.opts)
    cfg.MODEL.DEVICE = "cpu"
    finish_config(cfg)
    records, images = test_images(cfg, args.ap_images)
    height, width = cfg.INPUT.SIZE
    image = cv2.resize(images[0], (width, height))
    with tempfile.TemporaryDirectory() as folder:
        sides = pytorch_sides(cfg, image, Path(folder))
        bundles = [*make_bundles(cfg, Path(folder), args.int8), *map(Path, args.bundle)]
        for bundle in bundles:
            sides.update(bundle_sides(bundle, image))
        sides["torchvision ssdlite320, eval step"] = torchvision_side(image)
        matrix = torch.rand(FLOOR_SIDE, FLOOR_SIDE)
        sides[FLOOR] = Side(lambda: matrix @ matrix)
        seconds = alternate({k: s.call for k, s in sides.items()}, args.rounds, calls=CALLS)
        seconds[FLOOR] *= analyze(cfg)["madds"] / FLOOR_SIDE**3
        batch = {k: s.detect for k, s in sides.items() if s.detect}
        streams = {k: (lambda d=d: d([image] * BATCH)) for k, d in batch.items()}
        batched = alternate(streams, args.rounds)
        rows = []
        for name, side in sides.items():
            row = row_of(name, seconds[name], batched.get(name), side)
            if records and side.detect:
                found = [side.detect([x])[0] for x in images]
                row["AP"] = average_precision(records, found)
            rows.append(row)
    title = f"Inference of {Path(args.config_file).stem}, {height}x{width}, ms an image"
    report(title, rows, args.json)
    if args.plot:
        plot(rows, title, args.plot)


def test_images(cfg: CfgNode, count: int):
    """Dataset dicts and images of the test data; noise where no AP is asked for."""
    if not count:
        return [], [np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)]
    records = choose_records(parity_dataset(cfg, ExportOptions()), count, "--ap-images")
    read = image_reader(cfg)
    return records, [read(record["file_name"], "BGR") for record in records]


def pytorch_sides(cfg: CfgNode, image: np.ndarray, folder: Path) -> Dict[str, Side]:
    """The bare network, DefaultPredictor's call, every mode of MODEL.SSD.INFERENCE, and many
    candidates."""
    predictors = {mode: predictor_in(cfg, mode) for mode in MODES}
    eager, worst = predictors["eager"], predictor_in(cfg, "fused")
    worst.model.postprocessor.score_threshold = many(predictor_scores(eager.model, image))
    size = sum(v.numel() * v.element_size() for v in eager.model.state_dict().values()) / 1e6
    sides = {
        "PyTorch eager, network alone": Side(lambda: network(eager.model)),
        "PyTorch eager, DefaultPredictor": Side(lambda: eager(image)),
    }
    for mode, predictor in predictors.items():
        file = folder / f"{mode}.yaml"
        file.write_text(predictor.cfg.dump())
        memory = [sys.executable, "-W", "ignore", "-c", MEMORY_OF_PREDICTOR, str(file)]
        sides[f"PyTorch {mode}"] = predictor_side(predictor, image, size, memory)
    sides[f"PyTorch fused, {CANDIDATES:,} candidates"] = Side(lambda: worst.predict([image]))
    return sides


def predictor_in(cfg: CfgNode, mode: str) -> SSDPredictor:
    """The config's predictor in a mode of MODEL.SSD.INFERENCE."""
    cfg = cfg.clone()
    cfg.MODEL.SSD.INFERENCE = mode
    predictor = build_predictor(cfg)
    predictor.cfg.MODEL.WEIGHTS = cfg.MODEL.WEIGHTS
    return predictor


def predictor_side(predictor: SSDPredictor, image, size: float, memory: List[str]) -> Side:
    def detect(images: List[np.ndarray]) -> List[Found]:
        outputs = (x["instances"] for x in predictor.predict(images))
        return [
            (x.pred_boxes.tensor.numpy(), x.scores.numpy(), x.pred_classes.numpy()) for x in outputs
        ]

    return Side(lambda: predictor.predict([image]), detect, size, memory)


@torch.inference_mode()
def network(model: SSD) -> None:
    """Backbone and head, without decoding or suppression."""
    image = torch.zeros(1, 3, *model.input_size).contiguous(memory_format=torch.channels_last)
    model.raw_outputs(image)


def predictor_scores(model: SSD, image: np.ndarray) -> np.ndarray:
    return raw_outputs(model, image[None, :, :, ::-1], "RGB")[1]


def many(scores: np.ndarray) -> float:
    """The threshold that CANDIDATES scores lie above, or nearly all when there are fewer."""
    count = min(CANDIDATES, scores.size - 1)
    return float(np.partition(scores.ravel(), -count - 1)[-count - 1])


def make_bundles(cfg: CfgNode, folder: Path, int8: bool) -> List[Path]:
    """Bundles of the config's model for the runtimes that are installed."""
    model = predictor_in(cfg, "eager").model
    bundles = []
    for name in ("onnx", "openvino", "torchscript", "ncnn"):
        if any(not importlib.util.find_spec(module) for module in FORMATS[name].modules):
            print(f"{name} is left out: it is not installed")
            continue
        for precision in ("fp32", "int8") if int8 else ("fp32",):
            if precision in FORMATS[name].precisions:
                bundles.append(folder / f"{name} {precision}")
                options = ExportOptions(format=name, precision=precision, parity_images=0)
                export_bundle(cfg, model, str(bundles[-1]), options)
    return bundles


def bundle_sides(bundle: Path, image: np.ndarray) -> Dict[str, Side]:
    """A bundle's rows: the model alone, the whole way and, for OpenVINO, in bfloat16 as well."""
    sides = {}
    spec = Detector(bundle).spec
    name = f"{spec['format']} {spec['precision']}"
    bf16 = spec["format"] == "openvino" and spec["precision"] == "fp32"
    for precision in (None, "bf16") if bf16 else (None,):
        detector = Detector(bundle, precision=precision)
        label = name if precision is None else f"{spec['format']} {precision}"
        inputs = detector.prepare([image])
        memory = [sys.executable, "-c", MEMORY_OF_BUNDLE, str(bundle), precision or ""]
        sides[f"{label}, model alone"] = Side(lambda d=detector, x=inputs: d.run(x))
        detect = detector.__call__
        sides[label] = Side(lambda d=detect: d([image]), detect, spec["bytes"] / 1e6, memory)
        if name == "onnx fp32":
            threshold = many(detector.run(inputs)[1])
            worst = f"{label}, {CANDIDATES:,} candidates"
            sides[worst] = Side(lambda d=detect, t=threshold: d([image], t))
    return sides


def torchvision_side(image: np.ndarray) -> Side:
    """torchvision's model with random weights, from a tensor to its final boxes."""
    torch.manual_seed(0)
    model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None).eval()
    tensor = torch.from_numpy(image[:, :, ::-1].transpose(2, 0, 1).copy()).float() / 255

    def call() -> None:
        with torch.inference_mode():
            model([tensor])

    return Side(call)


def row_of(name: str, seconds: np.ndarray, batched: Optional[np.ndarray], side: Side) -> Dict:
    """A row of the table; what was not measured is None."""
    row = {
        "what": name,
        "median ms": 1e3 * float(np.median(seconds)),
        "p90 ms": 1e3 * float(np.percentile(seconds, 90)),
        "images/s": None if batched is None else BATCH / float(np.median(batched)),
        "model MB": side.size,
        "peak memory MB": None,
    }
    if side.memory:
        done = subprocess.run(side.memory, capture_output=True, text=True)
        row["peak memory MB"] = int(done.stdout.split()[-1]) / 1024 if done.stdout else None
    return row


def plot(rows: List[Dict], title: str, file: str) -> None:
    """AP against latency.

    Raises:
        InputError: the file cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for row in rows:
        if row.get("AP") is not None:
            axes.scatter(row["median ms"], row["AP"], label=row["what"])
    axes.set(xlabel="latency (ms, median)", ylabel="AP", title=title, xlim=(0, None))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))  # beside: runtimes lie close together
    try:
        figure.savefig(file, dpi=120, bbox_inches="tight")
    except (OSError, ValueError) as error:
        raise InputError(f"--plot: {file}: {error}") from error
