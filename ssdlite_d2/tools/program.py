"""How the command-line tools log, and how they end on wrong input."""

import contextlib
import logging
import signal
import sys
from typing import Iterator

from detectron2.utils.logger import setup_logger

from ..errors import InputError


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """An InputError ends the program with its line and status 1, Ctrl-C with status 130."""
    try:
        yield
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("Interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


@contextlib.contextmanager
def program(level: int = logging.WARNING) -> Iterator[None]:
    """``one_line_errors``, with logging from a level on.

    What the terminal's encoding lacks, and names of files that are no text, are printed escaped.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
    for name in ("fvcore", "detectron2", "ssdlite_d2"):
        setup_logger(name=name).setLevel(level)
    with one_line_errors():
        yield
