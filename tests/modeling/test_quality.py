"""Losses of sigmoid scores with soft targets, of bins and of decoded boxes; their criteria."""

import pytest
import torch
import torch.nn.functional as F
from conftest import bare_config, make_input, make_model
from detectron2.structures import Boxes
from torchvision.ops import box_iou, generalized_box_iou_loss

from ssdlite_d2.modeling.assigners import Assignment
from ssdlite_d2.modeling.box_coders import DeltaCoder, DistanceCoder
from ssdlite_d2.modeling.criteria import BoxLoss, QualityFocalCriterion, VarifocalCriterion
from ssdlite_d2.modeling.criteria.losses import (
    distribution_focal_loss,
    focal_class_loss,
    quality_focal_loss,
    varifocal_loss,
)

K = 5


def case(dtype=torch.float64, scale=3.0):
    """Logits (2, 60, K), labels with background and ignored anchors, quality of the positives."""
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(2, 60, K, generator=generator) * scale).to(dtype).requires_grad_()
    labels = torch.randint(-1, K + 1, (2, 60), generator=generator)
    positive = (labels >= 0) & (labels < K)
    quality = torch.rand(int(positive.sum()), generator=generator).to(dtype)
    return logits, labels, positive, quality


def soft_targets(logits, labels, positive, quality):
    targets = torch.zeros_like(logits)
    targets[(*positive.nonzero(as_tuple=True), labels[positive])] = quality
    return targets, (labels >= 0)[..., None].expand_as(logits)


def focal_formula(logits, labels, positive, quality):
    """The target is 1, the quality is not used."""
    targets, kept = soft_targets(logits, labels, positive, torch.ones_like(quality))
    p = logits.sigmoid()
    weight = torch.where(targets > 0, 0.25 * (1 - p) ** 2, 0.75 * p**2)
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (weight * entropy)[kept].sum()


def quality_focal_formula(logits, labels, positive, quality):
    y, kept = soft_targets(logits, labels, positive, quality)
    p = logits.sigmoid()
    loss = -((y - p).abs() ** 2) * ((1 - y) * (1 - p).log() + y * p.log())
    return loss[kept].sum()


def varifocal_formula(logits, labels, positive, quality):
    q, kept = soft_targets(logits, labels, positive, quality)
    p = logits.sigmoid()
    positive_loss = -q * (q * p.log() + (1 - q) * (1 - p).log())
    negative_loss = -0.75 * p**2 * (1 - p).log()
    return torch.where(q > 0, positive_loss, negative_loss)[kept].sum()


LOSSES = [
    (lambda x, labels, q: focal_class_loss(x, labels), focal_formula),
    (quality_focal_loss, quality_focal_formula),
    (varifocal_loss, varifocal_formula),
]


@pytest.mark.parametrize("loss,formula", LOSSES, ids=["focal", "quality", "varifocal"])
def test_value_and_gradient_are_those_of_the_formula(loss, formula):
    logits, labels, positive, quality = case()
    expected = formula(logits, labels, positive, quality)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        x = logits.detach().to(dtype).requires_grad_()
        value = loss(x, labels, quality.to(dtype))
        (gradient,) = torch.autograd.grad(3 * value, x)
        assert value.item() == pytest.approx(expected.item(), rel=tolerance)
        error = (gradient.double() / 3 - expected_gradient).norm()
        assert error <= tolerance * expected_gradient.norm()
        assert not gradient[labels < 0].any()
    # every single one, from a score of 1e-8 to one of 1 - 1e-8
    x = torch.linspace(-18, 18, 4001)[None, :, None]
    nothing = torch.full((1, 4001), 1), torch.zeros(0)
    gradients = []
    for each in (x, x.double()):
        each = each.clone().requires_grad_()
        gradients += torch.autograd.grad(loss(each, *(n.to(n) for n in nothing)), each)
    assert ((gradients[0] - gradients[1]) / gradients[1]).abs().max() <= 2e-6


@pytest.mark.parametrize("loss,_", LOSSES, ids=["focal", "quality", "varifocal"])
def test_extreme_logits_and_half_precision_are_finite(loss, _):
    logits, labels, _, quality = case(torch.float32)
    extreme = (logits.detach().sign() * 100).requires_grad_()
    value = loss(extreme, labels, quality)
    (gradient,) = torch.autograd.grad(value, extreme)
    assert value.isfinite() and gradient.isfinite().all()
    half = logits.detach().half().requires_grad_()
    value = loss(half, labels, quality)
    assert value.dtype == torch.float32
    assert torch.autograd.grad(value, half)[0].dtype == torch.float16
    assert value.item() == pytest.approx(loss(logits, labels, quality).item(), rel=1e-2)


