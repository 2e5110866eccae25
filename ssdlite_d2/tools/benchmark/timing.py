"""Timing by turns: a machine's speed drifts, so what is compared runs side by side."""

import json
import os
import platform
from typing import Callable, Dict, List, Optional

import cv2
import numpy as np
import torch
from tabulate import tabulate

from ...errors import InputError
from .worker import time_calls


def alternate(
    sides: Dict[str, object],
    rounds: int,
    warmup: int = 1,
    calls: int = 1,
    turn: Callable[[object, int], List[float]] = time_calls,
) -> Dict[str, np.ndarray]:
    """Call every side once per round, in turn.

    Args:
        sides: functions, or what ``turn`` takes.
        warmup: rounds before those that count.
        calls: counted calls of a side per round.
        turn: of a side and the number of calls: the seconds of each.

    Returns:
        dict: seconds of every counted call, (rounds * calls,) per side.
    """
    seconds: Dict[str, List[float]] = {name: [] for name in sides}
    for _ in range(warmup + rounds):
        for name, side in sides.items():
            seconds[name] += turn(side, calls)
    return {name: np.array(values[warmup * calls :]) for name, values in seconds.items()}


def machine() -> Dict[str, object]:
    """What a figure depends on besides the code."""
    return {
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "opencv": cv2.__version__,
        "threads": torch.get_num_threads(),
    }


def report(title: str, rows: List[Dict], file: Optional[str] = None) -> None:
    """Print rows as a table and, if wanted, write them as JSON beside the machine's data.

    Raises:
        InputError: the file cannot be written.
    """
    print(f"\n{title}\n{tabulate(rows, headers='keys', floatfmt='.2f')}")
    if file:
        content = {"title": title, "machine": machine(), "rows": rows}
        try:
            with open(file, "w") as out:
                json.dump(content, out, indent=1, default=float)
        except OSError as error:
            raise InputError(f"--json: {file}: {error.strerror}") from error
