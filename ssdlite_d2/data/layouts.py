"""Which format a folder of images and annotations is in: entries for DATASETS.REGISTER from a path.

Known are COCO, VOC with and without lists, VOC's XML files beside the images, and YOLO; each as one
folder, or in parts whose names say train, val (valid) or test.
"""

import json
import re
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import yaml

from ..errors import InputError
from ..files import read_regular
from .datasets.image_files import SUFFIXES

Mapping = Dict[str, Any]
Parts = Dict[str, Mapping]  # entries by "train", "trainval", "val", "test" or "", the whole

PART = re.compile(r"(?<![a-z])(train_?val|train|val|test)(ing|id|idation)?(?![a-z])")
XML_FOLDERS = ("annotations", "xml", "xmls", "labels")
IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "imgs", ".")
CLASS_FILES = ("classes.txt", "obj.names", "_darknet.labels")
KNOWN = (
    "COCO's .json, VOC's Annotations and JPEGImages, .xml files beside the images, or YOLO's "
    "data.yaml or images and labels"
)


class Layout(NamedTuple):
    """What a path was found to be.

    Attributes:
        kind: in words.
        train, val: entries for DATASETS.REGISTER, without NAME; ``val`` is None where there is no
            part to evaluate on.
        parts: names of all parts.
    """

    kind: str
    train: Mapping
    val: Optional[Mapping]
    parts: Tuple[str, ...]


def find_layout(path: Path) -> Layout:
    """
    Args:
        path: a folder, or an annotation file: COCO's .json or YOLO's data.yaml.

    Raises:
        InputError: there is no such path, it is of no known format, or has no part to train on.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; DATA is a folder or an annotation file")
    path = path.resolve()
    for kind, find in FINDERS.items():
        parts = find(path)
        if parts:
            return _choose(path, kind, parts)
    inside = [p for p in path.iterdir() if p.is_dir()] if path.is_dir() else []
    if len(inside) == 1:
        return find_layout(inside[0])
    raise InputError(f"{path} has no annotations of a known format: {KNOWN}")


def _choose(path: Path, kind: str, parts: Parts) -> Layout:
    """The parts to train and to evaluate on; as for VOC, trainval goes with test."""
    if {"trainval", "test"} <= set(parts):
        train, val = "trainval", "test"
    else:
        train = next((name for name in ("train", "trainval", "") if name in parts), None)
        val = next((name for name in ("val", "test") if name in parts), "none")
    if train is None:
        raise InputError(f"{path} has {' and '.join(sorted(parts))}, but no part called train")
    return Layout(kind, parts[train], parts.get(val), tuple(parts))


def _part(name: str) -> str:
    """The part that a file's or folder's name tells; "" for none."""
    found = PART.findall(name.lower())
    return found[-1][0].replace("_", "") if found else ""


def _folders(path: Path) -> List[Path]:
    """A folder and those in it, two levels deep."""
    if not path.is_dir():
        return []
    deep = [p for pattern in ("*", "*/*") for p in sorted(path.glob(pattern)) if p.is_dir()]
    return [path, *(p for p in deep if not p.name.startswith("."))]


def _has_images(folder: Path) -> bool:
    return folder.is_dir() and any(p.suffix.lower() in SUFFIXES for p in folder.iterdir())


def _add(parts: Parts, where: Path, name: str, mapping: Mapping) -> None:
    if name in parts:
        what = f"two parts called {name}" if name else "two sets of annotations"
        raise InputError(
            f"{where} has {what}; give the path of one, or name the parts train and val"
        )
    parts[name] = mapping


def _yolo_file(path: Path) -> Parts:
    """A ``data.yaml`` and the parts that it names."""
    files = [path] if path.suffix in (".yaml", ".yml") else sorted(path.glob("*.y*ml"))
    for file in files:
        try:
            content = yaml.safe_load(read_regular(file))
        except (OSError, ValueError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{file}: {reason}") from error
        if isinstance(content, dict) and "names" in content and "train" in content:
            base = {"FORMAT": "yolo", "ROOT": str(file.parent), "DATA": file.name}
            return {k: {**base, "SPLIT": k} for k in ("train", "val", "test") if content.get(k)}
    return {}


def _voc_lists(path: Path) -> Parts:
    """VOC's ImageSets/Main."""
    lists = {p.stem for p in (path / "ImageSets" / "Main").glob("*.txt")}
    base = {"FORMAT": "voc", "ROOT": str(path)}
    return {k: {**base, "SPLIT": k} for k in ("train", "trainval", "val", "test") if k in lists}


