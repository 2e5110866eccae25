"""Rounding as INT8 arithmetic has it, in training."""

import copy

import torch
from conftest import make_input, make_model
from torch import nn

from ssdlite_d2.modeling.inference.folding import fold_norms
from ssdlite_d2.modeling.inference.rounding import (
    round_activations,
    round_convolutions,
    round_weights,
)


def test_values_lie_on_even_steps_nearest_to_where_they_were():
    torch.manual_seed(0)
    weight = torch.randn(5, 4, 3, 3) * torch.tensor([1e-3, 0.1, 1, 30, 0]).view(-1, 1, 1, 1)
    for before, after in zip(weight, round_weights(weight)):
        step = before.abs().max() / 127
        assert (before - after).abs().max() <= step * 0.5001
        assert len(after.unique()) <= 255 and after.abs().max() == before.abs().max()
    for x in (torch.rand(2, 3, 50, 50) * 6, torch.randn(2, 3, 50, 50), torch.zeros(2, 3)):
        rounded = round_activations(x)
        step = (x.amax().clamp(min=0) - x.amin().clamp(max=0)) / 255
        assert (x - rounded).abs().max() <= step * 1.001  # zero is a step: the ends may move
        assert len(rounded.unique()) <= 256
    assert (round_activations(torch.randn(1, 9).relu()) == 0).any()


def test_gradient_passes_the_rounding():
    x = torch.randn(3, 4, requires_grad=True)
    slope = torch.randn(3, 4)
    for rounding in (round_weights, round_activations):
        x.grad = None
        (rounding(x) * slope).sum().backward()
        assert torch.equal(x.grad, slope)


def test_norms_may_be_folded_before_or_after():
    """What is rounded in training is what static quantization of the folded model rounds."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6)
    for values in (norm.running_mean, norm.running_var, norm.weight.data):
        values.uniform_(0.2, 3)
    norm.weight.data[0] *= -1
    model = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), norm).eval()
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    folded = fold_norms(model)[0]
    assert torch.allclose(
        round_weights(folded.weight), round_weights(model[0].weight) * scale.view(-1, 1, 1, 1)
    )
    image = torch.randn(1, 3, 9, 9)
    round_convolutions(model)
    assert torch.allclose(fold_norms(model)(image), model(image), atol=1e-5)


def test_checkpoints_are_those_of_the_float_model():
    model = make_model()
    rounded = copy.deepcopy(model)
    round_convolutions(rounded)
    assert list(rounded.state_dict()) == list(model.state_dict())
    pair = [make_input([[40, 40, 200, 220]], [1], seed=i) for i in range(2)]
    losses = [sum(m.train()(pair).values()) for m in (model, rounded)]
    losses[1].backward()
    assert losses[0] != losses[1] and abs(losses[0] / losses[1] - 1) < 0.1
    assert all(p.grad.isfinite().all() for p in rounded.parameters())
