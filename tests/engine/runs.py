"""Short training runs for the tests of this folder."""

import json
import socket

from conftest import ASSETS, CLASSES, ROOT, run, voc_entry

ITERATIONS = 10


def options(output, *more):
    """A run of some seconds; 96 x 96 images, two loader workers."""
    entry = [voc_entry("tiny", CLASSES=CLASSES)]
    keys = ["DATASETS.REGISTER", str(entry), "DATASETS.TRAIN", "('tiny',)", "DATASETS.TEST", "()"]
    keys += ["INPUT.SIZE", "(96, 96)", "MODEL.WEIGHTS", "", "MODEL.SSD.NORM", "BN"]
    keys += ["SOLVER.IMS_PER_BATCH", 4, "SOLVER.REFERENCE_WORLD_SIZE", 0, "SEED", 3]
    keys += ["DATALOADER.NUM_WORKERS", 2, "SOLVER.MAX_ITER", ITERATIONS, "MODEL.EMA.ENABLED", True]
    keys += ["SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.WARMUP_ITERS", 4, "TEST.EVAL_PERIOD", 0]
    config = ["--config-file", ROOT / "configs" / "ssdlite_mnv2.yaml", "--resume"]
    return [str(word) for word in [*config, *keys, "OUTPUT_DIR", output, *more]]


def forked(*runs):
    """Exit code and output of each; one thread, since the machine may be busy."""
    environment = {"DETECTRON2_DATASETS": ASSETS, "OMP_NUM_THREADS": 1}
    done = run(ROOT / "tests" / "engine" / "forked.py", json.dumps(runs), **environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULTS ")]
    assert lines, done.stdout + done.stderr
    return json.loads(lines[0].removeprefix("RESULTS "))


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def slurm(rank: int, size: int, port: str, machines: int = 1):
    return {
        "SLURM_PROCID": str(rank),
        "SLURM_NTASKS": str(size),
        "SLURM_LOCALID": str(rank % (size // machines)),
        "SLURM_NNODES": str(machines),
        "SLURM_JOB_NODELIST": "127.0.0.1",
        "MASTER_PORT": port,
    }
