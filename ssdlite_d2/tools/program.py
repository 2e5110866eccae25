"""How the command-line tools log, and how they end on wrong input."""

import contextlib
import logging
import sys
from typing import Iterator

from detectron2.utils.logger import setup_logger

from ..errors import InputError


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """An InputError ends the program with its one line and exit status 1."""
    try:
        yield
    except InputError as error:
        sys.exit(f"error: {error}")


@contextlib.contextmanager
def program(level: int = logging.WARNING) -> Iterator[None]:
    """``one_line_errors``, with logging from a level on."""
    for name in ("fvcore", "detectron2", "ssdlite_d2"):
        setup_logger(name=name).setLevel(level)
    with one_line_errors():
        yield
