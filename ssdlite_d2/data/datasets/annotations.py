"""What every loader of annotations does with boxes."""

import logging
import math
from typing import Dict, List

logger = logging.getLogger(__name__)


def has_area(x0: float, y0: float, x1: float, y1: float) -> bool:
    """Whether an XYXY box is finite and has a positive width and height."""
    return all(map(math.isfinite, (x0, y0, x1, y1))) and x1 > x0 and y1 > y0


def log_dropped(name: str, dropped: List[str]) -> None:
    """Say how many boxes without area a data set had, and where the first ones are."""
    if dropped:
        places = ", ".join(dropped[:5]) + (", ..." if len(dropped) > 5 else "")
        logger.warning(f"Data set '{name}': dropped {len(dropped)} boxes without area, in {places}")


def log_loaded(name: str, dicts: List[Dict]) -> None:
    """Say what a data set holds."""
    boxes = sum(len(d["annotations"]) for d in dicts)
    logger.info(f"Data set '{name}': {len(dicts)} pictures, {boxes} boxes")
