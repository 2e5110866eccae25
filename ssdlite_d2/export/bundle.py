"""A bundle: a folder with a model, all that one must know to run it, and a program that does."""

import dataclasses
import json
import logging
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Set

import torch
from detectron2.config import CfgNode
from torch import nn

from ..errors import InputError
from ..files import read_regular
from ..modeling import SSD
from .bundled.detector import is_inside
from .formats import Format, Job, find_format
from .graph import ExportedSSD
from .layouts import LAYOUTS
from .options import ExportOptions
from .parity import check_parity, parity_records, write_parity
from .quantization import quantize
from .spec import Spec, class_names, input_spec, source_of
from .texts import readme, requirements, write_example
from .web import write_page

logger = logging.getLogger(__name__)

PROGRAMS = ("predict.py", "detector.py", "drawing.py", "runtimes.py")
CPP = "detect.cpp"


def export_bundle(
    cfg: CfgNode,
    model: SSD,
    output: str,
    options: ExportOptions,
    operating: Optional[Dict[str, float]] = None,
) -> Dict:
    """Write a bundle for a model; all of it, or nothing.

    Args:
        cfg: the model's finished config.
        model: with its weights, on the CPU.
        operating: of the weights' file, for model.json.
        output: the folder to make. A bundle that is there already is replaced, file by file.

    Returns:
        dict: the parity report; empty when the options leave it out.

    Raises:
        InputError: the options cannot be met, or the exported model differs from ``model`` by more
            than is tolerated.
    """
    chosen, layout = options.check(), LAYOUTS[options.layout]
    model.eval()
    with new_folder(Path(output)) as folder:
        spec = describe(cfg, model, chosen, options)
        spec.operating = operating
        if spec.detections["across_classes"] and options.layout not in ("anchors", "nms"):
            raise InputError(
                f"MODEL.SSD.POSTPROCESS.ACROSS_CLASSES is True; --layout {options.layout} "
                "suppresses by class"
            )
        module = write_model(cfg, model, folder, chosen, options)
        if options.precision == "int8":
            plain = dataclasses.replace(spec, layout="anchors", outputs=LAYOUTS["anchors"].outputs)
            spec.quantization = quantize(cfg, model, folder, plain, options)
        if layout.finish:
            layout.finish(folder, spec, module)
        if options.format == "web":
            spec.runtime = write_page(folder, options.runtime)
        if options.parity_images != 0 and not chosen.runs_here:
            logger.warning(f"No parity report: {options.format} models do not run on this system")
        report, example = {}, None
        if options.parity_images != 0 and chosen.runs_here:
            records = parity_records(cfg, options)
            report = check_parity(cfg, model, folder, spec, options, records)
            write_parity(folder, report, options)
            example = write_example(folder, spec, records[0]["file_name"])
        (folder / "README.md").write_text(readme(spec, report, example), "utf-8")
        spec.measure(folder, model_files(folder, chosen))
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
        names = spec["files"]
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


def write_model(
    cfg: CfgNode, model: SSD, folder: Path, chosen: Format, options: ExportOptions
) -> nn.Module:
    """Write the model's file, in float, and return what was written."""
    layout = LAYOUTS[options.layout]
    detector = ExportedSSD(
        model,
        image_format=cfg.INPUT.FORMAT,
        channels_last=chosen.channels_last,
        resize=options.resize,
    )
    batch = 2 if options.batch == "dynamic" else int(options.batch)
    height, width = model.input_size
    shape = (batch, height, width, 3) if chosen.channels_last else (batch, 3, height, width)
    module = layout.wrap(detector)
    chosen.write(
        Job(
            module,
            torch.zeros(shape, dtype=torch.uint8),
            folder / chosen.file,
            "fp32" if options.precision == "int8" else options.precision,
            options.batch == "dynamic",
            options.resize,
            tuple(LAYOUTS["anchors" if layout.finish else options.layout].outputs),
        )
    )
    return module


def describe(cfg: CfgNode, model: SSD, chosen: Format, options: ExportOptions) -> Spec:
    """What model.json says, without what is known of the written files only."""
    return Spec(
        format=options.format,
        file=chosen.file,
        precision=options.precision,
        layout=options.layout,
        input=input_spec(model.resize, options.batch, chosen.channels_last, options.resize),
        outputs=LAYOUTS[options.layout].outputs,
        classes=class_names(cfg, model),
        detections=model.postprocessor.options(),
        source=source_of(cfg),
    )


def write_texts(folder: Path, spec: Spec, cfg: CfgNode) -> None:
    """Programs and texts; model.json last, with the names of all files."""
    (folder / "labels.txt").write_text("\n".join(spec.classes) + "\n", "utf-8")
    (folder / "requirements.txt").write_text(requirements(spec))
    (folder / "config.yaml").write_text(cfg.dump(), "utf-8")
    for name in (*PROGRAMS, CPP) if spec.runs_in_cpp() else PROGRAMS:
        shutil.copyfile(Path(__file__).parent / "bundled" / name, folder / name)
    spec.files = [*files_of(folder), "model.json"]
    (folder / "model.json").write_text(json.dumps(spec.values(), indent=1) + "\n")


def model_files(folder: Path, chosen: Format) -> List[Path]:
    """The files of the model itself."""
    path = folder / chosen.file
    if path.is_dir():
        return sorted(p for p in path.rglob("*") if p.is_file())
    return sorted(p for p in folder.glob("model.*") if p.name != "model.json")
