"""Pictures of data sets, for calibration and comparison."""

from typing import Dict, List

import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.data.detection_utils import read_image

from ..data.datasets.register import classes_of, dataset_errors
from ..errors import InputError


def choose_records(name: str, count: int, flag: str) -> List[Dict]:
    """At most ``count`` dataset dicts, spread evenly over a data set.

    Args:
        flag: of the command line, for errors.

    Raises:
        InputError: the data set is unknown, missing or empty.
    """
    try:
        classes_of(name)
        with dataset_errors((name,)):
            records = DatasetCatalog.get(name)
    except InputError as error:
        raise InputError(f"{flag}: {error}") from error
    if not records:
        raise InputError(f"{flag}: data set '{name}' has no pictures")
    chosen = np.linspace(0, len(records) - 1, min(count, len(records))).round().astype(int)
    return [records[i] for i in chosen]


def read(record: Dict) -> np.ndarray:
    """A dataset dict's picture, uint8 (h, w, 3), BGR.

    Raises:
        InputError: it cannot be read.
    """
    path = record["file_name"]
    try:
        return np.ascontiguousarray(read_image(path, format="BGR"))
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises
        reason = str(error).splitlines()[0]
        raise InputError(f"picture {path} cannot be read: {reason}") from error
