"""Reading and writing of files."""

import contextlib
import errno
import os
import secrets
import stat
from typing import Any, BinaryIO, Callable

from .errors import InputError, first_line

TEMPORARY = r"\.[0-9a-f]{16}\.tmp"  # what is added to a file's name while it is written


def open_regular(path: str) -> BinaryIO:
    """A regular file to read.

    Raises:
        OSError: there is none. A pipe or a device counts as none: reading it may never end.
    """
    file = open(path, "rb", opener=_without_waiting)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return file


def read_regular(path: str) -> bytes:
    """Content of a regular file; errors as ``open_regular`` has them."""
    with open_regular(path) as file:
        return file.read()


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe would wait for its writer


def write_atomically(file: str, write: Callable[[BinaryIO], Any]) -> None:
    """Let ``write`` fill a file beside the named one, and rename it when it is on the disk.

    The other file has a new random name, so that two programs do not write the same one, and no
    link of that name is followed.

    Raises:
        InputError: it cannot be written; the file of that name, if any, is as it was.
    """
    temporary = f"{file}.{secrets.token_hex(8)}.tmp"  # as TEMPORARY says
    try:
        if os.path.exists(file) and not os.path.isfile(file):
            raise OSError(errno.EINVAL, "not a regular file", file)
        with open(temporary, "xb") as out:
            write(out)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, file)
    except (OSError, RuntimeError) as error:  # the latter is what torch.save makes of the former
        raise InputError(
            f"{file} cannot be written: {_reason(error)}; the files written before are intact"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            os.remove(temporary)


def _reason(error: BaseException) -> str:
    """What the system said, below an error that does not repeat it."""
    while error.__context__ is not None and not isinstance(error, OSError):
        error = error.__context__
    return first_line(error)
