"""Perfect detections have an AP of 100, whatever the format and its ids."""

import json

import numpy as np
import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.data.datasets.pascal_voc import CLASS_NAMES as VOC_CLASSES
from detectron2.structures import Boxes, Instances
from PIL import Image

from ssdlite_d2 import InputError, load_config
from ssdlite_d2.data import resolve_datasets
from ssdlite_d2.diagnostics.defects import load_records
from ssdlite_d2.evaluation import BoxEvaluator, VOCEvaluator, coco
from ssdlite_d2.export.accuracy import average_precision

pytestmark = pytest.mark.usefixtures("clean_catalog")
NAMES = ("aeroplane", "bicycle", "bird")
IMAGES, SIDE = 3, 400
NO_BOX = [50, 50, 0, 30]  # which every loader drops


def objects(image):
    """(class, XYWH, kind) of an image: small, medium and large ones, a crowd, a box of no area."""
    shift = 7 * image
    return [
        (0, [10 + shift, 20, 16, 20], "object"),
        (1, [60, 30 + shift, 60, 48], "object"),
        (2, [150 + shift, 150, 160, 200], "object"),
        (image, [200, 10, 40 + shift, 60], "object"),
        (1, [20, 200, 100, 120], "crowd"),
        (2, NO_BOX, "empty"),
    ]


def coco_file(ids):
    """A COCO file's content with annotation ids of some kind, and categories 7, 8, 9."""
    annotations = []
    for image in range(IMAGES):
        for n, (class_id, box, kind) in enumerate(objects(image)):
            a = {"image_id": f"image {image}" if ids == "names" else image, "bbox": box}
            a.update(category_id=7 + class_id, area=box[2] * box[3], iscrowd=int(kind == "crowd"))
            number = len(annotations)
            kinds = {"from 1": number + 1, "from 0": number, "per image": n + 1, "equal": 1}
            kinds.update({"gaps": -5 + 1000 * number, "names": f"a{number}"})
            if ids != "absent":
                a["id"] = kinds[ids]
            elif kind == "object":  # no area and no flag as well
                del a["area"], a["iscrowd"]
            annotations.append(a)
    images = [{"id": i, "height": SIDE, "width": SIDE} for i in range(IMAGES)]
    for image in images:
        image["file_name"] = f"{image['id']}.png"
        image["id"] = f"image {image['id']}" if ids == "names" else image["id"]
    categories = [{"id": 7 + i, "name": name} for i, name in enumerate(NAMES)]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_voc(root):
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    (root / "ImageSets" / "Main" / "all.txt").write_text("0\n1\n2\n")
    for image in range(IMAGES):
        (root / "JPEGImages" / f"{image}.png").write_bytes(b"")
        xml = f"<size><height>{SIDE}</height><width>{SIDE}</width></size>"
        for class_id, (x, y, w, h), kind in objects(image):
            sides = (("xmin", x + 1), ("ymin", y + 1), ("xmax", x + w), ("ymax", y + h))
            box = "".join(f"<{name}>{value:.1f}</{name}>" for name, value in sides)
            xml += f"<object><name>{NAMES[class_id]}</name><pose>Left</pose>"
            xml += f"<truncated>0</truncated><difficult>{int(kind == 'crowd')}</difficult>"
            xml += f"<bndbox>{box}</bndbox></object>"
        file = root / "Annotations" / f"{image}.xml"
        file.write_text(f"<annotation>{xml}</annotation>")


def write_yolo(root):
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    names = {1: NAMES[0], 4: NAMES[1], 5: NAMES[2]}
    (root / "data.yaml").write_text(yaml.safe_dump({"train": "images", "names": names}))
    for image in range(IMAGES):
        Image.new("L", (SIDE, SIDE)).save(root / "images" / f"{image}.png")
        rows = [
            (list(names)[class_id], x + w / 2, y + h / 2, w, h)
            for class_id, (x, y, w, h), kind in objects(image)
            if kind != "crowd"  # which the format cannot tell
        ]
        lines = [f"{row[0]} {' '.join(repr(n / SIDE) for n in row[1:])}" for row in rows]
        (root / "labels" / f"{image}.txt").write_text("\n".join(lines))


def perfect(names, crowds=True):
    """Detections in the order of the images; those of crowds must not count."""
    for image in range(IMAGES):
        instances, rows = Instances((SIDE, SIDE)), objects(image)
        rows = [r for r in rows if r[2] == "object" or (r[2] == "crowd" and crowds)]
        rows = [r for r in rows if NAMES[r[0]] in names]
        boxes = torch.tensor([box for _, box, _ in rows]).float().reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        instances.pred_boxes = Boxes(boxes)
        instances.scores = torch.full((len(rows),), 0.9)
        instances.pred_classes = torch.tensor([names.index(NAMES[c]) for c, *_ in rows])
        yield instances


def evaluated(evaluator, name, names, **kwargs):
    evaluator.reset()
    for record, found in zip(DatasetCatalog.get(name), perfect(names, **kwargs)):
        evaluator.process([record], [{"instances": found}])
    return evaluator.evaluate()


def assert_perfect(tmp_path, name, names, **kwargs):
    """100 in every metric, by both implementations and by that of the exports."""
    results = evaluated(BoxEvaluator(name, str(tmp_path)), name, names, **kwargs)["bbox"]
    assert {"AP", "APs", "APm", "APl"} <= set(results)
    for metric, value in results.items():
        assert value == pytest.approx(100, abs=1e-6) or metric[2:] in "sml" and np.isnan(value)
    records = DatasetCatalog.get(name)
    fields = ("pred_boxes", "scores", "pred_classes")
    found = [
        tuple(getattr(getattr(x, f), "tensor", getattr(x, f)).numpy() for f in fields)
        for x in perfect(names, **kwargs)
    ]
    assert average_precision(records, found) == pytest.approx(100, abs=1e-6)


