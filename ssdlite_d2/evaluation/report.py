"""Results of an evaluation for people and for programs."""

import json
import logging
import math
import os
from typing import Dict, Optional, Sequence

from detectron2.evaluation import print_csv_format
from tabulate import tabulate

from .operating import RATES, SIZES

GAP, LOW = 10.0, 50.0  # of AP50: from training to test set; of too little on the former

logger = logging.getLogger(__name__)


def merge_results(results: Dict, averaged: Dict) -> Dict:
    """Results with those of the averaged weights beside them, as task ``<task>_EMA``.

    Args:
        results, averaged: task -> metrics, or data set -> task -> metrics.
    """
    if _has_datasets(results):
        return {name: merge_results(results[name], averaged[name]) for name in results}
    return {**results, **{f"{task}_EMA": metrics for task, metrics in averaged.items()}}


def judge_fit(train_ap50: float, test_ap50: float) -> str:
    """Over- or underfitting, in a sentence, by AP50 on both sets."""
    if train_ap50 - test_ap50 > GAP:
        verdict = "overfitting; more images, stronger augmentation or fewer iterations may help"
    elif train_ap50 < LOW:
        verdict = "underfitting; more iterations, a larger INPUT.SIZE or a larger model may help"
    else:
        verdict = "no sign of over- or underfitting"
    return (
        f"AP50 is {train_ap50:.1f} on training images, {test_ap50:.1f} on test images: {verdict}."
    )


def report_results(
    results: Dict, names: Sequence[str], folder: str, made_with: Optional[Dict] = None
) -> None:
    """Log results as tables and Detectron2's copy-paste lines, and save ``results.json``.

    Args:
        results: task -> metrics, or data set -> task -> metrics.
        names: of the data sets.
        folder: of the file, which has data set -> task -> metric -> value; what cannot be computed
            is null.
        made_with: facts that the file has under that name.
    """
    nested = _nested(results, names)
    for name, tasks in nested.items():
        logger.info(f"Results on {name}:\n{_tables(tasks)}")
        averaged = {task: metrics for task, metrics in tasks.items() if task.endswith("_EMA")}
        if averaged:  # the others have been logged
            print_csv_format(averaged)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "results.json"), "w") as out:
        facts = {} if made_with is None else {"made_with": made_with}
        json.dump({**_finite(nested), **facts}, out, indent=1)


def in_tables(results: Dict, names: Sequence[str]) -> str:
    """Results, as ``report_results`` takes them, for people."""
    nested = _nested(results, names)
    return "\n\n".join(f"{name}\n\n{_tables(tasks)}" for name, tasks in nested.items())


def _nested(results: Dict, names: Sequence[str]) -> Dict:
    return results if _has_datasets(results) else {names[0]: results}


def _tables(tasks: Dict[str, Dict[str, float]]) -> str:
    """A table of the tasks, and for the weights and their average one by size and one by class."""
    metrics = {name: v for name, v in tasks.items() if "threshold" not in v}
    columns = dict.fromkeys(key for values in metrics.values() for key in values if "-" not in key)
    rows = [[name, *(values.get(key) for key in columns)] for name, values in metrics.items()]
    texts = [_pipes(rows, ["task", *columns])]
    for ending in ("", "_EMA"):
        of_weights = (v for name, v in tasks.items() if name.endswith("_EMA") == bool(ending))
        values = {key: value for metrics in of_weights for key, value in metrics.items()}
        if "threshold" in values:
            texts.append(f"At scores above {values['threshold']:.3f}{ending}:")
            texts.append(_by_size(values))
        if any("-" in key for key in values):
            texts.append(_by_class(values, f"class{ending}"))
    return "\n\n".join(texts)


def _by_size(values: Dict[str, float]) -> str:
    endings = {"all": "", **{size: f"_{size}" for size in SIZES}}
    rows = [[size, *(values[rate + end] for rate in RATES)] for size, end in endings.items()]
    return _pipes(rows, ["boxes", *RATES])


def _by_class(values: Dict[str, float], title: str) -> str:
    rows: Dict[str, Dict[str, float]] = {}
    for key, value in values.items():
        metric, _, name = key.partition("-")
        if name:
            rows.setdefault(name, {})[metric] = value
    columns = dict.fromkeys(metric for found in rows.values() for metric in found)
    table = [[name, *(found.get(metric) for metric in columns)] for name, found in rows.items()]
    return _pipes(table, [title, *columns])


def _pipes(rows: Sequence[Sequence], headers: Sequence[str]) -> str:
    return tabulate(rows, headers, tablefmt="pipe", floatfmt=".2f", missingval="-")


def _has_datasets(results: Dict) -> bool:
    return any(isinstance(value, dict) for task in results.values() for value in task.values())


def _finite(value):
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    return value if math.isfinite(value) else None
