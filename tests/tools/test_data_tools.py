"""visualize_data and the benchmark of the mapper, as their users run them."""

import json

import cv2
import numpy as np
from conftest import ASSETS, CLASSES, ROOT, assert_error, exits, run, voc_entry

CONFIG = ["--config-file", ROOT / "configs" / "ssdlite_mnv2_bccd.yaml"]
DATA = ["DATASETS.REGISTER", str([voc_entry(CLASSES=CLASSES)]), "DATASETS.TRAIN", "('tiny',)"]
DATA += ["DATASETS.TEST", "()"]


def test_training_images_are_drawn_on_sheets(tmp_path):
    plain = ["INPUT.PHOTOMETRIC.ENABLED", False, "INPUT.EXPAND.PROB", 0.0, "INPUT.FAST", False]
    plain += ["INPUT.IOU_CROP.ENABLED", False, "INPUT.RANDOM_FLIP", "none"]
    shape = ["--columns", 3, "--rows", 1, "--count", 4, "--repeat", 2]
    cases = [
        [*CONFIG, "--output", tmp_path / "a", *shape, "--opts", *DATA],
        [*CONFIG, "--output", tmp_path / "b", "--count", 1, "--opts", *DATA, *plain],
        [*CONFIG, "--output", "/proc/x", "--opts", *DATA],
        [
            *CONFIG,
            "--output",
            tmp_path / "c",
            "--opts",
            "DATASETS.TRAIN",
            "()",
            "DATASETS.TEST",
            "()",
        ],
    ]
    codes = exits("ssdlite_d2.tools.visualize_data", *cases, DETECTRON2_DATASETS=ASSETS)
    assert codes[:2] == [0, 0]
    assert_error(codes[2], "--output: /proc/x")
    assert_error(codes[3], "MODEL.SSD.NUM_CLASSES")
    sheets = sorted((tmp_path / "a").iterdir())
    assert len(sheets) == 3  # 8 images, 3 a sheet
    assert cv2.imread(str(sheets[0])).shape == (4 + 324, 4 + 3 * 324, 3)
    # unaugmented, a sheet of one image is the image, with boxes drawn on it
    names = (ASSETS / "bccd" / "ImageSets" / "Main" / "all.txt").read_text().split()
    path = ASSETS / "bccd" / "JPEGImages" / f"{names[0]}.jpg"
    seen = cv2.imread(str(tmp_path / "b" / "sheet000.jpg"))[4:324, 4:324].astype(int)
    difference = np.abs(seen - cv2.resize(cv2.imread(str(path)), (320, 320))).max(axis=2)
    assert np.median(difference) < 8 and (difference > 60).mean() > 0.02


def test_benchmark_of_the_mapper_compares_all_sides(tmp_path):
    report = tmp_path / "report.json"
    few = ["--images", 4, "--rounds", 2, "--json", report]
    tool = ["-m", "benchmarks", "data", *CONFIG, *few]
    done = run(*tool, "--opts", *DATA, "SOLVER.IMS_PER_BATCH", 2, DETECTRON2_DATASETS=ASSETS)
    assert done.returncode == 0, done.stderr
    rows = json.loads(report.read_text())["rows"]
    speeds = {(r["images"], r["side"]): r for r in rows if "images" in r}
    for kind in ("as they are", "quality 95"):
        ours, floor = speeds[kind, "ssdlite_d2"], speeds[kind, "cv2.imread"]
        assert ours["/ cv2.imread"] == ours["ms"] / floor["ms"]
        assert ours["/ cv2.imread"] > 1
        for other in ("torchvision v2", "Detectron2", "ssdlite_d2, INPUT.FAST False"):
            assert speeds[kind, other]["/ ssdlite_d2"] > 1
    parts = sum(r["ms"] for r in rows if r["side"].startswith("  "))
    assert 0.3 < parts / speeds["quality 95", "ssdlite_d2"]["ms"] < 3
    assert [r["side"] for r in rows][-2:] == ["loader, 1 workers", "loader, 2 workers"]
