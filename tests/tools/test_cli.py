"""The program ``ssdlite`` as its users run it."""

import cv2
import pytest
import torch
from conftest import ASSETS, ROOT, assert_error, exits, run

import ssdlite_d2
from ssdlite_d2 import InputError
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
    assert sum(" AP " in line for line in lines) >= 1
    for words in ("not found in the checkpoint", "FutureWarning", "CUDA_HOME", "Traceback"):
        assert words not in done.stdout + done.stderr
    log = (folder / "log.txt").read_text()
    for words in (
        "not found in the checkpoint",
        "Running with full config",
        "copypaste",
        "Average",
    ):
        assert words in log
    for name in ("model_best.pth", "model_final.pth", "train.yaml", "config.yaml", "val.txt"):
        assert (folder / name).is_file()


def test_commands_take_an_output_folder(trained, tmp_path):
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
        found = model.predict(str(IMAGE))
        assert len(found) == len(found.class_names) > 3 and set(found.class_names) <= {"RBC", "WBC"}
        half = float(found.scores.median())
        fewer, _ = model.predict([cv2.imread(str(IMAGE)), IMAGE], score_threshold=half)
        assert 0 < len(fewer) < len(found) and fewer.scores.min() >= half
        assert fewer[:2].class_names == found.class_names[:2]
        assert fewer.draw().shape == (480, 640, 3)
    with pytest.raises(InputError, match="no.jpg cannot be read"):
        model.predict("no.jpg")


def test_mistakes_are_one_line(trained, tmp_path):
    folder, _ = trained
    (tmp_path / "empty").mkdir()
    torch.save({"model": {}}, tmp_path / "alone.pth")
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
    ]
    codes = exits("ssdlite_d2", *(case for case, _ in cases), cwd=tmp_path, PYTHONPATH=ROOT)
    for code, (_, words) in zip(codes, cases):
        assert_error(code, *words)


def test_help_names_the_commands(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["ssdlite"])
    main()
    printed = capsys.readouterr().out
    assert all(f"  {name}" in printed for name in COMMANDS)
