"""What a result was made with: code, versions, hardware and data."""

import hashlib
import os
import platform
import subprocess
from pathlib import Path
from typing import Any, Dict, Iterable

import detectron2
import torch
from detectron2.config import CfgNode


def commit() -> str:
    """The commit of this package's checkout; its version where there is none."""
    from . import __version__

    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return __version__
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip() or __version__


def made_with(cfg: CfgNode) -> Dict[str, Any]:
    """Facts for a results file: ``commit``, ``versions``, ``hardware``, ``seed`` and ``config``."""
    import yaml

    from . import __version__

    versions = {"ssdlite_d2": __version__, "torch": torch.__version__}
    versions.update(detectron2=detectron2.__version__, python=platform.python_version())
    config = yaml.safe_load(cfg.dump())
    return {
        "commit": commit(),
        "versions": versions,
        "hardware": hardware(cfg.MODEL.DEVICE),
        "seed": cfg.SEED,
        "config": config,
    }


def hardware(device: str) -> str:
    """A device in words, such as "Xeon ..., 2 cores, 1 thread"."""
    if device.startswith("cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return f"{name}, {os.cpu_count()} cores, {threads} thread{'s' if threads > 1 else ''}"


def data_hash(records: Iterable[Dict]) -> str:
    """A digest of a data set: names, sizes in bytes and boxes of its images, in any order."""
    lines = []
    for record in records:
        path = record["file_name"]
        size = os.path.getsize(path) if os.path.isfile(path) else -1
        boxes = [(*map(float, a["bbox"]), a["category_id"]) for a in record.get("annotations", ())]
        lines.append(f"{os.path.basename(path)} {size} {sorted(boxes)}")
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]
