"""Results of an evaluation for people and for programs."""

import json
import logging
import math
import os
from typing import Dict, Iterator, Sequence, Tuple

from detectron2.evaluation import print_csv_format
from tabulate import tabulate

logger = logging.getLogger(__name__)


def merge_results(results: Dict, averaged: Dict) -> Dict:
    """Results with those of the averaged weights beside them, as task ``<task>_EMA``.

    Args:
        results, averaged: task -> metrics, or data set -> task -> metrics.
    """
    if _has_datasets(results):
        return {name: merge_results(results[name], averaged[name]) for name in results}
    return {**results, **{f"{task}_EMA": metrics for task, metrics in averaged.items()}}


def report_results(results: Dict, names: Sequence[str], folder: str) -> None:
    """Log results as tables and Detectron2's copy-paste lines, and save ``results.json``.

    Args:
        results: task -> metrics, or data set -> task -> metrics.
        names: of the data sets.
        folder: of the file, which has data set -> task -> metric -> value; what cannot be computed
            is null.
    """
    nested = results if _has_datasets(results) else {names[0]: results}
    for name, tasks in nested.items():
        logger.info(f"Results on {name}:\n{_table(tasks)}")
        averaged = {task: metrics for task, metrics in tasks.items() if task.endswith("_EMA")}
        if averaged:  # the others have been logged
            print_csv_format(averaged)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "results.json"), "w") as out:
        json.dump(_finite(nested), out, indent=1)


def _table(tasks: Dict[str, Dict[str, float]]) -> str:
    """A row per task, and behind it a row per class."""
    metrics = [name for name, _ in _items(tasks) if "-" not in name]
    classes = [name for name, _ in _items(tasks) if "-" in name]
    columns = list(dict.fromkeys(metrics))
    rows = [[task, *(values.get(name) for name in columns)] for task, values in tasks.items()]
    text = tabulate(rows, ["task", *columns], tablefmt="pipe", floatfmt=".2f", missingval="-")
    if not classes:
        return text
    rows = [
        [name.split("-", 1)[1], *(values.get(name) for values in tasks.values())]
        for name in dict.fromkeys(classes)
    ]
    headers = ["AP of class", *tasks]
    return f"{text}\n\n{tabulate(rows, headers, tablefmt='pipe', floatfmt='.2f', missingval='-')}"


def _items(tasks: Dict[str, Dict[str, float]]) -> Iterator[Tuple[str, float]]:
    for metrics in tasks.values():
        yield from metrics.items()


def _has_datasets(results: Dict) -> bool:
    return any(isinstance(value, dict) for task in results.values() for value in task.values())


def _finite(value):
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    return value if math.isfinite(value) else None
