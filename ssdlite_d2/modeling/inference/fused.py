"""Networks made faster for inference, when their weights no longer change."""

import warnings
from typing import Dict, List, Sequence, Tuple

import torch
from torch import Tensor, nn

from ...errors import one_of
from .folding import fold_norms

# Number types of the fused network, by MODEL.SSD.INFERENCE.
MODES = {"eager": None, "fused": torch.float32, "fused_bfloat16": torch.bfloat16}


class Network(nn.Module):
    """A backbone that computes in another number type, and gives the head's features in it."""

    def __init__(self, backbone: nn.Module, names: Sequence[str], dtype: torch.dtype):
        super().__init__()
        self.backbone = backbone.to(dtype)
        self.names = list(names)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Dict[str, Tensor]:
        features = self.backbone(x.to(self.dtype))
        return {name: features[name] for name in self.names}


class FloatHead(nn.Module):
    """A head whose outputs are float32."""

    def __init__(self, head: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.head = head.to(dtype)

    def forward(self, features: List[Tensor]) -> Tuple[List[Tensor], List[Tensor]]:
        logits, deltas = self.head(features)
        return [x.float() for x in logits], [x.float() for x in deltas]


def fuse_for_inference(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A copy of an SSD whose network is one frozen graph with the norms folded in.

    It detects what the model detects, faster, and cannot be trained.

    Args:
        dtype: bfloat16 is faster on processors that compute in it, and less exact.
    """
    model = fold_norms(model)
    network = Network(model.backbone, model.head_in_features, dtype).eval()
    head = FloatHead(model.head, dtype).eval()
    image = torch.zeros(1, 3, *model.input_size, device=model.device)
    image = image.contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sizes become constants: the input's size is one
        features = [network(image)[name] for name in model.head_in_features]
        trace = {"check_trace": False, "strict": False}
        model.backbone = torch.jit.freeze(torch.jit.trace(network, image, **trace))
        model.head = torch.jit.freeze(torch.jit.trace(head, (features,), **trace))
    return model


def for_inference(model: nn.Module, mode: str) -> nn.Module:
    """A trained SSD as MODEL.SSD.INFERENCE wants it.

    Raises:
        InputError: there is no such mode.
    """
    dtype = MODES[one_of("MODEL.SSD.INFERENCE", mode, MODES)]
    return model if dtype is None else fuse_for_inference(model, dtype)
