"""The export tool and what it writes, from the outside."""

import json
import shutil
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from conftest import ASSETS, CLASSES, ROOT, assert_error, exits, run
from models import as_inputs, lively_model, read_all

from ssdlite_d2.checkpoint import SSDCheckpointer
from ssdlite_d2.tools.benchmark import inference
from ssdlite_d2.tools.benchmark.__main__ import main
from ssdlite_d2.tools.benchmark.inference import FLOOR

IMAGES = ASSETS / "bccd" / "JPEGImages"
# the program of a bundle in an interpreter that has nothing of the training side
BARE = """
import runpy, sys
for name in ("torch", "torchvision", "detectron2", "ssdlite_d2"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rsplit("/", 1)[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    _, model = lively_model("ssdlite_mnv2_bccd.yaml", as_inputs(read_all()), "DATASETS.TEST", "()")
    SSDCheckpointer(model, str(folder)).save("model")
    shutil.copytree(ASSETS / "bccd", folder / "bccd")
    (folder / "bccd" / "ImageSets" / "Main" / "hollow.txt").touch()
    entry = f"{{NAME: bccd_test, FORMAT: voc, ROOT: bccd, SPLIT: all, CLASSES: {CLASSES}}}"
    hollow = f"{{NAME: hollow, FORMAT: voc, ROOT: bccd, SPLIT: hollow, CLASSES: {CLASSES}}}"
    path = folder / "model.yaml"
    path.write_text(
        f"_BASE_: {ROOT / 'configs' / 'ssdlite_mnv2_bccd.yaml'}\n"
        f"MODEL: {{WEIGHTS: {folder}/model.pth}}\n"
        f'DATASETS:\n  REGISTER:\n  - {entry}\n  - {hollow}\n  TRAIN: ("bccd_test",)\n'
    )
    return path


@pytest.fixture(scope="module")
def bundle(config, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "new" / "bundle"
    tool = ["-m", "ssdlite_d2.tools.export", "--config-file", config, "--format", "onnx"]
    done = run(*tool, "--output", output, DETECTRON2_DATASETS=ASSETS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "boxes of matched detections" in done.stdout
    assert "[" not in done.stderr  # nothing of the parts' own chatter
    return output


def video(path, frames):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10.0, (640, 480))
    for frame in frames:
        writer.write(frame)
    writer.release()


def test_bundle_has_all_that_one_must_know(bundle):
    files = {path.name for path in bundle.iterdir()}
    assert files == {
        "model.onnx",
        "labels.txt",
        "model.json",
        "parity.json",
        "predict.py",
        "detector.py",
        "config.yaml",
    }
    assert (bundle / "labels.txt").read_text().split() == CLASSES
    spec = json.loads((bundle / "model.json").read_text())
    assert spec["classes"] == CLASSES and spec["input"]["size"] == [320, 320]
    assert spec["bytes"] == (bundle / "model.onnx").stat().st_size
    assert len(spec["sha256"]["model.onnx"]) == 64 and spec["source"]["commit"]


def test_bundle_runs_without_the_training_side(bundle, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    images = read_all()
    cv2.imwrite(str(source / "colour.png"), images[0])
    cv2.imwrite(str(source / "grey.png"), images[1][:, :, 0])
    cv2.imwrite(str(source / "alpha.png"), cv2.cvtColor(images[0], cv2.COLOR_BGR2BGRA))
    cv2.imwrite(str(source / "deep.png"), images[0].astype(np.uint16) * 256)
    video(tmp_path / "film.mp4", images[:3])
    program = ["-c", BARE, bundle / "predict.py", source, tmp_path / "film.mp4"]
    done = run(*program, "--output", tmp_path / "drawn", "--threshold", "0.2")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    names = [entry["file"].rsplit("/", 1)[1] for entry in found]
    assert names == ["alpha.png", "colour.png", "deep.png", "grey.png", *["film.mp4"] * 3]
    assert [entry.get("frame") for entry in found] == [None] * 4 + [0, 1, 2]
    assert found[0]["detections"] == found[1]["detections"] == found[2]["detections"]
    beside = run(*program[2:])  # with the training side in reach
    assert beside.stdout == done.stdout
    for entry in found:
        assert (entry["width"], entry["height"]) == (640, 480)
        assert len(entry["detections"]) > 5
        for detection in entry["detections"]:
            x0, y0, x1, y1 = detection["box"]
            assert 0 <= x0 < x1 <= 640 and 0 <= y0 < y1 <= 480
            assert detection["class"] in CLASSES and detection["score"] > 0.2
    drawn = cv2.imread(str(tmp_path / "drawn" / "colour.png"))
    assert (np.abs(drawn.astype(int) - images[0]) > 60).mean() > 0.01
    assert int(cv2.VideoCapture(str(tmp_path / "drawn" / "film.mp4")).get(7)) == 3


def test_predict_names_wrong_input(bundle, tmp_path):
    (tmp_path / "text.jpg").write_text("text")
    (tmp_path / "empty").mkdir()
    one = IMAGES / "BloodImage_00000.jpg"
    cases = [
        ([tmp_path / "empty"], "no image or video at"),
        (["/nowhere.jpg"], "/nowhere.jpg"),
        ([one, "--output", "/proc/x"], "/proc/x"),
        ([one, "--model", tmp_path / "empty"], "model.json"),
    ]
    for arguments, words in cases:
        done = run(bundle / "predict.py", *arguments)
        assert done.returncode == 1
        assert_error(done.stderr.strip(), words)
    done = run(bundle / "predict.py", tmp_path / "text.jpg", one)
    assert done.returncode == 1 and "text.jpg cannot be read" in done.stderr
    assert len(json.loads(done.stdout)) == 1


def test_export_names_wrong_input(config, bundle, tmp_path):
    def case(*words, output=tmp_path / "out", format="onnx"):
        common = ["--config-file", config, "--format", format, "--output", output]
        flags, _, opts = " ".join(map(str, words)).partition(" opts ")
        return [*common, *flags.split(), *(["--opts", *opts.split()] if opts else [])]

    (tmp_path / "occupied").mkdir()
    (tmp_path / "occupied" / "file").touch()
    (tmp_path / "none.txt").touch()
    no_data = "DATASETS.TRAIN () DATASETS.TEST ()"
    int8 = "--precision int8 --calibration"
    cases = [
        (case(format="tensorrt"), "--format is 'tensorrt'; it is one of onnx, openvino"),
        (case("--nms", format="ncnn"), "--nms is not for --format ncnn"),
        (
            case("--precision int8", format="torchscript"),
            "torchscript is 'int8'; it is one of fp32",
        ),
        (case("--batch none"), "--batch is none"),
        (case(int8, "nowhere"), "data set 'nowhere' is unknown"),
        (case(int8, "hollow"), "hollow"),
        (case("--parity-dataset hollow"), "hollow"),
        (case("--parity-dataset nowhere"), "--parity-dataset: data set 'nowhere'"),
        (case(f"--parity-images 1 opts MODEL.SSD.NUM_CLASSES 4 {no_data}"), "for 3 classes"),
        (case("--parity-images 1 opts MODEL.WEIGHTS no.pth"), "no.pth"),
        (
            case("--parity-images 1 opts MODEL.WEIGHTS torchvision://mobilenet_v2-b0353104.pth"),
            "lacks 144",
        ),
        (case(output="/proc/x/y"), "--output: /proc/x/y"),
        (case(output=tmp_path / "occupied"), "occupied exists and is no bundle"),
    ]
    commands = (command for command, _ in cases)
    codes = exits("ssdlite_d2.tools.export", *commands, DETECTRON2_DATASETS=config.parent)
    for code, (_, words) in zip(codes, cases):
        assert_error(code, words)
    assert {path.name for path in tmp_path.iterdir()} == {"occupied", "none.txt"}


def test_benchmark_has_a_row_for_every_runtime(config, clean_catalog, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(config.parent))
    # peak memory takes a process of its own for every row
    nothing = SimpleNamespace(run=lambda *args, **kwargs: SimpleNamespace(stdout=""))
    monkeypatch.setattr("ssdlite_d2.tools.benchmark.inference.subprocess", nothing)
    files = ["--json", tmp_path / "speed.json", "--plot", tmp_path / "speed.png"]
    command = ["inference", "--config-file", config, "--rounds", 1, "--ap-images", 2, *files]
    monkeypatch.setattr("sys.argv", ["benchmark", *map(str, command)])
    main("benchmark", {"inference": inference})
    rows = {row["what"]: row for row in json.loads((tmp_path / "speed.json").read_text())["rows"]}
    modes = ["PyTorch eager", "PyTorch fused"]
    runtimes = ["onnx fp32", "openvino fp32", "torchscript fp32"]
    others = {"openvino bf16", "torchvision ssdlite320, eval step", FLOOR}
    assert others < set(rows)
    for same in (modes, runtimes):  # the two resize differently, which tells with random weights
        assert 0 < rows[same[0]]["AP"] == pytest.approx(rows[same[1]]["AP"], abs=1e-3)
        assert rows[same[-1]]["AP"] == pytest.approx(rows[same[0]]["AP"], abs=1e-3)
    assert all(0 < row["median ms"] <= row["p90 ms"] for row in rows.values())
    assert cv2.imread(str(tmp_path / "speed.png")) is not None
