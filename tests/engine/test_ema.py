"""The moving average of the weights."""

import torch
from torch import nn

from ssdlite_d2.engine.ema import ModelEMA


def small_model():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def drift(model):
    """Another set of weights and statistics."""
    with torch.no_grad():
        for value in model.state_dict().values():
            value.add_(torch.randn_like(value) if value.is_floating_point() else 1)


def test_average_equals_the_formula_and_ends_at_the_decay():
    model = small_model()
    ema, decay = ModelEMA(model, decay=0.5), 0.5
    expected = None
    for n in range(20):
        drift(model)
        ema.update_parameters(model)
        now = {k: v.clone() for k, v in model.state_dict().items()}
        if expected is None:
            expected = now
            continue
        d = min(decay, (1 + n) / (10 + n))
        for name, value in expected.items():
            if value.is_floating_point():
                expected[name] = d * value + (1 - d) * now[name]
            else:
                expected[name] = now[name]
    for name, value in ema.module.state_dict().items():
        torch.testing.assert_close(value, expected[name])


def test_first_update_forgets_the_random_start():
    model = small_model()
    ema = ModelEMA(model, decay=0.999)
    drift(model)  # as loading MODEL.WEIGHTS does
    ema.update_parameters(model)
    for name, value in model.state_dict().items():
        assert torch.equal(ema.module.state_dict()[name], value)


def test_average_goes_on_after_a_round_trip():
    torch.manual_seed(0)
    model = small_model()
    straight = ModelEMA(model, 0.9)
    for _ in range(3):
        drift(model)
        straight.update_parameters(model)
    resumed = ModelEMA(small_model(), 0.9)
    resumed.load_state_dict(straight.state_dict())
    drift(model)
    for ema in (straight, resumed):
        ema.update_parameters(model)
    for name, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value)
