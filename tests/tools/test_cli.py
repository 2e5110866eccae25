"""The program ``ssdlite`` as its users run it."""

import contextlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
import yaml
from conftest import ASSETS, ROOT, assert_error, exits, run

import ssdlite_d2
from ssdlite_d2 import InputError
from ssdlite_d2.data.datasets.entry import Entry
from ssdlite_d2.evaluation.drawing import colour_of, draw_boxes
from ssdlite_d2.tools import demo, visualize_results
from ssdlite_d2.tools.cli import COMMANDS, main

BCCD = ASSETS / "bccd"
IMAGE = BCCD / "JPEGImages" / "BloodImage_00000.jpg"
TINY = ["INPUT.SIZE", "(96, 96)", "SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0]
TINY += ["SOLVER.EPOCHS", 12.0, "TEST.EVALUATIONS", 2]
TINY += ["MODEL.SSD.POSTPROCESS.SCORE_THRESH", 0.0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Output of ``ssdlite train`` on a folder, and what it printed."""
    folder = tmp_path_factory.mktemp("own data")
    done = run(
        "-m",
        "ssdlite_d2",
        "train",
        BCCD,
        "--output",
        folder / "mine",
        *TINY,
        cwd=folder,
        PYTHONPATH=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "mine", done


def test_training_is_short_on_the_console_and_whole_in_the_log(trained):
    folder, done = trained
    lines = done.stdout.splitlines() + done.stderr.splitlines()
    assert 12 <= len(lines) <= 60, done.stdout + done.stderr
    starts = [line.split()[0] for line in lines]
    for word in ("data", "train", "evaluate", "classes", "config", "model", "schedule", "output"):
        assert word in starts, done.stdout
    assert "18 iterations of 2 images" in done.stdout and "evaluated every 9" in done.stdout
    progress = [line.split("iteration ")[1] for line in lines if line.startswith("epoch")]
    done_at = [int(text.split("/")[0]) for text in progress]
    assert done_at == sorted(set(done_at)) and done_at[-1] == 18
    assert [n for n, text in zip(done_at, progress) if " AP " in text] == [9, 18]
    assert json.loads((folder / "best.json").read_text())["iteration"] in (8, 17)
    for words in (
        "in the checkpoint",
        "not used by the model",
        "found nothing",
        "FutureWarning",
        "CUDA_HOME",
        "Traceback",
    ):
        assert words not in done.stdout + done.stderr
    log = (folder / "log.txt").read_text()
    for words in (
        "not found in the checkpoint",
        "Running with full config",
        "copypaste",
    ):
        assert words in log
    for name in ("model_best.pth", "model_final.pth", "train.yaml", "config.yaml", "val.txt"):
        assert (folder / name).is_file()


def test_commands_take_an_output_folder(trained, tmp_path, monkeypatch):
    folder, _ = trained
    again = tmp_path / "again"
    commands = [
        ["train", "--config-file", folder / "train.yaml", "OUTPUT_DIR", again],
        ["eval", folder],
        ["eval", folder / "model_final.pth", "OUTPUT_DIR", tmp_path / "eval"],
        ["predict", folder, IMAGE, "--output", tmp_path / "drawn", "--confidence-threshold", 0.0],
        [
            "export",
            folder,
            "--format",
            "torchscript",
            "--output",
            tmp_path / "b",
            "--parity-images",
            0,
        ],
        ["view", folder, "--output", tmp_path / "seen", "--count", 2],
        ["fit-anchors", folder, "--steps", 2, "--output", tmp_path / "fitted.yaml"],
        ["models"],
    ]
    assert exits("ssdlite_d2", *commands) == [0] * len(commands)
    first, second = (torch.load(f / "model_final.pth")["model"] for f in (folder, again))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert cv2.imread(str(tmp_path / "drawn" / IMAGE.name)).shape == (480, 640, 3)
    for place in (tmp_path / "b", folder, folder / "model_final.pth"):
        model = ssdlite_d2.load(place)
        assert model.classes == ["RBC", "WBC"]
        found = model.predict(str(IMAGE), 0.0)
        assert len(found) == len(found.class_names) > 3 and set(found.class_names) <= {"RBC", "WBC"}
        half = float(found.scores.median())
        fewer, _ = model.predict([cv2.imread(str(IMAGE)), IMAGE], score_threshold=half)
        assert 0 < len(fewer) < len(found) and fewer.scores.min() >= half
        assert fewer[:2].class_names == found.class_names[:2]
        assert fewer.draw().shape == (480, 640, 3)
        same = fewer.to_supervision()
        assert (same.xyxy == fewer.pred_boxes.tensor.numpy()).all() and len(same) == len(fewer)
        assert list(same["class_name"]) == fewer.class_names
        assert (same.class_id == fewer.pred_classes.numpy()).all()
        assert (same.confidence == fewer.scores.numpy()).all()
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(InputError, match="supervision is not installed: pip install"):
        fewer.to_supervision()
    with pytest.raises(InputError, match="no.jpg cannot be read"):
        model.predict("no.jpg")


def test_one_threshold_everywhere(trained, tmp_path, monkeypatch):
    folder, _ = trained
    for name in ("model_best.pth", "model_final.pth"):
        weights = torch.load(folder / name)
        assert 0 < weights["operating"]["threshold"] < 1
    scores = ssdlite_d2.load(folder / "model_final.pth").predict(IMAGE, 0.0).scores
    weights["operating"]["threshold"] = float(scores[9] + scores[10]) / 2
    torch.save(weights, tmp_path / "model.pth")
    shutil.copy(folder / "config.yaml", tmp_path)
    model = [tmp_path / "model.pth"]
    counts = {}

    def call(name, module, *words):
        """Run a program here; how many boxes it draws on each image."""
        draw = getattr(module, name)
        keep = counts.setdefault(module.__name__.split(".")[-1], [])

        def drawn(image, found, *rest):
            keep.append(len(found))
            return draw(image, found, *rest)

        monkeypatch.setattr(module, name, drawn)
        monkeypatch.setattr("sys.argv", ["x", *map(str, words)])
        with contextlib.suppress(SystemExit):
            (main if module is demo else module.main)()

    call("draw_detections", demo, "predict", *model, IMAGE, "--output", tmp_path / "drawn")
    config = ["--config-file", tmp_path / "config.yaml", "--output", tmp_path / "beside"]
    pairs = ["DATASETS.TEST", "('own_train', 'own_val')", "MODEL.WEIGHTS", *model]
    call("side_by_side", visualize_results, *config, "--opts", *pairs)
    bundle = tmp_path / "bundle"
    export = ["export", *model, "--format", "torchscript", "--output", bundle]
    monkeypatch.setattr("sys.argv", ["x", *map(str, export), "--parity-images", "0"])
    main()
    assert json.loads((bundle / "model.json").read_text())["operating"] == weights["operating"]
    done = run(bundle / "predict.py", IMAGE, "--output", tmp_path / "by bundle", PYTHONPATH=bundle)
    counts["bundle"] = [len(entry["detections"]) for entry in json.loads(done.stdout)]
    places = {"load": model[0], "load bundle": bundle}
    counts |= {name: [len(ssdlite_d2.load(p).predict(IMAGE))] for name, p in places.items()}
    beside = counts.pop("visualize_results")
    assert counts == dict.fromkeys(counts, [10])
    train = yaml.safe_load((folder / "train.yaml").read_text())["DATASETS"]["REGISTER"][0]
    images = [record["file_name"] for record in Entry.parse(train).load()]
    expected = [len(found) for found in ssdlite_d2.load(*model).predict(images)]
    assert sorted(beside) == sorted(expected)


def test_a_class_has_one_colour_everywhere(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "ssdlite_d2" / "export" / "bundled"))
    bundled = importlib.import_module("drawing")
    small = np.full((60, 90, 3), 255, np.uint8)
    box, classes = np.array([[20.0, 30, 70, 55]]), range(100)
    assert len({colour_of(c) for c in classes}) == 100
    for c in (0, 1, 79):
        rgb = [round(255 * part) for part in colour_of(c)]
        assert rgb == list(bundled.colour_of(c))[::-1]
        ours = draw_boxes(small, box, [c], ["a name"])
        theirs = bundled.draw(small, box, [0.5], [c], ["a name"])[:, :, ::-1]
        for drawn in (ours, theirs):
            assert min(drawn.shape[:2]) == 480
            assert (np.abs(drawn.astype(int) - rgb).max(2) < 12).sum() > 400  # the box's sides
            assert (drawn.max(2) < 100).sum() + (drawn.min(2) > 254).sum() > 100


def written(folder):
    """Files with a mistake each."""
    coco = "{NAME: c, FORMAT: coco, JSON: gone.json, IMAGES: .}"
    texts = {
        "tab": "MODEL:\n\tSSD: {}\n",
        "lost": "_BASE_: ssdlite_mnv.yaml\n",
        "bare": "SOLVER: {BASE_LR: 0.1}\n",
        "coco": f"_BASE_: Base-Own.yaml\nDATASETS: {{REGISTER: [{coco}], TRAIN: [c], TEST: [c]}}\n",
    }
    files = {name: folder / f"{name}.yaml" for name in texts}
    for name, text in texts.items():
        files[name].write_text(text)
    shutil.copy(IMAGE, folder / "a.jpg")
    boxes = [[300 + i, 300 + i, 600, 450] for i in range(6)]
    ids = {"image_id": 1, "category_id": 1}
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 480, "width": 640}],
        "annotations": [{"id": i + 1, "bbox": box, **ids} for i, box in enumerate(boxes)],
        "categories": [{"id": 1, "name": "cell"}],
    }
    files["corners"] = folder / "corners.json"
    files["corners"].write_text(json.dumps(content))
    return files


def test_mistakes_are_one_line(trained, tmp_path):
    folder, _ = trained
    (tmp_path / "empty").mkdir()
    torch.save({"model": {}}, tmp_path / "alone.pth")
    files = written(tmp_path)
    one_image = ["SOLVER.IMS_PER_BATCH", 1, "INPUT.SIZE", "(64, 64)"]
    one_image += ["OUTPUT_DIR", tmp_path / "one"]
    config = ["--config-file", folder / "train.yaml"]
    cases = [
        (["trian", BCCD], ["the commands are train, eval"]),
        (["train"], ["give DATA", "--config-file FILE"]),
        (["train", BCCD, *config], ["give DATA"]),
        (["train", *config, "--output", "x"], ["--output go with DATA"]),
        (["train", tmp_path / "no"], ["does not exist"]),
        (["train", tmp_path / "empty"], ["no annotations of a known format"]),
        (["train", BCCD, "--model", "ssdlite_mnv9"], ["no config 'ssdlite_mnv9.yaml'"]),
        (["eval", tmp_path / "no"], ["no model"]),
        (["eval", tmp_path / "empty"], ["no config.yaml"]),
        (["eval", tmp_path / "alone.pth"], ["no config.yaml"]),
        (["train", BCCD, "SOLVER.EPOCHS=3"], ["write SOLVER.EPOCHS 3"]),
        (["train", *config, "SOLVER.EPOCHS", -1.0], ["SOLVER.EPOCHS is -1.0"]),
        (["train", *config, "SOLVER.MAX_ITER", 0], ["SOLVER.MAX_ITER is 0"]),
        (["train", *config, "MODEL.DEVICE", "gpu"], ["MODEL.DEVICE is 'gpu'; it is cpu, cuda"]),
        (["train", *config, "INPUT.SIZE", 320], ["a tuple such as (320, 320)"]),
        (["train", *config, "DATASETS.TRAIN", "own_train"], ["such as ('own_train',)"]),
        (["train", *config, "SOLVER.BASE_LRS", 1.0], ["did you mean SOLVER.BASE_LR"]),
        (["train", "--config-file", tmp_path], [f"{tmp_path} is a folder"]),
        (["train", "--config-file", files["tab"]], ["tab.yaml, line 2: a tab"]),
        (["train", "--config-file", files["lost"]], ["lost.yaml: _BASE_ ssdlite_mnv.yaml is not"]),
        (["train", "--config-file", files["bare"]], ["_BASE_: ssdlite_mnv2.yaml"]),
        (["train", *config, *one_image], ["batch norm gets 1 image"]),
        (["train", files["corners"]], ["COCO's bbox is [x, y, width, height]"]),
        (["train", "--config-file", files["coco"]], ["gone.json", "DETECTRON2_DATASETS"]),
        (["eval", *config], ["give those of a training, such as model_final.pth"]),
        (["export", *config, "--format", "onnx", "--output", "x"], ["give those of a training"]),
        (["predict", *config, "--input", IMAGE, "--output", "x"], ["give those of a training"]),
        (["predict", folder, IMAGE], ["there is no display", "--output"]),
        (["check", tmp_path / "empty"], ["no annotations of a known format"]),
    ]
    commands = [case for case, _ in cases]
    codes = exits("ssdlite_d2", *commands, cwd=tmp_path, PYTHONPATH=ROOT, DISPLAY="")
    for code, (_, words) in zip(codes, cases):
        assert_error(code, *words)


def start(*words, **env):
    command = [sys.executable, "-W", "ignore", "-m", "ssdlite_d2", *words]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": ROOT}
    # jobs in the background ignore Ctrl-C, and so would what they start
    options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, env={**os.environ, **env}, **options)


def test_a_reader_that_goes_away_ends_the_program():
    process = start("models")
    process.stdout.close()  # as head does
    assert process.stderr.read() == b"" and process.wait() == 128 + signal.SIGPIPE


def test_interrupt_while_importing_has_no_traceback(tmp_path):
    slow = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    (tmp_path / "detectron2.py").write_text(slow)
    process = start("models", PYTHONPATH=str(tmp_path))
    assert process.communicate() == (b"", b"")
    assert process.returncode == -signal.SIGINT  # a shell's 130


def test_help_names_the_commands(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["ssdlite"])
    main()
    printed = capsys.readouterr().out
    assert all(f"  {name}" in printed for name in COMMANDS)
