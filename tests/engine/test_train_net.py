"""train_net.py as its users run it, on real images."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from conftest import ASSETS, CLASSES, ROOT, assert_error, exits, run, voc_entry

TINY = ["INPUT.SIZE", "(128, 128)", "SOLVER.IMS_PER_BATCH", 4, "DATALOADER.NUM_WORKERS", 1]
TINY += ["SOLVER.MAX_ITER", 2, "SOLVER.REFERENCE_WORLD_SIZE", 0, "TEST.EVAL_PERIOD", 0]
TINY += ["MODEL.WEIGHTS", ""]


def config(tmp_path, train="all", test="all", **entry):
    entries = [
        voc_entry("tiny_train", train, **{"CLASSES": CLASSES, **entry}),
        voc_entry("tiny_test", test, **{"CLASSES": CLASSES, **entry}),
    ]
    content = {
        "_BASE_": str(ROOT / "configs" / "ssdlite_mnv2.yaml"),
        "DATASETS": {
            "REGISTER": entries,
            "TRAIN": "('tiny_train',)",
            "TEST": "('tiny_test',)",
        },
        "OUTPUT_DIR": str(tmp_path / "out"),
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def train_net(path, *args, root=ASSETS, **kwargs):
    args = ["train_net.py", "--config-file", path, *args]
    return run(*args, DETECTRON2_DATASETS=root, **kwargs)


def results(output):
    return [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]


def test_overfits_one_image(tmp_path):
    """Data, augmentation, matching, loss, optimiser, decoding, evaluation: the whole chain."""
    opts = ["SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 150, "SOLVER.REFERENCE_WORLD_SIZE", 0]
    opts += ["SOLVER.BASE_LR", 0.05, "SOLVER.WARMUP_ITERS", 20, "TEST.EVAL_PERIOD", 150]
    opts += [
        "INPUT.PHOTOMETRIC.ENABLED",
        False,
        "INPUT.EXPAND.PROB",
        0.0,
        "SEED",
        0,
        "MODEL.SSD.NORM",
        "BN",
    ]
    opts += ["INPUT.IOU_CROP.ENABLED", False, "INPUT.RANDOM_FLIP", "none"]
    opts += ["DATALOADER.NUM_WORKERS", 1, "INPUT.SIZE", "(200, 200)"]
    opts += ["MODEL.ANCHOR_GENERATOR.STRIDES", "[]", "MODEL.ANCHOR_GENERATOR.SIZES"]
    opts += ["[[18, 100], [50, 90], [90, 140], [140, 180], [180, 220], [220, 250]]"]
    done = train_net(config(tmp_path, "one", "one"), *opts)
    assert done.returncode == 0, done.stdout + done.stderr
    assert results(tmp_path / "out")[-1]["bbox/AP50"] >= 99


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    path = config(folder)
    done = train_net(path, "--num-gpus", 2, "--dist-url", "auto", *TINY, "TEST.EVAL_PERIOD", 2)
    return folder, path, done


def test_two_cpu_processes_train_and_evaluate(two_processes):
    folder, _, done = two_processes
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "World size: 2" in output
    assert "naiveSync" in output or "NaiveSyncBatchNorm" in output
    assert "Traceback" not in output
    assert any("total_loss" in row for row in results(folder / "out"))
    assert (folder / "out" / "model_final.pth").is_file()
    assert "copypaste: AP,AP50" in output


def test_eval_only_and_resume(two_processes):
    folder, path, _ = two_processes
    weights = folder / "out" / "model_final.pth"
    done = train_net(path, "--eval-only", "MODEL.WEIGHTS", weights, *TINY[:-2])
    assert done.returncode == 0, done.stderr
    assert "copypaste: AP,AP50" in done.stdout + done.stderr
    done = train_net(path, "--resume", *TINY, "SOLVER.MAX_ITER", 3)
    assert done.returncode == 0, done.stderr
    assert "Starting training from iteration 2" in done.stdout + done.stderr
    assert torch.load(weights, weights_only=True)["iteration"] == 2


def test_without_cuda_it_says_so_in_one_line(two_processes):
    output = two_processes[2].stdout + two_processes[2].stderr
    if torch.cuda.is_available():
        assert "No CUDA" not in output
    else:
        lines = [line for line in output.splitlines() if "No CUDA: MODEL.DEVICE is cpu" in line]
        assert len(lines) == 1


def test_another_number_of_processes_rescales_the_recipe(tmp_path):
    path = config(tmp_path)
    opts = ["SOLVER.REFERENCE_WORLD_SIZE", 4, "SOLVER.IMS_PER_BATCH", 8, "SOLVER.MAX_ITER", 1]
    done = train_net(path, *TINY, *opts)
    assert done.returncode == 0, done.stderr
    message = "batch_size=2, learning_rate=0.02, max_iter=4, warmup=2000"
    assert message in done.stdout + done.stderr


def test_wrong_configs_are_named(tmp_path, monkeypatch):
    """Each is one line that names the thing."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(ASSETS))
    good = config(tmp_path)
    broken, unknown = tmp_path / "broken.yaml", tmp_path / "unknown.yaml"
    broken.write_text("MODEL: [1, {")
    unknown.write_text("MODEL: {SSD: {COLOUR: 1}}")
    coco = ROOT / "configs" / "ssdlite_mnv2.yaml"
    two_classes = str([voc_entry(n, CLASSES=["RBC", "WBC"]) for n in ("tiny_train", "tiny_test")])
    output = ["OUTPUT_DIR", tmp_path / "out", "MODEL.WEIGHTS", ""]
    cases = [
        (["ssdlite_mnv2.yaml", *output], ["coco_2017_train", "instances_train2017.json"]),
        ([coco, *output], ["coco_2017_train", "instances_train2017.json", "DETECTRON2_DATASETS"]),
        ([good, "MODEL.SSD.COLOUR", 1], ["the command line", "MODEL.SSD.COLOUR"]),
        ([tmp_path / "gone.yaml"], ["gone.yaml"]),
        ([broken], ["broken.yaml"]),
        ([unknown], ["unknown.yaml", "MODEL.SSD.COLOUR"]),
        ([good, "MODEL.ANCHOR_GENERATOR.SIZES", "[[9, 9]]"], ["1 entries for 6 feature maps"]),
        ([good, "MODEL.SSD.NUM_CLASSES", 80], ["80", "3 classes"]),
        ([good, "MODEL.WEIGHTS", "/nowhere/a.pth"], ["/nowhere/a.pth"]),
        ([good, "DATASETS.TRAIN", "('x',)"], ["data set 'x' is unknown"]),
        ([good, "INPUT.SIZE", "(320,)"], ["INPUT.SIZE is (320,); it is 2 values"]),
        ([good, "MODEL.DEVICE", "gpu"], ["MODEL.DEVICE is 'gpu'; it is cpu"]),
        ([good, "SOLVER.IMS_PER_BATCH", 0], ["SOLVER.IMS_PER_BATCH is 0"]),
        ([good, "MODEL.BACKBONE.NAME", "x"], ["MODEL.BACKBONE.NAME is 'x'", "build_ssd_"]),
        ([good, "OUTPUT_DIR", "/proc/x"], ["OUTPUT_DIR /proc/x"]),
        ([good, "DATASETS.REGISTER", two_classes, *output], ["'Platelets' is not in CLASSES"]),
    ]
    codes = exits("train_net.py", *(["--config-file", *case] for case, _ in cases))
    for code, (_, words) in zip(codes, cases):
        assert_error(code, *words)


