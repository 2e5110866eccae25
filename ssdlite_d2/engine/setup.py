"""From command-line arguments to a finished config."""

import argparse
import logging
import os
import sys

from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_setup
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..config import find_config, load_config
from ..data.build import load_train_records
from ..data.datasets import resolve_datasets
from ..errors import InputError, one_of
from .config_checks import check_config, settle_device
from .output_dir import lock_folder, set_aside
from .solver import set_schedule


def finish_config(cfg: CfgNode) -> None:
    """Settle what the config leaves open: the device, the data sets, the number of classes.

    Raises:
        InputError: the config is not of a detector that this package trains, a value is out of its
            range, or a data set is wrong.
    """
    check_architecture(cfg.MODEL.META_ARCHITECTURE)
    check_config(cfg)
    settle_device(cfg)
    resolve_datasets(cfg)


def check_architecture(name: str) -> None:
    """
    Raises:
        InputError: MODEL.META_ARCHITECTURE is unknown, or R-CNN, which Detectron2's default is.
    """
    one_of("MODEL.META_ARCHITECTURE", name, (known for known, _ in META_ARCH_REGISTRY))
    if name == get_cfg().MODEL.META_ARCHITECTURE:
        raise InputError(
            f"MODEL.META_ARCHITECTURE is {name}, Detectron2's default; a config for SSD begins "
            "with the line `_BASE_: ssdlite_mnv2.yaml`, or another config of the package"
        )


def claim_folder(cfg: CfgNode, resume: bool) -> None:
    """Lock OUTPUT_DIR, and set an earlier run's checkpoints there aside; called in every process.

    Raises:
        InputError: another run writes there.
    """
    lock_folder(cfg.OUTPUT_DIR)
    moved = {} if resume else set_aside(cfg.OUTPUT_DIR)
    cfg.MODEL.WEIGHTS = moved.get(os.path.realpath(cfg.MODEL.WEIGHTS), cfg.MODEL.WEIGHTS)


def set_up_logging(folder: str, level: int) -> None:
    """Log to a folder, and from a level on to the console.

    Detectron2's ``default_setup`` makes the same calls, which then change nothing.
    """
    rank = comm.get_rank()
    loggers = [setup_logger(folder, distributed_rank=rank, name="ssdlite_d2")]
    loggers += [setup_logger(folder, distributed_rank=rank, name="fvcore")]
    loggers += [setup_logger(folder, distributed_rank=rank)]
    for handler in (handler for logger in loggers for handler in logger.handlers):
        if handler.stream is sys.stdout:
            handler.setLevel(level)
    if level > logging.INFO:  # what is said where there is no CUDA
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


def setup(args: argparse.Namespace) -> CfgNode:
    """The frozen config of Detectron2's command-line arguments; also sets up logging and seeds.

    Args:
        args: those of Detectron2's parser, and perhaps ``console``, the level of logging there.

    Raises:
        InputError: something in the arguments, the config or the data sets is wrong.
    """
    args.config_file = find_config(args.config_file)  # Detectron2 logs the file
    cfg = load_config(args.config_file, args.opts)
    wanted = cfg.MODEL.DEVICE
    finish_config(cfg)
    try:
        set_up_logging(cfg.OUTPUT_DIR, getattr(args, "console", logging.DEBUG))
        if not args.eval_only:
            set_schedule(cfg, len(load_train_records(cfg)) if cfg.SOLVER.EPOCHS else 0)
            claim_folder(cfg, args.resume)
        cfg.freeze()
        default_setup(cfg, args)
    except OSError as error:
        raise InputError(f"OUTPUT_DIR {cfg.OUTPUT_DIR}: {error.strerror}") from error
    if cfg.MODEL.DEVICE != wanted:
        logging.getLogger(__name__).warning(f"No CUDA: MODEL.DEVICE is cpu instead of {wanted}")
    return cfg
