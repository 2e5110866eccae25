"""Weight files give tensors, whoever wrote them, and run nothing."""

import collections
import os
import pickle

import numpy as np
import pytest
import torch
from conftest import make_model

from ssdlite_d2 import InputError
from ssdlite_d2.checkpoint import SSDCheckpointer
from ssdlite_d2.checkpoint.reading import read_checkpoint, read_weights

ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)


class Runs:
    """Makes a folder when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_files_of_detectron2s_zoo_are_read(tmp_path, protocol):
    content = {
        "model": collections.OrderedDict({"a": ARRAY, "b": ARRAY.T[::2], "n": np.array(3)}),
        "__author__": "Detectron2 Model Zoo",
        "matching_heuristics": True,
        "epoch": np.float64(2.5),
        "raw": b"\xff\x00",
    }
    file = tmp_path / "model_final.pkl"
    text = pickle.dumps(content, protocol=protocol)
    if protocol <= 2:  # numpy's old names
        text = text.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    file.write_bytes(text)
    read = read_checkpoint(str(file))
    assert read["matching_heuristics"] and read["epoch"] == 2.5 and read["raw"] == b"\xff\x00"
    assert torch.equal(read["model"]["a"], torch.from_numpy(ARRAY))
    assert torch.equal(read["model"]["b"], torch.from_numpy(ARRAY.T[::2].copy()))
    assert read["model"]["n"] == 3


def python_2_array() -> bytes:
    """ARRAY as Python 2 pickled it: its bytes are a string, which latin1 gives back."""
    data = ARRAY.tobytes()
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR"
        b"(I1\n(I2\nI3\ntcnumpy\ndtype\n(U\x02f4I0\nI1\ntR(I3\nU\x01<NNNI-1\nI-1\nI0\ntb"
        b"I00\nU" + bytes([len(data)]) + data + b"tb"
    )


def test_files_of_caffe2_are_read(tmp_path):
    blobs = (
        b"}U\x07conv1_w" + python_2_array() + b"sU\x10conv1_w_momentum" + python_2_array() + b"s"
    )
    (tmp_path / "R-50.pkl").write_bytes(b"\x80\x02" + blobs + b".")
    (tmp_path / "model.pkl").write_bytes(b"\x80\x02}U\x03cfgU\x04A: 1sU\x05blobs" + blobs + b"s.")
    for name in ("R-50.pkl", "model.pkl"):
        read = read_checkpoint(str(tmp_path / name))
        assert read["matching_heuristics"] and read["__author__"] == "Caffe2"
        assert list(read["model"]) == ["conv1_w"]
        assert torch.equal(read["model"]["conv1_w"], torch.from_numpy(ARRAY))


def test_nothing_in_a_file_is_run(tmp_path):
    made = tmp_path / "made"
    content = {"model": {"a": torch.zeros(2), "b": Runs(made)}, "trainer": {}}
    torch.save(content, tmp_path / "model_0000001.pth")
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save({"model_state": {"a": Runs(made)}}, tmp_path / "evil.pyth")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"model": {"a": Runs(made)}}))
    attribute = b"cnumpy._core.numeric\n_frombuffer\n(N}X\x0c\x00\x00\x00__defaults__Nstb."
    (tmp_path / "attribute.pkl").write_bytes(attribute)
    model, before = make_model(3), np.zeros(1).__reduce_ex__(5)[0].__defaults__
    for file in sorted(tmp_path.iterdir()):
        with pytest.raises(InputError) as error:
            SSDCheckpointer(model).load(str(file))
        assert str(file) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(InputError, match="none of 1 checkpoints"):
        SSDCheckpointer(model, str(tmp_path)).resume_or_load("", resume=True)
    assert not made.exists()
    assert np.zeros(1).__reduce_ex__(5)[0].__defaults__ == before


@pytest.mark.parametrize(
    "content",
    [[], 3, {}, {"model": 3}, {"model": {"a": 3}}, {"model": {1: torch.zeros(1)}}, {"a": [ARRAY]}],
)
def test_files_without_tensors_are_named(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content if content != {"model": 3} else "a"))
    for name in ("a.pth", "a.pkl"):
        if content == {}:
            assert read_checkpoint(str(tmp_path / name))["model"] == {}
            continue
        with pytest.raises(InputError, match=f"{name} "):
            read_checkpoint(str(tmp_path / name))


def test_what_is_no_file_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "half.pkl").write_bytes(pickle.dumps({"model": {"a": ARRAY}})[:60])
    (tmp_path / "object.pkl").write_bytes(pickle.dumps({"a": np.array([{}])}))
    for name in ("pipe.pth", "half.pkl", "object.pkl", "gone.pkl", "gone.pth"):
        with pytest.raises(InputError, match=name):
            read_checkpoint(str(tmp_path / name))
    with pytest.raises(InputError, match="only matching_heuristics=True"):
        torch.save({"model": {}}, tmp_path / "a.pth")
        read_checkpoint(str(tmp_path / "a.pth"), "heuristics=True")
    assert read_weights(str(tmp_path / "a.pth"), mmap=True) == {"model": {}}
