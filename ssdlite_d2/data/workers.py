"""Worker processes of data loaders: the signals they hear, and the shared memory they take."""

import ctypes
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from functools import partial
from multiprocessing.util import Finalize
from typing import Callable, Optional, Tuple

from detectron2.utils import comm
from torch.utils.data import DataLoader

logger = logging.getLogger(__name__)

SHARED_MEMORY = "/dev/shm"
PR_SET_PDEATHSIG = 1


class SturdyLoader(DataLoader):
    """A loader whose workers do not hear SIGTERM and SIGINT, which go to whole groups of processes.

    The process that the workers load for hears them, and decides how long it needs data. The
    workers end with it, even when it is killed.
    """

    def __iter__(self):
        # The workers inherit the mask, those that are started by spawn before their long imports.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        try:
            iterator = super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for worker in getattr(iterator, "_workers", ()):
            worker.terminate = worker.kill  # for what does not end when it is told to
        return iterator


def outlive_signals(loader: DataLoader) -> DataLoader:
    """Make a loader a SturdyLoader, in place, and return it."""
    loader.worker_init_fn = partial(_die_with_parent, loader.worker_init_fn)
    loader.__class__ = SturdyLoader
    Finalize(None, _end_workers, exitpriority=0)  # multiprocessing would wait after a SIGTERM
    return loader


def _die_with_parent(then: Optional[Callable[[int], None]], worker_id: int) -> None:
    if sys.platform == "linux":  # a worker that waits for room in a pipe would outlive a kill -9
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if then is not None:
        then(worker_id)


def _end_workers() -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler raises an error
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def check_shared_memory(workers: int, batch_size: int, size: Tuple[int, int]) -> None:
    """Warn when the batches that workers hold ready do not fit into shared memory.

    Args:
        workers: of each process, with two batches each.
        batch_size: images of a process.
        size: (height, width) of the largest images in pixels.
    """
    if not workers or not os.path.isdir(SHARED_MEMORY):
        return
    batches = (2 * workers + 1) * comm.get_local_size()
    need = batches * batch_size * size[0] * size[1] * 3
    free = shutil.disk_usage(SHARED_MEMORY).free
    if need > free:
        logger.warning(
            f"{SHARED_MEMORY} has {free / 2**20:.0f} MiB free, but DATALOADER.NUM_WORKERS "
            f"{workers} may need {need / 2**20:.0f}: batches that do not fit go through pipes, "
            "which is slower. Give the container more (docker run --shm-size), or lower "
            "DATALOADER.NUM_WORKERS or SOLVER.IMS_PER_BATCH"
        )
