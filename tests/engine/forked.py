"""Runs train_net.py several times in forked processes, which are hurt in the ways a test asks for.

The imports, most of a short run, are made once. Arguments: a JSON list of runs (see ``Run``) or
lists of runs at the same time; prints a JSON list of their exit codes (negative: the signal) and
outputs.
"""

import glob
import json
import os
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, List, NamedTuple

from detectron2.engine import default_argument_parser

import train_net
from ssdlite_d2.engine import run_main


class Run(NamedTuple):
    args: List[str]
    send: int = 0  # signal
    to: str = "run"  # "run"; "worker", one of its loader's processes; "group", all of them
    when: str = ""  # a file of this pattern exists
    delay: float = 0.0  # seconds after that
    before: str = ""  # Python code run first
    file_limit: int = 0  # largest file that may be written, bytes
    env: Dict[str, str] = {}


def child(run: Run, output) -> None:
    os.setpgid(0, 0)
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    if run.file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (run.file_limit, run.file_limit))
    os.environ.update(run.env)
    code = 0
    try:
        exec(run.before, {})
        run_main(train_net.main, default_argument_parser().parse_args(run.args))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1 if end.code else 0
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 2
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def hurt(run: Run, pid: int) -> None:
    while not glob.glob(run.when):
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return  # over already
        time.sleep(0.002)
    time.sleep(run.delay)
    if run.to == "group":
        os.killpg(pid, run.send)
        return
    if run.to == "worker":
        pid = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
    os.kill(pid, run.send)


def together(runs: List[Run]) -> List:
    """Exit code and output of each of some runs at the same time."""
    outputs, pids = [tempfile.TemporaryFile("w+") for _ in runs], []
    for run, output in zip(runs, outputs):
        pids.append(os.fork())
        if pids[-1] == 0:
            child(run, output)
    for run, pid in zip(runs, pids):
        if run.send:
            hurt(run, pid)
    results = []
    for pid, output in zip(pids, outputs):
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        output.seek(0)
        results.append([code, output.read()])
    return results


def main() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    results = []
    for entry in json.loads(sys.argv[1]):
        group = entry if isinstance(entry, list) else [entry]
        results += together([Run(**words) for words in group])
    print("\nRESULTS " + json.dumps(results))


if __name__ == "__main__":
    main()
