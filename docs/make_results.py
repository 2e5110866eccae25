"""Write the tables of measured results from the results.json files in docs/results.

python docs/make_results.py [--check]

Each file is the inference/results.json of a training or of `ssdlite eval`, named after its config;
what follows a + in the name tells runs of one config apart, which become one row with mean and
standard deviation.
"""

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGES = [HERE.parent / "README.md", HERE / "results.md"]
START, END = "<!-- made by docs/make_results.py -->\n", "<!-- end -->"
HEAD = "| config | data | AP | AP50 | F1 | trained | evaluated on | at commit: seeds |\n"
HEAD += 8 * "|---" + "|\n"


def read_results(folder: Path):
    """config name -> contents of its files."""
    found = defaultdict(list)
    for file in sorted(folder.glob("*.json")):
        found[file.stem.split("+")[0].replace("--", "/")].append(json.loads(file.read_text()))
    return found


def row(name: str, runs) -> str:
    """The row of a config's runs."""
    runs = sorted(runs, key=lambda run: run["made_with"]["seed"])
    made = [run["made_with"] for run in runs]
    (data,) = {key for run in runs for key in run if key != "made_with"}
    solver = made[0]["config"]["SOLVER"]

    def figure(task, metric):
        # of the averaged weights where a training has evaluated both
        values = [run[data].get(f"{task}_EMA", run[data][task])[metric] for run in runs]
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.1f}{spread}"

    figures = (figure("bbox", "AP"), figure("bbox", "AP50"), figure("operating", "F1"))
    seeds = defaultdict(list)
    for m in made:
        seeds[m["commit"].removesuffix("-dirty")[:7]].append(str(m["seed"]))
    origin = "; ".join(f"{commit}: {', '.join(of)}" for commit, of in seeds.items())
    trained = f"{solver['MAX_ITER']} iterations of {solver['IMS_PER_BATCH']}"
    cells = (f"`{name}.yaml`", data, *figures, trained, made[0]["hardware"], origin)
    return f"| {' | '.join(cells)} |\n"


def main(check: bool) -> None:
    """Write the tables; with ``check``, end with an error where one is not up to date."""
    table = HEAD + "".join(row(*item) for item in sorted(read_results(HERE / "results").items()))
    for page in PAGES:
        text = page.read_text()
        before, _, rest = text.partition(START)
        old, _, after = rest.partition(END)
        if not after:
            sys.exit(f"error: {page} lacks the lines {START.strip()} and {END}")
        new = before + START + table + END + after
        if check and new != text:
            sys.exit(f"error: {page} is not up to date: python docs/make_results.py")
        page.write_text(new) if new != text else None


if __name__ == "__main__":
    main("--check" in sys.argv[1:])
