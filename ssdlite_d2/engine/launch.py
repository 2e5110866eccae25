"""Running a program's main function in one or many processes, however they were started."""

import argparse
import contextlib
import errno
import multiprocessing
import os
import re
import signal
import socket
import sys
from typing import Callable, Iterator, NamedTuple, Optional
from urllib.parse import urlsplit

import torch
from detectron2.engine import launch
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from ..errors import InputError


class Place(NamedTuple):
    """This process among those that a launcher has started.

    Attributes:
        rank, world_size: in the whole job.
        local_rank, local_size: on this machine.
        url: where the processes meet.
    """

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    url: str


def run_main(main: Callable, args: argparse.Namespace) -> None:
    """Call ``main(args)`` in every process of the job.

    The processes are those that torchrun or SLURM's srun has started, or else those that
    Detectron2's launch flags ask for. Without CUDA they run on the CPU and talk by gloo. An
    InputError ends the program with its one line and exit status 1.
    """
    place = None if max(args.num_gpus, args.num_machines) > 1 else find_place(os.environ)
    try:
        if place:
            _join(place, main, args)
            return
        check_launch(args)
        several = args.num_gpus * args.num_machines > 1
        with _sigterm_passed_on() if several else contextlib.nullcontext():
            launch(
                _guarded,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(main, args, args.num_gpus),
            )
    except InputError as error:
        sys.exit(f"error: {error}")
    except ProcessExitedException as error:  # the process has said why
        sys.exit(error.exit_code)


def find_place(environ) -> Optional[Place]:
    """The place that torchrun or srun gives this process; None when it is not one of several.

    Raises:
        InputError: SLURM's tasks are not the same number on every machine.
    """
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= set(environ):
        world, local_size = int(environ["WORLD_SIZE"]), environ.get("LOCAL_WORLD_SIZE")
        place = Place(
            rank=int(environ["RANK"]),
            world_size=world,
            local_rank=int(environ["LOCAL_RANK"]),
            local_size=int(local_size or world),
            url="env://",
        )
    elif "SLURM_PROCID" in environ:
        place = _slurm_place(environ)
    else:
        return None
    return place if place.world_size > 1 else None


def _slurm_place(environ) -> Place:
    rank = int(environ["SLURM_PROCID"])
    world = int(environ.get("SLURM_STEP_NUM_TASKS") or environ.get("SLURM_NTASKS") or 1)
    machines = int(environ.get("SLURM_STEP_NUM_NODES") or environ.get("SLURM_NNODES") or 1)
    tasks = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE")
    if world % machines or "," in (tasks or ""):
        raise InputError(
            f"SLURM runs {world} tasks on {machines} nodes ({tasks} per node); ask for as many on "
            "every node"
        )
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST")
    host = environ.get("MASTER_ADDR") or first_host(nodes or "127.0.0.1")
    port = environ.get("MASTER_PORT") or 20000 + int(environ.get("SLURM_JOB_ID", 0)) % 20000
    local_size = world // machines
    return Place(
        rank=rank,
        world_size=world,
        local_rank=int(environ.get("SLURM_LOCALID", rank % local_size)),
        local_size=local_size,
        url=f"tcp://{host}:{port}",
    )


def first_host(nodes: str) -> str:
    """The first of SLURM's node list: ``"gpu[03-05,9],login"`` gives ``"gpu03"``."""
    name, bracket = re.match(r"([^\[,]+)(?:\[(\d+))?", nodes).groups()
    return name + (bracket or "")


def check_launch(args: argparse.Namespace) -> None:
    """
    Raises:
        InputError: Detectron2's launch flags ask for what this machine has not.
    """
    if torch.cuda.is_available() and args.num_gpus > torch.cuda.device_count():
        raise InputError(f"--num-gpus {args.num_gpus}, but {torch.cuda.device_count()} are visible")
    if args.num_gpus * args.num_machines == 1 or args.machine_rank != 0:
        return
    if args.dist_url == "auto":
        if args.num_machines > 1:
            raise InputError("--dist-url auto is for one machine; give tcp://<machine 0>:<port>")
        return
    port = urlsplit(args.dist_url).port
    if port is None:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise InputError(
                f"--dist-url {args.dist_url}: port {port} is in use, perhaps by another training; "
                "give another, or auto on a single machine"
            ) from error


@contextlib.contextmanager
def _sigterm_passed_on() -> Iterator[None]:
    """Hands SIGTERM to the started processes, which save, and waits for them as before."""

    def pass_on(*_) -> None:
        for child in multiprocessing.active_children():
            child.terminate()

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _join(place: Place, main: Callable, args: argparse.Namespace) -> None:
    """Make this process one of the job's, and run."""
    cuda = torch.cuda.is_available()
    if cuda:
        # SLURM may show each task its own GPU only.
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
    print(f"Process {place.rank} of {place.world_size} waits for the others at {place.url}")
    backend = "nccl" if cuda else "gloo"
    try:
        torch.distributed.init_process_group(
            backend, place.url, rank=place.rank, world_size=place.world_size
        )
    except torch.distributed.DistNetworkError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{place.url}: {reason} (MASTER_PORT chooses another port)") from error
    comm.create_local_process_group(place.local_size)
    comm.synchronize()
    _guarded(main, args, place.local_size)


def _guarded(main: Callable, args: argparse.Namespace, local_size: int) -> None:
    if local_size > 1 and not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_size))
    try:
        main(args)
    except InputError as error:
        sys.exit(f"error: {error}")
    finally:
        if torch.distributed.is_initialized() and sys.exc_info()[0] is None:
            torch.distributed.destroy_process_group()
