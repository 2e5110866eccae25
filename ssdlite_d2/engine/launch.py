"""Running a program's main function in one or many processes."""

import argparse
import sys
from typing import Callable

import torch
from detectron2.engine import launch
from torch.multiprocessing import ProcessExitedException

from ..errors import InputError


def run_main(main: Callable, args: argparse.Namespace) -> None:
    """Call ``main(args)`` in every process that Detectron2's launch flags ask for.

    Without CUDA the processes of ``--num-gpus`` run on the CPU and talk by gloo. An InputError ends
    the program with its one line and exit status 1.
    """
    if torch.cuda.is_available() and args.num_gpus > torch.cuda.device_count():
        sys.exit(f"error: --num-gpus {args.num_gpus}, but {torch.cuda.device_count()} are visible")
    try:
        launch(
            _guarded,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(main, args),
        )
    except ProcessExitedException as error:  # the process has said why
        sys.exit(error.exit_code)


def _guarded(main: Callable, args: argparse.Namespace) -> None:
    try:
        main(args)
    except InputError as error:
        sys.exit(f"error: {error}")
    finally:
        if torch.distributed.is_initialized() and sys.exc_info()[0] is None:
            torch.distributed.destroy_process_group()
