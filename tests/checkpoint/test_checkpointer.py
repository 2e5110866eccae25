import logging

import pytest
import torch
from conftest import make_model
from torch import nn

from ssdlite_d2 import InputError
from ssdlite_d2.checkpoint import SSDCheckpointer


@pytest.fixture
def saved(tmp_path):
    model = make_model(3)
    SSDCheckpointer(model, str(tmp_path)).save("three")
    return model, str(tmp_path / "three.pth")


def test_round_trip(saved):
    model, path = saved
    other = make_model(3, seed=1)
    SSDCheckpointer(other).load(path)
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


def test_other_number_of_classes_is_refused_with_both_numbers(saved):
    with pytest.raises(InputError) as error:
        SSDCheckpointer(make_model(5)).load(saved[1])
    assert "is for 3 classes, the model has 5" in str(error.value)
    assert "REINIT_HEAD_ON_MISMATCH" in str(error.value)
    softmax = make_model(20, "MODEL.SSD.CRITERION.NAME", "multibox")
    with pytest.raises(InputError, match="the model has 20"):
        SSDCheckpointer(softmax).load(saved[1])


def test_head_is_initialised_anew_when_asked(saved, caplog):
    model, path = saved
    other = make_model(5, seed=1)
    before = other.head.cls_score[0][3].weight.clone()
    with caplog.at_level(logging.WARNING):
        SSDCheckpointer(other, reinit_head=True).load(path, purpose="start")
    assert torch.equal(other.head.cls_score[0][3].weight, before)
    assert torch.equal(other.head.bbox_pred[0][3].weight, model.head.bbox_pred[0][3].weight)
    assert torch.equal(other.backbone.features[0][0].weight, model.backbone.features[0][0].weight)
    assert "Predictors newly initialised: 12 tensors" in caplog.text


def test_trunks_load_under_the_name_that_the_backbone_gives(tmp_path):
    path = str(tmp_path / "trunk.pth")
    torch.save({"features.0.weight": torch.full((1, 1), 7.0)}, path)
    for prefix, here in (("body.", "backbone.body.0.weight"), (None, "features.0.weight")):
        model = nn.Module()
        model.backbone = nn.ModuleDict({"body": nn.Sequential(nn.Linear(1, 1, bias=False))})
        model.features = nn.Sequential(nn.Linear(1, 1, bias=False))
        if prefix:
            model.backbone.trunk_prefix = prefix
        SSDCheckpointer(model).load(path, purpose="start")
        assert [name for name, v in model.state_dict().items() if v == 7] == [here]


def test_weights_of_another_backbone_are_refused_even_then(saved):
    other = make_model(3, "MODEL.SSD.BACKBONE.EXTRA_CHANNELS", "[512, 256, 256, 128]")
    with pytest.raises(InputError, match="is of another model: backbone.extras.3"):
        SSDCheckpointer(other, reinit_head=True).load(saved[1], purpose="start")


def test_missing_and_broken_files_are_named(saved, tmp_path):
    with pytest.raises(InputError, match="no file /nowhere/a.pth"):
        SSDCheckpointer(saved[0]).load("/nowhere/a.pth")
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    with pytest.raises(InputError, match="bad.pth is no checkpoint"):
        SSDCheckpointer(saved[0]).load(str(tmp_path / "bad.pth"))


def test_weights_of_other_names_are_refused(saved, tmp_path):
    """The references name their trunk as this package does: a warning would be overlooked."""
    model, _ = saved
    state = {k.replace("head.", "box_head."): v for k, v in model.state_dict().items()}
    torch.save({"model": state}, tmp_path / "foreign.pth")
    with pytest.raises(InputError, match="such as box_head.*convert_checkpoint"):
        SSDCheckpointer(model).load(str(tmp_path / "foreign.pth"))


@pytest.mark.parametrize(
    "spoil, words, starts",
    [
        (lambda s: s["head.bbox_pred.0.3.bias"].fill_(float("nan")), "0.3.bias is not finite", 0),
        (lambda s: s["backbone.features.0.0.weight"].fill_(float("inf")), "is not finite", 0),
        (lambda s: [s.pop(k) for k in list(s) if "head" in k], "lacks 84 of .* head.cls", 1),
        (lambda s: [s.pop(k) for k in list(s) if "head.bbox" in k], "lacks 42 of .* head.bbox", 1),
        (lambda s: s.clear(), "lacks .* of this model's", 0),
    ],
)
def test_weights_are_finite_and_whole(saved, tmp_path, spoil, words, starts):
    """Only a training may start from a part of them."""
    state = torch.load(saved[1])["model"]
    spoil(state)
    torch.save({"model": state}, tmp_path / "part.pth")
    for purpose in ("run", "resume", "start"):
        if starts and purpose == "start":
            SSDCheckpointer(make_model(3)).load(str(tmp_path / "part.pth"), purpose=purpose)
            continue
        with pytest.raises(InputError, match=f"MODEL.WEIGHTS: .*part.pth.* ?{words}"):
            SSDCheckpointer(make_model(3)).load(str(tmp_path / "part.pth"), purpose=purpose)


class Counter:
    """The state of a run."""

    def __init__(self):
        self.value = 0

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


@pytest.fixture
def run_folder(tmp_path):
    """A folder with three checkpoints, and what makes a checkpointer on it."""

    def checkpointer():
        run = Counter()
        return SSDCheckpointer(make_model(3), str(tmp_path), trainer=run), run

    saver, run = checkpointer()
    for run.value in (1, 2, 3):
        saver.save(f"model_{run.value:07d}", iteration=run.value)
    return tmp_path, checkpointer


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "absent"])
def test_newest_whole_checkpoint_is_resumed_from(run_folder, damage, caplog):
    folder, checkpointer = run_folder
    last = folder / "model_0000003.pth"
    content = last.read_bytes()
    if damage == "absent":
        last.unlink()
    else:
        half = content[: len(content) // 2]
        last.write_bytes({"truncated": half, "empty": b"", "garbage": b"x" * 1000}[damage])
    resumed, run = checkpointer()
    with caplog.at_level(logging.WARNING):
        resumed.resume_or_load("", resume=True)
    assert run.value == 2
    assert f"Not resuming from {last}" in caplog.text


@pytest.mark.parametrize("tag", ["", "\0\0\0", "gone.pth"])
def test_broken_tag_is_not_followed(run_folder, tag):
    folder, checkpointer = run_folder
    (folder / "last_checkpoint").write_text(tag)
    resumed, run = checkpointer()
    resumed.resume_or_load("", resume=True)
    assert run.value == 3


def test_only_damaged_checkpoints_are_an_error(run_folder):
    folder, checkpointer = run_folder
    for file in folder.glob("*.pth"):
        file.write_bytes(b"")
    with pytest.raises(InputError, match="none of 3 checkpoints can be resumed from"):
        checkpointer()[0].resume_or_load("", resume=True)


def test_weights_that_are_not_finite_are_not_saved(run_folder):
    folder, checkpointer = run_folder
    saver, _ = checkpointer()
    next(saver.model.parameters()).data[0] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        saver.save("model_0000004")
    assert (folder / "last_checkpoint").read_text() == "model_0000003.pth"
    assert len(list(folder.iterdir())) == 4


def test_folder_that_vanishes_is_named(run_folder):
    folder, checkpointer = run_folder
    saver, _ = checkpointer()
    saver.save_dir = str(folder / "gone")
    with pytest.raises(InputError, match="model_0000004.pth cannot be written: No such file"):
        saver.save("model_0000004")
