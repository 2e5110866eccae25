"""From folders of every layout to a config that loads."""

import json
import shutil
from collections import Counter

import pytest
import yaml
from conftest import ASSETS
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode

from ssdlite_d2 import InputError, load_config
from ssdlite_d2.data import resolve_datasets
from ssdlite_d2.data.datasets.entry import Entry
from ssdlite_d2.engine.solver import set_schedule
from ssdlite_d2.tools import cli
from ssdlite_d2.tools.own_data import output_of, write_own_config

pytestmark = pytest.mark.usefixtures("clean_catalog")
BCCD = ASSETS / "bccd"
RECORDS = Entry.parse({"NAME": "x", "FORMAT": "voc", "ROOT": str(BCCD), "SPLIT": "all"})


@pytest.fixture(scope="module")
def records():
    """The four images, with the names that a user may give."""
    return RECORDS.load()


def new_name(record, suffix=""):
    number = record["image_id"][-3:]
    return f"Größe {number}{suffix or '.jpg'}"


def boxes(record):
    return [
        (a["category_id"], BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS))
        for a in record["annotations"]
    ]


def copy_image(record, folder, suffix=""):
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(record["file_name"], folder / new_name(record, suffix))


def write_coco(records, file, images):
    classes = [{"id": 0, "name": "cells"}] + [
        {"id": i + 1, "name": name} for i, name in enumerate(("Platelets", "RBC", "WBC"))
    ]
    content = {"images": [], "annotations": [], "categories": classes}
    for i, record in enumerate(records):
        copy_image(record, images)
        size = {"height": record["height"], "width": record["width"]}
        content["images"].append({"id": i, "file_name": new_name(record), **size})
        for c, (x0, y0, x1, y1) in boxes(record):
            box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "category_id": c + 1, "image_id": i}
            content["annotations"].append({"id": len(content["annotations"]) + 1, **box})
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def write_yolo(records, images, labels):
    labels.mkdir(parents=True, exist_ok=True)
    for record in records:
        copy_image(record, images)
        height, width = record["height"], record["width"]
        lines = [
            f"{c} {(x0 + x1) / 2 / width} {(y0 + y1) / 2 / height} {(x1 - x0) / width} "
            f"{(y1 - y0) / height}"
            for c, (x0, y0, x1, y1) in boxes(record)
        ]
        (labels / new_name(record, ".txt")).write_text("\n".join(lines))


def write_xml(records, images, xml):
    xml.mkdir(parents=True, exist_ok=True)
    for record, suffix in zip(records, (".JPG", ".jpg") * 2):
        copy_image(record, images, suffix)
        source = BCCD / "Annotations" / f"{record['image_id']}.xml"
        shutil.copy(source, xml / new_name(record, ".xml"))


def coco_folder(root, train, val):
    write_coco(train, root / "annotations" / "instances_train2017.json", root / "train2017")
    write_coco(val, root / "annotations" / "instances_val2017.json", root / "val2017")


def roboflow_coco(root, train, val):
    for name, part in (("train", train), ("valid", val)):
        write_coco(part, root / name / "_annotations.coco.json", root / name)


def coco_alone(root, train, val):
    write_coco(train + val, root / "labels.json", root / "images")
    return root / "labels.json"


def voc_lists(root, train, val):
    write_xml(train + val, root / "JPEGImages", root / "Annotations")
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for name, part in (("train", train), ("val", val)):
        (lists / f"{name}.txt").write_text("\n".join(new_name(r, " ").strip() for r in part))


def voc_without_lists(root, train, val):
    write_xml(train + val, root / "images", root / "annotations")


def xml_beside(root, train, val):
    write_xml(train + val, root, root)


def roboflow_xml(root, train, val):
    for name, part in (("train", train), ("valid", val), ("test", val)):
        write_xml(part, root / name, root / name)


def yolo_data(root, train, val):
    for name, part in (("train", train), ("val", val)):
        write_yolo(part, root / "images" / name, root / "labels" / name)
    data = {"train": "images/train", "val": "images/val", "names": ["Platelets", "RBC", "WBC"]}
    (root / "data.yaml").write_text(yaml.safe_dump(data))
    return root / "data.yaml"


