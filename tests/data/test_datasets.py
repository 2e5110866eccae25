import json
import logging

import pytest
from conftest import CLASSES, data_opts, voc_entry
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.pascal_voc import CLASS_NAMES

from ssdlite_d2 import InputError, load_config
from ssdlite_d2.data import register_datasets, resolve_datasets, resolve_num_classes

pytestmark = pytest.mark.usefixtures("clean_catalog")


def config(*entries, **keys):
    opts = [x for key, value in keys.items() for x in (f"MODEL.SSD.{key}", value)]
    return load_config("ssdlite_mnv2.yaml", data_opts(*entries) + opts)


def coco(categories=((3, "b"), (1, "a")), boxes=((1, 2, 3, 4),)):
    return {
        "images": [{"id": 5, "file_name": "x.jpg", "width": 50, "height": 40}],
        "annotations": [
            {"id": i, "image_id": 5, "category_id": 3, "bbox": list(b), "area": 1, "iscrowd": 0}
            for i, b in enumerate(boxes)
        ],
        "categories": [{"id": i, "name": n} for i, n in categories],
    }


@pytest.fixture
def coco_entry(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))

    def write(content, **keys):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "a.json").write_text(text)
        return {"NAME": "mine", "FORMAT": "coco", "JSON": "a.json", "IMAGES": "img", **keys}

    return write


def test_voc_records(bccd, caplog):
    cfg = config()
    assert resolve_num_classes(cfg) == 3
    with caplog.at_level(logging.INFO, logger="ssdlite_d2"):
        records = DatasetCatalog.get("tiny")
    assert [r["image_id"][-5:] for r in records] == ["00338", "00343", "00000", "00007"]
    assert sum(len(r["annotations"]) for r in records) == 14 + 12 + 20 + 18 - 2
    assert (
        "dropped 2 boxes without area, in BloodImage_00338.xml, BloodImage_00343.xml" in caplog.text
    )
    first = records[2]["annotations"][0]
    xml = (bccd / "Annotations" / "BloodImage_00000.xml").read_text()
    box = [int(xml.split(f"<{t}>")[1].split("<")[0]) for t in ("xmin", "ymin", "xmax", "ymax")]
    assert first["bbox"] == [box[0] - 1, box[1] - 1, box[2], box[3]]
    assert CLASSES[first["category_id"]] == "WBC"
    assert (records[0]["height"], records[0]["width"]) == (480, 640)


def test_voc_classes_are_found_in_all_annotations(bccd):
    cfg = config(voc_entry(split="one"))
    resolve_datasets(cfg)
    assert cfg.DATASETS.REGISTER[0]["CLASSES"] == sorted(CLASSES)
    assert cfg.MODEL.SSD.NUM_CLASSES == 3
    assert MetadataCatalog.get("tiny").thing_classes == sorted(CLASSES)


def test_saved_config_needs_no_data(bccd, tmp_path, monkeypatch):
    cfg = config(voc_entry(split="one"))
    resolve_datasets(cfg)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))
    again = load_config(str(tmp_path / "config.yaml"))
    assert resolve_num_classes(again) == 3
    assert MetadataCatalog.get("tiny").thing_classes == sorted(CLASSES)


def test_voc_images_of_any_suffix_and_case(bccd_copy):
    folder = bccd_copy / "JPEGImages"
    (folder / "BloodImage_00000.jpg").rename(folder / "BloodImage_00000.JPG")
    (folder / "BloodImage_00007.jpg").rename(folder / "BloodImage_00007.jpeg")
    register_datasets(config())
    names = [r["file_name"].rsplit(".")[-1] for r in DatasetCatalog.get("tiny")]
    assert names == ["jpg", "jpg", "JPG", "jpeg"]


def test_voc_difficult_objects_are_not_trained_on(bccd_copy):
    xml = bccd_copy / "Annotations" / "BloodImage_00000.xml"
    text = xml.read_text()
    assert text.count("<difficult>0</difficult>") == 20
    xml.write_text(text.replace("<difficult>0<", "<difficult>1<", 3))
    register_datasets(config(voc_entry(split="one", CLASSES=CLASSES)))
    annotations = DatasetCatalog.get("tiny")[0]["annotations"]
    assert [a["iscrowd"] for a in annotations] == [1] * 3 + [0] * 17
    assert [a["difficult"] for a in annotations] == [1] * 3 + [0] * 17


def test_voc_without_size_takes_it_from_the_image(bccd_copy):
    xml = bccd_copy / "Annotations" / "BloodImage_00000.xml"
    xml.write_text(xml.read_text().replace("<width>640</width>", "<width>0</width>"))
    register_datasets(config(voc_entry(split="one", CLASSES=CLASSES)))
    record = DatasetCatalog.get("tiny")[0]
    assert (record["height"], record["width"]) == (480, 640)


def test_voc_evaluator_is_for_its_20_classes_only(bccd):
    twenty = voc_entry("twenty", CLASSES=list(CLASS_NAMES))
    resolve_num_classes(config(twenty))
    assert MetadataCatalog.get("twenty").evaluator_type == "pascal_voc"
    resolve_num_classes(config())
    assert MetadataCatalog.get("tiny").evaluator_type == "coco"


def test_coco_records_and_classes_by_id(coco_entry):
    boxes = [(1, 2, 3, 4), (1, 2, 0, 4), (1, 2, 3, -1), (float("nan"), 1, 1, 1)]
    cfg = config(coco_entry(coco(boxes=boxes)))
    assert resolve_num_classes(cfg) == 2
    assert MetadataCatalog.get("mine").thing_classes == ["a", "b"]
    record = DatasetCatalog.get("mine")[0]
    assert [(a["bbox"], a["category_id"]) for a in record["annotations"]] == [([1, 2, 3, 4], 1)]
    assert record["file_name"].endswith("img/x.jpg")


