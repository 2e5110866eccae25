import math

import cv2
import numpy as np
import pytest
import torch
from conftest import bare_config, make_input, make_instances, make_model
from detectron2.engine import DefaultPredictor
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from torch import nn

from ssdlite_d2 import InputError
from ssdlite_d2.data.transforms import ResizeTransform
from ssdlite_d2.export.bundled.detector import resize
from ssdlite_d2.modeling import Assignment

BOX, OTHER = [40.0, 60.0, 180.0, 200.0], [200.0, 20.0, 300.0, 150.0]
HEADS = [("SSDLite", "focal"), ("SSDLite", "multibox"), ("SSD", "focal"), ("SSD", "multibox")]


def step(model, batch):
    losses = model.train()(batch)
    model.zero_grad()
    sum(losses.values()).backward()
    return {name: value.item() for name, value in losses.items()}


def arch(name, loss):
    return ["MODEL.META_ARCHITECTURE", name, "MODEL.SSD.CRITERION.NAME", loss]


@pytest.mark.parametrize("name, loss", HEADS)
@pytest.mark.parametrize(
    "batch",
    [
        [make_input([BOX, OTHER], [0, 2]), make_input([BOX], [1], seed=1)],
        [make_input([BOX], [0]), make_input(seed=1)],
        [make_input(), make_input(seed=1)],
    ],
    ids=["boxes", "one image without boxes", "no boxes at all"],
)
def test_losses_are_finite_and_reach_every_parameter(name, loss, batch):
    model = make_model(3, *arch(name, loss))
    losses = step(model, batch)
    assert set(losses) == {"loss_cls", "loss_box_reg"}
    assert all(math.isfinite(value) for value in losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    if not sum(len(x["instances"]) for x in batch):
        assert losses["loss_box_reg"] == 0


def test_labels_of_anchors_by_iou():
    model = make_model()
    anchors = Boxes(torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]]))
    sample = make_input([[0.0, 0, 10, 10]], [2])["instances"]
    labels, boxes, _ = model.assigner([anchors], [sample, make_input()["instances"]])
    assert labels.tolist() == [[2, 2, 3], [3, 3, 3]]
    assert boxes[0][:2].tolist() == [[0, 0, 10, 10]] * 2


def test_box_loss_is_zero_for_perfect_codes():
    model = make_model()
    anchors = Boxes(torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40]]))
    labels = torch.tensor([[1, 3]])
    boxes = torch.tensor([[1.0, 1, 12, 12], [0, 0, 1, 1]])
    deltas = model.box2box_transform.get_deltas(anchors.tensor, boxes)[None]
    assigned = Assignment(labels, boxes[None])
    coder = model.box2box_transform
    losses, count = model.criterion(torch.zeros(1, 2, 3), deltas, anchors, assigned, coder)
    assert count == 1
    assert losses["loss_box_reg"].item() == pytest.approx(0, abs=1e-9)
    # all scores 1/2: focal loss of one positive and five negatives, times 5
    expected = 5 * math.log(2) * 0.25 * (0.25 * 1 + 0.75 * 5)
    assert losses["loss_cls"].item() == pytest.approx(expected, rel=1e-5)


def test_focal_prior_is_on_the_last_convolution_only():
    head = make_model(80).head
    for predictor in head.cls_score[:-1]:
        depthwise, norm, relu, last = predictor
        assert depthwise.bias.abs().max() == 0
        assert last.bias.sigmoid().allclose(torch.tensor(0.01))
        x = torch.randn(4, depthwise.in_channels, 5, 5)
        assert (relu(norm(depthwise(x))) > 0).float().mean() > 0.3  # alive
    assert head.bbox_pred[0][-1].bias.abs().max() == 0


def test_predictor_types():
    plain, lite = make_model(3, *arch("SSD", "focal")), make_model()
    assert isinstance(plain.head.cls_score[0], nn.Conv2d)
    assert plain.head.cls_score[0].kernel_size == (3, 3)
    assert [type(m).__name__ for m in lite.head.cls_score[0]][-1] == "Conv2d"
    assert lite.head.cls_score[5].kernel_size == (1, 1)
    assert lite.head.cls_score[0][3].out_channels == 6 * 3
    softmax = make_model(3, *arch("SSDLite", "multibox"))
    assert softmax.head.cls_score[0][3].out_channels == 6 * 4
    assert META_ARCH_REGISTRY.get("SSDLite") is type(lite)


def test_non_square_input_trains_and_detects():
    model = make_model(3, "INPUT.SIZE", "(192, 320)")
    losses = step(model, [make_input([BOX], [0], (192, 320)), make_input([], [], (192, 320))])
    assert all(math.isfinite(value) for value in losses.values())
    model.postprocessor.score_threshold = 0.0
    found = model.eval()([{"image": torch.zeros(3, 100, 50, dtype=torch.uint8)}])[0]["instances"]
    assert found.image_size == (100, 50)
    assert len(found) == 100
    assert (found.pred_boxes.tensor[:, 2] <= 50).all()


def test_ground_truth_of_other_sizes_is_scaled_to_the_input():
    model = make_model()
    model.train()
    small = make_input([[10.0, 10, 50, 50]], [0], (80, 160))
    same = {
        "image": model.resize(small["image"][None])[0],
        "instances": make_input([[20.0, 40, 100, 200]], [0])["instances"],
    }
    torch.manual_seed(0)
    a = model([small, make_input()])
    b = model([same, make_input()])
    assert a["loss_box_reg"].item() == pytest.approx(b["loss_box_reg"].item(), rel=1e-4)
    assert small["instances"].gt_boxes.tensor.tolist() == [[10, 10, 50, 50]]  # the caller's own


