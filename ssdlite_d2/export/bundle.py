"""A bundle: a folder with a model, all that one must know to run it, and a program that does."""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator, List, Set, Tuple

import torch
from detectron2.config import CfgNode
from torch import nn

from ..data.datasets.register import classes_of
from ..errors import InputError
from ..files import read_regular
from ..modeling import SSD
from .bundled.detector import is_inside
from .formats import Format, Job, find_format
from .graph import ExportedSSD, WithNMS
from .options import ExportOptions
from .parity import check_parity, write_parity
from .quantization import quantize

logger = logging.getLogger(__name__)

TEXTS = ("labels.txt", "model.json", "config.yaml", "predict.py", "detector.py", "parity.json")


def export_bundle(cfg: CfgNode, model: SSD, output: str, options: ExportOptions) -> Dict:
    """Write a bundle for a model; all of it, or nothing.

    Args:
        cfg: the model's finished config.
        model: with its weights, on the CPU.
        output: the folder to make. A bundle that is there already is replaced, file by file.

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
        spec["files"] = files_of(folder)  # which the next export there may replace
        write_texts(folder, spec, cfg)
    return report


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A temporary folder whose files are in ``output`` when the block ends without an error.

    What an earlier export has written there is replaced or removed; other files stay as they are.

    Raises:
        InputError: ``output`` cannot be made, or has files and no bundle.
    """
    earlier = exported_files(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        place = output if output.exists() else output.parent
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=place))
    except OSError as error:
        raise InputError(f"--output: {output}: {error.strerror}") from error
    try:
        yield folder
        folder.chmod(0o755)
        if place == output:
            replace_files(output, earlier, folder)
        else:
            folder.rename(output)
    except OSError as error:
        raise InputError(f"--output: {output}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def exported_files(output: Path) -> Set[str]:
    """What an earlier export wrote to a folder, as its model.json has it.

    Raises:
        InputError: there is something else.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return set()
    try:
        spec = json.loads(read_regular(output / "model.json"))
        find_format(spec["format"])
        names = spec.get("files", [*spec["sha256"], *TEXTS])  # older ones have no list
        root = output.resolve()
        inside = filter(is_inside, names)
        return {name for name in inside if (root / name).parent.resolve().is_relative_to(root)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"--output: {output} exists and is no bundle; name another folder"
        ) from error


def replace_files(output: Path, earlier: Set[str], folder: Path) -> None:
    """Move a folder's files to a bundle's, model.json last, and remove what is left of that.

    Raises:
        InputError: one of them would replace a file that no export wrote.
    """
    names = files_of(folder)
    foreign = [name for name in names if name not in earlier and os.path.lexists(output / name)]
    if foreign:
        raise InputError(
            f"--output: {output / foreign[0]} is of no export and would be overwritten; name "
            "another folder"
        )
    for name in sorted(names, key="model.json".__eq__):
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(folder / name, output / name)
    for name in earlier - set(names):
        (output / name).unlink(missing_ok=True)


def files_of(folder: Path) -> List[str]:
    """All files below a folder."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


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
    (folder / "labels.txt").write_text("\n".join(spec["classes"]) + "\n", "utf-8")
    (folder / "model.json").write_text(json.dumps(spec, indent=1) + "\n")
    (folder / "config.yaml").write_text(cfg.dump(), "utf-8")
    for name in ("predict.py", "detector.py"):
        shutil.copyfile(Path(__file__).parent / "bundled" / name, folder / name)


def model_files(folder: Path, chosen: Format) -> List[Path]:
    """The files of the model itself."""
    path = folder / chosen.file
    if path.is_dir():
        return sorted(p for p in path.rglob("*") if p.is_file())
    return sorted(p for p in folder.glob("model.*") if p.name != "model.json")
