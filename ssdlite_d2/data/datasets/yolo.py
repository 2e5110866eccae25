"""YOLO's text files: a line ``class x y w h`` per object, in shares of the image's size."""

import logging
import re
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import yaml
from detectron2.structures import BoxMode

from ...errors import InputError
from .annotations import BAD_ANNOTATION, MISSING_IMAGE, ClassIds, Problems, box_problem
from .entry import Entry
from .image_files import SUFFIXES, image_size

logger = logging.getLogger(__name__)


class YoloEntry(Entry):
    """Either DATA, a ``data.yaml``, and SPLIT; or IMAGES and CLASSES.

    IMAGES is a folder, or a text file that lists images. LABELS is the folder of the text files;
    without it, they lie where ``images`` in an image's path is ``labels``, or else beside it. A
    image without a text file has no objects.
    """

    format = "yolo"
    optional = ("DATA", "SPLIT", "IMAGES", "LABELS")

    def check(self) -> None:
        where = f"DATASETS.REGISTER, data set '{self.name}'"
        if ("DATA" in self.keys) == ("IMAGES" in self.keys):
            raise InputError(f"{where}: FORMAT yolo needs either DATA and SPLIT, or IMAGES")
        if "DATA" in self.keys and not self.keys.get("SPLIT"):
            raise InputError(f"{where}: DATA needs SPLIT, such as train")

    def has_class_list(self) -> bool:
        return "DATA" in self.keys and self.path("DATA").is_file()

    def file_classes(self) -> Tuple[str, ...]:
        if "DATA" not in self.keys:
            raise InputError(
                f"data set '{self.name}': the files have numbers only; name the CLASSES in their "
                "order, or DATA, a data.yaml that has names"
            )
        return tuple(self._names().values())

    def _names(self) -> Dict[int, str]:
        """Numbers in the text files to class names: those of DATA, or else CLASSES from 0."""
        if "DATA" not in self.keys:
            return dict(enumerate(self.classes))
        names = self._data().get("names")
        where = f"data set '{self.name}': {self.path('DATA')}"
        if isinstance(names, list):
            names = dict(enumerate(names))
        if not names or not isinstance(names, dict):
            raise InputError(f"{where}: names is {names!r}; it is a list or a mapping of numbers")
        wrong = [key for key in names if not re.fullmatch(r"\d+", str(key))]
        if wrong:
            raise InputError(
                f"{where}: names has the key {wrong[0]!r}; keys are the numbers in the text files"
            )
        return {int(key): str(names[key]) for key in sorted(names, key=int)}

    def read(self, problems: Problems) -> List[Dict]:
        names = self._names()
        if list(names) != list(range(len(names))):
            logger.warning(
                f"Data set '{self.name}': names are of the numbers {', '.join(map(str, names))}, "
                f"not of 0 to {len(names) - 1}; the text files are read by these numbers"
            )
        ids = self.class_ids(problems)
        dicts = []
        for image in self._images():
            if not image.is_file():
                problems.add(MISSING_IMAGE, image, "no such image, though it is listed")
                continue
            size = image_size(image, problems)
            if size is None:
                continue
            dicts.append(
                {
                    "file_name": str(image),
                    "image_id": str(image),
                    "height": size[0],
                    "width": size[1],
                    "annotations": _annotations(self._label(image), names, size, ids, problems),
                }
            )
        return dicts

    def _data(self) -> Dict[str, Any]:
        path = self.path("DATA")
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"data set '{self.name}': {path}: {error.strerror}") from error
        except (ValueError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"data set '{self.name}': {path}: {reason}") from error
        if not isinstance(content, dict):
            raise InputError(f"data set '{self.name}': {path} is no mapping")
        return content

    def _sources(self) -> List[Path]:
        """Folders or lists of images."""
        if "IMAGES" in self.keys:
            return [self.path("IMAGES")]
        data, file = self._data(), self.path("DATA")
        sources = data.get(self.keys["SPLIT"])
        if not sources:
            raise InputError(f"data set '{self.name}': {file} has no '{self.keys['SPLIT']}'")
        root = file.parent / str(data.get("path") or "")
        root = root if root.is_dir() else file.parent
        sources = [sources] if isinstance(sources, str) else sources
        if not isinstance(sources, list) or not all(isinstance(s, str) for s in sources):
            raise InputError(f"data set '{self.name}': {file}: {self.keys['SPLIT']} is no path")
        # exports of labelling services say ../train for what lies beside the data.yaml
        return [p if (p := root / s).exists() else root / s.removeprefix("../") for s in sources]

    def _images(self) -> List[Path]:
        found = []
        for source in self._sources():
            if source.is_dir():
                found += sorted(p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES)
            elif source.is_file():
                lines = [line.strip() for line in source.read_text(encoding="utf-8").splitlines()]
                found += [source.parent / line for line in lines if line]
            else:
                raise InputError(f"data set '{self.name}': {source} does not exist")
        if not found:
            raise InputError(f"data set '{self.name}': no image in {self._sources()[0]}")
        return found

    def _label(self, image: Path) -> Path:
        if "LABELS" in self.keys:
            return self.path("LABELS") / f"{image.stem}.txt"
        parts = list(image.parts)
        if "images" in parts:
            parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
        return Path(*parts).with_suffix(".txt")


def _annotations(
    label: Path, names: Dict[int, str], size: Tuple[int, int], ids: ClassIds, problems: Problems
) -> List[Dict]:
    try:
        lines = label.read_text(encoding="utf-8").splitlines() if label.is_file() else []
    except (OSError, ValueError) as error:
        problems.add(BAD_ANNOTATION, label, f"cannot be read: {error}")
        return []
    rows = [(number, line.split()) for number, line in enumerate(lines, start=1) if line.strip()]
    found = [
        _annotation(label, number, words, names, size, ids, problems) for number, words in rows
    ]
    return [annotation for annotation in found if annotation is not None]


def _annotation(
    label: Path,
    number: int,
    words: List[str],
    names: Dict[int, str],
    size: Tuple[int, int],
    ids: ClassIds,
    problems: Problems,
) -> Optional[Dict]:
    """A line's object in Detectron2's format; of a polygon, its box. None when it is left out."""
    try:
        index, values = int(words[0]), [float(word) for word in words[1:]]
        if len(values) != 4 and (len(values) < 6 or len(values) % 2):
            raise ValueError
        name = names[index]
    except (ValueError, KeyError):
        known = f"below {len(names)}" if max(names) < len(names) else f"of {sorted(names)}"
        problems.add(
            BAD_ANNOTATION,
            label,
            f"line {number} is '{' '.join(words[:6])}', not a class {known} and x y w h",
        )
        return None
    class_id = ids.find(name, label)
    if class_id is None:
        return None
    height, width = size
    x0, y0, x1, y1 = _corners(values)
    box = [x0 * width, y0 * height, x1 * width, y1 * height]
    if kind := box_problem(*box):
        problems.add(kind, label, f"line {number} is '{' '.join(words[:6])}'")
        return None
    return {"category_id": class_id, "bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "iscrowd": 0}


def _corners(values: List[float]) -> Tuple[float, float, float, float]:
    """Centre and size, or a polygon's points, to XYXY."""
    if len(values) == 4:
        x, y, w, h = values
        return x - w / 2, y - h / 2, x + w / 2, y + h / 2
    return min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])
