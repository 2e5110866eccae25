"""COCO JSON files of any classes.

Unlike Detectron2's loader, this one keeps boxes only (no masks: a tenth of the memory), takes ids
by class name, and can report every problem instead of ending at the first.
"""

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from detectron2.structures import BoxMode

from ...errors import InputError
from ...files import read_regular
from .annotations import BAD_ANNOTATION, ODD_ID, ClassIds, Problems, box_problem
from .entry import Entry

LARGEST = 2**16  # side of an image, pixels
FEWEST = 5  # boxes from which their meaning is judged
SHOWN = 100  # characters of a wrong part of the file


class CocoEntry(Entry):
    """JSON: the annotation file; IMAGES: the folder of its images."""

    format = "coco"
    required = ("JSON", "IMAGES")

    def has_class_list(self) -> bool:
        return self.path("JSON").is_file()  # CLASSES are enough to run a trained model

    def file_classes(self) -> Tuple[str, ...]:
        return tuple(c["name"] for c in self._categories(self._content()))

    def metadata(self) -> Dict[str, Any]:
        """The file's class ids, when its classes are all of the data set's."""
        folder = {"image_root": str(self.path("IMAGES"))}
        if not self.path("JSON").is_file():
            return folder
        categories = self._categories(self._content())
        if self.classes and tuple(c["name"] for c in categories) != self.classes:
            return folder
        ids = {c["id"]: i for i, c in enumerate(categories)}
        return {**folder, "thing_dataset_id_to_contiguous_id": ids}

    def read(self, problems: Problems) -> List[Dict]:
        content = self._content()
        names = {c["id"]: c["name"] for c in self._categories(content)}
        ids = self.class_ids(problems)
        json_file = self.path("JSON")
        by_image = defaultdict(list)
        for annotation in content.get("annotations", []):
            by_image[annotation.get("image_id")].append(annotation)
        if reason := _odd_ids(content.get("annotations", [])):
            problems.add(ODD_ID, json_file, reason)
        dicts = []
        for image in content["images"]:
            keys = ("id", "file_name", "height", "width")
            if missing := {key for key in keys if image.get(key) is None}:
                problems.add(
                    BAD_ANNOTATION,
                    json_file,
                    f"an image has no {', '.join(sorted(missing))}: {str(image)[:SHOWN]}",
                )
                continue
            if reason := _image_problem(image):
                problems.add(BAD_ANNOTATION, json_file, f"{reason}: {str(image)[:SHOWN]}")
                continue
            path = self.path("IMAGES") / image["file_name"]
            objects = [
                _annotation(a, names, ids, json_file, path, problems)
                for a in by_image.pop(image["id"], [])
            ]
            dicts.append(
                {
                    "file_name": str(path),
                    "image_id": image["id"],
                    "height": image["height"],
                    "width": image["width"],
                    "annotations": [a for a in objects if a is not None],
                }
            )
        if reason := _corners_given(dicts):
            problems.add(BAD_ANNOTATION, json_file, reason)
        for image_id, annotations in by_image.items():
            problems.add(
                BAD_ANNOTATION,
                json_file,
                f"{len(annotations)} annotations are of image_id {image_id}, which no image has",
            )
        return dicts

    def _content(self) -> Dict[str, Any]:
        return _read_json(self.name, str(self.path("JSON")))

    def _categories(self, content: Dict[str, Any]) -> List[Dict[str, Any]]:
        return sorted(content["categories"], key=lambda c: c["id"])