def test_limits_of_the_quality_losses():
    logits, labels, positive, quality = case()
    ones = torch.ones_like(quality)
    targets, kept = soft_targets(logits, labels, positive, ones)
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")[kept].sum()
    # quality 1: cross-entropy, and focal loss of equal weights
    assert quality_focal_loss(logits, labels, ones, beta=0.0).item() == pytest.approx(
        entropy.item()
    )
    assert quality_focal_loss(logits, labels, ones).item() == pytest.approx(
        2 * focal_class_loss(logits, labels, alpha=0.5).item()
    )
    assert varifocal_loss(logits, labels, ones, alpha=1.0, gamma=0.0).item() == pytest.approx(
        entropy.item()
    )
    # a score that equals its quality costs nothing more
    x = torch.full((1, 1, 1), 0.7, dtype=torch.float64).logit()
    label, q = torch.zeros(1, 1, dtype=torch.int64), torch.tensor([0.7], dtype=torch.float64)
    assert quality_focal_loss(x, label, q) == pytest.approx(0.0, abs=1e-12)


def test_distribution_focal_loss_equals_its_formula_and_limits():
    logits = torch.randn(6, 4, 8, dtype=torch.float64)
    bins = torch.randint(0, 8, (6, 4))  # 7, the last, too
    entropy = F.cross_entropy(logits.flatten(0, 1), bins.flatten(), reduction="none").view(6, 4)
    exact = distribution_focal_loss(logits, bins.double())
    assert torch.allclose(exact, entropy.mean(dim=1))
    targets = torch.rand(6, 4, dtype=torch.float64) * 7
    p = logits.softmax(dim=-1)
    expected = torch.zeros(6, 4, dtype=torch.float64)
    for i in range(6):
        for side in range(4):
            y = float(targets[i, side])
            left = int(y)
            low, high = p[i, side, left].log(), p[i, side, left + 1].log()
            expected[i, side] = -((left + 1 - y) * low + (y - left) * high)
    assert torch.allclose(distribution_focal_loss(logits, targets), expected.mean(dim=1))
    assert distribution_focal_loss(logits[:0], targets[:0]).shape == (0,)


CODERS = [DeltaCoder(weights=(10.0, 10.0, 5.0, 5.0)), DistanceCoder(), DistanceCoder(bins=7)]
IDS = ["deltas", "distances", "bins"]


def boxes_case(coder, count=40):
    """Codes (1, R, D), anchors, truths (1, R, 4) around them, every second anchor positive."""
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(2, count, 2, generator=generator) * 20 + 100
    sizes = 30 + torch.rand(2, count, 2, generator=generator) * 60
    anchors, boxes = torch.cat((corner, corner + sizes), dim=2).double()
    deltas = torch.randn(1, count, coder.code_size, generator=generator).double().requires_grad_()
    positive = torch.arange(count)[None] % 2 == 0
    return deltas, Boxes(anchors), boxes[None], positive


@pytest.mark.parametrize("coder", CODERS, ids=IDS)
def test_giou_equals_torchvisions_value_and_gradient(coder):
    deltas, anchors, boxes, positive = boxes_case(coder)
    ours = BoxLoss(bare_config(3, "MODEL.SSD.CRITERION.BOX_WEIGHT", 2.0), default="giou")
    weights = torch.rand(int(positive.sum()))
    for weight in (None, weights):
        loss = ours(deltas, anchors, boxes, positive, coder, weight)
        decoded = coder.apply_deltas(deltas[positive], anchors.tensor[positive[0]])
        expected = generalized_box_iou_loss(decoded, boxes[positive].to(decoded))
        expected = 2 * (expected if weight is None else expected * weight).sum()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        gradients = [torch.autograd.grad(x, deltas)[0] for x in (loss, expected)]
        assert (gradients[0] - gradients[1]).norm() <= 1e-5 * gradients[1].norm()
        assert not gradients[0][~positive].any()


