"""COCO JSON files of any classes; the reading is Detectron2's."""

import json
from pathlib import Path
from typing import Dict, List, Tuple

from detectron2.data.datasets.coco import load_coco_json

from ...errors import InputError
from .annotations import has_area, log_dropped


def coco_classes(name: str, json_file: Path) -> Tuple[str, ...]:
    """Class names of a COCO JSON file by rising category id.

    Raises:
        InputError: the file is missing, no JSON, or not COCO's.
    """
    try:
        content = json.loads(json_file.read_text())
        categories = content["categories"]
        content["images"]
        return tuple(c["name"] for c in sorted(categories, key=lambda c: c["id"]))
    except OSError as error:
        raise InputError(f"data set '{name}': {json_file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"data set '{name}': {json_file} is no COCO file of objects "
            f"({type(error).__name__}: {error})"
        ) from error


def load_coco(name: str, json_file: Path, images: Path) -> List[Dict]:
    """A COCO JSON file in Detectron2's format, without boxes that have no area.

    Raises:
        InputError: see ``coco_classes``.
    """
    coco_classes(name, json_file)
    try:
        dicts = load_coco_json(str(json_file), str(images), name)
    except (KeyError, AssertionError, TypeError) as error:
        raise InputError(
            f"data set '{name}': {json_file}: {type(error).__name__}: {error}"
        ) from error
    dropped = []
    for record in dicts:
        kept = []
        for annotation in record["annotations"]:
            x, y, w, h = annotation["bbox"]
            if has_area(x, y, x + w, y + h):
                kept.append(annotation)
            else:
                dropped.append(record["file_name"])
        record["annotations"] = kept
    log_dropped(name, dropped)
    return dicts
