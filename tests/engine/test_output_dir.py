"""A run's folder: one run at a time, and the checkpoints of one run."""

import os
import pickletools
import signal
import zipfile

import pytest
from conftest import make_model
from runs import forked, options

from ssdlite_d2 import InputError, load_config
from ssdlite_d2.checkpoint import SSDCheckpointer, numbered_checkpoints, read_weights
from ssdlite_d2.engine.output_dir import lock_folder, set_aside
from ssdlite_d2.engine.setup import claim_folder

SLOW = "import detectron2.engine.hooks as h, time\nstep = h.LRScheduler.after_step\n"
SLOW += "h.LRScheduler.after_step = lambda self: (time.sleep(0.4), step(self))\n"
MARK = "h.LRScheduler.before_train = lambda self: open({!r}, 'w').close()\n"
WAIT = "import os, time\nwhile not os.path.exists({!r}): time.sleep(0.01)\n"


def fresh(output, *more):
    """Arguments of a run without --resume."""
    return [word for word in options(output, *more) if word != "--resume"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Exit code and output of some runs in one folder, one after the other."""
    folder = tmp_path_factory.mktemp("runs")
    first = str(folder / "model_0000001.pth")
    began = str(folder / "began")
    kill = {"send": signal.SIGKILL, "when": began}
    names = {
        "whole": {"args": fresh(folder, "SOLVER.MAX_ITER", 4)},
        "killed": {"args": fresh(folder), "before": SLOW + MARK.format(began), **kill},
        "resumed": {"args": options(folder, "SOLVER.MAX_ITER", 2)},
        # weights from the folder itself, and another training there at the same time
        "both": [
            {"args": fresh(folder, "MODEL.WEIGHTS", folder / "model_final.pth"), "before": SLOW},
            {
                "args": options(folder),
                "before": WAIT.format(str(folder / "before-2")) + WAIT.format(first),
            },
        ],
    }
    results = forked(*names.values())
    results[3:] = [results[3:]]
    return folder, dict(zip(names, results))


def test_a_new_run_sets_the_checkpoints_of_the_old_one_aside(runs):
    folder, results = runs
    assert results["whole"][0] == 0, results["whole"][1]
    assert results["killed"][0] == -signal.SIGKILL
    names = sorted(file.name for file in (folder / "before-1").iterdir())
    numbered = ["model_0000001.pth", "model_0000003.pth"]
    assert names == ["last_checkpoint", *numbered, "model_final.pth"]
    assert read_weights(folder / "before-1" / "model_final.pth")["iteration"] == 3
    assert f"they are in {folder}/before-1 now" in results["killed"][1]


def test_resume_after_an_early_kill_does_not_go_on_from_the_old_run(runs):
    code, output = runs[1]["resumed"]
    assert code == 0 and "Starting training from iteration 0" in output, output


def test_weights_of_the_folder_itself_are_found_where_they_are_now(runs):
    folder, results = runs
    code, output = results["both"][0]
    assert code == 0, output
    assert f"Loading from {folder}/before-2/model_final.pth" in output


def test_a_second_training_in_the_folder_is_refused(runs):
    folder, results = runs
    code, output = results["both"][1]
    assert code == 1 and "Traceback" not in output
    assert f"error: OUTPUT_DIR {folder}: another training writes there" in output
    last = numbered_checkpoints(folder)[-1]  # and the first goes on
    assert read_weights(last)["iteration"] == 9


def test_checkpoints_of_a_run_name_what_every_torch_reads_as_plain(runs):
    """The weights_only=True of torch 2.4, the oldest that is allowed, too."""
    known = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2"}
    known |= {f"torch {kind}Storage" for kind in ("Float", "Double", "Long", "Int", "Byte")}
    for name in ("model_0000009.pth", "model_final.pth"):
        with zipfile.ZipFile(runs[0] / name) as archive:
            (pickled,) = (n for n in archive.namelist() if n.endswith("data.pkl"))
            operations = list(pickletools.genops(archive.read(pickled)))
        assert {str(arg) for op, arg, _ in operations if op.name == "GLOBAL"} <= known
        assert "STACK_GLOBAL" not in {op.name for op, *_ in operations}


def test_only_files_that_a_run_wrote_are_moved_or_removed(tmp_path):
    saver = SSDCheckpointer(make_model(3), str(tmp_path), trainer=make_model(3))
    saver.save("model_0000003")
    unfinished = f"model_0000005.pth.{'0' * 16}.tmp"
    theirs = ["model_2026_paper.pth", "model_best.pth.tmp", "notes.txt", "model_0000003_old.pth"]
    for name in (unfinished, *theirs):
        (tmp_path / name).touch()
    lock_folder(str(tmp_path))
    lock_folder(str(tmp_path))  # its own already
    assert not (tmp_path / unfinished).exists()
    moved = set_aside(str(tmp_path))
    assert set(moved) == {str(tmp_path / n) for n in ("last_checkpoint", "model_0000003.pth")}
    assert sorted(os.listdir(tmp_path)) == sorted([".lock", "before-1", *theirs])
    assert set_aside(str(tmp_path)) == {}


def test_a_move_that_a_kill_broke_off_is_ended_before_anything_is_resumed(tmp_path):
    saver = SSDCheckpointer(make_model(3), str(tmp_path), trainer=make_model(3))
    saver.save("model_0000003")
    (tmp_path / ".before").mkdir()
    (tmp_path / "last_checkpoint").rename(tmp_path / ".before" / "last_checkpoint")
    lock_folder(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == [".lock", "before-1"]
    assert sorted(os.listdir(tmp_path / "before-1")) == ["last_checkpoint", "model_0000003.pth"]


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / ".lock").symlink_to(tmp_path / "elsewhere")
    cfg = load_config("ssdlite_mnv2.yaml", ["OUTPUT_DIR", str(tmp_path)])
    with pytest.raises(InputError, match=f"OUTPUT_DIR {tmp_path}: "):
        claim_folder(cfg, resume=False)
    assert not (tmp_path / "elsewhere").exists()
