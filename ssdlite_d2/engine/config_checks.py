"""Which values of the config make sense: one table, read before anything is built."""

import math
from numbers import Real
from typing import Any, Callable, Dict, Iterable, Tuple

import torch
from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY

from ..errors import InputError, one_of
from ..modeling import InputResize

Check = Tuple[Callable[[Any], bool], str]  # whether a value is good, and what a good one is


def whole(low: int) -> Check:
    """A whole number from ``low``."""
    return lambda v: isinstance(v, int) and v >= low, f"a whole number from {low}"


def number(low: float, high: float = math.inf, above: bool = False) -> Check:
    """A finite number from ``low`` (or above it) to ``high``."""
    words = f"above {low:g}" if above else f"from {low:g}"
    words = "" if low == -math.inf else f" {words}" + ("" if high == math.inf else f" to {high:g}")

    def is_good(value: Any) -> bool:
        is_finite = isinstance(value, Real) and math.isfinite(value)
        return is_finite and low <= value <= high and not (above and value == low)

    return is_good, f"a finite number{words}"


def several(count: int, one: Check) -> Check:
    """So many values of a kind."""

    def is_good(values: Any) -> bool:
        return _is_list(values) and len(values) == count and all(map(one[0], values))

    return is_good, f"{count} values, each {one[1]}"


def every(one: Check) -> Check:
    """Values of a kind, perhaps none."""
    return lambda values: _is_list(values) and all(map(one[0], values)), f"a list, each {one[1]}"


def interval(low: float, above: bool = False) -> Check:
    """Two numbers from ``low`` (or above it), in order."""
    pair = several(2, number(low, above=above))
    return lambda v: pair[0](v) and v[0] <= v[1], f"{pair[1]}, the smaller one first"


def device() -> Check:
    """A name of PyTorch's."""
    return lambda v: torch.device(v).type in ("cpu", "cuda", "mps"), "cpu, cuda, cuda:N or mps"


COUNT, SIZE, SHARE = whole(0), whole(1), number(0, 1)
AMOUNT, POSITIVE = number(0), number(0, above=True)

CHECKS: Dict[str, Check] = {
    "SEED": (
        lambda v: isinstance(v, int) and -1 <= v < 2**32,
        "a whole number from -1 to 2^32 - 1",
    ),
    "MODEL.DEVICE": device(),
    "MODEL.PIXEL_MEAN": several(3, number(-math.inf)),
    "MODEL.PIXEL_STD": several(3, POSITIVE),
    "MODEL.EMA.DECAY": SHARE,
    "MODEL.SSD.IN_FEATURES": every((lambda value: isinstance(value, str), "a name")),
    "MODEL.SSD.NUM_CLASSES": COUNT,
    "MODEL.SSD.BACKBONE.FREEZE_AT": COUNT,
    "MODEL.SSD.BACKBONE.EXTRA_CHANNELS": every(SIZE),
    "MODEL.SSD.BACKBONE.EXTRA_EXPANSION": every(POSITIVE),
    "MODEL.SSD.NORM_EPS": AMOUNT,
    "MODEL.SSD.NORM_MOMENTUM": SHARE,
    "MODEL.SSD.ASSIGNER.IOU_THRESHOLD": SHARE,
    "MODEL.SSD.BOX_CODER.WEIGHTS": several(4, POSITIVE),
    "MODEL.SSD.CRITERION.CLS_WEIGHT": AMOUNT,
    "MODEL.SSD.CRITERION.BOX_WEIGHT": AMOUNT,
    "MODEL.SSD.CRITERION.SMOOTH_L1_BETA": AMOUNT,
    "MODEL.SSD.CRITERION.FOCAL_ALPHA": SHARE,
    "MODEL.SSD.CRITERION.FOCAL_GAMMA": AMOUNT,
    "MODEL.SSD.CRITERION.PRIOR": number(0, 0.999, above=True),
    "MODEL.SSD.CRITERION.NEG_POS_RATIO": AMOUNT,
    "MODEL.SSD.POSTPROCESS.SCORE_THRESH": SHARE,
    "MODEL.SSD.POSTPROCESS.NMS_THRESH": SHARE,
    "MODEL.SSD.POSTPROCESS.TOPK_CANDIDATES": SIZE,
    "MODEL.SSD.POSTPROCESS.TOPK_PER_CLASS": COUNT,
    "MODEL.ANCHOR_GENERATOR.OFFSET": SHARE,
    "MODEL.ANCHOR_GENERATOR.STRIDES": every(POSITIVE),
    "MODEL.ANCHOR_GENERATOR.SIZES": every(every(POSITIVE)),
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": every(every(POSITIVE)),
    "MODEL.ANCHOR_GENERATOR.BOXES": every(every(several(2, POSITIVE))),
    "INPUT.SIZE": several(2, SIZE),
    "INPUT.MULTI_SCALE": every(several(2, SIZE)),
    "INPUT.FLIP_PROB": SHARE,
    "INPUT.MOSAIC.PROB": SHARE,
    "INPUT.EXPAND.PROB": SHARE,
    "INPUT.EXPAND.RATIO": interval(1),
    "INPUT.PHOTOMETRIC.PROB": SHARE,
    "INPUT.PHOTOMETRIC.BRIGHTNESS": AMOUNT,
    "INPUT.PHOTOMETRIC.HUE": AMOUNT,
    "INPUT.PHOTOMETRIC.CONTRAST": interval(0),
    "INPUT.PHOTOMETRIC.SATURATION": interval(0),
    "INPUT.IOU_CROP.MIN_IOUS": every(SHARE),
    "INPUT.IOU_CROP.SCALE": interval(0, above=True),
    "INPUT.IOU_CROP.ASPECT_RATIO": interval(0, above=True),
    "INPUT.IOU_CROP.TRIALS": SIZE,
    "INPUT.SCALE_JITTER.SCALE": interval(0, above=True),
    "DATALOADER.NUM_WORKERS": COUNT,
    "SOLVER.IMS_PER_BATCH": SIZE,
    "SOLVER.MAX_ITER": SIZE,
    "SOLVER.EPOCHS": AMOUNT,
    "SOLVER.CHECKPOINT_PERIOD": SIZE,
    "SOLVER.ACCUMULATE_STEPS": SIZE,
    "SOLVER.REFERENCE_WORLD_SIZE": COUNT,
    "SOLVER.MAX_SKIPPED_STEPS": COUNT,
    "SOLVER.KEEP_CHECKPOINTS": COUNT,
    "SOLVER.PATIENCE": COUNT,
    "SOLVER.BASE_LR": POSITIVE,
    "SOLVER.BASE_LR_END": AMOUNT,
    "SOLVER.TRUNK_LR_FACTOR": AMOUNT,
    "SOLVER.GAMMA": AMOUNT,
    "SOLVER.MOMENTUM": SHARE,
    "SOLVER.BETAS": several(2, number(0, 0.999999)),
    "SOLVER.WEIGHT_DECAY": AMOUNT,
    "SOLVER.WARMUP_FACTOR": SHARE,
    "SOLVER.WARMUP_ITERS": COUNT,
    "SOLVER.STEPS": every(COUNT),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": POSITIVE,
    "TEST.IMS_PER_BATCH": SIZE,
    "TEST.DETECTIONS_PER_IMAGE": SIZE,
    "TEST.EVAL_PERIOD": COUNT,
    "TEST.EVALUATIONS": COUNT,
    "TEST.PREVIEW_IMAGES": COUNT,
    "TEST.PRECISE_BN.NUM_ITER": SIZE,
}

