import json
import sys

import numpy as np
import pytest
import yaml
from conftest import ROOT, assert_error

from ssdlite_d2 import load_config
from ssdlite_d2.diagnostics.coverage import anchor_coverage, anchors_of, training_boxes
from ssdlite_d2.engine import finish_config
from ssdlite_d2.tools import fit_anchors

SHAPES = {"cell": (50, 66), "dust": (22, 28), "clump": (100, 130)}  # pixels of a 320 x 320 input


@pytest.fixture
def config(tmp_path):
    """A config whose training set, of 640 x 480 images, has 100 boxes about each shape."""
    rng = np.random.default_rng(0)
    images = [{"id": i, "width": 640, "height": 480, "file_name": f"{i}.jpg"} for i in range(10)]
    boxes = [
        (*rng.uniform(0, 200, 2), w * 2 * scale, h * 1.5 * scale)
        for w, h in SHAPES.values()
        for scale in rng.uniform(0.95, 1.05, 100)
    ]
    annotations = [
        {"id": i, "image_id": i % 10, "category_id": i // 100 + 1, "bbox": box, "area": 1}
        for i, box in enumerate(boxes, start=0)
    ]
    categories = [{"id": i, "name": name} for i, name in enumerate(SHAPES, start=1)]
    data = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "data.json").write_text(json.dumps(data))
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"_BASE_: {ROOT}/configs/ssdlite_mnv2.yaml\n"
        "DATASETS:\n"
        f"  REGISTER: [{{NAME: mine, FORMAT: coco, JSON: {tmp_path}/data.json, IMAGES: .}}]\n"
        '  TRAIN: ("mine",)\n'
        "  TEST: ()\n"
        f"OUTPUT_DIR: '{tmp_path}/the output'\n"
    )
    return path


@pytest.fixture
def tool(monkeypatch, capsys):
    """Runs the tool with arguments: what it prints, or its last words."""

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["fit_anchors", *map(str, args)])
        try:
            fit_anchors.main()
        except SystemExit as error:
            return error.code
        return capsys.readouterr().out

    return call


PLAIN = ["INPUT.EXPAND.PROB", 0.0, "INPUT.IOU_CROP.ENABLED", False]


def test_fitted_config_has_the_shapes_of_the_data_and_as_many_anchors(config, tmp_path, tool):
    output = tmp_path / "fitted.yaml"
    printed = tool("--config-file", config, "--output", output, "--steps", 300, "--opts", *PLAIN)
    before, after = (load_config(str(path)) for path in (config, output))
    assert after.OUTPUT_DIR == before.OUTPUT_DIR + "_fitted"
    before, boxes = before.MODEL.ANCHOR_GENERATOR, after.MODEL.ANCHOR_GENERATOR.BOXES
    assert [len(level) for level in boxes] == [2 + 2 * len(r) for r in before.ASPECT_RATIOS]
    for name, level in (("cell", 0), ("dust", 0), ("clump", 1)):
        ratios = np.array(boxes[level]) / SHAPES[name]
        assert abs(np.log(ratios)).max(axis=1).min() < 0.1, (name, boxes[level])
    assert boxes[2][:2] == [[135, 135], [156, 156]]  # no boxes of that size: left alone

    table = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if "%" in line}
    assert set(SHAPES) < set(table) and int(table["all"][0]) % 300 == 0
    for name in SHAPES:
        matched, fitted = (float(v.rstrip("%")) for v in table[name][1:3])
        assert fitted >= matched and table[name][4] > table[name][3]
    block = printed[printed.index("MODEL:") : printed.index("Written")]
    assert yaml.safe_load(block)["MODEL"]["ANCHOR_GENERATOR"]["BOXES"] == boxes


def test_fitted_anchors_cover_what_training_sees(config, tmp_path, tool):
    for name, opts in (("annotated", ["--opts", *PLAIN]), ("seen", [])):
        out = ["--output", tmp_path / f"{name}.yaml", "--steps", 200]
        printed = tool("--config-file", config, *out, *opts)
    all_of_them = next(line for line in printed.splitlines() if line.startswith("all"))
    before, fitted = (float(word.rstrip("%")) / 100 for word in all_of_them.split()[2:4])
    cfg = load_config(str(config))
    finish_config(cfg)
    fresh = training_boxes(cfg, seed=7)
    shares = {}
    for name in ("mine", "annotated", "seen"):
        other = load_config(str(tmp_path / f"{name}.yaml"), ["MODEL.SSD.NUM_CLASSES", 3])
        shares[name] = (anchor_coverage(anchors_of(other), fresh.boxes) >= 0.5).mean()
    assert shares["seen"] > max(shares["annotated"], shares["mine"])
    assert shares["seen"] == pytest.approx(fitted, abs=0.04)
    assert shares["mine"] == pytest.approx(before, abs=0.04)


def test_what_cannot_be_fitted_ends_in_one_line(config, tmp_path, tool):
    empty = json.loads((tmp_path / "data.json").read_text()) | {"annotations": []}
    (tmp_path / "empty.json").write_text(json.dumps(empty))
    entry = {"NAME": "mine", "FORMAT": "coco", "JSON": f"{tmp_path}/empty.json", "IMAGES": "."}
    opts = ("--config-file", config, "--opts")
    error = tool(*opts, "DATASETS.TRAIN", "()", "MODEL.SSD.NUM_CLASSES", 3)
    assert_error(error, "DATASETS.TRAIN names no data set")
    error = tool(*opts, "DATASETS.REGISTER", [entry])
    assert_error(error, "DATASETS.TRAIN", "mine", "none of 10 images has a box")
    keep = ["DATALOADER.FILTER_EMPTY_ANNOTATIONS", False]
    error = tool(*opts, "DATASETS.REGISTER", [entry], *keep)
    assert_error(error, "DATASETS.TRAIN", "mine", "no boxes")
    error = tool(*opts, "MODEL.ANCHOR_GENERATOR.NAME", "DefaultAnchorGenerator")
    assert_error(error, "MODEL.ANCHOR_GENERATOR.NAME", "DefaultAnchorGenerator")
    nowhere = tmp_path / "no" / "where.yaml"
    error = tool("--config-file", config, "--steps", 1, "--output", nowhere)
    assert_error(error, "where.yaml", "No such file")
    text = config.read_text()
    error = tool("--config-file", config, "--steps", 1, "--output", config)
    assert_error(error, "--output", "mine.yaml")
    assert config.read_text() == text
    assert_error(tool("--config-file", tmp_path / "missing.yaml"), "missing.yaml")
