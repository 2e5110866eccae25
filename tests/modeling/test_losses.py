import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling.box_regression import Box2BoxTransform
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchvision.models.detection.ssd import SSD as TorchvisionSSD

from ssdlite_d2.modeling.criteria.losses import (
    focal_class_loss,
    hard_negatives,
    multibox_class_loss,
    smooth_l1_loss,
)

K = 5


def random_boxes(count, generator):
    corner = torch.rand(count, 2, generator=generator) * 200
    return torch.cat((corner, corner + 20 + torch.rand(count, 2, generator=generator) * 80), dim=1)


def test_multibox_equals_torchvisions_value_and_gradient():
    """Same logits (background moved from first to last), anchors, matches and targets."""
    generator = torch.Generator().manual_seed(0)
    anchors = random_boxes(400, generator)
    truths = [random_boxes(m, generator) for m in (4, 0, 2)]
    classes = [torch.randint(0, K, (len(t),), generator=generator) for t in truths]
    matched = [torch.full((400,), -1) for _ in truths]
    for indices, boxes in zip(matched, truths):
        if len(boxes):
            chosen = torch.randperm(400, generator=generator)[:30]
            indices[chosen] = torch.randint(0, len(boxes), (30,), generator=generator)
    logits = torch.randn(3, 400, K + 1, generator=generator).double().requires_grad_()
    deltas = torch.randn(3, 400, 4, generator=generator).double().requires_grad_()

    from torchvision.models.detection._utils import BoxCoder

    theirs = TorchvisionSSD.__new__(TorchvisionSSD)
    nn.Module.__init__(theirs)
    theirs.box_coder = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))
    theirs.neg_to_pos_ratio = 3
    expected = theirs.compute_loss(
        [{"boxes": b.double(), "labels": c + 1} for b, c in zip(truths, classes)],
        {"bbox_regression": deltas, "cls_logits": logits.roll(1, dims=2)},
        [anchors.double()] * 3,
        matched,
    )
    expected_sum = expected["classification"] + expected["bbox_regression"]
    expected_grads = torch.autograd.grad(expected_sum, (logits, deltas))

    labels = torch.full((3, 400), K)
    targets = []
    for i, indices in enumerate(matched):
        found = indices >= 0
        labels[i, found] = classes[i][indices[found]]
        boxes = truths[i][indices[found]]
        targets.append(Box2BoxTransform((10, 10, 5, 5)).get_deltas(anchors[found], boxes))
    positive = labels != K
    ours_cls = multibox_class_loss(logits, labels) / positive.sum()
    ours_box = smooth_l1_loss(deltas[positive], torch.cat(targets)).sum() / positive.sum()
    grads = torch.autograd.grad(ours_cls + ours_box, (logits, deltas))

    assert ours_cls.item() == pytest.approx(expected["classification"].item(), rel=1e-5)
    assert ours_box.item() == pytest.approx(expected["bbox_regression"].item(), rel=1e-5)
    for ours, other in zip(grads, expected_grads):
        assert (ours - other).abs().max() <= 1e-5 * other.abs().max()


@given(st.integers(0, 2**31), st.integers(0, 16).map(lambda n: n / 4))
def test_hard_negatives_are_the_worst_and_so_many(seed, ratio):
    generator = torch.Generator().manual_seed(seed)
    loss = torch.rand(3, 40, generator=generator)
    positive = torch.rand(3, 40, generator=generator) < torch.tensor([[0.0], [0.1], [0.9]])
    chosen = hard_negatives(loss, positive, ratio)
    assert not (chosen & positive).any()
    for i in range(3):
        negatives = ~positive[i]
        wanted = float(positive[i].sum()) * ratio
        wanted = min(-int(-wanted // 1), int(negatives.sum()))
        assert chosen[i].sum() == wanted
        left = negatives & ~chosen[i]
        if chosen[i].any() and left.any():
            assert loss[i][chosen[i]].min() >= loss[i][left].max()


def test_multibox_without_positives_is_zero_with_a_gradient():
    logits = torch.randn(2, 10, K + 1, requires_grad=True)
    loss = multibox_class_loss(logits, torch.full((2, 10), K))
    loss.backward()
    assert loss == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_focal_equals_its_formula():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 50, K, generator=generator)
    labels = torch.randint(0, K + 1, (2, 50), generator=generator)
    p = logits.double().sigmoid()
    expected = 0.0
    for n in range(2):
        for r in range(50):
            for k in range(K):
                q = p[n, r, k]
                if labels[n, r] == k:
                    expected += -0.25 * (1 - q) ** 2 * q.log()
                else:
                    expected += -0.75 * q**2 * (1 - q).log()
    assert focal_class_loss(logits, labels, 0.25, 2.0).item() == pytest.approx(
        float(expected), rel=1e-5
    )


def test_focal_with_gamma_0_is_half_of_cross_entropy():
    logits = torch.randn(2, 50, K)
    labels = torch.randint(0, K + 1, (2, 50))
    target = F.one_hot(labels, K + 1)[..., :-1].float()
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="sum")
    assert focal_class_loss(logits, labels, 0.5, 0.0).item() == pytest.approx(
        0.5 * entropy.item(), rel=1e-5
    )


def test_smooth_l1_loss_without_positives_is_zero():
    deltas = torch.zeros(0, 4, requires_grad=True)
    assert smooth_l1_loss(deltas, torch.zeros(0, 4)).sum() == 0


def test_losses_of_half_precision_are_computed_in_float32():
    logits = torch.full((1, 3000, K), 9.0, dtype=torch.float16)
    labels = torch.full((1, 3000), K)
    loss = focal_class_loss(logits, labels)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0.75 * 9.0 * 3000 * K, rel=1e-3)  # beyond float16


@given(st.integers(0, 2**31))
def test_box_code_round_trips(seed):
    generator = torch.Generator().manual_seed(seed)
    anchors, boxes = random_boxes(20, generator), random_boxes(20, generator)
    transform = Box2BoxTransform((10.0, 10.0, 5.0, 5.0))
    decoded = transform.apply_deltas(transform.get_deltas(anchors, boxes), anchors)
    assert (decoded - boxes).abs().max() <= 1e-3


@pytest.mark.parametrize("class_loss", [focal_class_loss, multibox_class_loss])
def test_anchors_to_ignore_count_nowhere(class_loss):
    """The loss is that of the other anchors alone, and no gradient reaches the ignored."""
    generator = torch.Generator().manual_seed(0)
    columns = K if class_loss is focal_class_loss else K + 1
    logits = torch.randn(2, 60, columns, generator=generator).requires_grad_()
    labels = torch.full((2, 60), K)
    labels[:, :6] = torch.arange(6) % K
    labels[:, 40:] = -1
    loss = class_loss(logits, labels)
    assert loss.item() == pytest.approx(class_loss(logits[:, :40], labels[:, :40]).item(), rel=1e-6)
    [gradient] = torch.autograd.grad(loss, logits)
    assert gradient[:, 40:].abs().max() == 0 < gradient[:, :40].abs().max()