@pytest.mark.parametrize("name", ["giou", "diou", "ciou"])
@pytest.mark.parametrize("coder", CODERS, ids=IDS)
def test_box_losses_of_degenerate_boxes(coder, name):
    """Boxes without an area are finite; a NaN comes out as a loss, not as an assertion."""
    deltas, anchors, boxes, positive = boxes_case(coder)
    loss = BoxLoss(bare_config(3, "MODEL.SSD.CRITERION.BOX_LOSS", name))
    for factor in (-1e4, 0.0, 1e4):
        extreme = (deltas.detach().float().abs() * factor).requires_grad_()
        value = loss(extreme, anchors, boxes, positive, coder)
        (gradient,) = torch.autograd.grad(value, extreme)
        assert value.isfinite() and gradient.isfinite().all()
    broken = deltas.detach().clone()
    broken[0, 0] = float("nan")
    assert loss(broken, anchors, boxes, positive, coder).isnan()


@pytest.mark.parametrize("criterion", [QualityFocalCriterion, VarifocalCriterion])
@pytest.mark.parametrize("coder", CODERS, ids=IDS)
def test_quality_is_the_assigners_or_the_iou_of_the_prediction(criterion, coder):
    deltas, anchors, boxes, positive = boxes_case(coder)
    deltas = deltas.detach().float().requires_grad_()
    logits = torch.randn(1, positive.shape[1], K).requires_grad_()
    labels = torch.where(positive, 2, K)
    decoded = coder.decode_all(deltas.detach(), anchors.tensor)
    iou = torch.stack([box_iou(a[None], b[None])[0, 0] for a, b in zip(decoded[0], boxes[0])])
    quality = (iou * positive[0])[None]
    part = criterion(bare_config(K), num_classes=K)
    own, count = part.sums(logits, deltas, anchors, Assignment(labels, boxes), coder)
    given, same = part.sums(logits, deltas, anchors, Assignment(labels, boxes, quality), coder)
    assert float(count) == pytest.approx(float(quality.sum()), rel=1e-5)
    assert count == pytest.approx(float(same), rel=1e-5)
    assert ("loss_dfl" in own) == bool(coder.bins)
    for name, loss in own.items():
        assert loss.item() == pytest.approx(given[name].item(), rel=1e-5)
    # anchors without quality cost what background costs, and nothing for their box
    nothing = Assignment(labels, boxes, torch.zeros_like(quality))
    losses, count = part.sums(logits, deltas, anchors, nothing, coder)
    background = Assignment(torch.full_like(labels, K), boxes)
    assert count == 0 and losses["loss_box_reg"] == 0
    if criterion is QualityFocalCriterion:
        expected = part.sums(logits, deltas, anchors, background, coder)[0]["loss_cls"]
        assert losses["loss_cls"].item() == pytest.approx(expected.item(), rel=1e-6)


def quality_opts(criterion, assigner, bins):
    return (
        ["MODEL.SSD.CRITERION.NAME", criterion, "MODEL.SSD.ASSIGNER.NAME", assigner]
        + ["MODEL.SSD.BOX_CODER.NAME", "distances" if bins else "deltas"]
        + ["MODEL.SSD.BOX_CODER.BINS", bins]
    )


@pytest.mark.parametrize(
    "criterion,assigner,bins",
    [
        ("quality_focal", "atss", 0),
        ("varifocal", "task_aligned", 7),
        ("quality_focal", "max_iou", 7),
        ("focal", "task_aligned", 0),
    ],
)
def test_a_step_with_and_without_boxes(criterion, assigner, bins):
    """Finite losses, and a gradient for every parameter; detections have the shape they should."""
    model = make_model(K, *quality_opts(criterion, assigner, bins)).train()
    filled = make_input([[20, 20, 120, 200], [40, 40, 44, 44], [0, 0, 300, 90]], [0, 4, -1])
    for inputs in ([filled, make_input(seed=1)], [make_input(), make_input(seed=1)]):
        model.zero_grad()
        losses = model(inputs)
        sum(losses.values()).backward()
        assert set(losses) == {"loss_cls", "loss_box_reg"} | ({"loss_dfl"} if bins else set())
        assert all(loss.isfinite() for loss in losses.values())
        for parameter in model.parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all()
        assert (losses["loss_box_reg"] > 0) == (inputs[0] is filled)
    with torch.no_grad():
        (found,) = model.eval()([make_input()])
    assert found["instances"].pred_boxes.tensor.shape[1] == 4
