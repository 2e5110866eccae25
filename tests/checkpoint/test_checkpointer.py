import logging

import pytest
import torch
from conftest import make_model

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
    softmax = make_model(20, "MODEL.SSD.LOSS", "multibox")
    with pytest.raises(InputError, match="the model has 20"):
        SSDCheckpointer(softmax).load(saved[1])


def test_head_is_initialised_anew_when_asked(saved, caplog):
    model, path = saved
    other = make_model(5, seed=1)
    before = other.head.cls_score[0][3].weight.clone()
    with caplog.at_level(logging.WARNING):
        SSDCheckpointer(other, reinit_head=True).load(path)
    assert torch.equal(other.head.cls_score[0][3].weight, before)
    assert torch.equal(other.head.bbox_pred[0][3].weight, model.head.bbox_pred[0][3].weight)
    assert torch.equal(other.backbone.features[0][0].weight, model.backbone.features[0][0].weight)
    assert "Predictors newly initialised: 12 tensors" in caplog.text


def test_weights_of_another_backbone_are_refused_even_then(saved):
    other = make_model(3, "MODEL.SSD.BACKBONE.EXTRA_CHANNELS", "[512, 256, 256, 128]")
    with pytest.raises(InputError, match="is of another model: backbone.extras.3"):
        SSDCheckpointer(other, reinit_head=True).load(saved[1])


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
