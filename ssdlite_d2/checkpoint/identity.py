"""What a checkpoint was trained for, so that it is not run or resumed as something else."""

import logging
from typing import Any, Dict

from detectron2.config import CfgNode
from torch import nn

from ..data.datasets import resolve_classes
from ..errors import InputError

logger = logging.getLogger(__name__)

# Entries of the record, and what the user calls them.
KEYS = {
    "classes": "classes",
    "input_size": "INPUT.SIZE",
    "anchors": "anchors (MODEL.ANCHOR_GENERATOR)",
    "datasets": "DATASETS.TRAIN",
    "images": "training images",
}


def identity_of(cfg: CfgNode, model: nn.Module) -> Dict[str, Any]:
    """A record for checkpoints: plain lists, strings and numbers.

    Args:
        cfg: finished.
        model: its detector, perhaps wrapped for data-parallel training.

    Returns:
        dict: ``classes``, None where no data set tells; ``input_size``; ``anchors``, those of a
        cell per level in XYXY pixels, their strides, offset and way of clipping; ``datasets``.
    """
    generator = getattr(model, "module", model).anchor_generator
    cells = [[round(x, 2) for x in level.flatten().tolist()] for level in generator.cell_anchors]
    centers = [getattr(generator, name, None) for name in ("center_strides", "offset", "clip")]
    classes = resolve_classes(cfg)
    return {
        "classes": list(classes) if classes else None,
        "input_size": [int(side) for side in cfg.INPUT.SIZE],
        "anchors": [*cells, *centers],
        "datasets": list(cfg.DATASETS.TRAIN),
    }


def check_identity(path: str, saved: Any, here: Dict[str, Any], purpose: str) -> None:
    """Compare a checkpoint's record with the config's.

    Args:
        saved: None in files without one, which are taken as they are.
        purpose: see ``SSDCheckpointer.load``.

    Raises:
        InputError: they differ in what the purpose needs to be the same.
    """
    if not isinstance(saved, dict):
        return
    known = [key for key in KEYS if saved.get(key) is not None and here.get(key) is not None]
    others = [key for key in known if saved[key] != here[key]]
    if purpose == "resume" and others:
        raise InputError(
            f"--resume: {path} is of other {KEYS[others[0]]}: {_difference(others[0], saved, here)}"
            "; go on with the config that the run began with, or start anew in another OUTPUT_DIR"
        )
    if "classes" in others:
        _check_classes(path, saved["classes"], here["classes"], purpose)
    if "anchors" in others and purpose == "run":
        raise InputError(
            f"MODEL.WEIGHTS: {path} was trained with other {KEYS['anchors']}; run it with the "
            "config.yaml of its training"
        )
    if "input_size" in others and purpose == "run":
        logger.warning(f"{path} is of another INPUT.SIZE: {_difference('input_size', saved, here)}")


def _check_classes(path: str, there: Any, here: Any, purpose: str) -> None:
    names = f"the classes {_shown(there)}, this config {_shown(here)}"
    if sorted(map(str, there)) == sorted(here):
        raise InputError(
            f"MODEL.WEIGHTS: {path} has {names}, in another order; list CLASSES in "
            "DATASETS.REGISTER in the order of the weights"
        )
    if purpose != "start":
        raise InputError(
            f"MODEL.WEIGHTS: {path} has {names}; name CLASSES in DATASETS.REGISTER as the weights "
            "do, or train from these weights first, which takes any classes"
        )
    logger.info(f"Training starts from weights of other classes: {path} has {names}")


def _difference(key: str, saved: Dict, here: Dict) -> str:
    if key == "anchors":
        return "see MODEL.ANCHOR_GENERATOR and MODEL.SSD.IN_FEATURES"
    return f"{_shown(saved[key])} there, {_shown(here[key])} here"


def _shown(value: Any) -> str:
    if not isinstance(value, list):
        return str(value)
    return f"[{', '.join(map(str, value[:5]))}{', ...' if len(value) > 5 else ''}]"
