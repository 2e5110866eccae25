"""A checkpoint is run and resumed as what it was trained for."""

import logging

import pytest
import torch
from conftest import CLASSES, bare_config, data_opts, voc_entry
from detectron2.modeling import build_model

from ssdlite_d2 import InputError
from ssdlite_d2.checkpoint import SSDCheckpointer, identity_of
from ssdlite_d2.data import resolve_datasets

pytestmark = pytest.mark.usefixtures("clean_catalog", "bccd")
PURPOSES = ("run", "resume", "start")


def checkpointer(folder="", classes=CLASSES, name="tiny", opts=()):
    cfg = bare_config(0, *data_opts(voc_entry(name, CLASSES=list(classes))), *opts)
    resolve_datasets(cfg)
    model = build_model(cfg)
    return SSDCheckpointer(model, str(folder), identity=identity_of(cfg, model))


@pytest.fixture
def saved(tmp_path):
    checkpointer(tmp_path).save("model")
    return str(tmp_path / "model.pth")


def test_record_is_plain_data(saved):
    record = torch.load(saved, weights_only=True)["ssd"]
    assert record["classes"] == CLASSES and record["datasets"] == ["tiny"]
    assert record["input_size"] == [320, 320]
    assert len(record["anchors"]) == 6 + 3


SIZES = "[[24, 48], [48, 112], [112, 176], [176, 240], [240, 304], [304, 368]]"
MIRRORED = ["WBC", "RBC", "Platelets"]
OTHERS = ["RBC", "WBC", "cat"]


@pytest.mark.parametrize(
    "there, wrong",
    [
        ({}, {}),
        ({"classes": MIRRORED}, dict.fromkeys(PURPOSES, "classes.*WBC, RBC, Platelets")),
        ({"classes": OTHERS}, dict.fromkeys(PURPOSES[:2], "classes.*RBC, WBC, cat")),
        ({"name": "other"}, {"resume": "DATASETS.TRAIN: .tiny. there, .other. here"}),
        ({"opts": ["INPUT.SIZE", "(320, 256)"]}, {"resume": "INPUT.SIZE: .320, 320. there"}),
        ({"opts": ["MODEL.ANCHOR_GENERATOR.SIZES", SIZES]}, dict.fromkeys(PURPOSES[:2], "anchors")),
        ({"opts": ["MODEL.ANCHOR_GENERATOR.OFFSET", 0.25]}, dict.fromkeys(PURPOSES[:2], "anchors")),
    ],
)
def test_differences(saved, there, wrong, caplog):
    other = checkpointer(**there)
    for purpose in PURPOSES:
        if purpose not in wrong:
            with caplog.at_level(logging.INFO):
                other.load(saved, purpose=purpose)
            continue
        with pytest.raises(InputError, match=wrong[purpose]) as error:
            other.load(saved, purpose=purpose)
        assert ("--resume" if purpose == "resume" else "MODEL.WEIGHTS") in str(error.value)
        assert "\n" not in str(error.value) and saved in str(error.value)
    assert ("Training starts from weights of other classes" in caplog.text) == (
        there.get("classes") == OTHERS
    )
    assert ("is of another INPUT.SIZE" in caplog.text) == ("INPUT.SIZE" in there.get("opts", ()))


def test_files_without_a_record_are_taken_as_they_are(saved, tmp_path):
    content = torch.load(saved)
    del content["ssd"]
    torch.save(content, tmp_path / "old.pth")
    for purpose in PURPOSES:
        other = checkpointer(classes=MIRRORED)
        other.load(str(tmp_path / "old.pth"), purpose=purpose)
        state = other.model.state_dict()
        assert all(torch.equal(state[name], v) for name, v in content["model"].items())
