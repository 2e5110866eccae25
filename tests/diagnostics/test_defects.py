"""Each kind of defect, planted and found."""

import io
import json
import os
import shutil
import struct
import zlib

import cv2
import numpy as np
import pytest
from conftest import ASSETS, CLASSES, assert_error, exits, run, voc_entry
from PIL import Image

from ssdlite_d2.diagnostics.defects import KINDS, check_boxes, read_facts
from ssdlite_d2.diagnostics.likeness import alike, likeness

TOOL = "ssdlite_d2.tools.check_data"


def write_config(folder, *entries):
    path = folder / "config.yaml"
    names = [e["NAME"] for e in entries]
    path.write_text(
        "_BASE_: ssdlite_mnv2.yaml\nMODEL: {WEIGHTS: '', SSD: {NORM: BN}}\n".replace(
            "ssdlite_mnv2.yaml", str(ASSETS.parents[1] / "configs" / "ssdlite_mnv2.yaml")
        )
        + f"DATASETS: {json.dumps({'REGISTER': entries, 'TRAIN': names[:1], 'TEST': names[1:]})}\n"
    )
    return path


def record(*boxes, size=(40, 50)):
    annotations = [{"bbox": b, "bbox_mode": 0, "category_id": c} for c, b in boxes]
    return {
        "file_name": "a.jpg",
        "height": size[0],
        "width": size[1],
        "annotations": annotations,
    }


@pytest.mark.parametrize(
    "boxes, kinds",
    [
        ([(0, [0, 0, 50, 40])], []),
        ([(0, [-1, -1, 51, 41])], []),  # a pixel beyond is rounding
        ([(0, [-2, 0, 50, 40])], ["outside"]),
        ([(0, [0, 0, 50, 42])], ["outside"]),
        ([(0, [100, 100, 120, 120])], ["outside"]),
        ([(0, [1, 1, 1, 9])], ["no-area"]),
        ([(0, [9, 1, 1, 9])], ["no-area"]),
        ([(0, [float("nan"), 1, 2, 9])], ["not-finite"]),
        ([(0, [1, 1, 9, 9]), (1, [1, 1, 9, 9])], []),
        ([(0, [1, 1, 9, 9]), (0, [1, 1, 9, 9])], ["duplicate-box"]),
        ([], []),  # trained on, or left out, as the config says
    ],
)
def test_boxes(boxes, kinds):
    assert [p.kind for p in check_boxes(record(*boxes))] == kinds


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    """A VOC folder with one defect of each kind, and one without any."""
    root = tmp_path_factory.mktemp("data")
    for name in ("good", "bad"):
        shutil.copytree(ASSETS / "bccd", root / name)
    good, bad = root / "good", root / "bad"
    lists = [folder / "ImageSets" / "Main" / "all.txt" for folder in (good, bad)]
    lists[0].write_text("BloodImage_00000\nBloodImage_00007\n")
    images, notes = bad / "JPEGImages", bad / "Annotations"
    source = (notes / "BloodImage_00007.xml").read_text()
    pixels = cv2.imread(str(images / "BloodImage_00000.jpg"))

    def add(name, text=source, shade=0):
        (notes / f"{name}.xml").write_text(text)
        cv2.imwrite(str(images / f"{name}.jpg"), pixels + shade)
        return images / f"{name}.jpg"

    add("twice", shade=1)
    shutil.copy(images / "twice.jpg", images / "twice2.jpg")
    (notes / "twice2.xml").write_text(source)
    add("text", shade=2).write_bytes(b"text")
    half = add("half", shade=3)
    half.write_bytes(half.read_bytes()[:9000])
    add("size", source.replace("<width>640<", "<width>700<"), shade=4)
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(pixels).save(add("turned"), exif=exif)
    add("none", "<annotation></annotation>", shade=5)
    add("broken", source[:200], shade=6)
    add("cat", source.replace("<name>RBC<", "<name>Cat<", 1), shade=7)
    objects = source.split("<object>")
    add("box", "<object>".join([*objects[:2], *objects[1:]]), shade=8)
    box = "<name>RBC</name><bndbox><xmin>{}</xmin><ymin>1</ymin><xmax>{}</xmax><ymax>9</ymax>"
    extra = [box.format(*x) + "</bndbox></object>" for x in ((5, 5), ("nan", 9), (5, 900))]
    add("boxes", "<object>".join([objects[0], *extra, *objects[1:]]), shade=9)
    names = "twice twice2 text half size turned none broken cat box boxes gone BloodImage_00000"
    lists[1].write_text("\n".join(names.split()))
    return root


