"""Ctrl-C while a program of the package still imports."""

import contextlib
import os
import signal
import sys
import threading
from typing import Iterator

PROGRAMS = ("-m", "ssdlite", "train_net.py")  # sys.argv[0] while they import; -m is Python's


def is_program() -> bool:
    """Whether one of the package's own programs runs."""
    return os.path.basename((sys.argv or [""])[0]) in PROGRAMS


@contextlib.contextmanager
def ended_without_traceback() -> Iterator[None]:
    """Ctrl-C ends the package's own programs at once, with a shell's status 130; others as ever."""
    is_main = threading.current_thread() is threading.main_thread()
    is_python = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not (is_program() and is_main and is_python):
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
