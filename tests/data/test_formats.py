"""Data sets of every format, from YAML alone."""

import json
import os

import numpy as np
import pytest
import yaml
from conftest import ASSETS, CLASSES, voc_entry
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from ssdlite_d2 import InputError, load_config
from ssdlite_d2.data import build_train_loader, resolve_datasets

pytestmark = pytest.mark.usefixtures("clean_catalog")


def config(*entries, train=None, test=()):
    names = tuple(e["NAME"] for e in entries)
    keys = ["DATASETS.REGISTER", str(list(entries)), "DATASETS.TRAIN", str(train or names)]
    return load_config("ssdlite_mnv2.yaml", [*keys, "DATASETS.TEST", str(test)])


def resolved(*entries, **kwargs):
    cfg = config(*entries, **kwargs)
    resolve_datasets(cfg)
    return cfg


def image(path, size=(40, 50), **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1], (90, 120, 30)).save(path, **kwargs)


def load(name):
    return DatasetCatalog.get(name)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


@pytest.fixture
def yolo(root):
    """Three images: objects, a polygon, and no text file."""
    for name in ("a.jpg", "b.PNG", "c.jpg"):
        image(root / "mine" / "images" / "train" / name)
    labels = root / "mine" / "labels" / "train"
    labels.mkdir(parents=True)
    (labels / "a.txt").write_text("1 0.5 0.5 0.2 0.5\n\n0 0.1 0.1 0.1 0.1\n")
    (labels / "b.txt").write_text("0 0.1 0.2 0.5 0.2 0.5 0.6 0.3 0.9\n")
    data = {"path": "mine", "train": "images/train", "names": {0: "cat", 1: "dog"}}
    (root / "mine" / "data.yaml").write_text(yaml.safe_dump(data))
    return root / "mine"


def test_yolo_from_its_data_yaml(yolo):
    entry = {"NAME": "y", "FORMAT": "yolo", "DATA": "mine/data.yaml", "SPLIT": "train"}
    cfg = resolved(entry)
    assert cfg.MODEL.SSD.NUM_CLASSES == 2
    assert MetadataCatalog.get("y").thing_classes == ["cat", "dog"]
    a, b, c = load("y")
    boxes = [x["bbox"] for x in a["annotations"]]
    assert np.allclose(boxes, [[20, 10, 30, 30], [2.5, 2, 7.5, 6]])  # of an image of 50 x 40
    assert [x["category_id"] for x in a["annotations"]] == [1, 0]
    assert np.allclose(b["annotations"][0]["bbox"], [5, 8, 25, 36])
    assert c["annotations"] == [] and (c["height"], c["width"]) == (40, 50)


def test_yolo_from_folders_and_lists(yolo):
    (yolo / "list.txt").write_text("images/train/a.jpg\nimages/train/b.PNG\n")
    keys = {"FORMAT": "yolo", "CLASSES": ["cat", "dog"]}
    images = {"NAME": "y", "IMAGES": "mine/images/train", **keys}
    listed = {"NAME": "z", "IMAGES": "mine/list.txt", "LABELS": "mine/labels/train", **keys}
    resolved(images, listed)
    assert [len(r["annotations"]) for r in load("y")] == [2, 1, 0]
    assert [len(r["annotations"]) for r in load("z")] == [2, 1]


def test_yolo_sees_turned_images_as_they_are_read(yolo):
    exif = Image.Exif()
    exif[0x0112] = 6
    image(yolo / "images" / "train" / "a.jpg", exif=exif)
    resolved({"NAME": "y", "FORMAT": "yolo", "DATA": "mine/data.yaml", "SPLIT": "train"})
    assert (load("y")[0]["height"], load("y")[0]["width"]) == (50, 40)


