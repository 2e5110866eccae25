"""What a bundle says about itself: README.md, requirements.txt, and an example to check it by."""

import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Dict, Optional, Union

import cv2

from ..evaluation.operating import USUAL
from .bundled.detector import Detector, as_json
from .bundled.runtimes import RUNTIMES
from .spec import Spec

# Largest differences of the example's detections elsewhere: pixels, and score.
NEAR = {"fp32": (0.5, 1e-3)}
ROUGHLY = (3.0, 0.05)

README = """\
# {format} {precision} SSD: {count}

Detects, by class id: {classes}.

## Run

```
pip install -r requirements.txt
python predict.py image.jpg folder film.mp4 --output drawn > detections.json
python predict.py --check
```

`--check` compares the model's files with the digests in `model.json`{example}.
Another device: `--device {devices}`. From Python:

```python
from detector import Detector
detector = Detector(".")
boxes, scores, classes = detector([cv2.imread("image.jpg")], detector.threshold)[0]
# BGR in, XYXY in its pixels out
```

## Input

{type}, {shape}, {colour}, 0 to 255; images of other sizes are resized {resize}. Normalisation is in
the model.

## Outputs

{outputs}

{after} {shown}
{more}
## Accuracy

{accuracy}

## Files

`{file}` is the model, `labels.txt` its classes by id, `model.json` all of this for programs,
`config.yaml` what it was trained with.

Licence: the programs are Apache 2.0 (ssdlite_d2, {commit}).
The weights are subject to the terms of the data and of the weights that they were trained from.
"""


def readme(spec: Spec, report: Dict, example: Optional[str]) -> str:
    """README.md.

    Args:
        report: of parity; empty when there is none.
        example: the example image's file.
    """
    height, width = spec.input["size"]
    shape = ("N, H, W, 3" if spec.input["layout"] == "NHWC" else "N, 3, H, W").split(", ")
    known = {"N": spec.input["batch"], "H": height, "W": width}
    if spec.input["resize"] == "inside":
        known.update(H="height", W="width")
    group = "across classes" if spec.detections["across_classes"] else "by class"
    inside = spec.layout != "anchors"
    return README.format(
        format=spec.format,
        precision=spec.precision,
        file=spec.file,
        count="1 class" if len(spec.classes) == 1 else f"{len(spec.classes)} classes",
        classes=", ".join(f"{i} {name}" for i, name in enumerate(spec.classes)),
        example=f" and its detections on `{example}` with `example.json`" if example else "",
        devices="|".join((*RUNTIMES[spec.format].devices, "auto")),
        type=spec.input["type"],
        shape=f"({', '.join(str(known.get(letter, letter)) for letter in shape)})",
        colour=spec.input["colour"],
        resize="inside" if spec.input["resize"] == "inside" else "before, bilinear, no antialias",
        outputs="\n".join(f"- `{name}`: {meaning}" for name, meaning in spec.outputs.items()),
        after="Suppression is in the model."
        if inside
        else AFTER.format(**spec.detections, group=group),
        shown=shown(spec),
        more=more(spec),
        accuracy=accuracy(report),
        commit=spec.source["commit"],
    )


AFTER = """\
`detector.py` keeps scores above {score_threshold}, at most {candidates} boxes, suppresses {group}
at an IoU of {nms_threshold}, and gives at most {max_detections} detections."""
FRIGATE = """
Frigate: copy `model.xml`, `model.bin` and `labelmap.txt` into its `/config`; `frigate.yml` has the
lines of its `config.yml`.
"""

WEB = """
Browser: `python serve.py` and open its address, or put this folder on any static server. A server
that sends no `Cross-Origin-Opener-Policy: same-origin` and `Cross-Origin-Embedder-Policy:
require-corp` leaves WebAssembly one thread. The camera needs https or localhost. The address takes
`?device=wasm`, `?device=webgpu` and `?threads=2`. `detect.js` is a module that other pages can
import, too.
"""

CPP = """
C++: `detect.cpp` detects on an image as `predict.py` does; its first lines say how to compile it.
"""


def more(spec: Spec) -> str:
    """Where the bundle runs besides predict.py."""
    if spec.layout == "frigate":
        return FRIGATE
    if spec.format == "web":
        return WEB
    return CPP if spec.runs_in_cpp() else ""


def shown(spec: Spec) -> str:
    """Which detections predict.py shows."""
    known = spec.operating or {}
    reason = f", where F1 was best ({known['F1']:.0f} %)" if "F1" in known else ""
    return f"`predict.py` shows those above {known.get('threshold', USUAL):.2f}{reason}."


def accuracy(report: Dict) -> str:
    """What the parity report has found, in a sentence."""
    if not report:
        return "Not measured at export."
    where = f"on {report['images']} images of `{report['dataset']}`"
    same = (
        f"Of the PyTorch model's {report['detections']} detections {where}, {report['matched']} "
        "are found by this one (`parity.json`)."
    )
    if not report["remarks"]:
        return same
    first, *others = report["remarks"]
    return " ".join([f"COCO {first}, {where}.", *others, same])


def requirements(spec: Spec) -> str:
    """requirements.txt; the versions that the bundle was made with are comments."""
    lines = []
    for need in ("numpy", "opencv-python>=4.7", RUNTIMES[spec.format].package):
        name = need.partition(">")[0]
        try:
            lines.append(f"{need}  # made with {importlib.metadata.version(name)}\n")
        except importlib.metadata.PackageNotFoundError:
            lines.append(f"{need}\n")
    return "".join(lines)


def write_example(folder: Path, spec: Spec, image: Union[str, Path]) -> Optional[str]:
    """Copy an image into a bundle and write what the model finds on it to example.json.

    Returns:
        the copy's name; None when the programs of the bundle cannot read the image.
    """
    target = folder / f"example{Path(image).suffix.lower()}"
    shutil.copyfile(image, target)
    pixels = cv2.imread(str(target), cv2.IMREAD_COLOR)
    if pixels is None:
        target.unlink()
        return None
    detector = Detector(folder, spec=spec.values())
    tolerance = NEAR.get(spec.precision, ROUGHLY)
    expected = {
        "file": target.name,
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "tolerance": dict(zip(("pixels", "score"), tolerance)),
        "detections": as_json(detector([pixels])[0], detector.classes),
    }
    (folder / "example.json").write_text(json.dumps(expected, indent=1) + "\n", "utf-8")
    return target.name
