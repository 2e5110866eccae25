"""Stops runs at random moments, resumes them, and compares with runs that were not stopped.

python tests/engine/kill_cycles.py --cycles 50 --seed 0

A cycle: a run gets SIGKILL, SIGTERM or SIGINT, is resumed, and ends; weights, averages, optimizer
and place in the data then equal those of the uninterrupted run, bit for bit. Not a part of the test
suite: a cycle takes some seconds.
"""

import argparse
import ctypes
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
from conftest import ASSETS  # noqa: E402
from forked import Run, together  # noqa: E402
from runs import ITERATIONS, free_port, options, slurm  # noqa: E402

PR_SET_CHILD_SUBREAPER = 36
VARIANTS = {
    "plain": ("MODEL.EMA.ENABLED", False),
    "EMA": (),
    "accumulation": ("SOLVER.ACCUMULATE_STEPS", 2),
    "AMP bfloat16": ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "bfloat16"),
    "two processes": (),
}
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# How a run may end: as promised, before training began, or after its end.
STATUS = {signal.SIGKILL: (-9, 0), signal.SIGTERM: (0, -15), signal.SIGINT: (130, 0)}


def runs(variant: str, folder: Path, number: int = 0, delay: float = 0.0) -> List[Run]:
    """The processes of a run, which get a signal after so many seconds."""
    count, port = (2 if variant == "two processes" else 1), free_port()
    found = []
    for rank in range(count):
        env = slurm(rank, count, port) if count > 1 else {}
        to = "run" if number == signal.SIGKILL else "group"
        args = options(folder, *VARIANTS[variant])
        wait = delay if rank == 0 else 0.0  # one after the other
        found.append(Run(args, number, to, str(ASSETS), wait, env=env))
    return found


def final_state(folder: Path) -> Dict[str, Any]:
    """All tensors and numbers that a finished run goes on from, by name."""
    saved = torch.load(folder / "model_final.pth", weights_only=False)
    if "trainer" not in saved:  # it is the average
        saved = torch.load(folder / f"model_{ITERATIONS - 1:07d}.pth", weights_only=False)
    parts = {"model": saved["model"], "ema": saved.get("ema"), "place": saved["trainer"]["stream"]}
    return dict(leaves({**parts, "optimizer": saved["trainer"]["_trainer"]["optimizer"]}))


def leaves(tree: Any, name: str = "") -> Any:
    """(name, value) of everything in nested mappings and lists."""
    if isinstance(tree, (dict, list, tuple)):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from leaves(value, f"{name}.{key}")
    else:
        yield name, tree


def same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def left_over(seconds: float = 10.0) -> int:
    """Processes of ended runs that are still there; they are ended."""
    until, children = time.time() + seconds, Path(f"/proc/self/task/{os.getpid()}/children")
    while time.time() < until:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.1)
        except ChildProcessError:
            return 0
    left = children.read_text().split()
    for pid in left:
        os.kill(int(pid), signal.SIGKILL)
        os.waitpid(int(pid), 0)
    return len(left)


def cycle(variant: str, expected: Dict[str, Any], seconds: float, draw: random.Random) -> List[str]:
    """Names of what happened in a cycle, for counting."""
    folder = Path(tempfile.mkdtemp(prefix="cycle"))
    number, delay = draw.choice(SIGNALS), draw.uniform(0, seconds)
    shared = set(os.listdir("/dev/shm"))
    results = together(runs(variant, folder, number, delay))
    events = [signal.Signals(number).name]
    codes = [code for code, _ in results]
    if not set(codes) <= set(STATUS[number]):
        events.append("status wrong")
        print(f"{variant}: {events[0]} after {delay:.2f} s: status {codes}", file=sys.stderr)
    events += ["process left"] * left_over() + ["shared memory left"] * bool(
        set(os.listdir("/dev/shm")) - shared
    )
    results = together(runs(variant, folder))
    equal = all(code == 0 for code, _ in results)
    if equal:
        found = final_state(folder)
        equal = found.keys() == expected.keys() and all(same(found[k], expected[k]) for k in found)
    events.append("equal" if equal else "lost")
    if not equal:
        print(f"{variant}: {folder} differs: {results[0][1][-500:]}", file=sys.stderr)
    else:
        shutil.rmtree(folder)
    return events


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cycles", type=int, default=50, help="of all variants together")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    os.environ.update(DETECTRON2_DATASETS=str(ASSETS), OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    draw, failed = random.Random(args.seed), False
    for i, variant in enumerate(VARIANTS):
        folder, start = Path(tempfile.mkdtemp(prefix="straight")), time.time()
        results = together(runs(variant, folder))
        assert all(code == 0 for code, _ in results), results[0][1][-2000:]
        seconds, expected = time.time() - start, final_state(folder)
        shutil.rmtree(folder)
        count = len(range(i, args.cycles, len(VARIANTS)))
        events = [cycle(variant, expected, seconds, draw) for _ in range(count)]
        counts = Counter(event for names in events for event in names)
        words = ", ".join(f"{n} {name}" for name, n in sorted(counts.items()))
        print(f"{variant}: {count} cycles of {seconds:.1f} s: {words}", flush=True)
        failed = failed or any("left" in k or k in ("lost", "status wrong") for k in counts)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