@pytest.mark.parametrize(
    "names, classes, of_a",
    [
        ({1: "cat", 0: "dog"}, ["dog", "cat"], [1, 0]),
        ({"0": "cat", "1": "dog"}, ["cat", "dog"], [1, 0]),
        ({0: "cow", 1: "cat", 7: "dog"}, ["cow", "cat", "dog"], [1, 0]),
        ({1: "cat", 2: "dog"}, ["cat", "dog"], None),
        ("abc", "names is 'abc'; it is a list or a mapping", None),
        ({"a": "cat"}, "names has the key 'a'; keys are the numbers", None),
        ({True: "cat"}, "names has the key True", None),
        (None, "names is None", None),
    ],
)
def test_yolo_names_keep_their_numbers(yolo, names, classes, of_a, caplog):
    data = {"train": "images/train", "names": names}
    (yolo / "data.yaml").write_text(yaml.safe_dump(data))
    entry = {"NAME": "y", "FORMAT": "yolo", "DATA": "mine/data.yaml", "SPLIT": "train"}
    if isinstance(classes, str):
        with pytest.raises(InputError, match=classes):
            resolved(entry)
        return
    resolved(entry)
    assert MetadataCatalog.get("y").thing_classes == classes
    if of_a is None:  # 0 is in the text files
        with pytest.raises(InputError, match=r"line 3 is '0 .*', not a class of \[1, 2\]"):
            load("y")
        return
    assert [x["category_id"] for x in load("y")[0]["annotations"]] == of_a
    assert ("names are of the numbers 0, 1, 7" in caplog.text) == (7 in names)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"SPLIT": "val"}, "data.yaml has no 'val'"),
        ({"DATA": "mine/gone.yaml"}, "gone.yaml: No such file"),
        ({"SPLIT": ""}, "DATA needs SPLIT"),
        ({"IMAGES": "mine"}, "needs either DATA and SPLIT, or IMAGES"),
        ({"DATA": None, "IMAGES": "mine/images"}, "the files have numbers only"),
        ({"label": "2 .5 .5 .1 .1"}, "a.txt: line 1 is '2 .5 .5 .1 .1', not a class below 2"),
        ({"label": "0 .5 .5 .1"}, "a.txt: line 1 is '0 .5 .5 .1', not a class below 2"),
        ({"label": "0 x .5 .1 .1"}, "a.txt: line 1 is '0 x"),
        ({"image": b"no"}, "a.jpg: cannot be read"),
        ({"OTHER_CLASSES": "drop", "CLASSES": ["cat"]}, None),
        ({"CLASSES": ["cat"]}, "also \\['dog'\\]"),
    ],
)
def test_wrong_yolo_is_named(yolo, change, words):
    if "label" in change:
        (yolo / "labels" / "train" / "a.txt").write_text(change.pop("label"))
    if "image" in change:
        (yolo / "images" / "train" / "a.jpg").write_bytes(change.pop("image"))
    entry = {"NAME": "y", "FORMAT": "yolo", "DATA": "mine/data.yaml", "SPLIT": "train", **change}
    entry = {k: v for k, v in entry.items() if v is not None}
    if words is None:
        resolved(entry)
        assert [len(r["annotations"]) for r in load("y")] == [1, 1, 0]
        return
    with pytest.raises(InputError, match=words) as error:
        resolved(entry)
        load("y")
    assert "\n" not in str(error.value)


def coco_file(root, name, categories, annotations, count=2):
    for i in range(count):
        image(root / "img" / f"{i}.jpg")
    content = {
        "images": [
            {"id": 10 + i, "file_name": f"{i}.jpg", "width": 50, "height": 40} for i in range(count)
        ],
        "annotations": [
            {"id": i, "image_id": number, "category_id": c, "bbox": b, "area": 4, "iscrowd": crowd}
            for i, (number, c, b, crowd) in enumerate(annotations)
        ],
        "categories": [{"id": i, "name": n} for i, n in categories],
    }
    (root / f"{name}.json").write_text(json.dumps(content))
    return {"NAME": name, "FORMAT": "coco", "JSON": f"{name}.json", "IMAGES": "img"}


