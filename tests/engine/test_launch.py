"""The same run in one process, in several, and however they are started."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ASSETS, ROOT
from runs import forked, free_port, options, slurm

from ssdlite_d2 import InputError
from ssdlite_d2.engine.launch import find_place, first_host

STEPS = 5
# In float32 an untrained network, whose last maps have one pixel, differs by 1% in its gradients
# from itself in float64, in one process.
IN_FLOAT64 = """
from ssdlite_d2.engine import SSDTrainer
build = SSDTrainer.build_model
SSDTrainer.build_model = staticmethod(lambda cfg: build(cfg).double())
"""


def settings(output, *more):
    keys = ["MODEL.SSD.NORM", "SyncBN", "SOLVER.IMS_PER_BATCH", 8, "SOLVER.MAX_ITER", STEPS]
    keys += ["SOLVER.CHECKPOINT_PERIOD", 100, "MODEL.SSD.NORM_EPS", 0.01]
    keys += ["DATALOADER.NUM_WORKERS", 0, "SOLVER.BASE_LR", 0.01, "MODEL.EMA.ENABLED", "False"]
    return options(output, *keys, *more)


FIRST = ("SOLVER.MAX_ITER", 1)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("launch")
    ports = [free_port() for _ in range(3)]
    double = {"before": IN_FLOAT64}
    groups = [
        {"args": settings(root / "one"), **double},
        [{"args": settings(root / "two"), "env": slurm(r, 2, ports[0]), **double} for r in (0, 1)],
        [
            {"args": settings(root / "four"), "env": slurm(rank, 4, ports[1], 2), **double}
            for rank in range(4)
        ],
        [{"args": settings(root / "slurm", *FIRST), "env": slurm(r, 2, ports[2])} for r in (0, 1)],
    ]
    results = forked(*groups)
    assert all(code == 0 for code, _ in results), [text[-3000:] for _, text in results]
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port()]
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            *command,
            "train_net.py",
            *settings(root / "torchrun", *FIRST),
        ],
        cwd=ROOT,
        env={**os.environ, "DETECTRON2_DATASETS": str(ASSETS), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return root


def final_weights(folder):
    return torch.load(folder / "model_final.pth")["model"]


@pytest.mark.parametrize("name", ["two", "four"])
def test_several_processes_equal_one_with_the_whole_batch(outputs, name):
    """With SyncBN, after 5 steps: parameters within 1e-5 of the largest of their tensor, or of
    0.01 where all are smaller: biases start at 0.

    (Of the variance, Detectron2's NaiveSyncBatchNorm tracks another estimate than BatchNorm2d.)
    """
    one, several = final_weights(outputs / "one"), final_weights(outputs / name)
    for key, value in one.items():
        if key.endswith(("weight", "bias")):
            error = (value - several[key]).abs().max() / value.abs().max().clamp(min=0.01)
            assert error < 1e-5, (key, float(error))


def test_torchrun_and_slurm_give_the_same_first_loss(outputs):
    first = [
        json.loads((outputs / name / "metrics.json").read_text().splitlines()[0])
        for name in ("torchrun", "slurm")
    ]
    assert [row["iteration"] for row in first] == [0, 0]
    assert first[0]["total_loss"] == pytest.approx(first[1]["total_loss"], rel=1e-6)


def test_places(monkeypatch):
    monkeypatch.setattr("socket.getaddrinfo", lambda *args: [])  # every host is known
    assert find_place({}) is None
    assert find_place({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}) is None
    torchrun = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    with pytest.raises(InputError, match="not MASTER_ADDR and MASTER_PORT"):
        find_place(torchrun)
    torchrun |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    assert find_place(torchrun) == (5, 8, 1, 4, "tcp://127.0.0.1:29500")
    agent = {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    assert find_place({**torchrun, **agent}) == (5, 8, 1, 4, "env://")
    srun = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1"}
    srun |= {"SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "gpu[03-04]"}
    srun |= {"SLURM_JOB_ID": "41234", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}
    assert find_place(srun) == (5, 8, 1, 4, "tcp://gpu03:21234")
    with pytest.raises(InputError, match="as many on every node"):
        find_place({**srun, "SLURM_STEP_TASKS_PER_NODE": "5,3"})


@pytest.mark.parametrize(
    "nodes, first", [("a", "a"), ("a,b", "a"), ("n[007-9,12],x", "n007"), ("n[3]", "n3")]
)
def test_first_host(nodes, first):
    assert first_host(nodes) == first
