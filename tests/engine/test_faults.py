"""Faults of machine, data and user, each really caused; every one ends with a message."""

import json
import shutil
import signal
import socket
import subprocess

import pytest
import torch
from conftest import CLASSES, data_opts, voc_entry
from runs import ITERATIONS, forked, free_port, options

# An image whose pixels are not numbers, as a broken augmentation would make it.
NAN_IMAGE = """
from ssdlite_d2.data import SSDDatasetMapper
read = SSDDatasetMapper.__call__
def spoilt(self, record):
    sample = read(self, record)
    sample["image"] = sample["image"].float()
    if "00343" in record["file_name"]:
        sample["image"][:] = float("nan")
    return sample
SSDDatasetMapper.__call__ = spoilt
"""
# Shared memory for a batch and a half, as a container may have it.
SMALL_SHARED_MEMORY = """
import ctypes
new_mounts, private = 0x20000, 0x44000
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(new_mounts) == 0
assert libc.mount(b"none", b"/", None, private, None) == 0
assert libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=160k") == 0
"""
ONE_THREAD_OF_DATA = ("DATALOADER.NUM_WORKERS", "0")
MAY_MOUNT = subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    """Exit code, output and folder of a run for each fault, by name."""
    root = tmp_path_factory.mktemp("faults")
    good = root / "good"
    first = [{"args": options(good, "SOLVER.MAX_ITER", 2)}]
    assert [code for code, _ in forked(*first)] == [0]

    def resumed(name, *more, **fault):
        shutil.copytree(good, root / name)
        return {"args": options(root / name, *more), **fault}

    def by_hand(rank, **more):
        place = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29555", **more}
        return {"args": options(root / "launch"), "env": place}

    def flags(*words):
        return {"args": ["--num-machines", "2", *words, *options(root / "launch")]}

    occupied = socket.socket()
    occupied.bind(("", 0))
    occupied.listen()
    port = occupied.getsockname()[1]
    (root / "a_file").write_text("")
    slow = "import detectron2.engine.hooks as h, time\nstep = h.LRScheduler.after_step\n"
    slow += "h.LRScheduler.after_step = lambda self: (time.sleep(0.2), step(self))\n"
    runs = {
        "nan": {"args": options(root / "nan", *ONE_THREAD_OF_DATA), "before": NAN_IMAGE},
        "nan_skipped": {
            "args": options(root / "nan_skipped", "SOLVER.MAX_SKIPPED_STEPS", 99)
            + ["SOLVER.IMS_PER_BATCH", "2"],
            "before": NAN_IMAGE,
        },
        "disk_full": resumed("disk_full", file_limit=20_000_000),
        "sigterm": resumed(
            "sigterm",
            "SOLVER.MAX_ITER",
            100,
            send=signal.SIGTERM,
            when=str(root / "sigterm" / "model_0000003.pth"),
        ),
        "dead_worker": resumed(
            "dead_worker",
            "SOLVER.MAX_ITER",
            1000,
            send=signal.SIGKILL,
            to="worker",
            when=str(root / "dead_worker" / "model_0000003.pth"),
            before=slow,
        ),
        "other_optimizer": resumed("other_optimizer", "SOLVER.OPTIMIZER", "AdamW"),
        "other_trunk": resumed("other_trunk", "MODEL.SSD.BACKBONE.FREEZE_AT", 3),
        "other_network": resumed("other_network", "MODEL.SSD.BACKBONE.TAP", "expansion"),
        "other_classes": resumed("other_classes", *data_opts(voc_entry(CLASSES=CLASSES[::-1]))),
        "other_size": resumed("other_size", "INPUT.SIZE", "(128, 96)"),
        "other_data": resumed("other_data", *data_opts(voc_entry("one", CLASSES=CLASSES))),
        "no_folder": {"args": options(root / "a_file" / "out")},
        "no_shared_memory": {
            "args": options(root / "no_shared_memory"),
            "before": SMALL_SHARED_MEMORY if MAY_MOUNT else "raise SystemExit('no right to mount')",
        },
        "rank": by_hand(2),
        "no_master": by_hand(0, MASTER_ADDR=""),
        "no_number": by_hand("a"),
        "host": by_hand(1, MASTER_ADDR="no-such-host.invalid"),
        "high_port": by_hand(0, MASTER_PORT="99999"),
        "alone": by_hand(0, MASTER_PORT=free_port(), SSDLITE_JOIN_SECONDS="1"),
        "flag_rank": flags("--machine-rank", "2", "--dist-url", "tcp://127.0.0.1:29555"),
        "flag_port": flags("--dist-url", "tcp://127.0.0.1:99999"),
        "flag_host": flags("--machine-rank", "1", "--dist-url", "tcp://no-such-host.invalid:29555"),
        "port": {
            "args": ["--num-gpus", "2", "--dist-url", f"tcp://127.0.0.1:{port}"]
            + options(root / "port")
        },
    }
    results = forked(*runs.values())
    occupied.close()
    return {name: (*result, root / name) for name, result in zip(runs, results)}