def register(root, **entry):
    keys = ["DATASETS.REGISTER", str([{"NAME": "mine", **entry}])]
    keys += ["DATASETS.TRAIN", "('mine',)", "DATASETS.TEST", "('mine',)"]
    cfg = load_config("ssdlite_mnv2.yaml", keys)
    resolve_datasets(cfg)


@pytest.fixture(params=["faster-coco-eval", "pycocotools"])
def implementation(request, monkeypatch):
    if request.param == "pycocotools":
        monkeypatch.setattr(coco, "faster_coco_eval", None)


SUBSETS = [NAMES, NAMES[:2], (NAMES[2], NAMES[0])]


@pytest.mark.parametrize("names", SUBSETS, ids=["all", "two", "permuted"])
@pytest.mark.parametrize(
    "kind",
    ["from 1", "from 0", "per image", "equal", "gaps", "names", "absent", "voc", "yolo"],
)
@pytest.mark.usefixtures("implementation")
def test_perfect_detections(tmp_path, monkeypatch, kind, names):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    entry = {"CLASSES": list(names), "OTHER_CLASSES": "drop"} if names != NAMES else {}
    if kind == "voc":
        write_voc(tmp_path / "data")
        entry.update(FORMAT="voc", ROOT="data", SPLIT="all")
    elif kind == "yolo":
        write_yolo(tmp_path / "data")
        entry.update(FORMAT="yolo", DATA="data/data.yaml", SPLIT="train")
    else:
        (tmp_path / "data.json").write_text(json.dumps(coco_file(kind)))
        entry.update(FORMAT="coco", JSON="data.json", IMAGES="images")
    register(tmp_path, **entry)
    assert_perfect(tmp_path, "mine", names, crowds=kind != "yolo")


@pytest.mark.parametrize("year", [2007, 2012])
def test_voc_metric(tmp_path, monkeypatch, year):
    """Of sets of its 20 classes; a box without area and coordinates that are no integers."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write_voc(tmp_path / "data")
    register(tmp_path, FORMAT="voc", ROOT="data", SPLIT="all", YEAR=year, CLASSES=VOC_CLASSES)
    assert MetadataCatalog.get("mine").evaluator_type == "pascal_voc"
    found = evaluated(VOCEvaluator("mine"), "mine", VOC_CLASSES)["voc"]
    assert found["AP50"] == pytest.approx(100 * 3 / 20)  # the other classes have no objects


def test_odd_ids_are_reported_and_survived(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    expected = {
        "from 1": [],
        "from 0": ["0 is an id"],
        "per image": ["12 have the id of another one"],
        "equal": ["17 have the id"],
        "absent": ["18 annotations have no id"],
    }
    for ids, reasons in expected.items():
        (tmp_path / "data.json").write_text(json.dumps(coco_file(ids)))
        register(tmp_path, FORMAT="coco", JSON="data.json", IMAGES=f"images {ids}")
        problems = load_records("mine")[1]
        found = [p.reason for p in problems if p.kind == "odd-id"]
        assert len(found) == len(reasons)
        assert all(reason in text for reason, text in zip(reasons, found))
        assert len(DatasetCatalog.get("mine")) == IMAGES


def test_shared_image_and_category_ids_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for key in ("images", "categories"):
        content = coco_file("from 1")
        content[key][1]["id"] = content[key][0]["id"]
        (tmp_path / "data.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match=f"{key} share the id {content[key][0]['id']}"):
            register(tmp_path, FORMAT="coco", JSON="data.json", IMAGES="images")
            DatasetCatalog.get("mine")


@pytest.mark.parametrize("ids", ["from 1", "from 0", "gaps"])
@pytest.mark.usefixtures("implementation")
def test_sets_of_detectron2(tmp_path, monkeypatch, ids):
    """As they are, and a part of their classes; their own ids are in the file of detections."""
    content = coco_file(ids)
    content["annotations"] = [a for a in content["annotations"] if a["bbox"] != NO_BOX]
    for a in content["annotations"]:
        a["area"] *= 0.9  # of a mask
    (tmp_path / "data.json").write_text(json.dumps(content))
    register_coco_instances("theirs", {}, str(tmp_path / "data.json"), str(tmp_path))
    DatasetCatalog.get("theirs")
    folder = tmp_path / "whole"
    folder.mkdir()
    whole = evaluated(BoxEvaluator("theirs", str(folder)), "theirs", NAMES)["bbox"]
    assert [whole[k] for k in ("AP", "APs", "APm", "APl")] == pytest.approx([100] * 4)
    saved = json.loads((folder / "coco_instances_results.json").read_text())
    assert {row["image_id"] for row in saved} == {0, 1, 2}
    assert {row["category_id"] for row in saved} == {7, 8, 9}
    names = NAMES[1:]
    entry = {"FORMAT": "detectron2", "DATASET": "theirs", "OTHER_CLASSES": "drop"}
    register(tmp_path, CLASSES=list(names), **entry)
    areas = [a["area"] for a in DatasetCatalog.get("mine")[0]["annotations"]]
    assert areas[:2] == [60 * 48 * 0.9, 160 * 200 * 0.9]
    assert_perfect(tmp_path, "mine", names)