@pytest.fixture(scope="module")
def reported(spoilt, tmp_path_factory):
    """How the tool ends on both sets, on both with all kinds in order, on the good one alone, and
    when it cannot write; and the first report."""
    tmp_path = tmp_path_factory.mktemp("report")
    good = voc_entry("good", CLASSES=CLASSES) | {"ROOT": "good"}
    bad = voc_entry("bad", CLASSES=CLASSES) | {"ROOT": "bad"}
    config = write_config(tmp_path, good, bad)
    report = tmp_path / "report.json"
    cases = [
        ["--config-file", config, "--json", report, "--workers", 2],
        ["--config-file", config, "--workers", 1, "--ignore", *KINDS],
        ["--config-file", write_config(spoilt, good)],
        ["--config-file", config, "--json", "/proc/x.json"],
    ]
    codes = exits(TOOL, *cases, DETECTRON2_DATASETS=spoilt)
    return codes, json.loads(report.read_text())


def test_exit_status(reported):
    codes, _ = reported
    assert codes[:3] == [1, 0, 0]
    assert_error(codes[3], "--json: /proc/x.json")


def test_every_planted_defect_is_found_and_no_other(reported):
    _, content = reported
    assert content["good"]["defects"] == []
    found = sorted(
        (d["kind"], d["file"].split("/")[-1].split(".")[0]) for d in content["bad"]["defects"]
    )
    assert found == [
        ("bad-annotation", "broken"),
        ("duplicate-box", "box"),
        ("duplicate-image", "BloodImage_00000"),  # the other split has it
        ("duplicate-image", "twice2"),
        ("missing-image", "gone"),
        *(("near-duplicate", name) for name in ("box", "boxes", "cat", "none", "size", "twice")),
        ("no-area", "boxes"),
        ("not-finite", "boxes"),
        ("outside", "boxes"),
        ("rotated", "turned"),
        ("truncated", "half"),
        ("unknown-class", "cat"),
        ("unreadable", "text"),
        ("wrong-size", "size"),
    ]
    assert {kind for kind, _ in found} | {"unreadable", "odd-id"} == set(KINDS)


def test_report_counts_classes_sizes_and_coverage(spoilt, reported):
    facts = reported[1]["good"]
    texts = [p.read_text() for p in (spoilt / "good" / "Annotations").glob("*_0000[07].xml")]
    assert facts["images"] == 2
    for row in facts["classes"]:
        assert row["boxes"] == sum(t.count(f"<name>{row['class']}<") for t in texts)
    assert facts["boxes"] == sum(row["boxes"] for row in facts["classes"])
    assert facts["boxes"] == sum(row["boxes"] for row in facts["sizes"])
    white = next(row for row in facts["classes"] if row["class"] == "WBC")
    assert white["matched"] == 1  # they are as large as the anchors
    assert facts["boxes per image"]["largest"] == max(t.count("<object>") for t in texts)


def damaged_exif(position):
    """A PNG with a wrong byte in its EXIF data, of which all else is right."""
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(np.full((40, 50, 3), 90, np.uint8)).save(buffer, "png", exif=exif)
    data = buffer.getvalue()
    start = data.find(b"eXIf")
    (size,) = struct.unpack(">I", data[start - 4 : start])
    chunk = bytearray(data[start : start + 4 + size])
    chunk[4 + position] ^= 4
    return data[:start] + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[start + 8 + size :]


