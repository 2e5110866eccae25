"""Norms that become part of the convolutions before them."""

import copy
import logging
from collections import defaultdict
from typing import Dict, Iterator, List, Set, Tuple

import torch
import torchvision
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

logger = logging.getLogger(__name__)

# Norms that are a scale and a shift of every channel, once trained.
FOLDABLE = (
    nn.BatchNorm2d,
    nn.SyncBatchNorm,
    FrozenBatchNorm2d,
    torchvision.ops.FrozenBatchNorm2d,
)
OTHERS = (nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d)
TOLERANCE = 1e-2  # of a pair's largest output; INT8 rounding may move a weight by one step

Pair = Tuple[nn.Module, nn.Module]  # a convolution and its norm
Calls = Dict[nn.Module, List[fx.Node]]


def fold_norms(module: nn.Module) -> nn.Module:
    """A copy, in evaluation mode, in which norms are part of the convolutions before them.

    A pair is found in the graph of the calls: what the convolution gives must go to the norm and
    nowhere else. A convolution shared by several norms becomes one for each. An Identity (or the
    activation inside the norm) takes the norm's place, so that names and places of the other layers
    stay. Norms that are left are logged by name: those that depend on the image (GN), or have no
    convolution of their own before them.

    Parts named in the module's ``training_only`` are None in the copy.
    """
    module = copy.deepcopy(module).eval()
    for name in getattr(module, "training_only", ()):
        setattr(module, name, None)
    with torch.no_grad():
        for conv, norm in find_pairs(module):
            _fold(module, conv, norm)
    left = [name for name, m in module.named_modules() if isinstance(m, (*FOLDABLE, *OTHERS))]
    if left:
        logger.warning(f"{len(left)} norms are not folded into convolutions: {', '.join(left)}")
    return module


def find_pairs(module: nn.Module) -> List[Pair]:
    """Convolutions whose outputs go to one norm and nowhere else, and that norm.

    A convolution of several norms is copied to the place of each, in ``module``.
    """
    inside = [m for m in module.modules() if isinstance(m, Conv2d)]  # Detectron2's have norms
    pairs = [(conv, conv.norm) for conv in inside if isinstance(conv.norm, FOLDABLE)]
    calls: Calls = defaultdict(list)
    for called, node in traced_calls(module, set()):
        calls[called].append(node)
    callers = {node: called for called, nodes in calls.items() for node in nodes}
    norms: Dict[nn.Module, List[nn.Module]] = defaultdict(list)  # of a convolution
    for norm, nodes in calls.items():
        sources = {callers.get(source) for node in nodes for source in node.all_input_nodes}
        if isinstance(norm, FOLDABLE) and len(sources) == 1:
            norms[sources.pop()].append(norm)
    for conv, behind in norms.items():
        users = {user for node in calls[conv] for user in node.users}
        if isinstance(conv, nn.Conv2d) and users == {n for norm in behind for n in calls[norm]}:
            pairs += [(conv, behind[0])] if len(behind) == 1 else _unshare(module, conv, behind)
    return pairs


def _unshare(root: nn.Module, conv: nn.Conv2d, norms: List[nn.Module]) -> List[Pair]:
    """A copy of the convolution for each norm, in the module that both are in, if there is one."""
    pairs = []
    for norm in norms:
        both = [m for m in root.modules() if {conv, norm} <= set(m.children())]
        if len(both) == 1:
            pairs.append((copy.deepcopy(conv), norm))
            _replace(both[0], conv, pairs[-1][0])
    return pairs


class _Tracer(fx.Tracer):
    """Convolutions and norms are nodes, and so is a module whose forward fx cannot follow."""

    def is_leaf_module(self, m: nn.Module, name: str) -> bool:
        return isinstance(m, (nn.Conv2d, *FOLDABLE)) or super().is_leaf_module(m, name)

    def call_module(self, m: nn.Module, forward, args, kwargs):
        known = set(self.graph.nodes)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:  # control flow on tensors fails in many ways
            for node in reversed([node for node in self.graph.nodes if node not in known]):
                self.graph.erase_node(node)
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)


def traced_calls(root: nn.Module, seen: Set[nn.Module]) -> Iterator[Tuple[nn.Module, fx.Node]]:
    """Calls of modules by the graph of ``root``; parts that fx cannot follow have graphs apart."""
    if root in seen or isinstance(root, (nn.Conv2d, *FOLDABLE)):
        return
    seen.add(root)
    try:
        nodes = [n for n in _Tracer().trace(root).nodes if n.op == "call_module"]
    except Exception:
        parts = list(root.children())
    else:
        parts = [root.get_submodule(node.target) for node in nodes]
        yield from zip(parts, nodes)
    for part in parts:
        yield from traced_calls(part, seen)


def _fold(root: nn.Module, conv: nn.Conv2d, norm: nn.Module) -> None:
    """Fold a pair in place, if that computes the same: some convolutions do more than convolve."""
    if norm.running_var is None:
        return
    image, inside = _example(conv), norm in conv.children()
    expected = conv(image) if inside else norm(conv(image))
    before = conv.weight, conv.bias
    statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    conv.weight, conv.bias = fuse_conv_bn_weights(*before, *statistics)
    rest = getattr(norm, "act", nn.Identity())  # timm's norms have their activation inside
    _replace(root, norm, rest)
    found = conv(image) if inside else rest(conv(image))
    if not (found - expected).abs().max() <= TOLERANCE * expected.abs().max():
        conv.weight, conv.bias = before
        _replace(root, rest, norm)


def _example(conv: nn.Conv2d) -> Tensor:
    """(1, Cin, h, w) numbers from -1 to 1, as large as the kernel."""
    spans = [d * (k - 1) + 1 for d, k in zip(conv.dilation, conv.kernel_size)]
    shape = 1, conv.in_channels, *spans
    count = torch.Size(shape).numel()
    return torch.arange(count, device=conv.weight.device).sin().view(shape).to(conv.weight)


def _replace(root: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put another module in a module's place, or places."""
    for module in root.modules():
        for name, child in module._modules.items():
            if child is old:
                module._modules[name] = new
