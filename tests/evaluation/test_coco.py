"""COCO's metrics by two implementations."""

import pytest
import torch
from conftest import CLASSES, data_opts, load_bare
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances

from ssdlite_d2.data import resolve_datasets
from ssdlite_d2.evaluation import coco


@pytest.fixture
def detections(bccd):
    """True boxes moved at random, with random scores; the images have names for ids."""
    resolve_datasets(load_bare("ssdlite_mnv2.yaml", *data_opts()))
    generator = torch.Generator().manual_seed(0)
    found = []
    for record in DatasetCatalog.get("tiny"):
        boxes = torch.tensor([a["bbox"] for a in record["annotations"]])
        instances = Instances((record["height"], record["width"]))
        instances.pred_boxes = Boxes(boxes + 6 * torch.randn(boxes.shape, generator=generator))
        instances.scores = torch.rand(len(boxes), generator=generator)
        classes = [a["category_id"] for a in record["annotations"]]
        instances.pred_classes = torch.tensor(classes)
        found.append((record, {"instances": instances}))
    return found


def evaluated(folder, detections):
    evaluator = coco.BoxEvaluator("tiny", str(folder))
    evaluator.reset()
    for record, output in detections:
        evaluator.process([record], [output])
    return evaluator.evaluate()["bbox"]


def test_faster_coco_eval_gives_the_same_numbers(detections, tmp_path, monkeypatch):
    assert coco.faster_coco_eval is not None
    fast = evaluated(tmp_path, detections)
    monkeypatch.setattr(coco, "faster_coco_eval", None)
    slow = evaluated(tmp_path, detections)
    assert set(fast) == set(slow) >= {"AP", "AP50", *(f"AP-{name}" for name in CLASSES)}
    assert fast == pytest.approx(slow, abs=1e-9, nan_ok=True)
    assert 1 < fast["AP"] < 99


@pytest.mark.parametrize("fast", [True, False])
def test_a_model_that_finds_nothing_has_an_ap_of_zero(
    detections, tmp_path, monkeypatch, fast, caplog
):
    if not fast:
        monkeypatch.setattr(coco, "faster_coco_eval", None)
    nothing = [(record, {"instances": output["instances"][:0]}) for record, output in detections]
    with caplog.at_level("INFO", logger="ssdlite_d2"):
        found = evaluated(tmp_path, nothing)
    assert found["AP"] == found["AP50"] == found["AP-RBC"] == 0.0
    assert "found nothing, so AP is 0.0" in caplog.text
    assert (tmp_path / "coco_instances_results.json").read_text() == "[]"
