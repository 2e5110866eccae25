import logging

import pytest
import torch
from conftest import make_input
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from test_pan import pan_config, pan_model

from ssdlite_d2 import InputError
from ssdlite_d2.checkpoint import SSDCheckpointer
from ssdlite_d2.export.graph import ExportedSSD
from ssdlite_d2.modeling import MaxIoUAssigner
from ssdlite_d2.tools.analyze import analyze

GUIDED = ["MODEL.META_ARCHITECTURE", "GuidedSSD", "MODEL.SSD.AUXILIARY.CHANNELS", 16]
GUIDED += ["INPUT.SIZE", (96, 96), "SOLVER.MAX_ITER", 10, "MODEL.SSD.AUXILIARY.FRACTION", 0.4]
BATCH = [make_input([[4, 4, 60, 70]], [1], (96, 96)), make_input([], [], (96, 96), seed=1)]


class Recorder(MaxIoUAssigner):
    """Remembers the predictions that it is given."""

    needs_predictions = True

    def __call__(self, anchors, targets, scores=None, boxes=None):
        self.seen = scores, boxes
        return super().__call__(anchors, targets)


def losses_at(model, iteration: int):
    with EventStorage(iteration):
        return model(BATCH)


@pytest.fixture(scope="module")
def model():
    model = pan_model(*GUIDED).train()
    model.assigner = Recorder(num_classes=3)
    return model


@pytest.mark.parametrize("iteration, guided", [(0, True), (3, True), (4, False), (9, False)])
def test_the_assigner_sees_the_second_head_for_a_part_of_the_training(model, iteration, guided):
    model.eval()  # norms give the same in every pass
    images = model.preprocess_image(BATCH)
    features = model.feature_maps(images.tensor)
    truth = [x["instances"] for x in BATCH]
    own = model.head(features)
    other = model.auxiliary(features) if guided else own
    with EventStorage(iteration):
        losses = model.forward_training(images, features, own, truth)
    scores, boxes = model.assigner.seen
    logits, deltas = model._flatten(other)
    assert torch.equal(scores, logits.sigmoid())
    anchors = torch.cat([a.tensor for a in model.anchors(features, (96, 96))])
    assert torch.equal(boxes, model.box2box_transform.decode_all(deltas, anchors))
    names = {"loss_cls", "loss_box_reg", "loss_aux_cls", "loss_aux_box_reg"}
    assert set(losses) == names
    assert (losses["loss_aux_cls"] > 0) == guided


def test_both_heads_are_judged_alike_and_divided_alike(model):
    """With the same weights both have the same losses, each with its weight."""
    images = model.eval().preprocess_image(BATCH)
    features = model.feature_maps(images.tensor)
    truth = [x["instances"] for x in BATCH]
    predictions = model.auxiliary(features)
    model.auxiliary_weight = 0.5
    losses = model.forward_training(images, features, predictions, truth)
    model.auxiliary_weight = 1.0
    for name in ("cls", "box_reg"):
        assert torch.equal(losses[f"loss_aux_{name}"], 0.5 * losses[f"loss_{name}"])


@pytest.mark.parametrize("iteration", [0, 9])
def test_every_parameter_gets_a_gradient_also_when_the_second_head_rests(model, iteration):
    model.zero_grad()
    sum(losses_at(model.train(), iteration).values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    moved = sum(p.grad.abs().sum() for p in model.auxiliary.parameters())
    assert (moved > 0) == (iteration == 0)


@torch.no_grad()
def test_inference_knows_nothing_of_it(model, monkeypatch):
    plain = build_model(pan_config(*GUIDED, "MODEL.META_ARCHITECTURE", "SSD")).eval()
    state = model.state_dict()
    plain.load_state_dict({k: v for k, v in state.items() if not k.startswith("auxiliary.")})
    monkeypatch.setattr(model.auxiliary, "forward", None)  # an error if it is called
    found, expected = model.eval()(BATCH), plain(BATCH)
    for a, b in zip(found, expected):
        assert torch.equal(a["instances"].scores, b["instances"].scores)
    assert len(found[0]["instances"]) == len(expected[0]["instances"])
    _, scores = ExportedSSD(model)(BATCH[0]["image"].permute(1, 2, 0)[None])
    assert scores.shape == (1, 12 * 12 + 6 * 6 + 3 * 3 + 2 * 2, 3)
    config = pan_config(*GUIDED)
    assert analyze(config) == analyze(pan_config(*GUIDED, "MODEL.META_ARCHITECTURE", "SSD"))


def test_it_is_in_the_state_of_a_run_but_not_in_weights_for_inference(model, tmp_path, caplog):
    checkpointer = SSDCheckpointer(model, str(tmp_path))
    checkpointer.save("run")
    checkpointer.export("final", model)
    run, final = (torch.load(tmp_path / f"{name}.pth")["model"] for name in ("run", "final"))
    assert set(run) == set(model.state_dict())
    assert set(run) - set(final) == {k for k in run if k.startswith("auxiliary.")} != set()
    with caplog.at_level(logging.WARNING):
        SSDCheckpointer(pan_model(*GUIDED)).load(str(tmp_path / "final.pth"))
    assert "auxiliary" not in caplog.text


def test_a_wrong_fraction_is_named():
    with pytest.raises(InputError, match="AUXILIARY.FRACTION is 1.5; it is from 0 to 1"):
        pan_model(*GUIDED, "MODEL.SSD.AUXILIARY.FRACTION", 1.5)
