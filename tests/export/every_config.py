"""Every config of the zoo, with random weights, in every runtime that the tests have, on images.

Too long for the test suite, which takes one config of every trunk, head and loss and four images.

python tests/export/every_config.py FOLDER_OF_IMAGES [IMAGES] [CONFIG ...]

In LiteRT's environment (make test-litert) it takes LiteRT's operator instead, of which detections
can be compared only.
"""

import importlib.util
import sys
import tempfile
from pathlib import Path

import cv2
import torch
from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from models import as_inputs, lively_model, resized  # noqa: E402

from ssdlite_d2.export import ExportedSSD, ExportOptions, export_bundle  # noqa: E402
from ssdlite_d2.export.bundled.detector import Detector, open_runtime, select  # noqa: E402
from ssdlite_d2.export.formats import FORMATS, Job  # noqa: E402
from ssdlite_d2.export.parity import TOLERANCE, Comparison, raw_outputs  # noqa: E402

LITERT = importlib.util.find_spec("litert_torch") is not None
RUN = ("litert",) if LITERT else ("onnx", "openvino", "torchscript")


def compare(config: str, images, folder: Path):
    """A row of the table for each runtime."""
    cfg, model = lively_model(config, as_inputs(images[:4]))
    size = model.input_size
    limits = {"size": size, **model.postprocessor.options()}
    runs = operator(cfg, model, folder) if LITERT else outputs(model, folder)
    comparisons = {name: Comparison() for name in RUN}
    for image in images:
        inputs = resized(image, size)
        ours = raw_outputs(model, inputs, "RGB")
        ours_found = select(*(x[0] for x in ours), **limits)
        for name, run in runs.items():
            theirs = run(inputs)
            if not LITERT:
                comparisons[name].add_outputs(ours, theirs, max(size))
                theirs = select(*(x[0] for x in theirs), **limits)
            comparisons[name].add_detections(ours_found, theirs, TOLERANCE["fp32"][2])
    for name, report in ((name, c.report()) for name, c in comparisons.items()):
        yield {
            "config": config,
            "runtime": name,
            "scores": f"{report['scores']['max']:.1e}",
            "boxes / side": f"{report['boxes_relative']['max']:.1e}",
            "scores of detections": f"{report['matched_scores']['max']:.1e}",
            "boxes of detections, px": f"{report['matched_boxes_px']['max']:.1e}",
            "detections": report["detections"],
            "exported": report["exported_detections"],
            "matched": report["matched"],
        }


def outputs(model, folder: Path):
    """Functions from images to boxes and scores of all anchors."""
    module, runs = ExportedSSD(model), {}
    example = torch.zeros(1, *model.input_size, 3, dtype=torch.uint8)
    for name in RUN:
        path = folder / FORMATS[name].file
        FORMATS[name].write(Job(module, example, path, "fp32", False, False, ("boxes", "scores")))
        runs[name], _ = open_runtime(path, {"format": name, "layout": "anchors"})
    return runs


def operator(cfg, model, folder: Path):
    """A function from images to detections in the network's pixels."""
    cfg.DATASETS.TEST = cfg.DATASETS.TRAIN = ()  # nothing of them is read
    options = ExportOptions(format="litert", layout="detection-postprocess", parity_images=0)
    export_bundle(cfg, model, str(folder / "b"), options)
    detector, size = Detector(folder / "b"), model.input_size

    def run(inputs):
        return detector.detections([x[0] for x in detector.run(inputs)], size)

    return {"litert": run}


def main() -> None:
    folder, count, *configs = (*sys.argv[1:], *([50] if len(sys.argv) == 2 else []))
    files = sorted(Path(folder).glob("*.jpg"))[: int(count)]
    images = [cv2.imread(str(file)) for file in files]
    names = (p.relative_to(ROOT / "configs") for p in (ROOT / "configs").rglob("ssd*.yaml"))
    own_data = ("_bccd", "neon_trees")
    configs = configs or [str(name) for name in sorted(names) if not name.stem.endswith(own_data)]
    rows = []
    for config in configs:
        with tempfile.TemporaryDirectory() as work:
            rows += compare(config, images, Path(work))
        print(tabulate(rows[-len(RUN) :], headers="keys"), flush=True)
    print(f"\n{len(images)} images\n{tabulate(rows, headers='keys')}")


if __name__ == "__main__":
    main()
