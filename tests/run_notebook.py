"""Runs the code of a notebook as it stands, cell after cell, with few iterations.

python tests/run_notebook.py docs/your_data.ipynb

Jupyter is not needed: lines that begin with ! are shell commands, with {names} filled in.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def shell(command: str) -> None:
    print("$", command, flush=True)
    done = subprocess.run(command, shell=True, executable="/bin/bash")
    # `ssdlite check` has found something wrong with the data, which the notebook shows
    if done.returncode and not (command.startswith("ssdlite check") and done.returncode == 1):
        sys.exit(f"error: status {done.returncode}: {command}")


def run(notebook: Path) -> None:
    scope = {"shell": shell}
    for cell in json.loads(notebook.read_text())["cells"]:
        if cell["cell_type"] == "code":
            source = re.sub(r"(?m)^!(.*)$", r'shell(f"""\1""")', "".join(cell["source"]))
            exec(compile(source, notebook.name, "exec"), scope)


if __name__ == "__main__":
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.environ.setdefault("ITERATIONS", "2")
    path = Path(sys.argv[1]).resolve()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    run(path)
