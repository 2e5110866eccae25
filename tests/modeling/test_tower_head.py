import pytest
import torch
from test_pan import pan_model
from torch import nn

from ssdlite_d2 import InputError
from ssdlite_d2.modeling import TowerHead
from ssdlite_d2.modeling.inference.folding import fold_norms
from ssdlite_d2.modeling.layers import ConvFactory

CONVS = ConvFactory(nn.BatchNorm2d, "relu6", "ACTIVATION")
MAPS = [torch.rand(2, 16, 6, 5), torch.rand(2, 16, 3, 3)]


def head(**options) -> TowerHead:
    torch.manual_seed(0)
    options = {"in_channels": [16, 16], "num_anchors": [1, 1], "num_scores": 3, **options}
    return TowerHead(convs=CONVS, channels=24, **options)


def test_outputs_have_the_numbers_of_criterion_and_box_coder():
    logits, deltas = head(in_channels=[16, 16], num_anchors=[2, 1], code_size=32)(MAPS)
    assert [x.shape for x in logits] == [(2, 6, 6, 5), (2, 3, 3, 3)]
    assert [x.shape for x in deltas] == [(2, 64, 6, 5), (2, 32, 3, 3)]


def test_maps_share_convolutions_but_not_norms():
    shared, own = head(shared=True), head()
    of = {False: own.cls_tower, True: shared.cls_tower}
    for is_shared, towers in of.items():
        for first, second in zip(*towers):
            assert (first[0] is second[0]) == is_shared
            assert first[1] is not second[1]
    assert shared.cls_score[0] is shared.cls_score[1]
    convolutions = sum(p.numel() for m in own.cls_tower[0] for p in m[0].parameters())
    convolutions += sum(
        p.numel() for m in (own.cls_score, own.bbox_pred) for p in m[0].parameters()
    )
    saved = sum(p.numel() for p in own.parameters()) - sum(p.numel() for p in shared.parameters())
    assert saved == convolutions
    shared.train()([MAPS[0] + 1, MAPS[1]])
    means = [tower[0][1].running_mean for tower in shared.cls_tower]
    assert not torch.allclose(*means)


@torch.no_grad()
def test_every_norm_of_a_shared_convolution_is_folded():
    shared = head(shared=True)
    shared.train()(MAPS)
    shared.train()([MAPS[0], MAPS[1] * 3])  # norms that differ
    folded = fold_norms(shared)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    for expected, found in zip(shared.eval()(MAPS), folded(MAPS)):
        for a, b in zip(expected, found):
            assert torch.allclose(a, b, atol=1e-5)


def test_scores_and_boxes_have_a_tower_each_if_wanted():
    one, two = head(), head(separate=True)
    count = sum(p.numel() for p in two.parameters()) - sum(p.numel() for p in one.parameters())
    assert count == sum(p.numel() for p in one.cls_tower.parameters())
    logits, _ = two(MAPS)
    grads = torch.autograd.grad(
        sum(x.sum() for x in logits), list(two.bbox_tower.parameters()), allow_unused=True
    )
    assert all(grad is None for grad in grads)


@pytest.mark.parametrize(
    "num_convs, kernel, depthwise", [(0, 5, True), (3, 3, True), (1, 3, False)]
)
def test_towers_by_key(num_convs, kernel, depthwise):
    built = head(num_convs=num_convs, kernel=kernel, depthwise=depthwise)
    kernels = [layer[0].kernel_size[0] for layer in built.cls_tower[0]]
    assert kernels == [kernel, 1][: 1 + depthwise] * num_convs
    assert built(MAPS)[0][0].shape == (2, 3, 6, 5)


def test_scores_start_at_the_prior():
    logits, deltas = head(score_prior=0.01).eval()(MAPS)
    for x in logits:
        assert torch.allclose(x.sigmoid(), torch.tensor(0.01), atol=3e-3)
    assert all(x.abs().max() < 0.3 for x in deltas)


def test_maps_that_cannot_share_are_named():
    with pytest.raises(InputError, match=r"HEAD.SHARED needs maps of the same .* \[16, 8\]"):
        head(in_channels=[16, 8], shared=True)
    with pytest.raises(InputError, match=r"HEAD.NAME is 'towers'; it is one of .*ssdlite, tower"):
        pan_model("MODEL.SSD.HEAD.NAME", "towers")
