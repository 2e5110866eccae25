import json
import shutil
import zipfile
from io import BytesIO

import cv2
import numpy as np
import pytest
import torch
from conftest import ASSETS, CLASSES, ROOT, assert_error, exits, make_model, run
from PIL import Image
from prepare_neon_trees import SCENES, boxes_in, tile_windows

from ssdlite_d2.checkpoint import SSDCheckpointer
from ssdlite_d2.tools import demo as demo_tool
from ssdlite_d2.tools import visualize_data, visualize_results

IMAGES = ASSETS / "bccd" / "JPEGImages"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A config of a model that finds something in every image, with weights."""
    folder = tmp_path_factory.mktemp("model")
    SSDCheckpointer(make_model(3), str(folder)).save("model")
    base = ROOT / "configs" / "ssdlite_mnv2_bccd.yaml"
    path = folder / "model.yaml"
    path.write_text(
        f"_BASE_: {base}\nMODEL: {{WEIGHTS: {folder}/model.pth}}\n"
        f"DATASETS:\n  REGISTER:\n  - {{NAME: bccd_test, FORMAT: voc, ROOT: bccd, SPLIT: all, "
        f"CLASSES: {CLASSES}}}\n  TRAIN: ()\n"
    )
    return path


def demo(config, *args, **kwargs):
    tool = ["-m", "ssdlite_d2.tools.demo", "--config-file", config]
    return run(*tool, "--confidence-threshold", 0.005, *args, **kwargs)


def test_demo_draws_folders_files_and_patterns(config, tmp_path):
    inputs = [IMAGES, IMAGES / "BloodImage_00007.jpg", str(IMAGES / "*3.jpg")]
    done = demo(config, "--input", *inputs, "--output", tmp_path / "new" / "drawn")
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert output.count("detected 100 instances") == 4 + 1 + 1
    assert "Loading from" not in output and "checkpoint" not in output
    for path in IMAGES.iterdir():
        drawn = cv2.imread(str(tmp_path / "new" / "drawn" / path.name))
        assert drawn.shape == (480, 640, 3)
        assert (np.abs(drawn.astype(int) - cv2.imread(str(path))) > 60).mean() > 0.01  # boxes


def test_demo_writes_one_file_and_skips_what_is_no_image(config, tmp_path):
    one = IMAGES / "BloodImage_00000.jpg"
    done = demo(config, "--input", one, "--output", tmp_path / "a.png")
    assert done.returncode == 0, done.stderr
    assert cv2.imread(str(tmp_path / "a.png")).shape == (480, 640, 3)
    (tmp_path / "text.jpg").write_text("text")
    done = demo(config, "--input", tmp_path / "text.jpg", one, "--output", tmp_path / "out")
    assert done.returncode == 1
    assert "text.jpg cannot be read" in done.stdout + done.stderr
    assert (tmp_path / "out" / one.name).is_file()


def test_demo_draws_on_a_video(config, tmp_path):
    source = str(tmp_path / "in.mp4")
    writer = cv2.VideoWriter(source, cv2.VideoWriter_fourcc(*"mp4v"), 10.0, (160, 120))
    frame = cv2.resize(cv2.imread(str(IMAGES / "BloodImage_00000.jpg")), (160, 120))
    for _ in range(4):
        writer.write(frame)
    writer.release()
    done = demo(config, "--video-input", source, "--output", tmp_path / "out.mp4")
    assert done.returncode == 0, done.stdout + done.stderr
    video = cv2.VideoCapture(str(tmp_path / "out.mp4"))
    assert int(video.get(cv2.CAP_PROP_FRAME_COUNT)) == 4
    assert video.read()[1].shape == (120, 160, 3)


def test_drawings_keep_the_input_and_each_other(config, tmp_path, monkeypatch, clean_catalog):
    one, two, drawn = (tmp_path / name for name in ("one", "two", "drawn"))
    shutil.copytree(ASSETS / "bccd", tmp_path / "bccd")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    images = tmp_path / "bccd" / "JPEGImages"
    names = sorted(path.name for path in images.iterdir())
    for folder, name in ((one, names[0]), (two, names[1])):
        folder.mkdir()
        shutil.copy(images / name, folder / "a.jpg")
    before = {p: p.read_bytes() for p in (one / "a.jpg", two / "a.jpg", *images.iterdir())}

    def end(tool, *words):
        monkeypatch.setattr("sys.argv", ["tool", "--config-file", *map(str, (config, *words))])
        with pytest.raises(SystemExit) as end:
            tool.main()
        return end.value.code

    inputs, low = ["--input", one, two], ["--confidence-threshold", 0.005]
    assert end(demo_tool, *inputs, "--output", drawn, *low) == 0
    assert sorted(p.name for p in drawn.iterdir()) == ["a.jpg", "a_2.jpg"]
    for name, source in (("a.jpg", one), ("a_2.jpg", two)):
        difference = cv2.imread(str(drawn / name)).astype(int) - cv2.imread(str(source / "a.jpg"))
        assert (np.abs(difference) < 10).mean() > 0.3
    trained = ["--opts", "DATASETS.TRAIN", "('bccd_test',)"]
    for code in (
        end(demo_tool, *inputs, "--output", one),
        end(demo_tool, "--input", one, "--output", one / "a.jpg"),
        end(visualize_results, "--output", images),
        end(visualize_data, "--output", images, *trained),
    ):
        assert_error(code, "--output", "would be overwritten")
    assert {p: p.read_bytes() for p in before} == before
    assert len(list(images.iterdir())) == 4


def test_demo_names_wrong_input(config, tmp_path):
    out = ["--output", tmp_path / "x"]
    state = torch.load(config.parent / "model.pth")["model"]
    nan = {**state, "head.cls_score.0.3.bias": torch.full((18,), float("nan"))}
    mirrored = {"model": state, "ssd": {"classes": CLASSES[::-1]}}
    files = {"nan": nan, "empty": {}, "mirrored": mirrored}
    for name, content in files.items():
        torch.save(content, tmp_path / f"{name}.pth")

    def weights(name):
        return ["--input", IMAGES, *out, "--opts", "MODEL.WEIGHTS", name]

    cases = [
        (weights(tmp_path / "nan.pth"), "nan.pth: head.cls_score.0.3.bias is not finite"),
        (weights(tmp_path / "empty.pth"), "empty.pth lacks"),
        (weights(tmp_path / "mirrored.pth"), "[Platelets, WBC, RBC], this config [RBC, WBC, P"),
        (weights("torchvision://mobilenet_v2-b0353104.pth"), "lacks 144 of this model's"),
        (["--input", "/nowhere/*.jpg", *out], "/nowhere/*.jpg"),
        (["--video-input", "/nowhere/a.mp4", *out], "/nowhere/a.mp4"),
        (["--input", IMAGES, "--output", tmp_path / "x.jpg"], "x.jpg is one file for 4 images"),
        (["--input", IMAGES, *out, "--opts", "MODEL.WEIGHTS", "no.pth"], "no.pth"),
        (["--webcam", *out], "--webcam shows a window"),
        (["--input", IMAGES, "--output", "/proc/x"], "/proc/x"),
    ]
    codes = exits("ssdlite_d2.tools.demo", *(["--config-file", config, *c] for c, _ in cases))
    for code, (_, words) in zip(codes, cases):
        assert_error(code, words)
    assert not (tmp_path / "x").exists()


def test_results_are_drawn_beside_the_truth(config, tmp_path):
    tool = ["-m", "ssdlite_d2.tools.visualize_results", "--config-file", config]
    done = run(*tool, "--output", tmp_path / "d", "--count", 3, DETECTRON2_DATASETS=ASSETS)
    assert done.returncode == 0, done.stderr
    paths = [line.strip() for line in done.stdout.splitlines() if line.endswith(".jpg")]
    assert len(paths) == 3
    assert all(cv2.imread(path).shape == (480, 1280, 3) for path in paths)
    arguments = ["--config-file", config, "--output", tmp_path / "d"]
    gone = exits("ssdlite_d2.tools.visualize_results", arguments, DETECTRON2_DATASETS="/nowhere")
    assert_error(gone[0], "/nowhere", "DETECTRON2_DATASETS")


@pytest.mark.parametrize("size", [(1035, 1249), (400, 400), (200, 201)])
def test_tiles_cover_the_scene(size):
    for overlap in (False, True):
        count = np.zeros(size, dtype=int)
        for x0, y0, x1, y1 in tile_windows(*size, overlap=overlap):
            assert 0 < x1 - x0 <= 200 and 0 < y1 - y0 <= 200
            count[y0:y1, x0:x1] += 1
        assert count.min() == 1
        assert (count.max() == 1) != overlap or size == (200, 200)


def test_boxes_of_a_tile():
    boxes = np.array([[10.0, 10, 20, 20], [-5, 10, 5, 20], [-7, 0, 3, 9], [300, 0, 310, 9]])
    # the second is half inside, the third less than 40 %
    assert boxes_in((0, 0, 200, 200), boxes).tolist() == [[10, 10, 20, 20], [0, 10, 5, 20]]
    assert boxes_in((5, 8, 50, 50), boxes)[0].tolist() == [5, 2, 15, 12]


def fake_wheel(path):
    """A wheel with the demo's names but small images."""
    with zipfile.ZipFile(path, "w") as wheel:
        for shade, scenes in enumerate(SCENES.values()):
            for stem, suffix in scenes:
                image = BytesIO()
                Image.new("RGB", (300, 250), (90 * shade,) * 3).save(image, "PNG")
                wheel.writestr(f"deepforest/data/{stem}{suffix}", image.getvalue())
                box = "<xmin>11</xmin><ymin>11</ymin><xmax>40</xmax><ymax>50</ymax>"
                xml = f"<a><object><name>Tree</name><bndbox>{box}</bndbox></object></a>"
                wheel.writestr(f"deepforest/data/{stem}.xml", xml)


def test_neon_trees_is_made_whole_or_not_at_all(tmp_path):
    fake_wheel(tmp_path / "good.whl")
    (tmp_path / "bad.whl").write_bytes(b"no zip")
    good, bad = tmp_path / "good.whl", tmp_path / "bad.whl"
    trees, other = tmp_path / "trees", tmp_path / "other"
    cases = [
        ["--wheel", good, "--output", trees],
        ["--wheel", good, "--output", trees],
        ["--wheel", bad, "--output", other],
    ]
    done, again, broken = exits("datasets.prepare_neon_trees", *cases)
    assert done == 0
    assert_error(again, "trees exists")
    assert_error(broken, "bad.whl")
    assert not other.exists()
    for split, shade in (("train", 0), ("val", 90)):
        coco = json.loads((tmp_path / "trees" / f"{split}.json").read_text())
        assert coco["annotations"][0]["bbox"] == [10, 10, 30, 40]
        assert [c["name"] for c in coco["categories"]] == ["tree"]
        for image in coco["images"]:
            pixels = np.array(Image.open(tmp_path / "trees" / image["file_name"]))
            assert pixels.shape == (image["height"], image["width"], 3)
            assert np.abs(pixels.astype(int) - shade).max() <= 1  # its own scenes only
