"""Images of data sets, for calibration and comparison."""

from typing import Dict, List, Optional

import numpy as np
from detectron2.data import DatasetCatalog

from ..data.datasets.register import classes_of, dataset_errors
from ..errors import InputError

FEW, SAMPLE = 200, 50  # images of a data set that is taken whole, and of a larger one


def choose_records(name: str, count: Optional[int], flag: str) -> List[Dict]:
    """At most ``count`` dataset dicts, spread evenly over a data set.

    Args:
        count: None: all, or SAMPLE of more than FEW.
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
        raise InputError(f"{flag}: data set '{name}' has no images")
    if count is None:
        count = len(records) if len(records) <= FEW else SAMPLE
    chosen = np.linspace(0, len(records) - 1, min(count, len(records))).round().astype(int)
    return [records[i] for i in chosen]