NAMES: Dict[str, Iterable[str]] = {
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.ANCHOR_GENERATOR.NAME": ANCHOR_GENERATOR_REGISTRY,
    "MODEL.SSD.NORM": ("BN", "SyncBN", "FrozenBN", "GN"),
    "INPUT.FORMAT": ("RGB", "BGR"),
    "INPUT.RESIZE": InputResize.methods,
    "SOLVER.LR_SCHEDULER_NAME": (
        "WarmupMultiStepLR",
        "WarmupCosineLR",
        "WarmupStepWithFixedGammaLR",
    ),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
    "DATALOADER.SAMPLER_TRAIN": (
        "TrainingSampler",
        "RandomSubsetTrainingSampler",
        "RepeatFactorTrainingSampler",
    ),
}


def check_config(cfg: CfgNode) -> None:
    """
    Raises:
        InputError: a value is out of its range, or a name unknown.
    """
    for key, (is_good, good) in CHECKS.items():
        value = value_of(cfg, key)
        if not holds(is_good, value):
            raise InputError(f"{key} is {value!r}; it is {good}")
    for key, names in NAMES.items():
        known = [name if isinstance(name, str) else name[0] for name in names]  # a registry's pairs
        one_of(key, value_of(cfg, key), known)
    if cfg.SOLVER.PATIENCE and not cfg.SOLVER.BEST_METRIC:
        raise InputError(
            f"SOLVER.PATIENCE is {cfg.SOLVER.PATIENCE}; it needs a SOLVER.BEST_METRIC: bbox/AP"
        )
    if cfg.SOLVER.BASE_LR_END > cfg.SOLVER.BASE_LR:
        raise InputError(f"SOLVER.BASE_LR_END is above SOLVER.BASE_LR, {cfg.SOLVER.BASE_LR}")


def holds(is_good: Callable[[Any], bool], value: Any) -> bool:
    """Whether a value is good; one that the check cannot take, such as null, is not."""
    try:
        return bool(is_good(value))
    except (TypeError, ValueError, RuntimeError):
        return False


def settle_device(cfg: CfgNode) -> None:
    """Take the CPU where there is no CUDA."""
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"


def check_batch(cfg: CfgNode, processes: int) -> None:
    """
    Raises:
        InputError: SOLVER.IMS_PER_BATCH cannot be shared among the processes of a training.
    """
    batch, reference = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE
    parts, of = (
        (reference, "SOLVER.REFERENCE_WORLD_SIZE") if reference else (processes, "processes")
    )
    if batch % parts:
        raise InputError(f"SOLVER.IMS_PER_BATCH is {batch}; it is a multiple of {parts} ({of})")


def value_of(cfg: CfgNode, key: str) -> Any:
    """The value of a key such as ``SOLVER.BASE_LR``."""
    for name in key.split("."):
        cfg = cfg[name]
    return cfg


def _is_list(values: Any) -> bool:
    return isinstance(values, (list, tuple))
