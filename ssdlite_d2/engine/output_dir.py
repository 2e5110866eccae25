"""The folder of a run: one run writes to it at a time, and its checkpoints are of one run."""

import errno
import itertools
import logging
import os
import re
from pathlib import Path
from typing import Callable, Dict

from detectron2.utils import comm

from ..checkpoint import numbered_checkpoints
from ..errors import InputError
from ..files import TEMPORARY

logger = logging.getLogger(__name__)

LOCK, MOVING = ".lock", ".before"
OTHERS = (
    "last_checkpoint",
    "model_best.pth",
    "best.json",
    "model_final.pth",
)  # besides the numbered ones
UNFINISHED = re.compile(rf"(model_\w+\.pth|last_checkpoint){TEMPORARY}")

_held: Dict[str, int] = {}  # process that holds the lock, by folder


def lock_folder(folder: str) -> None:
    """Make a run's folder this job's own until it ends, however it does; called in every process.

    What a run that was killed has left unfinished there is removed, or done to its end.

    Raises:
        InputError: another run writes there, or the folder cannot be made.
    """
    _in_main(lambda: _lock(folder), folder)


def set_aside(folder: str) -> Dict[str, str]:
    """Move the checkpoints of an earlier run into ``before-<n>``; called in every process.

    A run that starts anew would overwrite some of them and leave others, and when it is stopped
    early ``--resume`` would go on from the end of the earlier one.

    Returns:
        dict: where each file is now, by its real path before.
    """
    comm.synchronize()  # all processes have loaded what they start from
    return _in_main(lambda: _move(folder), folder)


def _in_main(act: Callable, folder: str):
    """What an action in the main process returns, in all of them; an error, too."""
    result, problem = None, ""
    if comm.is_main_process():
        try:
            result = act()
        except OSError as error:
            problem = f"OUTPUT_DIR {folder}: {error.strerror}"
        except InputError as error:
            problem = str(error)
    result, problem = comm.all_gather((result, problem))[0]
    if problem:
        raise InputError(problem)
    return result


def _lock(folder: str) -> None:
    import fcntl  # not on Windows

    os.makedirs(folder, exist_ok=True)
    if _held.get(os.path.realpath(folder)) == os.getpid():
        return
    # Stays open: closing gives the lock back. Unlike flock's it is not the loader workers' too,
    # which outlive a killed run by some seconds.
    file = os.open(os.path.join(folder, LOCK), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(file)
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise InputError(
                f"OUTPUT_DIR {folder}: another training writes there; give this one its own folder"
            ) from error
        logger.warning(f"OUTPUT_DIR {folder} cannot be locked: {error.strerror}")
        return
    _held[os.path.realpath(folder)] = os.getpid()
    if os.path.isdir(os.path.join(folder, MOVING)):
        _move(folder)
    for path in Path(folder).iterdir():
        if UNFINISHED.fullmatch(path.name):
            path.unlink()


def _move(folder: str) -> Dict[str, str]:
    files = [Path(folder, name) for name in OTHERS] + numbered_checkpoints(folder)
    files = [file for file in files if file.is_file()]
    moving = Path(folder, MOVING)  # while it is there, all of the files are to go there
    if not files and not moving.is_dir():
        return {}
    places = (Path(folder, f"before-{n}") for n in itertools.count(1))
    place = next(place for place in places if not os.path.lexists(place))
    moved = {os.path.realpath(file): str(place / file.name) for file in files}
    moving.mkdir(exist_ok=True)
    for file in files:
        file.rename(moving / file.name)
    moving.rename(place)
    logger.warning(
        f"OUTPUT_DIR {folder} had checkpoints of an earlier run, which this one does not resume: "
        f"they are in {place} now"
    )
    return moved
