"""What every loader of annotations has in common."""

import logging
import math
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence, Union

from detectron2.utils.logger import log_first_n

from ...errors import InputError

logger = logging.getLogger(__name__)

# Kinds of problems; those of boxes are survived by dropping the box, odd ids by not using them.
BAD_ANNOTATION = "bad-annotation"
MISSING_IMAGE = "missing-image"
UNREADABLE = "unreadable"
UNKNOWN_CLASS = "unknown-class"
NO_AREA = "no-area"
NOT_FINITE = "not-finite"
ODD_ID = "odd-id"
BOX_KINDS = (NO_AREA, NOT_FINITE)
SURVIVED = (*BOX_KINDS, ODD_ID)


class Problem(NamedTuple):
    """Something wrong in a data set."""

    kind: str
    file: str
    reason: str


class Problems:
    """What a loader finds wrong.

    When strict, the first problem that is not one of ``SURVIVED`` is raised as an InputError;
    otherwise all are collected in ``found``, and the loader leaves out what they spoil.
    """

    def __init__(self, name: str, strict: bool = True):
        """
        Args:
            name: of the data set.
        """
        self.name = name
        self.strict = strict
        self.found: List[Problem] = []

    def add(self, kind: str, file: Union[str, Path], reason: str) -> None:
        """
        Raises:
            InputError: see the class.
        """
        if self.strict and kind not in SURVIVED:
            raise InputError(f"data set '{self.name}': {file}: {reason}")
        self.found.append(Problem(kind, str(file), reason))

    def log_dropped(self) -> None:
        """Say how many boxes were dropped, and where the first ones are."""
        dropped = [Path(p.file).name for p in self.found if p.kind in BOX_KINDS]
        if dropped:
            places = ", ".join(dropped[:5]) + (", ..." if len(dropped) > 5 else "")
            text = f"Data set '{self.name}': dropped {len(dropped)} boxes without area, in {places}"
            log_first_n(logging.WARNING, text, key="message")  # every evaluation reads it again


class ClassIds:
    """Class names of a file to the ids of the data set."""

    def __init__(self, classes: Sequence[str], other: str, problems: Problems):
        """
        Args:
            classes: names by id.
            other: "error" or "drop", for objects of classes that are not in ``classes``.
        """
        self.ids = {name: i for i, name in enumerate(classes)}
        self.other = other
        self.problems = problems

    def find(self, name: str, file: Union[str, Path]) -> Optional[int]:
        """The id of a name; None for an object that is left out."""
        if name not in self.ids and self.other == "error":
            self.problems.add(
                UNKNOWN_CLASS,
                file,
                f"class '{name}' is not in CLASSES {list(self.ids)} (OTHER_CLASSES: drop leaves "
                "such objects out)",
            )
        return self.ids.get(name)


def box_problem(x0: float, y0: float, x1: float, y1: float) -> Optional[str]:
    """The kind of problem of an XYXY box, if any."""
    if not all(map(math.isfinite, (x0, y0, x1, y1))):
        return NOT_FINITE
    return None if x1 > x0 and y1 > y0 else NO_AREA


def log_loaded(name: str, dicts: List[Dict]) -> None:
    """Say what a data set holds."""
    boxes = sum(len(d["annotations"]) for d in dicts)
    logger.info(f"Data set '{name}': {len(dicts)} images, {boxes} boxes")
