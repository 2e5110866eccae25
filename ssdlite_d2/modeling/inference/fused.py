"""Networks made faster for inference, when their weights no longer change."""

import copy
import warnings
from typing import Dict, List, Sequence, Tuple

import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ...errors import one_of

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)
# Number types of the fused network, by MODEL.SSD.INFERENCE.
MODES = {"eager": None, "fused": torch.float32, "fused_bfloat16": torch.bfloat16}


def fold_norms(module: nn.Module) -> nn.Module:
    """A copy, in evaluation mode, in which batch norms behind a convolution are part of it.

    A pair is a Conv2d and a batch norm that follow each other in an nn.Sequential. An Identity
    takes the norm's place, so that names and places of the other layers stay. Norms that depend on
    the image (GN) are left alone.
    """
    module = copy.deepcopy(module).eval()
    for sequence in module.modules():
        if isinstance(sequence, nn.Sequential):
            names: List[str] = list(sequence._modules)
            for first, second in zip(names, names[1:]):
                conv, norm = sequence._modules[first], sequence._modules[second]
                if isinstance(conv, nn.Conv2d) and isinstance(norm, NORMS):
                    sequence._modules[first] = fuse_conv_bn_eval(conv, norm)
                    sequence._modules[second] = nn.Identity()
    return module


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