def _read_json(name: str, path: str) -> Dict[str, Any]:
    """A COCO file's content.

    Raises:
        InputError: the file is missing, no JSON, or not COCO's.
    """
    try:
        content = json.loads(read_regular(path))
        for category in content["categories"]:
            if not isinstance(category["name"], str):
                raise TypeError(f"the name of a category is {category['name']!r}")
            if not isinstance(category["id"], int):
                raise TypeError(f"the id of a category is {category['id']!r}")
        for key in ("images", "categories"):
            ids = Counter(thing["id"] for thing in content[key] if "id" in thing)
            if ids and ids.most_common(1)[0][1] > 1:
                raise ValueError(f"{key} share the id {ids.most_common(1)[0][0]!r}")
        if not all(isinstance(image, dict) for image in content["images"]):
            raise TypeError("an image is no mapping")
        if not all(isinstance(a, dict) for a in content.get("annotations", [])):
            raise TypeError("an annotation is no mapping")
        for a in content.get("annotations", []):
            hash((a.get("image_id"), a.get("category_id")))
        return content
    except OSError as error:
        raise InputError(
            f"data set '{name}': {path}: {error.strerror} (ROOT is relative to the environment "
            "variable DETECTRON2_DATASETS, JSON to ROOT)"
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"data set '{name}': {path} is no COCO file of objects "
            f"({type(error).__name__}: {error})"
        ) from error


def _image_problem(image: Dict[str, Any]) -> Optional[str]:
    """What is wrong with the values of an image, if anything."""
    if not isinstance(image["id"], (int, str)):
        return "an image's id is no number or text"
    if not isinstance(image["file_name"], str) or "\0" in image["file_name"]:
        return "an image's file_name is no name of a file"
    sides = image["width"], image["height"]
    if not all(isinstance(side, int) and 0 < side <= LARGEST for side in sides):
        return f"an image's width and height are no numbers of pixels (1 to {LARGEST})"
    return None


def _corners_given(records: List[Dict[str, Any]]) -> str:
    """In words, that boxes are [x0, y0, x1, y1]; "" when they are COCO's [x, y, width, height].

    As corners all of them are in order and inside their images, and as sizes most reach beyond.
    """
    rows = [
        (*a["bbox"], r["width"] + 1, r["height"] + 1) for r in records for a in r["annotations"]
    ]
    beyond = sum(x + w > right or y + h > bottom for x, y, w, h, right, bottom in rows)
    corners = all(x < w <= right and y < h <= bottom for x, y, w, h, right, bottom in rows)
    if len(rows) < FEWEST or not corners or 2 * beyond < len(rows):
        return ""
    return (
        f"{beyond} of {len(rows)} boxes reach beyond their images, and all fit as [x0, y0, x1, "
        "y1]: COCO's bbox is [x, y, width, height]"
    )


def _odd_ids(annotations: List[Dict[str, Any]]) -> str:
    """In words, what is wrong with annotations' ids; "" when they are unique and not 0."""
    ids = Counter(str(a.get("id")) for a in annotations)
    absent, shared = ids.pop("None", 0), sum(n - 1 for n in ids.values())
    found = [f"{absent} annotations have no id"] if absent else []
    found += [f"{shared} have the id of another one"] if shared else []
    found += ["0 is an id, which COCO's evaluation takes for no match"] if "0" in ids else []
    return "; ".join(found)


def _annotation(
    annotation: Dict[str, Any],
    names: Dict[int, str],
    ids: ClassIds,
    json_file: Path,
    image: Path,
    problems: Problems,
) -> Optional[Dict]:
    """An object in Detectron2's format; None when it is left out."""
    which = f"annotation {annotation.get('id')} of {image.name}"
    category = annotation.get("category_id")
    if category not in names:
        problems.add(
            BAD_ANNOTATION, json_file, f"{which} has category_id {category}, which no category has"
        )
        return None
    try:
        x, y, width, height = map(float, annotation["bbox"])
    except (KeyError, TypeError, ValueError):
        problems.add(BAD_ANNOTATION, json_file, f"{which} has bbox {annotation.get('bbox')}")
        return None
    class_id = ids.find(names[category], json_file)
    if class_id is None:
        return None
    if kind := box_problem(x, y, x + width, y + height):
        problems.add(kind, image, f"{which} has bbox {annotation['bbox']}")
        return None
    area = annotation.get("area")  # of the mask, by which the evaluation calls objects small
    return {
        "category_id": class_id,
        "bbox": [x, y, width, height],
        "bbox_mode": BoxMode.XYWH_ABS,
        "area": float(area) if isinstance(area, (int, float)) else width * height,
        "iscrowd": int(annotation.get("iscrowd") in (1, "1")),
    }
