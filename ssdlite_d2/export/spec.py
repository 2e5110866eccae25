"""What model.json says of a bundle."""

import dataclasses
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Union

from detectron2.config import CfgNode

from ..data.datasets.register import classes_of
from ..modeling import SSD, InputResize
from ..provenance import commit


@dataclass
class Spec:
    """A bundle's model.json; the bundled detector reads it.

    Attributes:
        format: name of the format, which is also that of the runtime.
        file: the model's file.
        precision: fp32, fp16 or int8.
        layout: of the outputs, see LAYOUTS.
        input: layout, type, colour, size (H, W), batch, and where images are resized.
        outputs: of the model, by name, with their meaning.
        classes: names, in the order of their ids.
        detections: the postprocessor's options.
        source: weights, config and commit.
        operating: ``threshold`` of the best F1 at the last evaluation, and the rates there.
        quantization: what INT8 was made with.
        runtime: of a page: where it comes from, and its files' digests.
        sha256: of the model's files.
        bytes: of the model's files together.
        files: everything that the export wrote, which the next export there may replace.
    """

    format: str
    file: str
    precision: str
    layout: str
    input: Dict[str, Any]
    outputs: Dict[str, str]
    classes: List[str]
    detections: Dict[str, Any]
    source: Dict[str, str]
    operating: Optional[Dict[str, float]] = None
    quantization: Optional[Dict[str, Any]] = None
    runtime: Optional[Dict[str, Any]] = None
    sha256: Dict[str, str] = field(default_factory=dict)
    bytes: int = 0
    files: List[str] = field(default_factory=list)

    def values(self) -> Dict[str, Any]:
        """JSON values by name."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None}

    def runs_in_cpp(self) -> bool:
        """Whether the bundle's program in C++ can run the model."""
        plain = self.input["batch"] == 1 and self.input["resize"] == "before"
        return self.format == "openvino" and self.layout == "anchors" and plain

    def measure(self, folder: Path, files: Sequence[Path]) -> None:
        """Take in digests and sizes of the model's files in a bundle's folder."""
        for path in files:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            self.sha256[str(path.relative_to(folder))] = digest
            self.bytes += path.stat().st_size


def input_spec(
    resize: InputResize, batch: Union[int, str], channels_last: bool, inside: bool
) -> Dict[str, Any]:
    """What model.json says of the images that go in."""
    return {
        "layout": "NHWC" if channels_last else "NCHW",
        "type": "uint8",
        "colour": "RGB",
        "size": list(resize.size),
        "batch": batch if batch == "dynamic" else int(batch),
        # Normalisation is inside.
        "resize": "inside" if inside else "before",
        "resampling": resize.method,  # bilinear without antialias; see INPUT.RESIZE
    }


def source_of(cfg: CfgNode) -> Dict[str, str]:
    """Where a model comes from."""
    return {"weights": cfg.MODEL.WEIGHTS, "config": "config.yaml", "commit": commit()}


def class_names(cfg: CfgNode, model: SSD) -> List[str]:
    """Names of the classes as the config's data sets have them; numbers when there is none."""
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        names = classes_of(name)
        if names:
            return list(names)
    return [str(i) for i in range(model.num_classes)]
