import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from ssdlite_d2 import load_config

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "tests" / "assets"
CLASSES = ["RBC", "WBC", "Platelets"]


@pytest.fixture
def bccd(monkeypatch) -> Path:
    """The folder of four real pictures in VOC format, also set as the root of data sets."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(ASSETS))
    return ASSETS / "bccd"


@pytest.fixture
def bccd_copy(bccd, tmp_path, monkeypatch) -> Path:
    """The same in a folder that may be changed."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return Path(shutil.copytree(bccd, tmp_path / "bccd"))


def voc_entry(name: str = "tiny", split: str = "all", **keys):
    return {"NAME": name, "FORMAT": "voc", "ROOT": "bccd", "SPLIT": split, **keys}


def data_opts(*entries):
    """Overrides that train and test on registered entries."""
    entries = entries or (voc_entry(CLASSES=CLASSES),)
    names = str(tuple(e["NAME"] for e in entries))
    return [
        "DATASETS.REGISTER",
        str(list(entries)),
        "DATASETS.TRAIN",
        names,
        "DATASETS.TEST",
        names,
    ]


def bare_config(num_classes: int = 3, *opts, config: str = "ssdlite_mnv2.yaml"):
    """A config without data sets, on the CPU."""
    keys = ["MODEL.DEVICE", "cpu", "MODEL.SSD.NUM_CLASSES", num_classes, "MODEL.SSD.NORM", "BN"]
    keys += ["DATASETS.TRAIN", "()", "DATASETS.TEST", "()"]
    return load_config(config, [*keys, *opts])


def make_model(num_classes: int = 3, *opts, seed: int = 0):
    torch.manual_seed(seed)
    return build_model(bare_config(num_classes, *opts))


def make_instances(boxes, classes, size=(320, 320)) -> Instances:
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    return instances


def make_input(boxes=(), classes=(), size=(320, 320), seed: int = 0):
    """One training input: noise of the network's size, with boxes."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
    return {"image": image, "instances": make_instances(boxes, classes, size)}


def run(*command, cwd=ROOT, timeout=240, **env) -> subprocess.CompletedProcess:
    """Run a Python program of the project; stdout and stderr are captured."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    environment.update({key: str(value) for key, value in env.items()})
    return subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, command)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def assert_one_line_error(result: subprocess.CompletedProcess, *words: str) -> None:
    """The program failed with one line that has all words, and no traceback."""
    output = result.stdout + result.stderr
    assert result.returncode == 1, output
    assert "Traceback" not in output, output
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, output
    for word in words:
        assert word in lines[0], lines[0]