def yolo_folders(root, train, val):
    for name, part in (("train", train), ("valid", val)):
        write_yolo(part, root / name / "images", root / name / "labels")
    (root / "classes.txt").write_text("Platelets\nRBC\nWBC\n")


def yolo_beside_in_a_folder(root, train, val):
    write_yolo(train + val, root / "inner", root / "inner")
    (root / "inner" / "classes.txt").write_text("Platelets\nRBC\nWBC\n")


PARTS = [coco_folder, roboflow_coco, voc_lists, roboflow_xml, yolo_data, yolo_folders]
WHOLE = [coco_alone, voc_without_lists, xml_beside, yolo_beside_in_a_folder]


def understood(folder):
    """Boxes by class name, and images, of both parts of the config that a folder has."""
    cfg = load_config(str(folder / "train.yaml"))
    resolve_datasets(cfg)
    entries = {entry["NAME"]: entry for entry in cfg.DATASETS.REGISTER}
    found = []
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        dicts, classes = DatasetCatalog.get(name), entries[name]["CLASSES"]
        counts = Counter(classes[a["category_id"]] for r in dicts for a in r["annotations"])
        found.append((sorted(r["file_name"] for r in dicts), counts))
    return found


def expected(records):
    names = ("Platelets", "RBC", "WBC")
    return Counter(names[c] for record in records for c, _ in boxes(record))


@pytest.mark.parametrize("make", PARTS + WHOLE, ids=lambda make: make.__name__)
def test_layouts(make, records, tmp_path, capsys):
    data = tmp_path / "my data"
    train, val = records[1:], records[:1]
    data = make(data, train, val) or data
    output = tmp_path / "out"
    write_own_config(str(data), str(output))
    (trained, counts), (tested, test_counts) = understood(output)
    assert len(trained) == 3 and len(tested) == 1 and not set(trained) & set(tested)
    assert all("Größe" in name for name in trained + tested)
    if make in PARTS:
        kept = expected(train)
        assert counts == kept
        assert test_counts == Counter({k: n for k, n in expected(val).items() if k in kept})
        assert not (output / "val.txt").exists()
    else:
        assert sum((counts + test_counts).values()) >= sum(expected(records).values()) - 3
        lines = (output / "val.txt").read_text("utf-8").split("\n")
        assert tested[0].endswith(lines[0])
        assert "set aside" in capsys.readouterr().out


def test_what_is_set_aside_is_kept(records, tmp_path, capsys):
    data, output = tmp_path / "data", tmp_path / "out"
    xml_beside(data, records[1:], [])
    write_own_config(str(data), str(output))
    first = (output / "val.txt").read_text("utf-8")
    write_xml(records[:1], data, data)  # the set has grown
    write_own_config(str(data), str(output))
    assert (output / "val.txt").read_text("utf-8") == first
    assert len((output / "train.txt").read_text("utf-8").split()) > 2
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 24 and any("4 images" in line or "3 images" in line for line in lines)


def test_overrides_and_models_are_in_the_config(records, tmp_path):
    data = tmp_path / "data"
    xml_beside(data, records, [])
    keys = ["SOLVER.MAX_ITER", "600", "INPUT.SIZE", "(96, 128)", "MODEL.DEVICE", "cpu"]
    cfg = load_config(write_own_config(str(data), str(tmp_path / "a"), None, keys))
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.EPOCHS, cfg.TEST.EVALUATIONS) == (600, 0.0, 10)
    assert tuple(cfg.INPUT.SIZE) == (96, 128) and cfg.MODEL.DEVICE == "cpu"
    cfg = load_config(write_own_config(str(data), str(tmp_path / "b"), "ssdlite_mnv3_voc"))
    assert cfg.MODEL.BACKBONE.NAME == "build_ssd_mobilenetv3_backbone"
    assert cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupCosineLR"
    assert cfg.SOLVER.EPOCHS > 0 and cfg.MODEL.EMA.ENABLED and cfg.DATASETS.TRAIN == ("own_train",)
    assert cfg.OUTPUT_DIR == str(tmp_path / "b") and cfg.SOLVER.BASE_LR == 0.03
    cfg = load_config(write_own_config(str(data), str(tmp_path / "b"), "modern/ssdlite_pan_main"))
    assert cfg.SOLVER.OPTIMIZER == "AdamW" and cfg.SOLVER.BASE_LR == 0.01
    assert cfg.MODEL.SSD.NECK.CHANNELS == 128 and cfg.SOLVER.IMS_PER_BATCH == 16
    assert cfg.SOLVER.EPOCHS == 5334  # 16,000 of 3 images
    set_schedule(cfg, 3)
    assert cfg.SOLVER.MAX_ITER == 1001 and cfg.MODEL.SSD.ASSIGNER.WARMUP_ITERS == 200


