"""SIGTERM and Ctrl-C end a run with its state saved, whichever processes they reach."""

import signal

import pytest
import torch
from runs import forked, free_port, options, slurm

ENDLESS = ("SOLVER.MAX_ITER", 10_000, "SOLVER.CHECKPOINT_PERIOD", 1000, "INPUT.SIZE", "(64, 64)")
MARK = """
from ssdlite_d2.engine.train_loop import TrainLoop
step = TrainLoop.run_step
def marked(self):
    step(self)
    if self.iter == 2:
        open({mark!r}, "w").close()
TrainLoop.run_step = marked
"""
CASES = {  # signal, to whom, processes that get it, exit status
    "terminated": (signal.SIGTERM, "group", (True,), 0),
    "interrupted": (signal.SIGINT, "group", (True,), 130),
    "both terminated": (signal.SIGTERM, "group", (True, True), 0),
    "one interrupted": (signal.SIGINT, "run", (False, True), 130),
}


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """Exit codes and outputs of all processes, and the folder, by case."""
    root = tmp_path_factory.mktemp("signals")
    groups = []
    for name, (number, to, hit, _) in CASES.items():
        port, group = free_port(), []
        for rank, is_hit in enumerate(hit):
            mark = str(root / f"{name} {rank}")
            env = slurm(rank, len(hit), port) if len(hit) > 1 else {}
            run = {"args": options(root / name, *ENDLESS), "env": env}
            run["before"] = MARK.format(mark=mark)
            group.append({**run, "send": number, "to": to, "when": mark} if is_hit else run)
        groups.append(group)
    results = iter(forked(*groups))
    return {name: ([next(results) for _ in CASES[name][2]], root / name) for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_signal_ends_in_a_checkpoint_a_line_and_the_status(ends, name):
    processes, folder = ends[name]
    number, status = CASES[name][0], CASES[name][-1]
    outputs = "\n".join(output for _, output in processes)
    assert [code for code, _ in processes] == [status] * len(processes), outputs
    assert "Traceback" not in outputs and "\nerror: " not in outputs, outputs
    (file,) = folder.glob("model_*.pth")
    last = torch.load(file)["iteration"]
    assert 2 <= last < 1000 and (folder / "last_checkpoint").read_text() == file.name
    assert f"{signal.Signals(number).name}: stopped after iteration {last}; --resume" in outputs