@pytest.mark.parametrize("method", ["half_pixel", "asymmetric", "opencv"])
def test_model_mapper_and_bundle_resize_alike(method):
    """Three resamplings of one image: within one grey level everywhere."""
    rng = np.random.default_rng(0)
    model = make_model(3, "INPUT.RESIZE", method)
    for size in ((375, 500), (480, 640), (100, 77), (320, 640), (320, 320)):
        image = cv2.GaussianBlur(rng.integers(0, 256, (*size, 3), dtype=np.uint8), (5, 5), 0)
        mapper = ResizeTransform(size, (320, 320), method != "asymmetric").apply_image(image)
        ours = model.resize(torch.from_numpy(image.transpose(2, 0, 1).copy())[None])[0]
        for theirs in (mapper, resize(image, (320, 320), method)):
            assert np.abs(ours.numpy().transpose(1, 2, 0) - theirs).max() <= 1


@pytest.mark.parametrize("size", [(320, 320), (1, 1), (7, 900), (1200, 800)])
def test_stock_predictor_takes_any_image(size):
    cfg = bare_config(3, "MODEL.WEIGHTS", "", "MODEL.SSD.POSTPROCESS.SCORE_THRESH", 0.0)
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    found = DefaultPredictor(cfg)(image)["instances"]
    assert found.image_size == size
    height, width = size
    boxes = found.pred_boxes.tensor
    assert (boxes >= 0).all() and (boxes <= torch.tensor([width, height] * 2)).all()


def test_detections_by_hand():
    """Scores above the threshold, suppressed within a class only, best first, limited."""
    model = make_model(2, "MODEL.SSD.POSTPROCESS.SCORE_THRESH", 0.3)
    anchors = Boxes(torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]]))
    scores = torch.tensor([[0.9, 0.8], [0.95, 0.1], [0.2, 0.31]])
    logits, deltas = scores.logit()[None], torch.zeros(1, 3, 4)
    parts = model.criterion, model.box2box_transform
    found = model.postprocessor(logits, deltas, anchors, (100, 100), *parts)[0]
    rows = list(zip(found.scores.tolist(), found.pred_classes.tolist()))
    assert rows == [pytest.approx((0.95, 0)), pytest.approx((0.8, 1)), pytest.approx((0.31, 1))]
    assert found.pred_boxes.tensor[1].tolist() == [0, 0, 10, 10]
    model.postprocessor.max_detections = 1
    assert len(model.postprocessor(logits, deltas, anchors, (100, 100), *parts)[0]) == 1


def test_softmax_scores_leave_the_background_out():
    model = make_model(3, *arch("SSDLite", "multibox"))
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert torch.allclose(model.criterion.scores(logits), logits.softmax(1)[:, :3])


def test_batch_equals_single_images():
    model = make_model(3, "MODEL.SSD.POSTPROCESS.SCORE_THRESH", 0.0).eval()
    images = [
        {"image": torch.randint(0, 256, (3, h, w), dtype=torch.uint8)}
        for h, w in ((90, 70), (60, 60))
    ]
    for single, together in zip((model([p])[0] for p in images), model(images)):
        a, b = single["instances"], together["instances"]
        assert a.image_size == b.image_size
        assert torch.allclose(a.scores, b.scores, atol=1e-5)


def test_wrong_options_are_named():
    with pytest.raises(InputError, match=r"CRITERION.NAME is 'l2'; it is one of .*focal"):
        make_model(3, "MODEL.SSD.CRITERION.NAME", "l2")
    with pytest.raises(InputError, match="IN_FEATURES names c9; the backbone has c3, c4, c5"):
        make_model(3, "MODEL.SSD.IN_FEATURES", "['c9']")
    with pytest.raises(InputError, match="SIZES has 6 entries for 2 feature maps"):
        make_model(3, "MODEL.SSD.IN_FEATURES", "['c4', 'c5']")
    with pytest.raises(InputError, match="NUM_CLASSES is 0"):
        make_model(0)


def test_anchors_inside_a_region_to_ignore():
    """Half inside and not positive: neither right nor wrong."""
    model = make_model()
    anchors = Boxes(
        torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [6, 0, 16, 10], [40, 40, 60, 60]])
    )
    region, thing = [0.0, 0, 10, 10], [42.0, 42, 62, 62]
    truth = make_input([region, thing], [-1, 2])["instances"]
    labels, boxes, _ = model.assigner([anchors], [truth])
    assert labels.tolist() == [[-1, -1, model.num_classes, 2]]
    assert boxes[0][3].tolist() == thing
    over = make_input([region, region], [-1, 1])["instances"]  # an object inside the region stays
    assert model.assigner([anchors], [over]).labels[0, 0] == 1
    alone = make_input([region], [-1])["instances"]
    assert model.assigner([anchors], [alone]).labels.tolist() == [[-1, -1, 3, 3]]


@pytest.mark.parametrize("name, loss", HEADS)
def test_batches_of_regions_to_ignore_train(name, loss):
    model = make_model(3, *arch(name, loss))
    batch = [make_input([BOX, OTHER], [-1, 1]), make_input([BOX], [-1], seed=1)]
    losses = step(model, batch)
    assert all(math.isfinite(value) for value in losses.values())
    assert losses["loss_box_reg"] > 0


def test_match_statistics_tell_how_anchors_fit():
    """One box is an anchor itself; another covers 0.4 of its best anchor."""
    model = make_model(3)
    anchors = Boxes(torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]]))
    instances = make_instances([[0, 0, 10, 10], [50, 50, 54, 60]], [0, 1])
    with EventStorage() as storage:
        model.assigner([anchors], [instances, make_instances([], [])])
        latest = {name: value for name, (value, _) in storage.latest().items()}
    assert latest["best_anchor_iou"] == pytest.approx(0.7)
    assert latest["boxes_covered"] == pytest.approx(0.5)
