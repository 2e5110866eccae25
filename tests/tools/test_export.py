"""The export tool and what it writes, from the outside."""

import hashlib
import json
import os
import shutil

import cv2
import numpy as np
import pytest
from conftest import ASSETS, CLASSES, ROOT, assert_error, exits, run
from models import as_inputs, lively_model, png_of_zeros, read_all

from ssdlite_d2.checkpoint import SSDCheckpointer
from ssdlite_d2.export.bundled.detector import Detector, PredictError
from ssdlite_d2.tools.benchmark import inference
from ssdlite_d2.tools.benchmark.__main__ import main
from ssdlite_d2.tools.benchmark.inference import FLOOR
from ssdlite_d2.tools.benchmark.worker import Worker

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


def test_a_bundle_explains_and_checks_itself(bundle, tmp_path):
    readme = (bundle / "README.md").read_text()
    for words in ("0 RBC, 1 WBC, 2 Platelets", "(1, 320, 320, 3)", "`scores`", "Apache 2.0"):
        assert words in readme
    report = json.loads((bundle / "parity.json").read_text())
    assert f"COCO {report['remarks'][0]}, on 4 images of `bccd_test`" in readme
    needs = (bundle / "requirements.txt").read_text().splitlines()
    assert [x.split("  #")[0] for x in needs] == ["numpy", "opencv-python>=4.7", "onnxruntime"]
    expected = json.loads((bundle / "example.json").read_text())
    done = run("-c", BARE, bundle / "predict.py", "--check", "--device", "auto")
    assert done.returncode == 0, done.stderr
    count = len(expected["detections"])
    assert f"example.jpg: {count} detections as expected, on cpu" in done.stdout and count > 10
    assert "model.onnx: sha256" in done.stdout and "device: cpu" in done.stderr

    def variant(name, change):
        folder = tmp_path / name
        shutil.copytree(bundle, folder)
        example = json.loads((folder / "example.json").read_text())
        change(example)
        (folder / "example.json").write_text(json.dumps(example))
        return folder

    def half_a_pixel(example):
        for detection in example["detections"]:
            detection["box"][0] += 0.4

    one = {"class": "WBC", "score": 0.99, "box": [0, 0, 9, 9]}
    cases = [
        (variant("near", half_a_pixel), 0),
        (variant("more", lambda x: x["detections"].append(one)), "WBC 0.990 at [0, 0, 9, 9]"),
        (variant("less", lambda x: x["detections"].pop(0)), "is found only, on cpu"),
        (
            variant("away", lambda x: x.update(file="../less/example.jpg")),
            "image is not in the folder",
        ),
        (variant("none", lambda x: x.update(detections=None)), "example.json is damaged"),
        (variant("bare", lambda x: x.update(detections=[{"score": 1}])), "example.json is damaged"),
        (variant("text", lambda x: x.update(file="labels.txt")), "labels.txt cannot be read"),
    ]
    other = variant("other", lambda x: None)
    (other / "model.onnx").write_bytes(b"other")
    blank = variant("blank", lambda x: None)
    (blank / "example.json").unlink()
    cases += [(other, "sha256 differs"), (blank, 0)]
    arguments = ([*["--check", "--model"], folder] for folder, _ in cases)
    codes = exits(str(bundle / "predict.py"), *arguments, PYTHONPATH=bundle)
    for code, (_, words) in zip(codes, cases):
        assert code == 0 if words == 0 else not assert_error(code, words)


def test_devices_that_are_not_there_are_named(bundle):
    image = IMAGES / "BloodImage_00000.jpg"
    cases = {
        "cuda": "--device cuda: onnxruntime has no CUDAExecutionProvider; install onnxruntime-gpu",
        "tensorrt": "onnxruntime-gpu",
        "openvino:GPU": "onnxruntime-openvino",
        "coreml": "macOS",
        "tpu": "--device tpu is not for onnx; it is one of cpu, cuda, tensorrt, openvino:GPU",
    }
    arguments = [[image, "--device", device] for device in (*cases, "auto", "cpu")]
    *codes, auto, cpu = exits(str(bundle / "predict.py"), *arguments, PYTHONPATH=bundle)
    for code, words in zip(codes, cases.values()):
        assert_error(code, words)
    assert auto == cpu == 0


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
        "drawing.py",
        "runtimes.py",
        "config.yaml",
        "README.md",
        "requirements.txt",
        "example.jpg",
        "example.json",
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
    os.mkfifo(tmp_path / "empty" / "pipe.jpg")
    piped = run(bundle / "predict.py", tmp_path / "empty", timeout=60)
    assert_error(piped.stderr.strip(), "no image or video at")
    done = run(bundle / "predict.py", tmp_path / "text.jpg", one)
    assert done.returncode == 1 and "text.jpg cannot be read" in done.stderr
    assert len(json.loads(done.stdout)) == 1


