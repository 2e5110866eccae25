"""Running a program's main function in one or many processes, however they were started."""

import argparse
import contextlib
import datetime
import errno
import multiprocessing
import os
import re
import signal
import socket
import sys
from typing import Callable, Iterator, List, NamedTuple, NoReturn, Optional
from urllib.parse import urlsplit

import torch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch.distributed.rendezvous import rendezvous
from torch.multiprocessing import ProcessExitedException, start_processes

from ..errors import InputError
from .guards import INTERRUPTED, STOP_SIGNALS

# Environment variable: how long a process waits for the others of its job.
JOIN_SECONDS = "SSDLITE_JOIN_SECONDS"


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
    InputError ends the program with its one line and exit status 1, Ctrl-C with status 130.
    """
    try:
        place = None if max(args.num_gpus, args.num_machines) > 1 else find_place(os.environ)
        if place:
            _join(place, main, args)
        elif args.num_gpus * args.num_machines == 1:
            main(args)
        else:
            _start(main, args)
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        _exit_interrupted()
    except ProcessExitedException as error:  # the process has said why
        code = error.exit_code
        sys.exit(code if code >= 0 else 128 - code)  # as shells do for a signal


def find_place(environ) -> Optional[Place]:
    """The place that torchrun or srun gives this process; None when it is not one of several.

    Raises:
        InputError: a variable is missing or wrong, or SLURM's tasks are not the same number on
            every machine.
    """
    try:
        if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= set(environ):
            place = _torchrun_place(environ)
        elif "SLURM_PROCID" in environ:
            place = _slurm_place(environ)
        else:
            return None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the launcher's environment variables have no number: {error}") from error
    if place.world_size == 1:
        return None
    check_place(place)
    return place


def check_place(place: Place) -> None:
    """
    Raises:
        InputError: there is no such rank, or the url leads nowhere.
    """
    if not 0 <= place.rank < place.world_size:
        raise InputError(
            f"rank {place.rank} of {place.world_size} processes (ranks begin at 0): check "
            "--machine-rank and --num-machines, or RANK and WORLD_SIZE, or SLURM_PROCID"
        )
    try:
        url = urlsplit(place.url)
        host, port = url.hostname, url.port
    except ValueError as error:
        raise InputError(f"{place.url}: {error} (--dist-url, or MASTER_PORT)") from error
    if url.scheme != "tcp":
        return
    if not host or not port:
        raise InputError(f"{place.url} is not tcp://<host>:<port> (--dist-url)")
    try:
        socket.getaddrinfo(host, port)
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"{place.url}: host {host} is unknown ({error}); see --dist-url, or MASTER_ADDR"
        ) from error


def _torchrun_place(environ) -> Place:
    world, local_size = int(environ["WORLD_SIZE"]), environ.get("LOCAL_WORLD_SIZE")
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environ.get(name)]:
        raise InputError(f"RANK is set, but not {' and '.join(missing)}: torchrun sets all of them")
    own_store = environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    return Place(
        rank=int(environ["RANK"]),
        world_size=world,
        local_rank=int(environ["LOCAL_RANK"]),
        local_size=int(local_size or world),
        url=f"tcp://{environ['MASTER_ADDR']}:{environ['MASTER_PORT']}" if own_store else "env://",
    )


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
    for flag in ("num_gpus", "num_machines"):
        if getattr(args, flag) < 1:
            raise InputError(f"--{flag.replace('_', '-')} is {getattr(args, flag)}; at least 1")
    if args.dist_url == "auto" and args.num_machines > 1:
        raise InputError("--dist-url auto is for one machine; give tcp://<machine 0>:<port>")


def _check_port(url: str) -> None:
    """
    Raises:
        InputError: the url's port on this machine is taken, or not to be had.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", urlsplit(url).port or 0))
        except OSError as error:
            reason = "is in use, perhaps by another training"
            reason = reason if error.errno == errno.EADDRINUSE else f"is not free: {error.strerror}"
            raise InputError(
                f"--dist-url {url}: port {urlsplit(url).port} {reason}; give another, or auto on "
                "a single machine"
            ) from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def _start(main: Callable, args: argparse.Namespace) -> None:
    """Start this machine's processes by Detectron2's launch flags, and wait for them.

    Detectron2's ``launch`` waits half an hour for processes that are missing, and ends with the
    tracebacks of all.
    """
    check_launch(args)
    url = f"tcp://127.0.0.1:{_free_port()}" if args.dist_url == "auto" else args.dist_url
    size, first = args.num_gpus * args.num_machines, args.machine_rank * args.num_gpus
    places = [Place(first + i, size, i, args.num_gpus, url) for i in range(args.num_gpus)]
    check_place(places[0])
    if args.machine_rank == 0 and args.dist_url != "auto":
        _check_port(url)
    # Ctrl-C in the terminal would end the processes with a traceback while they import
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    processes = start_processes(_joined, (places, main, args), len(places), join=False)
    with _signals_passed_on():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        while not processes.join():
            pass


@contextlib.contextmanager
def _signals_passed_on() -> Iterator[None]:
    """Tells the started processes by SIGTERM to save and end, and waits for them as before."""

    def pass_on(number: int, _) -> None:
        received.append(number)
        for child in multiprocessing.active_children():
            child.terminate()

    received: List[int] = []
    before = {number: signal.signal(number, pass_on) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
    if signal.SIGINT in received:
        sys.exit(INTERRUPTED)


def _joined(index: int, places: List[Place], main: Callable, args: argparse.Namespace) -> None:
    """What a started process does."""
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        _join(places[index], main, args)
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        _exit_interrupted()


def _join(place: Place, main: Callable, args: argparse.Namespace) -> None:
    """Make this process one of the job's, and run."""
    cuda = torch.cuda.is_available()
    if cuda:
        # SLURM may show each task its own GPU only.
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
    print(f"Process {place.rank} of {place.world_size} waits for the others at {place.url}")
    seconds = float(os.environ.get(JOIN_SECONDS) or 30)
    try:
        wait = datetime.timedelta(seconds=seconds)
        store, *_ = next(rendezvous(place.url, place.rank, place.world_size, timeout=wait))
    except torch.distributed.DistError as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{place.url}: {reason} (MASTER_PORT chooses another port, {JOIN_SECONDS}, now "
            f"{seconds:g}, waits longer)"
        ) from error
    store.set_timeout(DEFAULT_TIMEOUT)
    torch.distributed.init_process_group(
        "nccl" if cuda else "gloo", store=store, rank=place.rank, world_size=place.world_size
    )
    comm.create_local_process_group(place.local_size)
    comm.synchronize()
    _guarded(main, args, place.local_size)


def _guarded(main: Callable, args: argparse.Namespace, local_size: int) -> None:
    if local_size > 1 and not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_size))
    try:
        main(args)
    finally:
        if torch.distributed.is_initialized() and sys.exc_info()[0] is None:
            torch.distributed.destroy_process_group()


def _exit_interrupted() -> NoReturn:
    print("Interrupted", file=sys.stderr)
    sys.exit(INTERRUPTED)
