"""A runtime of the benchmark in a process of its own: models in one process slow each other.

The process is this file, run as a program. It imports nothing of the package, so that a bundle's
process has what a device has, unless the function that makes its rows does.
"""

import importlib
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path


class Row:
    """One measured thing.

    Attributes:
        name: in the table.
        call: one measured call.
        detect: BGR images to their detections; None for what is measured for its time only.
        size: of the model, MB.
    """

    def __init__(self, name, call, detect=None, size=None):
        self.name, self.call, self.detect, self.size = name, call, detect, size


def time_calls(call, calls=1):
    """Seconds of every call.

    With more than one, another call goes before them: it finds caches and still spinning threads
    of what ran before.
    """
    seconds = []
    if calls > 1:
        call()
    for _ in range(calls):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


class Worker:
    """The parent's side: starts the process; ``open`` waits until its rows are there.

    It is a context manager, whose end is the end of the process.
    """

    def __init__(self, name, function, *args):
        """
        Args:
            name: for errors.
            function: ``"module:name"`` of what makes the list of rows; "" is this file's.
            args: for it.
        """
        self.name = name
        root = str(Path(__file__).resolve().parents[3])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        pickle.dump((function, args), self.process.stdin)
        self.process.stdin.flush()

    def open(self):
        """
        Returns:
            list of (name, whether it detects, MB) of the rows.

        Raises:
            RuntimeError: there are none, with the reason in a line.
        """
        return self._answer()

    def ask(self, row, order, *args):
        """What a row answers to an order: see ``serve``."""
        pickle.dump((row, order, args), self.process.stdin)
        self.process.stdin.flush()
        return self._answer()

    def _answer(self):
        try:
            good, answer = pickle.load(self.process.stdout)
        except EOFError:
            raise RuntimeError(f"its process ended with status {self.process.wait()}") from None
        if not good:
            raise RuntimeError(answer)
        return answer

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def bundle_rows(folder, precision, image, candidates):
    """A bundle's rows: the model alone, the whole way and, for ONNX, with many candidates.

    Args:
        precision: of the arithmetic; None is the bundle's usual.
        candidates: of the worst case.
    """
    sys.path.insert(0, folder)
    detector = importlib.import_module("detector").Detector(folder, precision=precision)
    spec = detector.spec
    inputs = detector.prepare([image])
    name = f"{spec['format']} {precision or spec['precision']}"
    rows = [
        Row(f"{name}, model alone", lambda: detector.run(inputs)),
        Row(name, lambda: detector([image]), detector, spec["bytes"] / 1e6),
    ]
    if name == "onnx fp32" and spec["layout"] == "anchors":
        threshold = threshold_of(detector.run(inputs)[1], candidates)
        worst = f"{name}, {candidates:,} candidates"
        rows.append(Row(worst, lambda: detector([image], threshold)))
    return rows


def threshold_of(scores, candidates):
    """What so many scores lie above, or nearly all when there are fewer."""
    count = min(candidates, scores.size - 1)
    values = scores.ravel().copy()
    values.partition(len(values) - count - 1)
    return float(values[-count - 1])


def serve(row, order, args):
    """A row's answer to an order.

    ``time``, calls: seconds of each. ``batch``, images, calls: the same for images at once.
    ``detect``, images: their detections. ``memory``, image: peak memory of the process in MB, when
    the row has run; None where the system does not tell.
    """
    if order == "time":
        return time_calls(row.call, *args)
    if order == "batch":
        return time_calls(lambda: row.detect(args[0]), *args[1:])
    if order == "detect":
        return row.detect(*args)
    for _ in range(3):
        row.detect(list(args))
    try:
        with open("/proc/self/status") as status:
            return next(int(x.split()[1]) / 1024 for x in status if x.startswith("VmHWM"))
    except (OSError, StopIteration):
        return None


def main():
    """Answer on the pipes until they are closed."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    sys.path.pop(0)  # this file's folder

    def answer(function, *args):
        try:
            value = True, function(*args)
        except Exception as error:  # whatever a runtime raises
            value = False, (str(error).strip() or type(error).__name__).splitlines()[0]
        pickle.dump(value, answers)
        answers.flush()

    rows = {}

    def start(function, args):
        module, _, name = function.rpartition(":")
        make = getattr(importlib.import_module(module), name) if module else bundle_rows
        rows.update({row.name: row for row in make(*args)})
        return [(row.name, row.detect is not None, row.size) for row in rows.values()]

    answer(start, *pickle.load(sys.stdin.buffer))
    while True:
        try:
            name, order, args = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        answer(serve, rows[name], order, args)


if __name__ == "__main__":
    main()
