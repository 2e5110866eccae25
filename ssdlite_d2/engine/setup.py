"""From command-line arguments to a finished config."""

import argparse
import logging

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..config import find_config, load_config
from ..data.datasets import resolve_datasets
from ..errors import InputError
from .config_checks import check_config


def finish_config(cfg: CfgNode) -> None:
    """Settle what the config leaves open: the device, the data sets, the number of classes.

    Raises:
        InputError: a value is out of its range, or a data set is wrong.
    """
    check_config(cfg)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    resolve_datasets(cfg)


def setup(args: argparse.Namespace) -> CfgNode:
    """The frozen config of Detectron2's command-line arguments; also sets up logging and seeds.

    Raises:
        InputError: something in the arguments, the config or the data sets is wrong.
    """
    args.config_file = find_config(args.config_file)  # Detectron2 logs the file
    cfg = load_config(args.config_file, args.opts)
    wanted = cfg.MODEL.DEVICE
    finish_config(cfg)
    cfg.freeze()
    try:
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="ssdlite_d2")
        default_setup(cfg, args)
    except OSError as error:
        raise InputError(f"OUTPUT_DIR {cfg.OUTPUT_DIR}: {error.strerror}") from error
    if cfg.MODEL.DEVICE != wanted:
        logging.getLogger(__name__).warning(f"No CUDA: MODEL.DEVICE is cpu instead of {wanted}")
    return cfg