def damaged_bundles(bundle, root):
    """Folders with a bundle each that is not what was exported, by what is wrong."""
    spec = json.loads((bundle / "model.json").read_text())
    model = (bundle / "model.onnx").read_bytes()
    outside = root / "outside.onnx"
    outside.write_bytes(model)
    flipped = bytearray(model)
    flipped[len(model) // 2] ^= 1
    other_digest = {"model.onnx": hashlib.sha256(b"half").hexdigest()}
    texts = {
        "empty": "",
        "no json": "{",
        "no object": "[]",
        "deep": "[" * 100_000,
        "no text": b"\xff\xfe\xfd",
    }
    values = {
        "no format": {"format": None},
        "other format": {"format": ["onnx"]},
        "no file": {"file": 3},
        "outside": {"file": "../outside.onnx"},
        "absolute": {"file": str(outside)},
        "digest outside": {"sha256": {**spec["sha256"], "../outside.onnx": ""}},
        "no digests": {"sha256": {}},
        "another's digest": {"sha256": {"labels.txt": spec["sha256"]["model.onnx"]}},
        "no classes": {"classes": None},
        "fewer classes": {"classes": CLASSES[:2]},
        "number as class": {"classes": [1, 2, 3]},
        "no input": {"input": 3},
        "no size": {"input": {**spec["input"], "size": "320"}},
        "other size": {"input": {**spec["input"], "size": [300, 300]}},
        "huge size": {"input": {**spec["input"], "size": [10**9, 10**9]}},
        "other batch": {"input": {**spec["input"], "batch": 2}},
        "no detections": {"detections": {}},
        "operated at nothing": {"operating": {"threshold": "high"}},
        "text as limit": {"detections": {**spec["detections"], "candidates": "many"}},
        "nms that is not": {"layout": "nms"},
        "half and its digest": {"sha256": other_digest},
    }
    models = {
        "half": model[: len(model) // 2],
        "one bit": bytes(flipped),
        "no model": None,
        "half and its digest": b"half",
    }
    for name in {**texts, **values, **models}:
        folder = root / name.replace(" ", "-")
        shutil.copytree(bundle, folder)
        text = texts.get(name, json.dumps({**spec, **values.get(name, {})}))
        (folder / "model.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        (folder / "model.onnx").unlink()
        if models.get(name, model) is not None:
            (folder / "model.onnx").write_bytes(models.get(name, model))
        yield name, folder


def test_a_damaged_bundle_is_named_in_one_line(bundle, tmp_path):
    image = cv2.imread(str(IMAGES / "BloodImage_00000.jpg"))
    names = []
    for name, folder in damaged_bundles(bundle, tmp_path):
        with pytest.raises(PredictError) as error:
            Detector(folder)([image])
        message = str(error.value)
        assert "\n" not in message and len(message) < 400, (name, message)
        assert str(folder) in message or "model.onnx does not run" in message, (name, message)
        names.append(name)
    assert len(names) == 29
    (tmp_path / "labels").mkdir()
    for file in bundle.iterdir():
        shutil.copy(file, tmp_path / "labels")
    (tmp_path / "labels" / "labels.txt").write_bytes(b"\xff")  # for people: it is not read
    assert len(Detector(tmp_path / "labels")([image])[0]) == 3


def test_predict_keeps_its_input_and_every_drawing(bundle, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    originals = {}
    for folder, name in ((one, "a.jpg"), (two, "a.jpg"), (two, "a_2.jpg"), (two, "b.jpg")):
        folder.mkdir(exist_ok=True)
        shutil.copy(sorted(IMAGES.iterdir())[len(originals)], folder / name)
        originals[folder / name] = (folder / name).read_bytes()
    drawn, linked = tmp_path / "drawn", tmp_path / "linked"
    linked.symlink_to(one)
    drawn.mkdir()
    (drawn / "b.jpg").symlink_to(two / "b.jpg")
    png_of_zeros(tmp_path / "huge.png", 30_000, 30_000)
    program = str(bundle / "predict.py")
    runs = [[one, two / "a.jpg", "--output", target] for target in (one, linked, two)]
    runs += [[two / "b.jpg", "--output", drawn], [tmp_path / "huge.png"]]
    runs += [[one, two / "a.jpg", two / "a_2.jpg", one / "a.jpg", "--output", drawn]]
    runs[-1] += ["--threshold", 0.9]
    driver = {"PYTHONPATH": bundle}
    *refused, link, huge, good = exits(program, *runs, **driver)
    for code in (*refused, link):
        assert_error(code, "--output", "would be overwritten")
    assert huge == 1 and good == 0
    assert {p.name for p in drawn.iterdir()} == {"b.jpg", "a.jpg", "a_2.jpg", "a_2_2.jpg"}
    assert all(path.read_bytes() == content for path, content in originals.items())
    same = np.abs(cv2.imread(str(drawn / "a_2.jpg")).astype(int) - cv2.imread(str(two / "a.jpg")))
    assert (same > 60).mean() < 0.3  # the second a.jpg, with boxes


def test_a_second_export_replaces_what_the_first_wrote_alone(config, bundle, tmp_path):
    output, foreign = tmp_path / "bundle", tmp_path / "foreign"
    shutil.copytree(bundle, output)
    (output / "notes.txt").write_text("mine")
    spec = json.loads((output / "model.json").read_text())
    spec["files"] += ["../foreign/model.json", "gone.bin", str(foreign / "model.json")]
    (output / "model.json").write_text(json.dumps(spec))
    foreign.mkdir()
    (foreign / "model.json").write_text('{"weights": "mine"}')
    taken = tmp_path / "taken"
    taken.mkdir()
    old = {**spec, "files": ["model.json"]}
    (taken / "model.json").write_text(json.dumps(old))
    (taken / "model.ts").write_text("mine")

    common = ["--config-file", config, "--parity-images", 0, "--format", "torchscript"]
    outputs = ([*common, "--output", folder] for folder in (output, foreign, taken))
    codes = exits("ssdlite_d2.tools.export", *outputs, DETECTRON2_DATASETS=config.parent)
    assert codes[0] == 0
    assert_error(codes[1], "foreign exists and is no bundle")
    assert_error(codes[2], "model.ts is of no export and would be overwritten")
    files = {"model.ts", "labels.txt", "model.json", "predict.py", "detector.py", "config.yaml"}
    files |= {"drawing.py", "runtimes.py", "README.md", "requirements.txt"}
    assert {p.name for p in output.iterdir()} == {*files, "notes.txt"}
    assert set(json.loads((output / "model.json").read_text())["files"]) == files
    assert Detector(output).spec["format"] == "torchscript"
    assert (foreign / "model.json").read_text() == '{"weights": "mine"}'
    assert json.loads((taken / "model.json").read_text()) == old
    assert (taken / "model.ts").read_text() == "mine" and len(list(taken.iterdir())) == 2


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
        (case("--layout frigate"), "--layout frigate is not for --format onnx; it is for openvino"),
        (case("--layout coral"), "--layout is 'coral'; it is one of anchors, nms, frigate"),
        (case("--nms", format="ncnn"), "--layout nms is not for --format ncnn"),
        (
            case("--precision int8", format="torchscript"),
            "torchscript is 'int8'; it is one of fp32",
        ),
        (case("--batch none"), "--batch is none"),
        (case(int8, "nowhere"), "data set 'nowhere' is unknown"),
        (case(int8, "hollow"), "hollow"),
        (case("--parity-dataset hollow"), "hollow"),
        (case("--parity-dataset nowhere"), "; --parity-images 0 leaves the report out"),
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


def test_a_process_of_the_benchmark_times_and_detects(bundle, tmp_path):
    image = read_all()[0]
    with Worker("bundle", "", str(bundle), None, image, 10) as worker:
        names = [name for name, _, _ in worker.open()]
        assert names == [f"onnx fp32{x}" for x in (", model alone", "", ", 10 candidates")]
        assert len(worker.ask(names[0], "time", 3)) == 3
        found = worker.ask(names[1], "detect", [image])[0]
        expected = Detector(bundle)([image])[0]
        assert all(np.array_equal(a, b) for a, b in zip(found, expected))
        with pytest.raises(RuntimeError, match="uint8"):
            worker.ask(names[1], "detect", [image[:, :, 0]])
    assert worker.process.returncode == 0
    broken = shutil.copytree(bundle, tmp_path / "broken")
    (broken / "model.onnx").unlink()
    for function, words in (
        ("", "model.onnx is missing"),
        ("os:_exit", "its process ended with status 3"),
    ):
        args = (3,) if function else (str(broken), None, image, 10)
        with Worker("x", function, *args) as worker, pytest.raises(RuntimeError, match=words):
            worker.open()


def test_benchmark_has_a_row_for_every_runtime(config, clean_catalog, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(config.parent))
    # a process of its own for each: the others are as these
    monkeypatch.setattr(inference, "MODES", ("eager", "fused"))
    monkeypatch.setattr(inference, "CALLS", 2)
    monkeypatch.setattr(inference, "BATCH", 2)
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
    memory = {name: rows[name]["peak memory MB"] for name in (*modes, *runtimes)}
    assert memory["onnx fp32"] < 0.6 * memory["PyTorch eager"]  # there is no PyTorch in it
    assert all(rows[name]["images/s"] > 0 and rows[name]["model MB"] > 10 for name in memory)
    assert cv2.imread(str(tmp_path / "speed.png")) is not None