@pytest.mark.parametrize(
    "name, words",
    [
        ("nan", ["the loss is not finite at iteration", "nonfinite_losses.jsonl"]),
        ("disk_full", ["model_0000003.pth cannot be written", "File too large"]),
        ("dead_worker", ["DataLoader worker", "DATALOADER.NUM_WORKERS"]),
        ("other_optimizer", ["--resume", "not of SOLVER.OPTIMIZER AdamW"]),
        ("other_trunk", ["--resume", "FREEZE_AT"]),
        ("other_network", ["is of another model", "model_0000001.pth"]),
        ("other_classes", ["--resume", "of other classes: [RBC, WBC, Platelets] there"]),
        ("other_size", ["--resume", "INPUT.SIZE: [96, 96] there, [128, 96] here"]),
        ("other_data", ["--resume", "DATASETS.TRAIN: [tiny] there, [one] here"]),
        ("no_folder", ["OUTPUT_DIR", "Not a directory"]),
        ("port", ["--dist-url", "is in use"]),
        ("rank", ["rank 2 of 2 processes", "RANK and WORLD_SIZE"]),
        ("no_master", ["not MASTER_ADDR"]),
        ("no_number", ["environment variables", "'a'"]),
        ("host", ["host no-such-host.invalid is unknown", "MASTER_ADDR"]),
        ("high_port", ["tcp://127.0.0.1:99999: Port out of range 0-65535", "MASTER_PORT"]),
        ("alone", ["1/2 clients joined", "SSDLITE_JOIN_SECONDS"]),
        ("flag_rank", ["rank 2 of 2 processes", "--machine-rank"]),
        ("flag_port", ["Port out of range 0-65535", "--dist-url"]),
        ("flag_host", ["host no-such-host.invalid is unknown", "--dist-url"]),
    ],
)
def test_fault_ends_in_one_line_that_names_it(faults, name, words):
    code, output, _ = faults[name]
    assert code == 1, output
    assert "Traceback" not in output
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, output
    for word in words:
        assert word in lines[0]


def test_file_tells_iteration_losses_and_images_of_a_non_finite_loss(faults):
    row = json.loads((faults["nan"][2] / "nonfinite_losses.jsonl").read_text())
    assert row["iteration"] == 0
    assert set(row["losses"]) == {"loss_cls", "loss_box_reg"}
    assert len(row["files"]) == 4
    assert any("BloodImage_00343" in file for file in row["files"])


def test_skipped_batches_leave_no_trace_in_the_weights(faults):
    code, output, folder = faults["nan_skipped"]
    assert code == 0, output
    rows = (folder / "nonfinite_losses.jsonl").read_text().splitlines()
    assert 0 < len(rows) < ITERATIONS
    assert all("00343" in row for row in rows)
    saved = torch.load(folder / f"model_{ITERATIONS - 1:07d}.pth")
    assert saved["trainer"]["_trainer"]["skipped"] == len(rows)
    for state in (saved["model"], saved["ema"]):
        assert all(value.isfinite().all() for value in state.values())


def test_sigterm_saves_the_iteration_it_came_in(faults):
    code, output, folder = faults["sigterm"]
    assert code == 0, output
    last = torch.load(folder / (folder / "last_checkpoint").read_text())["iteration"]
    assert 3 <= last < 99
    assert f"stopped after iteration {last}" in output


@pytest.mark.parametrize("name", ["disk_full", "dead_worker", "sigterm", "other_optimizer"])
def test_last_checkpoint_is_whole_after_a_fault(faults, name):
    folder = faults[name][2]
    last = torch.load(folder / (folder / "last_checkpoint").read_text())
    assert {"model", "ema", "trainer", "iteration"} <= set(last)
    assert not list(folder.glob("*.tmp"))


@pytest.mark.skipif(not MAY_MOUNT, reason="needs the right to mount")
def test_batches_that_do_not_fit_into_shared_memory_go_through_pipes(faults):
    code, output, folder = faults["no_shared_memory"]
    assert code == 0, output
    lines = [line for line in output.splitlines() if "/dev/shm has 0 MiB free" in line]
    assert len(lines) == 1 and "--shm-size" in lines[0] and "DATALOADER.NUM_WORKERS" in lines[0]
    assert (folder / "model_final.pth").is_file()
