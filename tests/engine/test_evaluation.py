"""Evaluation as the user of train_net.py runs it."""

import json

import numpy as np
import pytest
import torch
from runs import forked, options
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of two iterations with evaluation, and its last checkpoint evaluated twice."""
    root = tmp_path_factory.mktemp("evaluation")
    keys = [
        "SOLVER.MAX_ITER",
        2,
        "DATASETS.TEST",
        "('tiny',)",
        "MODEL.SSD.POSTPROCESS.SCORE_THRESH",
        0.0,
    ]
    keys += ["TEST.IMS_PER_BATCH", 3, "DATALOADER.NUM_WORKERS", 0, "SOLVER.BEST_METRIC"]
    keys += ["bbox_EMA/AP50"]
    runs = [{"args": options(root / "train", *keys)}]
    weights = ["MODEL.WEIGHTS", root / "train" / "model_0000001.pth"]
    for name in ("first", "second", "fused"):
        mode = ["MODEL.SSD.INFERENCE", "fused"] if name == "fused" else []
        args = options(root / name, *keys, *weights, *mode)
        runs.append({"args": ["--eval-only", *(word for word in args if word != "--resume")]})
    hopeless = ["SOLVER.MAX_ITER", 9, "MODEL.SSD.POSTPROCESS.SCORE_THRESH", 1.0]  # AP is 0.0
    hopeless += ["TEST.EVAL_PERIOD", 2, "SOLVER.CHECKPOINT_PERIOD", 9, "SOLVER.PATIENCE", 1]
    runs.append({"args": options(root / "hopeless", *keys, *hopeless)})
    results = forked(*runs)
    assert all(code == 0 for code, _ in results), [text[-3000:] for _, text in results]
    return root


def saved_results(folder):
    return json.loads((folder / "inference" / "results.json").read_text())


def test_weights_are_evaluated_the_same_every_time(folder):
    trained, first, second = (saved_results(folder / n) for n in ("train", "first", "second"))
    made = [results.pop("made_with") for results in (trained, first, second)]
    assert trained == first == second
    assert all(m["commit"] and m["hardware"] and m["versions"]["torch"] for m in made)
    assert [m["config"]["OUTPUT_DIR"] for m in made[1:]] == [
        str(folder / n) for n in ("first", "second")
    ]
    assert made[0]["seed"] == made[0]["config"]["SEED"] == 3
    assert set(first["tiny"]) == {"bbox", "operating", "bbox_EMA", "operating_EMA"}
    assert {"AP", "AP50", "AP-Platelets"} <= set(first["tiny"]["bbox"])


def test_fused_network_is_evaluated_when_asked(folder):
    def found(name):
        file = folder / name / "inference" / "coco_instances_results.json"
        rows = json.loads(file.read_text())
        return np.array([row["score"] for row in rows]), np.array([row["bbox"] for row in rows])

    (scores, boxes), (fused_scores, fused_boxes) = found("first"), found("fused")
    assert scores == pytest.approx(fused_scores, abs=1e-4)
    # no rounding is the same, and in the boxes of a network hardly trained it shows
    assert (scores != fused_scores).any() or (boxes != fused_boxes).any()


def test_best_weights_are_those_of_the_metric(folder):
    best = torch.load(folder / "train" / "model_best.pth")
    last = torch.load(folder / "train" / "model_0000001.pth")
    assert best["best"]["metric"] == "bbox_EMA/AP50"
    for name, value in best["model"].items():
        assert torch.equal(value, last["ema"][f"module.{name}"])


def test_final_weights_are_the_average(folder):
    assert "</html>" in (folder / "train" / "report.html").read_text()
    final = torch.load(folder / "train" / "model_final.pth")["model"]
    last = torch.load(folder / "train" / "model_0000001.pth")
    assert all(torch.equal(v, last["ema"][f"module.{name}"]) for name, v in final.items())
    assert not all(torch.equal(v, last["model"][name]) for name, v in final.items())


def test_thresholds_are_those_of_the_evaluation_of_the_weights(folder):
    results = saved_results(folder / "train")["tiny"]
    for name in ("model_best.pth", "model_final.pth"):
        operating = torch.load(folder / "train" / name)["operating"]
        assert operating == {k: v for k, v in results["operating_EMA"].items() if k in operating}
        assert "threshold" in operating


def test_patience_ends_a_run_that_can_go_on(folder):
    names = sorted(file.name for file in (folder / "hopeless").glob("model_*"))
    assert names == ["model_0000003.pth", "model_best.pth", "model_final.pth"]
    state, best, final = (torch.load(folder / "hopeless" / name) for name in names)
    assert (state["iteration"], best["iteration"], final["iteration"]) == (3, 1, 3)
    assert "trainer" in state and final["operating"]["threshold"] == 0.5
    assert (folder / "hopeless" / "training.png").is_file()
    log = (folder / "hopeless" / "log.txt").read_text()
    assert "SOLVER.PATIENCE 1: training ends after iteration 3" in log and "Traceback" not in log


def test_run_leaves_curves_and_images(folder):
    assert (folder / "train" / "training.png").read_bytes().startswith(b"\x89PNG")
    events = EventAccumulator(str(folder / "train"), size_guidance={"images": 0}).Reload()
    assert len(events.Tags()["images"]) == 4
    scalars = {"total_loss", "lr", "num_pos_anchors", "boxes_covered", "best_anchor_iou"}
    assert scalars <= set(events.Tags()["scalars"])
