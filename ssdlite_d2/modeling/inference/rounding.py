"""Training with the rounding of INT8, for models that lose too much by static quantization.

What :func:`torch.ao.quantization.prepare_qat` does, with two differences: nothing is added to the
model's state, so that checkpoints are those of the float model, fit it, and are exported as any
other; and norms stay behind their convolutions, where they train as usual. That is no difference
in the weights' rounding: a norm scales every output channel by a number of its own, and so the
steps that the channel is rounded to.
"""

import torch
from torch import Tensor, nn

LEVELS = 255  # of activations, 8 bits without a sign
WEIGHT_LEVELS = 127  # of weights on either side of zero


class RoundedConvolution:
    """Mixed into a Conv2d: rounds its input and weight as INT8 arithmetic has them.

    The gradient passes the rounding unchanged.
    """

    def _conv_forward(self, x: Tensor, weight: Tensor, bias) -> Tensor:
        return super()._conv_forward(round_activations(x), round_weights(weight), bias)


def round_activations(x: Tensor) -> Tensor:
    """To 256 even steps from the smallest to the largest value, zero being one of them."""
    values = x.detach()
    low, high = values.amin().clamp(max=0).float(), values.amax().clamp(min=0).float()
    scale = ((high - low) / LEVELS).clamp(min=torch.finfo(torch.float32).eps)
    zero = (-low / scale).round().int()
    return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, LEVELS)


def round_weights(weight: Tensor) -> Tensor:
    """(Cout, ...) to even steps on both sides of zero, for every output channel its own."""
    largest = weight.detach().abs().flatten(1).amax(dim=1).float()
    scale = (largest / WEIGHT_LEVELS).clamp(min=torch.finfo(torch.float32).eps)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(
        weight, scale, zero, 0, -WEIGHT_LEVELS, WEIGHT_LEVELS
    )


def round_convolutions(model: nn.Module) -> None:
    """Make every Conv2d of a model round, in place; its parameters and their names stay."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            kind = type(module)
            module.__class__ = type(f"Rounded{kind.__name__}", (RoundedConvolution, kind), {})