def test_weights_of_other_classes_are_named(two_processes, tmp_path):
    weights = two_processes[0] / "out" / "model_final.pth"
    path = config(tmp_path, CLASSES=[*CLASSES, "other"])
    command = ["--config-file", path, *TINY, "MODEL.WEIGHTS", weights]
    reinit = [*command, "MODEL.SSD.REINIT_HEAD_ON_MISMATCH", True]
    wrong, right = exits("train_net.py", command, reinit, DETECTRON2_DATASETS=ASSETS)
    assert_error(wrong, "for 3 classes, the model has 4")
    assert right == 0
    assert "Predictors newly initialised" in (tmp_path / "out" / "log.txt").read_text()


@pytest.mark.parametrize("processes", [1, 2])
def test_image_that_breaks_during_training_is_named(tmp_path, processes):
    root = tmp_path / "data"
    shutil.copytree(ASSETS / "bccd", root / "bccd")
    for image in (root / "bccd" / "JPEGImages").iterdir():
        image.write_bytes(b"no image")
    launch = ["--num-gpus", processes, "--dist-url", "auto"]
    wrong = train_net(config(tmp_path), *launch, *TINY, root=root)
    output = wrong.stdout + wrong.stderr
    assert wrong.returncode == 1, output
    assert "Traceback" not in output
    assert "error: image" in wrong.stderr and "cannot be read" in wrong.stderr


def test_skipped_images_are_listed_at_the_end(tmp_path):
    root = tmp_path / "data"
    shutil.copytree(ASSETS / "bccd", root / "bccd")
    (root / "bccd" / "JPEGImages" / "BloodImage_00000.jpg").write_bytes(b"no image")
    opts = [*TINY, "INPUT.ON_BAD_IMAGE", "skip", "SOLVER.MAX_ITER", 4]
    done = train_net(config(tmp_path, test="one"), *opts, root=root)
    # training goes on to the end; the evaluation, which must not leave images out, names it
    assert "1 images were skipped" in (tmp_path / "out" / "log.txt").read_text()
    assert done.returncode == 1 and "BloodImage_00000.jpg cannot be read" in done.stderr
    assert (tmp_path / "out" / "model_final.pth").is_file()


def test_import_changes_nothing_of_detectron2():
    """Every attribute of every module of Detectron2 is the object it was."""
    code = """
import sys
import detectron2.engine, detectron2.evaluation, detectron2.modeling, detectron2.data
import detectron2.checkpoint, detectron2.config
def state():
    return {(m, k): id(v) for m, mod in list(sys.modules.items()) if m.startswith('detectron2')
            for k, v in vars(mod).items() if k != '__warningregistry__'}
before, defaults = state(), detectron2.config.get_cfg().dump()
held = [vars(mod).copy() for m, mod in list(sys.modules.items()) if m.startswith('detectron2')]
import ssdlite_d2
after = state()
changed = [k for k in before if after.get(k) != before[k]]
assert not changed, changed
assert detectron2.config.get_cfg().dump() == defaults
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
