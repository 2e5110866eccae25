"""Inference of one model in PyTorch, in every runtime present and beside torchvision's ssdlite320.

Each runtime, and each mode of PyTorch, runs in a process of its own, and they take turns. A call
goes from an image of the network's size to its final boxes, unless the row says otherwise. The last
row is what the arithmetic alone would take.

python -m ssdlite_d2.tools.benchmark inference --config-file configs/ssdlite_mnv2_bccd.yaml \\
    --int8 --ap-images 72 --plot speed.png --opts MODEL.WEIGHTS model.pth
"""

import argparse
import contextlib
import importlib.util
import tempfile
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional

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
from ...export.bundled.detector import PredictError, read_spec
from ...export.parity import parity_dataset, raw_outputs
from ...export.samples import choose_records
from ...modeling import SSD
from ...modeling.inference.fused import MODES
from ..analyze import analyze
from .timing import alternate, report
from .worker import Row, Worker, threshold_of

BATCH = 8  # images at once, for the throughput
CALLS = 20  # of a turn: one after the other, as a device runs a model
CANDIDATES = 10_000  # of the worst case
FLOOR = "its multiply-adds at a matrix product's rate, float32"
FLOOR_SIDE = 2048  # of the matrices


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
    counts = analyze(cfg)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        bundles = [*make_bundles(cfg, Path(folder), args.int8), *map(Path, args.bundle)]
        workers = [stack.enter_context(worker) for worker in start(cfg, bundles, image, counts)]
        sides = {row.name: row for worker in workers for row in rows_of(worker)}
        rows = measure(sides, args.rounds, image, counts["madds"])
        for row in rows if records else ():
            if sides[row["what"]].detects:
                found = [sides[row["what"]].ask("detect", [x])[0] for x in images]
                row["AP"] = average_precision(records, found)
    title = f"Inference of {Path(args.config_file).stem}, {height}x{width}, ms an image"
    report(title, rows, args.json)
    if args.plot:
        plot(rows, title, args.plot)


def measure(sides: Dict[str, "Side"], rounds: int, image: np.ndarray, madds: int) -> List[Dict]:
    """The table's rows, by turns."""
    detecting = {name: side for name, side in sides.items() if side.detects}
    memory = {name: side.ask("memory", image) for name, side in detecting.items()}

    def turn(side: Side, calls: int) -> List[float]:
        return side.ask("time", calls)

    def batch_turn(side: Side, calls: int) -> List[float]:
        return side.ask("batch", [image] * BATCH, calls)

    seconds = alternate(sides, rounds, calls=CALLS, turn=turn)
    seconds[FLOOR] *= madds / FLOOR_SIDE**3
    batched = alternate(detecting, rounds, turn=batch_turn)
    return [
        row_of(side, seconds[name], batched.get(name), memory.get(name))
        for name, side in sides.items()
    ]


def test_images(cfg: CfgNode, count: int):
    """Dataset dicts and images of the test data; noise where no AP is asked for."""
    if not count:
        return [], [np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)]
    records = choose_records(parity_dataset(cfg, ExportOptions()), count, "--ap-images")
    read = image_reader(cfg)
    return records, [read(record["file_name"], "BGR") for record in records]


class Side(NamedTuple):
    """A row of the table, which is measured by a process.

    Attributes:
        detects: whether it goes from images to detections.
        size: of the model, MB.
    """

    worker: Worker
    name: str
    detects: bool
    size: Optional[float]

    def ask(self, order: str, *args):
        """What the process answers.

        Raises:
            InputError: it cannot.
        """
        try:
            return self.worker.ask(self.name, order, *args)
        except RuntimeError as error:
            raise InputError(f"{self.name}: {error}") from error


def start(
    cfg: CfgNode, bundles: List[Path], image: np.ndarray, counts: Dict[str, int]
) -> Iterator[Worker]:
    """A process for each mode of MODEL.SSD.INFERENCE, each bundle, and what these stand beside."""
    here = "ssdlite_d2.tools.benchmark.inference"
    for mode in MODES:
        yield Worker(
            f"PyTorch {mode}",
            f"{here}:pytorch_rows",
            cfg.dump(),
            mode,
            image,
            counts["bytes"] / 1e6,
        )
    for bundle in bundles:
        try:
            spec = read_spec(bundle)
        except PredictError as error:
            raise InputError(str(error)) from error
        bf16 = spec["format"] == "openvino" and spec["precision"] == "fp32"
        for precision in (None, "bf16") if bf16 else (None,):
            yield Worker(str(bundle), "", str(bundle), precision, image, CANDIDATES)
    yield Worker("torchvision", f"{here}:beside", image)


