"""Everything that can be wrong with the images and boxes of a config's data sets."""

import hashlib
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Callable, Dict, Iterable, List, NamedTuple, Optional, Tuple

import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode
from PIL import Image

from ..data.datasets import dataset_errors, entry_of
from ..data.datasets.annotations import (
    BAD_ANNOTATION,
    MISSING_IMAGE,
    NO_AREA,
    NOT_FINITE,
    ODD_ID,
    UNKNOWN_CLASS,
    UNREADABLE,
    Problem,
    Problems,
    box_problem,
)
from ..data.datasets.image_files import EXIF_ORIENTATION
from ..data.reader import read_image
from ..errors import InputError, first_line
from ..files import read_regular
from .likeness import alike, likeness

TRUNCATED = "truncated"
WRONG_SIZE = "wrong-size"
OUTSIDE = "outside"
DUPLICATE_BOX = "duplicate-box"
DUPLICATE_IMAGE = "duplicate-image"
NEAR_DUPLICATE = "near-duplicate"
ROTATED = "rotated"

KINDS = {
    UNREADABLE: "the image cannot be decoded",
    TRUNCATED: "the image's file ends too early",
    MISSING_IMAGE: "there is no such file",
    WRONG_SIZE: "the image has another size than the annotation says",
    ROTATED: "the image's EXIF data turns it: other programs may show it otherwise",
    DUPLICATE_IMAGE: "the same file, in this set or in another",
    NEAR_DUPLICATE: "an image that looks like one of another set",
    BAD_ANNOTATION: "an annotation that cannot be read",
    ODD_ID: "annotation ids that make other programs' COCO evaluation wrong",
    UNKNOWN_CLASS: "a class that the data set does not have",
    NO_AREA: "a box without width or height, or inverted",
    NOT_FINITE: "a box with a number that is none",
    OUTSIDE: "a box that reaches beyond the image by more than a pixel",
    DUPLICATE_BOX: "the same box and class twice",
}


class ImageFacts(NamedTuple):
    """What reading an image tells."""

    digest: str  # of the file; empty when there is none
    size: Optional[Tuple[int, int]]  # (height, width) as EXIF wants it seen
    rotated: bool
    problem: Optional[Tuple[str, str]]  # kind and reason
    likeness: bytes = b""  # perceptual hash; empty when it cannot be read


def load_records(name: str) -> Tuple[List[Dict], List[Problem]]:
    """The dataset dicts of a registered set, and what its loader found wrong."""
    problems = Problems(name, strict=False)
    entry = entry_of(name)
    try:
        if entry is not None:
            return entry.load(problems), problems.found
        with dataset_errors((name,)):
            return DatasetCatalog.get(name), []
    except InputError as error:
        return [], [*problems.found, Problem(BAD_ANNOTATION, name, str(error))]
    except (KeyError, ValueError, AssertionError) as error:  # Detectron2's loaders
        return [], [Problem(BAD_ANNOTATION, name, f"{type(error).__name__}: {error}")]


def boxes_of(record: Dict) -> np.ndarray:
    """(M, 4) XYXY of a dataset dict."""
    boxes = [
        BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in record["annotations"]
    ]
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def check_boxes(record: Dict) -> List[Problem]:
    """What is wrong with the boxes of a dataset dict."""
    path, (height, width) = record["file_name"], (record["height"], record["width"])
    found, seen = [], set()
    for annotation, box in zip(record["annotations"], boxes_of(record).tolist()):
        shown = ", ".join(f"{n:g}" for n in box)
        kind = box_problem(*box)
        key = (annotation["category_id"], *box)
        if kind is None and (min(box[:2]) < -1 or box[2] > width + 1 or box[3] > height + 1):
            kind = OUTSIDE
        elif kind is None and key in seen:
            kind = DUPLICATE_BOX
        seen.add(key)
        if kind:
            found.append(Problem(kind, path, f"box {shown} in an image of {width} x {height}"))
    return found


def read_facts(path: str, read: Callable[..., np.ndarray] = read_image) -> ImageFacts:
    """Decode an image.

    Args:
        read: as ``read_image``.
    """
    try:
        digest = hashlib.sha256(read_regular(path)).hexdigest()
    except (OSError, ValueError) as error:  # the latter of names that no file can have
        reason = getattr(error, "strerror", None) or str(error)
        return ImageFacts("", None, False, (MISSING_IMAGE, reason))
    try:
        pixels = read(path)
    except InputError as error:
        reason = str(error).split("cannot be read: ")[-1]
        kind = TRUNCATED if "truncated" in reason else UNREADABLE
        return ImageFacts(digest, None, False, (kind, reason))
    size, look = pixels.shape[:2], likeness(pixels)
    try:
        with Image.open(path) as image:
            rotated = image.getexif().get(EXIF_ORIENTATION, 1) != 1
    except Exception as error:  # Pillow raises nearly every kind
        problem = UNREADABLE, f"EXIF data: {first_line(error)}"
        return ImageFacts(digest, size, False, problem, look)
    return ImageFacts(digest, size, rotated, None, look)


def check_images(
    records: Dict[str, List[Dict]], facts: Iterable[ImageFacts]
) -> Dict[str, List[Problem]]:
    """What is wrong with the images of several sets.

    Args:
        records: dataset dicts by the name of their set.
        facts: of all records, set by set.
    """
    found, first = defaultdict(list), {}
    facts, seen = iter(facts), {}  # what was seen: (likeness, path, set) by digest
    for name, dicts in records.items():
        here = {}
        for record in dicts:
            path, fact = record["file_name"], next(facts)
            if fact.problem:
                found[name].append(Problem(fact.problem[0], path, fact.problem[1]))
            annotated = record["height"], record["width"]
            if fact.size and fact.size != annotated:
                sizes = (
                    f"{fact.size[1]} x {fact.size[0]}, annotated {annotated[1]} x {annotated[0]}"
                )
                found[name].append(Problem(WRONG_SIZE, path, sizes))
            if fact.rotated:
                found[name].append(Problem(ROTATED, path, "EXIF turns or mirrors it"))
            if fact.digest in first:
                other, place = first[fact.digest]
                where = "" if place == name else f" of '{place}'"
                found[name].append(Problem(DUPLICATE_IMAGE, path, f"same as {other}{where}"))
            elif fact.digest:
                first[fact.digest] = path, name
                if fact.likeness:
                    here[fact.digest] = fact.likeness, path, name
        others, own = list(seen.values()), list(here.values())
        for i, j in alike([look for look, *_ in own], [look for look, *_ in others]):
            _, other, place = others[j]
            found[name].append(Problem(NEAR_DUPLICATE, own[i][1], f"like {other} of '{place}'"))
        seen.update(here)
    return found


def read_all_facts(
    paths: List[str], workers: int, read: Callable[..., np.ndarray] = read_image
) -> Iterable[ImageFacts]:
    """``read_facts`` of every path, in order, by some processes."""
    facts = partial(read_facts, read=read)
    if workers <= 1:
        yield from map(facts, paths)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(facts, paths, chunksize=16)
