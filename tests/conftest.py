import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from models import ENTRY, as_inputs, lively_model, read_all

from ssdlite_d2 import load_config
from ssdlite_d2.engine import finish_config

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "tests" / "assets"
CLASSES = ["RBC", "WBC", "Platelets"]


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs CUDA"))


@pytest.fixture(autouse=True)
def loggers_that_can_be_heard():
    """Programs that ran in this process have set up loggers which pass nothing on to caplog."""
    for name in ("detectron2", "fvcore", "ssdlite_d2"):
        logger = logging.getLogger(name)
        logger.propagate = True
        logger.setLevel(logging.NOTSET)
    yield


@pytest.fixture
def clean_catalog():
    """Takes back what a test has registered."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def bccd(monkeypatch) -> Path:
    """The folder of four real images in VOC format, also set as the root of data sets."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(ASSETS))
    return ASSETS / "bccd"


@pytest.fixture
def bccd_copy(bccd, tmp_path, monkeypatch) -> Path:
    """The same in a folder that may be changed."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return Path(shutil.copytree(bccd, tmp_path / "bccd"))


@pytest.fixture(scope="session")
def bccd_model():
    """A finished config with the four images as its data, and a model that finds something."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(ASSETS))
        names = ["DATASETS.TRAIN", "('export_tiny',)", "DATASETS.TEST", "('export_tiny',)"]
        opts = ["DATASETS.REGISTER", str([ENTRY]), *names]
        cfg, model = lively_model("ssdlite_mnv2_bccd.yaml", as_inputs(read_all()), *opts)
        finish_config(cfg)
        yield cfg, model


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


def load_bare(config: str, *opts):
    """A config on the CPU that starts from no weights; its data sets are never read."""
    return load_config(config, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *opts])


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


DRIVER = """
import json, runpy, sys
program, cases = json.loads(sys.argv[1])
for case in cases:
    sys.argv = [program, *case]
    try:
        if program.endswith(".py"):
            runpy.run_path(program, run_name="__main__")
        else:
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as error:
        code = error.code
    print("\\nEXIT " + json.dumps(code))
"""


def exits(program: str, *cases, **kwargs) -> list:
    """How a program ends for each list of arguments: its exit status or its last words.

    All in one process, since most of a short run is importing torch.
    """
    arguments = json.dumps([program, [[str(word) for word in case] for case in cases]])
    done = run("-c", DRIVER, arguments, **kwargs)
    assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    codes = [line[5:] for line in done.stdout.splitlines() if line.startswith("EXIT ")]
    assert len(codes) == len(cases), done.stdout + done.stderr
    return [json.loads(code) for code in codes]


def assert_error(code, *words: str) -> None:
    """The program ended with one line, printed to stderr, that has all words."""
    assert isinstance(code, str) and code.startswith("error: ") and "\n" not in code, code
    for word in words:
        assert word in code, code