def rows_of(worker: Worker) -> List[Side]:
    """
    Raises:
        InputError: a process could not open its model.
    """
    try:
        return [Side(worker, *row) for row in worker.open()]
    except RuntimeError as error:
        raise InputError(f"{worker.name} cannot be measured: {error}") from error


def pytorch_rows(config: str, mode: str, image: np.ndarray, size: float) -> List[Row]:
    """The rows of a mode of MODEL.SSD.INFERENCE: with ``eager`` those of the bare network and of
    DefaultPredictor's call, with ``fused`` that of many candidates.

    Args:
        config: a finished config's text.
        size: of the model, MB.
    """
    predictor = predictor_in(CfgNode.load_cfg(config), mode)
    model, post = predictor.model, predictor.model.postprocessor

    def detect(images: List[np.ndarray]) -> List[Found]:
        outputs = (x["instances"] for x in predictor.predict(images))
        return [
            (x.pred_boxes.tensor.numpy(), x.scores.numpy(), x.pred_classes.numpy()) for x in outputs
        ]

    rows = [Row(f"PyTorch {mode}", lambda: predictor.predict([image]), detect, size)]
    if mode == "eager":
        rows.append(Row("PyTorch eager, network alone", lambda: network(model)))
        rows.append(Row("PyTorch eager, DefaultPredictor", lambda: predictor(image)))
    if mode == "fused":
        usual = post.score_threshold
        least = threshold_of(predictor_scores(model, image), CANDIDATES)

        def worst() -> None:
            post.score_threshold = least
            predictor.predict([image])
            post.score_threshold = usual

        rows.append(Row(f"PyTorch fused, {CANDIDATES:,} candidates", worst))
    return rows


def predictor_in(cfg: CfgNode, mode: str) -> SSDPredictor:
    """The config's predictor in a mode of MODEL.SSD.INFERENCE."""
    cfg = cfg.clone()
    cfg.MODEL.SSD.INFERENCE = mode
    predictor = build_predictor(cfg)
    predictor.cfg.MODEL.WEIGHTS = cfg.MODEL.WEIGHTS
    return predictor


@torch.inference_mode()
def network(model: SSD) -> None:
    """Backbone and head, without decoding or suppression."""
    image = torch.zeros(1, 3, *model.input_size).contiguous(memory_format=torch.channels_last)
    model.raw_outputs(image)


def predictor_scores(model: SSD, image: np.ndarray) -> np.ndarray:
    return raw_outputs(model, image[None, :, :, ::-1], "RGB")[1]


def make_bundles(cfg: CfgNode, folder: Path, int8: bool) -> List[Path]:
    """Bundles of the config's model for the runtimes that are installed."""
    model = predictor_in(cfg, "eager").model
    bundles = []
    for name in ("onnx", "openvino", "torchscript", "ncnn", "litert"):
        if any(not importlib.util.find_spec(module) for module in FORMATS[name].modules):
            print(f"{name} is left out: it is not installed")
            continue
        for precision in ("fp32", "int8") if int8 else ("fp32",):
            if precision in FORMATS[name].precisions:
                bundles.append(folder / f"{name} {precision}")
                options = ExportOptions(format=name, precision=precision, parity_images=0)
                export_bundle(cfg, model, str(bundles[-1]), options)
    return bundles


def beside(image: np.ndarray) -> List[Row]:
    """torchvision's model with random weights, from a tensor to its final boxes, and the floor."""
    torch.manual_seed(0)
    model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None).eval()
    tensor = torch.from_numpy(image[:, :, ::-1].transpose(2, 0, 1).copy()).float() / 255
    matrix = torch.rand(FLOOR_SIDE, FLOOR_SIDE)

    def call() -> None:
        with torch.inference_mode():
            model([tensor])

    return [Row("torchvision ssdlite320, eval step", call), Row(FLOOR, lambda: matrix @ matrix)]


def row_of(
    side: Side, seconds: np.ndarray, batched: Optional[np.ndarray], memory: Optional[float]
) -> Dict:
    """A row of the table; what was not measured is None."""
    return {
        "what": side.name,
        "median ms": 1e3 * float(np.median(seconds)),
        "p90 ms": 1e3 * float(np.percentile(seconds, 90)),
        "images/s": None if batched is None else BATCH / float(np.median(batched)),
        "model MB": side.size,
        "peak memory MB": memory,
    }


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