def _coco(path: Path) -> Parts:
    """COCO's files, at most two levels down."""
    files = [path] if path.suffix == ".json" else []
    files += [file for folder in _folders(path) for file in sorted(folder.glob("*.json"))]
    of_objects = [file for file in files if file.name.startswith("instances_")]
    parts: Parts = {}
    for file in of_objects or files:
        try:
            content = json.loads(read_regular(file))
            images = content["images"]
            content["annotations"], content["categories"]
            name = images[0]["file_name"]
        except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
            if file == path:
                raise InputError(f"{path} is no COCO file of objects in images") from error
            continue
        root = path.parent if file == path else path
        part = _part(str(file.relative_to(root)))
        folder = _image_folder(file, root, part, name)
        mapping = {"FORMAT": "coco", "ROOT": str(folder), "JSON": str(file), "IMAGES": "."}
        _add(parts, path, part, mapping)
    return {"": next(iter(parts.values()))} if path.is_file() and parts else parts


def _image_folder(file: Path, root: Path, part: str, name: str) -> Path:
    """The folder in which an image of a COCO file lies; best one whose name tells the part."""
    near = [file.parent, *_folders(root), *_folders(file.parent.parent)]
    near.sort(key=lambda folder: not part or _part(folder.name) != part)
    for folder in near:
        if (folder / str(name)).is_file():
            return folder
    raise InputError(f"{file}: its images, such as {name}, are in no folder of {root}")


def _xml(path: Path) -> Parts:
    """XML files, in a folder of their own or beside the images."""
    parts: Parts = {}
    for folder in _folders(path):
        if not any(folder.glob("*.xml")):
            continue
        base = {"FORMAT": "voc", "ROOT": str(folder), "ANNOTATIONS": ".", "IMAGES": "."}
        if not _has_images(folder):
            base = _apart(folder) or {}
        if base:
            _add(parts, path, _part(str(folder.relative_to(path))), base)
    return parts


def _apart(folder: Path) -> Optional[Mapping]:
    """An entry for a folder of XML files, whose images are in a folder beside it."""
    part = folder.name if _part(folder.name) else "."
    xml = folder.parent if part != "." else folder
    if xml.name.lower() not in XML_FOLDERS:
        return None
    root = xml.parent
    for name in IMAGE_FOLDERS:
        if _has_images(root / name / part):
            keys = {"ANNOTATIONS": str(folder.relative_to(root)), "IMAGES": str(Path(name, part))}
            return {"FORMAT": "voc", "ROOT": str(root), **keys}
    return None


def _yolo_folders(path: Path) -> Parts:
    """Images and YOLO's text files, in folders called images and labels or side by side."""
    parts: Parts = {}
    texts: List[Path] = []
    for folder in _folders(path):
        labels = folder
        if "images" in folder.parts:
            at = len(folder.parts) - 1 - folder.parts[::-1].index("images")
            labels = Path(*folder.parts[:at], "labels", *folder.parts[at + 1 :])
        here = [p for p in labels.glob("*.txt") if p.name not in CLASS_FILES]
        if not here or not _has_images(folder):
            continue
        texts += here
        mapping = {"FORMAT": "yolo", "ROOT": str(folder), "IMAGES": ".", "LABELS": str(labels)}
        _add(parts, path, _part(str(folder.relative_to(path))), mapping)
    folders = {f: None for p in parts.values() for f in _upwards(Path(p["LABELS"]), path)}
    names = _class_names(list(folders), texts) if parts else []
    return {name: {**mapping, "CLASSES": names} for name, mapping in parts.items()}


def _upwards(folder: Path, top: Path) -> List[Path]:
    """A folder, the one that it is in, and further ones up to the topmost."""
    return [folder, folder.parent, *(f for f in folder.parents[1:] if f.is_relative_to(top))]


def _class_names(folders: List[Path], texts: List[Path]) -> List[str]:
    """Names in files of them, or else the numbers in the text files.

    Raises:
        InputError: two files have other names for a number.
    """
    known: Dict[Path, List[str]] = {}
    for file in (folder / name for folder in folders for name in CLASS_FILES):
        if file.is_file():
            lines = file.read_text("utf-8").splitlines()
            known[file] = [line.strip() for line in lines if line.strip()]
    longest = max(known, key=lambda file: len(known[file]), default=None)
    for file, names in known.items():
        if names != known[longest][: len(names)]:
            raise InputError(
                f"{file} has {', '.join(names)} but {longest} {', '.join(known[longest])}: make "
                "them the same, or write a data.yaml"
            )
    if longest:
        return known[longest]
    words = (line.split()[0] for p in texts for line in p.read_text("utf-8").splitlines() if line)
    numbers = [int(word) for word in words if word.isdigit()]
    if not numbers:
        raise InputError(f"{texts[0].parent}: no text file has a line of a class and x y w h")
    return [str(number) for number in range(max(numbers) + 1)]


FINDERS: Dict[str, Callable[[Path], Parts]] = {
    "YOLO, data.yaml": _yolo_file,
    "VOC with lists": _voc_lists,
    "COCO": _coco,
    "VOC, XML files": _xml,
    "YOLO, folders": _yolo_folders,
}
