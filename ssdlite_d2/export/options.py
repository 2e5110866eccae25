"""What a user asks of an export."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Union

from ..errors import InputError, one_of
from .formats import Format, find_format
from .layouts import LAYOUTS
from .web import check_runtime


@dataclass(frozen=True)
class ExportOptions:
    """The choices of ``python -m ssdlite_d2.tools.export``; its help tells what each means.

    Attributes:
        batch: images at once, or ``"dynamic"``.
        calibration: data set for quantization; None is the config's training data.
        parity_dataset: data set of the parity report; None is the config's test data.
        parity_images: images of the parity report; 0 leaves it out. None: all of a small data set.
        ap_budget: AP points that quantization may cost.
        runtime: of ``web``, a folder with onnxruntime-web's files; None takes them from a CDN.
    """

    format: str = "onnx"
    precision: str = "fp32"
    batch: Union[int, str] = 1
    layout: str = "anchors"
    resize: bool = False
    calibration: Optional[str] = None
    calibration_images: int = 200
    parity_dataset: Optional[str] = None
    parity_images: Optional[int] = None
    allow_difference: bool = False
    ap_budget: float = 0.5
    runtime: Optional[str] = None

    def check(self) -> Format:
        """The format, when it can do what is asked.

        Raises:
            InputError: it cannot.
        """
        chosen = find_format(self.format)
        one_of(f"--precision of --format {self.format}", self.precision, chosen.precisions)
        if self.batch != "dynamic" and not (str(self.batch).isdigit() and int(self.batch)):
            raise InputError(f"--batch is {self.batch}; it is a number from 1, or dynamic")
        for flag, asked in (("resize", self.resize), ("batch dynamic", self.batch == "dynamic")):
            if asked and not chosen.dynamic:
                raise InputError(f"--{flag} is not for --format {self.format}")
        self._check_layout()
        self._check_web()
        if self.precision == "int8" and self.format == "openvino":
            if not importlib.util.find_spec("nncf"):
                raise InputError("nncf is not installed: pip install 'ssdlite-d2[openvino]'")
        if self.precision == "int8" and self.calibration_images < 1:
            raise InputError(f"--calibration-images is {self.calibration_images}; 1 is the least")
        if self.parity_images is not None and self.parity_images < 0:
            raise InputError(f"--parity-images is {self.parity_images}; 0 leaves the report out")
        chosen.require()
        return chosen

    def _check_web(self) -> None:
        if self.format == "web" and str(self.batch) != "1":
            raise InputError("--format web takes one image at once: --batch 1")
        if self.runtime is not None and self.format != "web":
            raise InputError("--runtime is for --format web")
        if self.runtime is not None:
            check_runtime(Path(self.runtime))

    def _check_layout(self) -> None:
        layout = LAYOUTS[one_of("--layout", self.layout, LAYOUTS)]
        if layout.formats and self.format not in layout.formats:
            formats = ", ".join(layout.formats)
            raise InputError(
                f"--layout {self.layout} is not for --format {self.format}; it is for {formats}"
            )
        if self.layout == "nms" and self.batch == "dynamic" and self.format == "torchscript":
            raise InputError("--layout nms with --format torchscript needs a number for --batch")
        if self.precision == "int8" and (self.layout == "nms" or self.resize):
            raise InputError("--precision int8 is for models without --layout nms and --resize")
        if layout.finish and (self.resize or str(self.batch) != "1"):
            raise InputError(
                f"--layout {self.layout} takes one image of the input's size: no --resize and "
                "--batch 1"
            )