def test_coco_with_crowds_empty_images_and_gaps_in_its_ids(root):
    objects = [(10, 7, [1, 2, 30, 20], 0), (10, 90, [0, 0, 40, 30], 1)]
    entry = coco_file(root, "c", [(7, "cat"), (90, "dog")], objects, count=3)
    cfg = resolved(entry)
    cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = 2, 0
    records = load("c")
    assert [len(r["annotations"]) for r in records] == [2, 0, 0]
    assert [a["category_id"] for a in records[0]["annotations"]] == [0, 1]
    assert [a["iscrowd"] for a in records[0]["annotations"]] == [0, 1]
    batch = next(iter(build_train_loader(cfg)))
    assert all(s["instances"].gt_classes.tolist() in ([], [0]) for s in batch)


@pytest.mark.parametrize(
    "objects, words",
    [
        ([(10, 8, [1, 2, 3, 4], 0)], "annotation 0 of 0.jpg has category_id 8"),
        ([(99, 7, [1, 2, 3, 4], 0)], "1 annotations are of image_id 99"),
        ([(10, 7, [1, 2, 3], 0)], "annotation 0 of 0.jpg has bbox"),
        ([(10, 7, None, 0)], "annotation 0 of 0.jpg has bbox None"),
    ],
)
def test_wrong_coco_annotations_are_named(root, objects, words):
    resolved(coco_file(root, "c", [(7, "cat")], objects))
    with pytest.raises(InputError, match=words):
        load("c")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"images": ' + '{"a": ' * 100_000, b"\xff\xfe\xff"]
)
def test_coco_files_that_are_none_are_named(root, text):
    """Nested too deep, or no text."""
    (root / "c.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match="c.json is no COCO file of objects"):
        resolved({"NAME": "c", "FORMAT": "coco", "JSON": "c.json", "IMAGES": "img"})


def test_a_pipe_is_no_coco_file(root):
    os.mkfifo(root / "c.json")
    resolved({"NAME": "c", "FORMAT": "coco", "JSON": "c.json", "IMAGES": "i", "CLASSES": ["x"]})
    with pytest.raises(InputError, match="c.json: not a regular file"):
        load("c")


def test_voc_with_suffixes_of_both_cases_in_one_folder(root):
    folder = root / "v"
    for name in ("a.JPG", "b.jpg", "b.JPG", "two words.jpeg"):
        image(folder / "JPEGImages" / name)
    (folder / "Annotations").mkdir()
    box = "<xmin>1</xmin><ymin>1</ymin><xmax>20</xmax><ymax>30</ymax>"
    for name, file in (("a", "a.JPG"), ("b", "b.jpg"), ("two words", "?")):
        (folder / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><filename>{file}</filename><object><name>x</name><bndbox>{box}</bndbox>"
            "</object></annotation>"
        )
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a  1\nb -1\ntwo words\n")
    resolved({"NAME": "v", "FORMAT": "voc", "ROOT": "v", "SPLIT": "train"})
    names = [r["file_name"].split("/")[-1] for r in load("v")]
    assert names == ["a.JPG", "b.jpg", "two words.jpeg"]
    assert all(r["annotations"][0]["bbox"] == [0, 0, 20, 30] for r in load("v"))


def test_classes_of_several_training_sets_are_merged_by_name(root):
    one = coco_file(root, "one", [(1, "cat"), (2, "dog")], [(10, 2, [1, 2, 3, 4], 0)])
    two = coco_file(root, "two", [(5, "dog"), (9, "bird")], [(10, 5, [1, 2, 3, 4], 0)])
    held = coco_file(root, "held", [(1, "bird")], [(11, 1, [1, 2, 3, 4], 0)])
    cfg = resolved(one, two, held, train=("one", "two"), test=("held",))
    assert cfg.MODEL.SSD.NUM_CLASSES == 3
    for name, expected in (("one", 1), ("two", 1), ("held", 2)):
        assert MetadataCatalog.get(name).thing_classes == ["cat", "dog", "bird"]
        found = [a["category_id"] for r in load(name) for a in r["annotations"]]
        assert found == [expected]
    saved = load_config("ssdlite_mnv2.yaml", ["DATASETS.REGISTER", str(cfg.DATASETS.REGISTER)])
    assert saved.DATASETS.REGISTER[0]["CLASSES"] == ["cat", "dog", "bird"]


def test_merged_test_sets_are_evaluated_by_the_merged_ids(root):
    """COCO's evaluation must not read ids from a file whose classes are others."""
    from detectron2.structures import Boxes, Instances

    from ssdlite_d2.engine import SSDTrainer

    one = coco_file(root, "one", [(1, "cat"), (2, "dog")], [(10, 2, [1, 2, 30, 30], 0)])
    held = coco_file(root, "held", [(7, "dog")], [(10, 7, [1, 2, 30, 30], 0)])
    cfg = resolved(one, held, train=("one",), test=("held",))
    cfg.OUTPUT_DIR = str(root / "out")
    evaluator = SSDTrainer.build_evaluator(cfg, "held")
    evaluator.reset()
    for record in load("held"):
        found = Instances((40, 50), pred_boxes=Boxes([[1.0, 2, 31, 32]]), scores=np.array([0.9]))
        import torch

        found.scores = torch.tensor([0.9])
        found.pred_classes = torch.tensor([1])
        keep = slice(0, len(record["annotations"]))
        evaluator.process([record], [{"instances": found[keep]}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)


def test_a_test_set_with_untrained_classes_is_an_error(root):
    one = coco_file(root, "one", [(1, "cat")], [])
    held = coco_file(root, "held", [(1, "cat"), (2, "bird")], [])
    with pytest.raises(InputError, match="'held' has classes that no training set has: bird"):
        resolved(one, held, train=("one",), test=("held",))
    dropped = {**held, "CLASSES": ["cat"], "OTHER_CLASSES": "drop"}
    assert resolved(one, dropped, train=("one",), test=("held",)).MODEL.SSD.NUM_CLASSES == 1


def test_registered_sets_take_part_by_name(root, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(ASSETS))
    cells = voc_entry("cells", CLASSES=CLASSES)
    view = {"NAME": "view", "FORMAT": "detectron2", "DATASET": "cells"}
    few = {**view, "CLASSES": ["Platelets"], "OTHER_CLASSES": "drop"}
    resolved(cells)  # registers it
    assert resolved(few, train=("view",)).MODEL.SSD.NUM_CLASSES == 1
    ids = {a["category_id"] for r in load("view") for a in r["annotations"]}
    whole = sum(a["category_id"] == 2 for r in load("cells") for a in r["annotations"])
    assert ids == {0} and whole == sum(len(r["annotations"]) for r in load("view"))
    with pytest.raises(InputError, match="DATASET nowhere is not registered"):
        resolved({**view, "NAME": "other", "DATASET": "nowhere"})


def test_detectron2s_sets_of_other_classes_say_how_to_merge():
    names = str(("coco_2017_train", "voc_2007_trainval"))
    cfg = load_config("ssdlite_mnv2.yaml", ["DATASETS.TRAIN", names])
    with pytest.raises(InputError, match="FORMAT: detectron2, DATASET: coco_2017_train"):
        resolve_datasets(cfg)


def test_lvis_is_known_and_names_its_package():
    names = ["DATASETS.TRAIN", "('lvis_v1_train',)", "DATASETS.TEST", "('lvis_v1_val',)"]
    cfg = load_config("ssdlite_mnv2.yaml", names)
    resolve_datasets(cfg)
    assert cfg.MODEL.SSD.NUM_CLASSES == 1203
    with pytest.raises(InputError, match="'lvis_v1_train'.*(pip install lvis|does not exist)"):
        build_train_loader(cfg)