def test_entry_of_the_same_name_from_another_config_takes_its_place(bccd):
    assert resolve_num_classes(config()) == 3
    assert resolve_num_classes(config(voc_entry(CLASSES=[*CLASSES, "other"]))) == 4
    assert MetadataCatalog.get("tiny").thing_classes[-1] == "other"


def test_detectron2s_own_sets_tell_their_classes():
    assert resolve_num_classes(load_config("ssdlite_mnv2.yaml")) == 80
    names = ["DATASETS.TRAIN", "('voc_2007_trainval',)", "DATASETS.TEST", "('voc_2007_test',)"]
    assert resolve_num_classes(load_config("ssdlite_mnv2.yaml", names)) == 20


@pytest.mark.parametrize(
    "change, words",
    [
        ({"NAME": None}, "is one of coco, detectron2, voc, yolo"),
        ({"FORMAT": "yaml"}, "FORMAT is 'yaml'; it is one of coco, detectron2, voc, yolo"),
        ({"OTHER_CLASSES": "keep"}, "OTHER_CLASSES is 'keep'; it is one of error, drop"),
        ({"FORMAT": "coco"}, "unknown key SPLIT"),
        ({"SPLIT": ""}, "FORMAT voc needs SPLIT"),
        ({"COLOUR": 1}, "unknown key COLOUR"),
        ({"CLASSES": "RBC"}, "CLASSES is 'RBC'; it is a list of names"),
        ({"NAME": "coco_2017_val"}, "'coco_2017_val' is registered already"),
    ],
)
def test_wrong_entries_are_named(bccd, change, words):
    entry = {**voc_entry(CLASSES=CLASSES), **change}
    if entry["NAME"] is None:
        entry["FORMAT"] = "x"
    with pytest.raises(InputError) as error:
        register_datasets(load_config("ssdlite_mnv2.yaml", ["DATASETS.REGISTER", str([entry])]))
    assert words in str(error.value)


def test_contradictions_show_both_sides(bccd):
    with pytest.raises(InputError, match="NUM_CLASSES is 80, but data set 'tiny' has 3 classes"):
        resolve_num_classes(config(NUM_CLASSES=80))
    with pytest.raises(InputError, match="data set 'nowhere' is unknown"):
        resolve_num_classes(load_config("ssdlite_mnv2.yaml", ["DATASETS.TEST", "('nowhere',)"]))


def voc_break(case, folder):
    xml = folder / "Annotations" / "BloodImage_00000.xml"
    text = xml.read_text()
    if case == "class":
        xml.write_text(text.replace("<name>WBC<", "<name>Dog<"))
    elif case == "xml":
        xml.write_text(text[:300])
    elif case == "bomb":
        entities = '<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">'
        xml.write_text(f"<!DOCTYPE x [{entities}]>" + text.replace("<name>WBC<", "<name>&b;<"))
    elif case == "number":
        xml.write_text(text.replace("<xmin>", "<xmin>x"))
    elif case == "no xml":
        xml.unlink()
    elif case == "no box":
        xml.write_text(text.replace("<xmin>", "<x>").replace("</xmin>", "</x>"))
    elif case == "image":
        (folder / "JPEGImages" / "BloodImage_00000.jpg").unlink()


@pytest.mark.parametrize(
    "case, words",
    [
        ("class", ["BloodImage_00000.xml", "class 'Dog' is not in CLASSES"]),
        ("xml", ["BloodImage_00000.xml", "broken XML"]),
        ("bomb", ["BloodImage_00000.xml", "has a document type"]),
        ("number", ["BloodImage_00000.xml", "could not convert string to float"]),
        ("no xml", ["BloodImage_00000.xml", "No such file"]),
        ("no box", ["BloodImage_00000.xml", "<bndbox><xmin>"]),
        ("image", ["BloodImage_00000", "all.txt lists it"]),
    ],
)
def test_broken_voc_files_are_named(bccd_copy, case, words):
    voc_break(case, bccd_copy)
    register_datasets(config())
    with pytest.raises(InputError) as error:
        DatasetCatalog.get("tiny")
    for word in words:
        assert word in str(error.value)


def test_missing_voc_split_is_named(bccd):
    register_datasets(config(voc_entry(split="gone", CLASSES=CLASSES)))
    with pytest.raises(InputError, match="gone.txt: No such file.*SPLIT names the file"):
        DatasetCatalog.get("tiny")


@pytest.mark.parametrize(
    "content, words",
    [
        ("[1, 2]", "is no COCO file"),
        ("{", "is no COCO file"),
        ({"images": []}, "is no COCO file"),
        ({"images": [1], "categories": []}, "is no COCO file"),
        ({"images": [], "categories": [1]}, "is no COCO file"),
        ("\xff\xfe", "is no COCO file"),
    ],
)
def test_files_that_are_not_coco_are_named(coco_entry, content, words):
    with pytest.raises(InputError, match=words):
        resolve_num_classes(config(coco_entry(content)))


def test_missing_coco_file_and_other_classes_are_named(coco_entry, tmp_path):
    entry = coco_entry(coco())
    with pytest.raises(
        InputError, match="CLASSES is \\['x'\\], but its files have also \\['a', 'b'\\]"
    ):
        resolve_num_classes(config({**entry, "CLASSES": ["x"]}))
    (tmp_path / "a.json").unlink()
    with pytest.raises(InputError, match="a.json: No such file"):
        resolve_num_classes(config(entry))
