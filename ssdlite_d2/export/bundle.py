"""A bundle: a folder with a model, all that one must know to run it, and a program that does."""

import hashlib
import json
import logging
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

import torch
from detectron2.config import CfgNode
from torch import nn

from ..data.datasets.register import classes_of
from ..errors import InputError
from ..modeling import SSD
from .formats import Format, Job
from .graph import ExportedSSD, WithNMS
from .options import ExportOptions
from .parity import check_parity, write_parity
from .quantization import quantize

logger = logging.getLogger(__name__)


def export_bundle(cfg: CfgNode, model: SSD, output: str, options: ExportOptions) -> Dict:
    """Write a bundle for a model; all of it, or nothing.

    Args:
        cfg: the model's finished config.
        model: with its weights, on the CPU.
        output: the folder to make. A bundle that is there already is replaced.

    Returns:
        dict: the parity report; empty when the options leave it out.

    Raises:
        InputError: the options cannot be met, or the exported model differs from ``model`` by more
            than is tolerated.
    """
    chosen = options.check()
    model.eval()
    with new_folder(Path(output)) as folder:
        spec = describe(cfg, model, chosen, options)
        path = folder / chosen.file
        module, image = exported_module(cfg, model, chosen, options)
        precision = "fp32" if options.precision == "int8" else options.precision
        dynamic = options.batch == "dynamic"
        chosen.write(
            Job(module, image, path, precision, dynamic, options.resize, tuple(spec["outputs"]))
        )
        write_texts(folder, spec, cfg)
        if options.precision == "int8":
            spec["quantization"] = quantize(cfg, model, folder, spec, options)
        spec["sha256"] = {
            str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in model_files(folder, chosen)
        }
        spec["bytes"] = sum(p.stat().st_size for p in model_files(folder, chosen))
        write_texts(folder, spec, cfg)
        if options.parity_images and not chosen.runs_here:
            logger.warning(f"No parity report: {options.format} models do not run on this system")
        report = {}
        if options.parity_images and chosen.runs_here:
            report = check_parity(cfg, model, folder, options)
            write_parity(folder, report, options)
    return report


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of ``output`` when the block ends without an error.

    Raises:
        InputError: ``output`` cannot be made, or is there and no bundle.
    """
    whole = output / "model.json"
    if output.exists() and not (output.is_dir() and (whole.is_file() or not any(output.iterdir()))):
        raise InputError(f"--output: {output} exists and is no bundle; name another folder")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    except OSError as error:
        raise InputError(f"--output: {output}: {error.strerror}") from error
    try:
        yield folder
        folder.chmod(0o755)
        before = folder.with_name(folder.name + "-before")
        if output.exists():
            output.rename(before)
        folder.rename(output)
        shutil.rmtree(before, ignore_errors=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def exported_module(
    cfg: CfgNode, model: SSD, chosen: Format, options: ExportOptions
) -> Tuple[nn.Module, torch.Tensor]:
    """The module to export and an example image for it."""
    module = ExportedSSD(
        model,
        image_format=cfg.INPUT.FORMAT,
        channels_last=chosen.channels_last,
        resize=options.resize,
    )
    batch = 2 if options.batch == "dynamic" else int(options.batch)
    height, width = model.input_size
    shape = (batch, height, width, 3) if chosen.channels_last else (batch, 3, height, width)
    image = torch.zeros(shape, dtype=torch.uint8)
    return (WithNMS(module) if options.nms else module), image


def describe(cfg: CfgNode, model: SSD, chosen: Format, options: ExportOptions) -> Dict:
    """What model.json says."""
    height, width = model.input_size
    return {
        "format": options.format,
        "file": chosen.file,
        "precision": options.precision,
        "input": {
            "layout": "NHWC" if chosen.channels_last else "NCHW",
            "type": "uint8",
            "colour": "RGB",
            "size": [height, width],
            "batch": options.batch if options.batch == "dynamic" else int(options.batch),
            # Bilinear without antialias: OpenCV's INTER_LINEAR. Normalisation is inside.
            "resize": "inside" if options.resize else "before",
        },
        "outputs": {
            "boxes": "XYXY in pixels of the input",
            "scores": "best first, 0 for none" if options.nms else "one per anchor and class",
            **({"classes": "-1 for none"} if options.nms else {}),
        },
        "nms": options.nms,
        "classes": class_names(cfg, model.num_classes),
        "detections": model.postprocessor.options(),
        "source": {"weights": cfg.MODEL.WEIGHTS, "config": "config.yaml", "commit": commit()},
    }


def class_names(cfg: CfgNode, count: int) -> List[str]:
    """Names of the classes as the config's data sets have them; numbers when there is none."""
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        names = classes_of(name)
        if names:
            return list(names)
    return [str(i) for i in range(count)]


def commit() -> str:
    """The commit of this package's checkout; its version where there is none."""
    from .. import __version__

    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return __version__
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip() or __version__


def write_texts(folder: Path, spec: Dict, cfg: CfgNode) -> None:
    """labels.txt, model.json, config.yaml, and the programs."""
    (folder / "labels.txt").write_text("\n".join(spec["classes"]) + "\n")
    (folder / "model.json").write_text(json.dumps(spec, indent=1) + "\n")
    (folder / "config.yaml").write_text(cfg.dump())
    for name in ("predict.py", "detector.py"):
        shutil.copyfile(Path(__file__).parent / "bundled" / name, folder / name)


def model_files(folder: Path, chosen: Format) -> List[Path]:
    """The files of the model itself."""
    path = folder / chosen.file
    if path.is_dir():
        return sorted(p for p in path.rglob("*") if p.is_file())
    return sorted(p for p in folder.glob("model.*") if p.name != "model.json")