@pytest.mark.parametrize("position", range(4))
def test_damaged_exif_data_are_reported(position, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(damaged_exif(position))
    facts = read_facts(str(path))
    assert facts.size == (40, 50)
    assert facts.problem[0] == "unreadable" and "EXIF" in facts.problem[1]


@pytest.fixture(scope="module")
def odd_files(tmp_path_factory):
    """How the tool ends, and what it prints, in a terminal that knows ASCII only."""
    root = tmp_path_factory.mktemp("odd")
    images = root / "images"
    images.mkdir()
    names = [b"text", b"na\xffme", "\u4e2d".encode()]
    for i, name in enumerate(names):
        cv2.imwrite(str(images / "new.png"), np.full((40, 50, 3), i, np.uint8))
        os.rename(images / "new.png", os.fsencode(images) + b"/" + name + b".png")
    (root / "labels").mkdir()
    (root / "labels" / "text.txt").write_text("0 .5 .5 0 0\n" * 50)
    for name in names[1:]:
        with open(os.fsencode(root / "labels") + b"/" + name + b".txt", "w") as file:
            file.write("0 .5 .5 .2 .2\n" * 2)
    sizes = [(0, 40), (50, 0), (-5, 40), ("50", 40), ([], 40), (1e9, 40), (10**9, 40)]
    files = ["\x00.png", ["a.png"], "\udcff.png"]
    content = {
        "images": [
            *({"file_name": "text.png", "width": w, "height": h} for w, h in sizes),
            *({"file_name": file, "width": 50, "height": 40} for file in files),
        ],
        "annotations": [],
        "categories": [{"id": 1, "name": "\u732b"}],
    }
    for i, image in enumerate(content["images"]):
        image["id"] = i
        object_ = {"id": i, "image_id": i, "category_id": 1, "bbox": [1, 1, 9, 9]}
        content["annotations"].append(object_)
    (root / "c.json").write_text(json.dumps(content))
    coco = {"NAME": "c", "FORMAT": "coco", "JSON": "c.json", "IMAGES": "images"}
    yolo = {"NAME": "y", "FORMAT": "yolo", "IMAGES": "images", "CLASSES": ["\u732b"]}
    report = root / "report.json"
    command = ["-m", TOOL, "--config-file", write_config(root, coco, yolo), "--json", report]
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": 0, "PYTHONCOERCECLOCALE": 0}
    ascii_only["PYTHONIOENCODING"] = "ascii:strict"
    done = run(*command, "--workers", 1, **ascii_only, DETECTRON2_DATASETS=root)
    return done, json.loads(report.read_text())


def test_defects_do_not_end_the_search_for_them(odd_files):
    done, report = odd_files
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    reasons = [d["reason"] for d in report["c"]["defects"] if d["kind"] == "bad-annotation"]
    assert sum("width and height" in reason for reason in reasons) == 7
    assert sum("no name of a file" in reason for reason in reasons) == 2
    kinds = [(d["kind"], d["file"].split("/")[-1]) for d in report["c"]["defects"]]
    assert ("missing-image", "\udcff.png") in kinds
    assert report["y"]["images"] == 3
    for shown in (r"na\udcffme.png", r"\udce4\udcb8\udcad.png", r"\u732b"):  # bytes; the class
        assert shown in done.stdout


def test_crowds_and_classes_without_boxes_are_counted(tmp_path):
    shutil.copy(ASSETS / "bccd" / "JPEGImages" / "BloodImage_00000.jpg", tmp_path / "a.jpg")
    box = {"image_id": 1, "category_id": 2, "bbox": [9, 9, 90, 90]}
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 640, "height": 480}],
        "annotations": [{**box, "id": 1}, {**box, "id": 2, "bbox": [5, 5, 9, 9], "iscrowd": 1}],
        "categories": [{"id": i, "name": name} for i, name in enumerate(("cells", "x", "cell"))],
    }
    (tmp_path / "c.json").write_text(json.dumps(content))
    coco = {"NAME": "c", "FORMAT": "coco", "JSON": "c.json", "IMAGES": "."}
    tool = ["-m", TOOL, "--config-file", write_config(tmp_path, coco), "--workers", 1]
    done = run(*tool, DETECTRON2_DATASETS=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 crowds: " in done.stdout and "without a box: cells, x\n" in done.stdout


@pytest.mark.parametrize("size", [(240, 320), (100, 90)])
def test_likeness_is_of_what_is_seen(size):
    paths = sorted((ASSETS / "bccd" / "JPEGImages").iterdir())
    images = [cv2.imread(str(path)) for path in paths]
    copies = [cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in images]
    jpegs = [cv2.imencode(".jpg", c // 2 + 50, [cv2.IMWRITE_JPEG_QUALITY, 40])[1] for c in copies]
    some = [likeness(cv2.imdecode(jpeg, 1)) for jpeg in jpegs]
    assert list(alike(some, [likeness(image) for image in images])) == [(i, i) for i in range(4)]
    assert list(alike(some[:1], [likeness(image) for image in images[1:]])) == []


def test_prints_some_of_each_kind_and_counts_the_rest(odd_files):
    done, report = odd_files
    lines = [line for line in done.stdout.splitlines() if line.startswith("no-area: ")]
    assert len(lines) == 21 and lines[-1].startswith("no-area: 30 more")
    assert sum(d["kind"] == "no-area" for d in report["y"]["defects"]) == 50
