"""How the command-line tools log, and how they end on wrong input."""

import argparse
import contextlib
import logging
import os
import re
import signal
import sys
from typing import Iterator, List, Tuple

from detectron2.utils.logger import setup_logger

from ..errors import InputError

# A config key on the command line, perhaps with what should be its value.
KEY = re.compile(
    r"((MODEL|INPUT|DATASETS|DATALOADER|SOLVER|TEST|GLOBAL)\.[A-Z0-9_.]+|OUTPUT_DIR|SEED|VIS_PERIOD"
    r"|CUDNN_BENCHMARK|FLOAT32_PRECISION|VERSION)(=.*)?"
)


def split_options(words: List[str]) -> Tuple[List[str], List[str]]:
    """Words of a command line before the first config key, or ``--opts``, and from it on."""
    for at, word in enumerate(words):
        if word == "--opts":
            return words[:at], words[at + 1 :]
        if KEY.fullmatch(word) and not os.path.exists(word):
            return words[:at], words[at:]
    return words, []


def parse_args(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Arguments that end with ``--opts KEY VALUE ...``, where ``--opts`` may be left out."""
    flags, pairs = split_options(sys.argv[1:])
    return parser.parse_args([*flags, "--opts", *pairs] if pairs else flags)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """An InputError ends the program with its line and status 1, Ctrl-C with status 130.

    Where nobody reads on, as behind ``| head``, it ends without a word, as other programs do.
    """
    try:
        yield
        sys.stdout.flush()
    except InputError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # flushed once more at exit
        sys.exit(128 + signal.SIGPIPE)
    except KeyboardInterrupt:
        print("Interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


@contextlib.contextmanager
def program(level: int = logging.WARNING) -> Iterator[None]:
    """``one_line_errors``, with the package's logging from a level on, and its libraries' warnings.

    What the terminal's encoding lacks, and names of files that are no text, are printed escaped.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
    for name in ("fvcore", "detectron2", "ssdlite_d2"):
        least = level if name == "ssdlite_d2" else logging.WARNING
        setup_logger(name=name).setLevel(max(level, least))
    with one_line_errors():
        yield
