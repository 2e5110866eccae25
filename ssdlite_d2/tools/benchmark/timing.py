"""Timing by turns: a machine's speed drifts, so what is compared runs side by side."""

import json
import os
import platform
import time
from typing import Callable, Dict, List, Optional

import cv2
import numpy as np
import torch
from tabulate import tabulate

from ...errors import InputError


def alternate(
    sides: Dict[str, Callable[[], object]], rounds: int, warmup: int = 1, calls: int = 1
) -> Dict[str, np.ndarray]:
    """Call every side once per round, in turn.

    Args:
        warmup: rounds before those that count.
        calls: counted calls of a side per round. With more than one, another call goes before
            them: it finds caches and still spinning threads of the side before.

    Returns:
        dict: seconds of every counted call, (rounds * calls,) per side.
    """
    seconds: Dict[str, List[float]] = {name: [] for name in sides}
    for _ in range(warmup + rounds):
        for name, call in sides.items():
            if calls > 1:
                call()
            for _ in range(calls):
                start = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - start)
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
