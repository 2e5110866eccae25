"""Memory between the iterations of a training run on the CPU."""

import ctypes
import os
import sys

from detectron2.config import CfgNode

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_freed_memory(cfg: CfgNode) -> bool:
    """Let the process keep the memory it frees, for its next tensors; on Linux CPU runs only.

    By default glibc hands large blocks back to the system at once, and every iteration has the
    system clear the same pages again. Settings in the environment (MALLOC_TRIM_THRESHOLD_ and the
    like) are left alone.

    Returns:
        bool: whether it is so from now on.
    """
    chosen = any(name.startswith("MALLOC_") for name in os.environ)
    if cfg.MODEL.DEVICE != "cpu" or sys.platform != "linux" or chosen:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 256 * 2**20}
    return all([mallopt(key, value) == 1 for key, value in settings.items()])
