"""The optimizer and the length of a config's training."""

import itertools
import math
from typing import Dict, List, Optional, Type

import torch
from detectron2.config import CfgNode
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping, reduce_param_groups
from torch import nn

from ..errors import InputError, one_of
from ..modeling.backbone import trunk_prefix
from ..modeling.backbone.blocks import L2Norm

OPTIMIZERS = {"SGD": torch.optim.SGD, "AdamW": torch.optim.AdamW}


def set_schedule(cfg: CfgNode, images: int) -> None:
    """Turn SOLVER.EPOCHS and TEST.EVALUATIONS into iterations, and set both to 0.

    Args:
        images: that are trained on.
    """
    solver, test = cfg.SOLVER, cfg.TEST
    if solver.EPOCHS:
        solver.MAX_ITER = math.ceil(solver.EPOCHS * images / solver.IMS_PER_BATCH)
    if test.EVALUATIONS:
        test.EVAL_PERIOD = math.ceil(solver.MAX_ITER / test.EVALUATIONS)
        solver.CHECKPOINT_PERIOD = min(solver.CHECKPOINT_PERIOD, test.EVAL_PERIOD)
        solver.WARMUP_ITERS = min(solver.WARMUP_ITERS, math.ceil(solver.MAX_ITER / 10))
        assigner = cfg.MODEL.SSD.ASSIGNER
        assigner.WARMUP_ITERS = min(assigner.WARMUP_ITERS, math.ceil(solver.MAX_ITER / 3))
    solver.EPOCHS, test.EVALUATIONS = 0.0, 0


def parameter_groups(cfg: CfgNode, model: nn.Module) -> List[Dict]:
    """Trainable parameters with the learning rate and weight decay that the config gives each.

    Detectron2's groups, and L2Norm's scales and the trunk apart.

    Raises:
        InputError: TRUNK_LR_FACTOR is set, and the backbone does not name its trunk.
    """
    solver, trunk = cfg.SOLVER, trunk_prefix(model)
    if trunk is None and solver.TRUNK_LR_FACTOR != 1:
        raise InputError(
            f"SOLVER.TRUNK_LR_FACTOR is {solver.TRUNK_LR_FACTOR}, but the backbone does not say "
            "which parameters are its trunk's (attribute trunk_prefix); set it to 1.0"
        )

    def lr_factor(name: str) -> float:
        return solver.TRUNK_LR_FACTOR if trunk and name.startswith(trunk) else 1.0

    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        lr_factor_func=lr_factor,
    )
    scales = [m.weight for m in model.modules() if isinstance(m, L2Norm) and m.weight.requires_grad]
    if scales and solver.WEIGHT_DECAY_L2NORM is not None:
        groups.append({"params": scales, "weight_decay": solver.WEIGHT_DECAY_L2NORM})
        groups = reduce_param_groups(groups)  # what comes later holds
    return groups


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """
    Raises:
        InputError: the optimizer or the way of clipping is unknown.
    """
    solver = cfg.SOLVER
    one_of("SOLVER.OPTIMIZER", solver.OPTIMIZER, OPTIMIZERS)
    if solver.OPTIMIZER == "SGD":
        options = {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV}
    else:
        options = {"betas": tuple(solver.BETAS)}
    optimizer = clipping(cfg, OPTIMIZERS[solver.OPTIMIZER])
    return optimizer(parameter_groups(cfg, model), lr=solver.BASE_LR, fused=True, **options)


def clipping(cfg: CfgNode, optimizer: Type[torch.optim.Optimizer]) -> Type[torch.optim.Optimizer]:
    """An optimizer class that clips gradients as SOLVER.CLIP_GRADIENTS says.

    Raises:
        InputError: CLIP_TYPE is unknown.
    """
    node = cfg.SOLVER.CLIP_GRADIENTS
    if not node.ENABLED:
        return optimizer
    one_of("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", node.CLIP_TYPE, ("value", "norm", "full_model"))
    if node.CLIP_TYPE != "full_model":
        return maybe_add_gradient_clipping(cfg, optimizer)
    limit, kind = node.CLIP_VALUE, node.NORM_TYPE

    class FullModelClipping(optimizer):
        """Clips the norm of all gradients together before every step."""

        def step(self, closure=None):
            parameters = itertools.chain.from_iterable(g["params"] for g in self.param_groups)
            nn.utils.clip_grad_norm_(parameters, limit, kind)
            return super().step(closure)

    return FullModelClipping


def amp_dtype(cfg: CfgNode) -> Optional[torch.dtype]:
    """The type of SOLVER.AMP; None when it is off.

    Raises:
        InputError: the type is unknown, or float16 without CUDA.
    """
    node, cuda = cfg.SOLVER.AMP, cfg.MODEL.DEVICE.startswith("cuda")
    if not node.ENABLED:
        return None
    name = one_of("SOLVER.AMP.DTYPE", node.DTYPE, ("auto", "float16", "bfloat16"))
    if name == "auto":
        name = "float16" if cuda else "bfloat16"
    if name == "float16" and not cuda:
        raise InputError("SOLVER.AMP.DTYPE float16 needs CUDA; on the CPU it is bfloat16")
    return getattr(torch, name)


def check_optimizer_state(optimizer: torch.optim.Optimizer, state: Dict) -> None:
    """
    Raises:
        InputError: a saved state is not of such an optimizer and parameters.
    """
    here, there = optimizer.param_groups, state["param_groups"]
    kind = next((name for name, c in OPTIMIZERS.items() if isinstance(optimizer, c)), "")
    if ("betas" in there[0]) != ("betas" in here[0]):
        raise InputError(f"--resume: the checkpoint is not of SOLVER.OPTIMIZER {kind}")
    sizes = [[len(group["params"]) for group in groups] for groups in (there, here)]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"--resume: the checkpoint trains groups of {sizes[0]} tensors, this config of "
            f"{sizes[1]}; SOLVER and MODEL.SSD.BACKBONE.FREEZE_AT must be as they were"
        )