def test_versions_of_a_set_have_outputs_of_their_own(tmp_path):
    (tmp_path / "cells.v2").mkdir()
    for name, output in (("cells.v2", "output/cells.v2"), ("cells.v3.json", "output/cells.v3")):
        assert output_of(str(tmp_path / name)) == output


def test_classes_without_names_are_called_by_numbers(records, tmp_path, capsys):
    write_yolo(records, tmp_path / "data", tmp_path / "data")
    write_own_config(str(tmp_path / "data"), str(tmp_path / "out"))
    assert "no classes.txt: classes are called by their numbers" in capsys.readouterr().out
    cfg = load_config(str(tmp_path / "out" / "train.yaml"))
    assert cfg.DATASETS.REGISTER[0]["CLASSES"] == ["0", "1", "2"]


def test_check_reports_what_a_training_ends_at(records, tmp_path, monkeypatch, capsys):
    xml_beside(tmp_path / "data", records, [])
    broken = next((tmp_path / "data").glob("*.xml"))
    broken.write_text(broken.read_text()[:300])
    with pytest.raises(InputError, match="broken XML"):
        write_own_config(str(tmp_path / "data"), str(tmp_path / "out"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["ssdlite", "check", "data"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    printed = capsys.readouterr().out
    assert end.value.code == 1 and f"{broken.name}: broken XML" in printed, printed


def test_what_is_no_data_is_named(records, tmp_path):
    empty, only_val, twice = (tmp_path / name for name in ("empty", "only", "twice"))
    empty.mkdir()
    write_yolo(records, only_val / "valid" / "images", only_val / "valid" / "labels")
    orders = tmp_path / "orders"
    for name, classes in (("train", "Platelets\nRBC\nWBC\n"), ("val", "RBC\nPlatelets\n")):
        write_yolo(records, orders / name / "images", orders / name / "labels")
        (orders / name / "labels" / "classes.txt").write_text(classes)
    for name in ("a", "b"):
        write_coco(records, twice / f"{name}.json", twice)
    lost = twice / "lost" / "x.json"
    lost.parent.mkdir()
    lost.write_text(
        json.dumps({"images": [{"file_name": "gone.jpg"}], "annotations": [], "categories": []})
    )
    write_coco(records, tmp_path / "bare" / "a.json", tmp_path / "bare")
    content = json.loads((tmp_path / "bare" / "a.json").read_text())
    (tmp_path / "bare" / "a.json").write_text(json.dumps({**content, "annotations": []}))
    cases = {
        tmp_path / "bare": "no image to train on has a box",
        tmp_path / "no": "does not exist",
        empty: "no annotations of a known format",
        only_val: "no part called train",
        twice: "two sets of annotations",
        lost: "gone.jpg",
        orders: "classes.txt has RBC, Platelets but",
    }
    for path, words in cases.items():
        with pytest.raises(InputError) as error:
            write_own_config(str(path), str(tmp_path / "out"))
        assert words in str(error.value) and str(path) in str(error.value)
    for model, key, value, words in (
        (None, "SOLVER.BASE_L", 1, "the command line: .*did you mean SOLVER.BASE_LR"),
        ("ssdlite_mnv2", "MODEL.DEVICE", "gpu", "MODEL.DEVICE is 'gpu'"),
    ):
        with pytest.raises(InputError, match=words):
            write_own_config(str(twice / "a.json"), str(tmp_path / "out"), model, [key, value])
    assert not (tmp_path / "out").exists()
    write_own_config(  # which is good for the recipe, though not for the model alone
        str(twice / "a.json"), str(tmp_path / "out"), "ssdlite_mnv2", ["SOLVER.PATIENCE", 4]
    )
