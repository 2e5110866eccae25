"""Every config of the zoo, with random weights, in every runtime that the tests have, on images.

Too long for the test suite, which takes one config of every trunk, head and loss and four images.

python tests/export/every_config.py FOLDER_OF_IMAGES [IMAGES] [CONFIG ...]
"""

import sys
import tempfile
from pathlib import Path

import cv2
import torch
from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from models import as_inputs, lively_model, resized  # noqa: E402

from ssdlite_d2.export import ExportedSSD  # noqa: E402
from ssdlite_d2.export.bundled.detector import open_runtime, select  # noqa: E402
from ssdlite_d2.export.formats import FORMATS, Job  # noqa: E402
from ssdlite_d2.export.parity import TOLERANCE, Comparison, raw_outputs  # noqa: E402

RUN = ("onnx", "openvino", "torchscript")


def compare(config: str, images, folder: Path):
    """A row of the table for each runtime."""
    _, model = lively_model(config, as_inputs(images[:4]))
    module, size = ExportedSSD(model), model.input_size
    example = torch.zeros(1, *size, 3, dtype=torch.uint8)
    runs = {}
    for name in RUN:
        path = folder / FORMATS[name].file
        FORMATS[name].write(Job(module, example, path, "fp32", False, False, ("boxes", "scores")))
        runs[name], _ = open_runtime(path, {"format": name, "layout": "anchors"})
    comparisons = {name: Comparison() for name in RUN}
    limits = {"size": size, **model.postprocessor.options()}
    for image in images:
        inputs = resized(image, size)
        ours = raw_outputs(model, inputs, "RGB")
        for name, run in runs.items():
            theirs = run(inputs)
            comparisons[name].add_outputs(ours, theirs, max(size))
            found = [select(boxes[0], scores[0], **limits) for boxes, scores in (ours, theirs)]
            comparisons[name].add_detections(*found, TOLERANCE["fp32"][2])
    for name, report in ((name, c.report()) for name, c in comparisons.items()):
        yield {
            "config": config,
            "runtime": name,
            "scores": f"{report['scores']['max']:.1e}",
            "boxes / side": f"{report['boxes_relative']['max']:.1e}",
            "boxes of detections, px": f"{report['matched_boxes_px']['max']:.1e}",
            "detections": report["detections"],
            "exported": report["exported_detections"],
            "matched": report["matched"],
        }


def main() -> None:
    folder, count, *configs = (*sys.argv[1:], *([50] if len(sys.argv) == 2 else []))
    files = sorted(Path(folder).glob("*.jpg"))[: int(count)]
    images = [cv2.imread(str(file)) for file in files]
    names = (p.relative_to(ROOT / "configs") for p in (ROOT / "configs").rglob("ssd*.yaml"))
    own_data = ("_bccd", "_neon_trees")
    configs = configs or [str(name) for name in sorted(names) if not name.stem.endswith(own_data)]
    rows = []
    for config in configs:
        with tempfile.TemporaryDirectory() as work:
            rows += compare(config, images, Path(work))
        print(tabulate(rows[-len(RUN) :], headers="keys"), flush=True)
    print(f"\n{len(images)} images\n{tabulate(rows, headers='keys')}")


if __name__ == "__main__":
    main()
