"""The page that compares trained models on the same data."""

from typing import List

import numpy as np

from ...errors import InputError
from .charts import training_charts
from .html import Raw, page, paragraph, section, table, text
from .runs import Run
from .single import KEY, class_rows, figure, headline, made, speed


def write_comparison(runs: List[Run], images: int) -> str:
    """
    Args:
        images: how many are shown at most, those first whose number of mistakes changed most
            between the first and the last model.

    Raises:
        InputError: the models were evaluated on other data or have other classes.
    """
    first = runs[0]
    for run in runs[1:]:
        if run.made["test data"].split()[-1] != first.made["test data"].split()[-1]:
            raise InputError(
                f"{first.place} is evaluated on {first.made['test data']}, {run.place} on "
                f"{run.made['test data']}; --data DATA evaluates both on the same"
            )
        if run.test.classes != first.test.classes:
            raise InputError(f"{first.place} and {run.place} have other classes")
    sections = [
        section("results", "Results", _results(runs)),
        section("curves", "Training", _curves(runs)),
        section("classes", "Classes", _classes(runs)),
        section("images", "Images whose result changed", *_images(runs, images)),
        section("made", "How they were made", *_made(runs)),
    ]
    names = " and ".join(text(run.place) for run in runs)
    return page("Comparison", sections, f"<p>{names} on {text(first.test.dataset)}</p>")


def _results(runs: List[Run]) -> str:
    rows = [[run.place, *{**headline(run.test), **speed(run)}.values()] for run in runs]
    return table(["model", *headline(runs[0].test), *speed(runs[0])], rows, "Results", True)


def _curves(runs: List[Run]) -> str:
    trained = {run.place: run.metrics for run in runs if run.metrics}
    if not trained:
        return paragraph("There is no metrics.json of a training.", "soft")
    return training_charts(trained, "Loss and AP over the iterations")


def _classes(runs: List[Run]) -> str:
    columns = [class_rows(run.test) for run in runs]
    rows = []
    for of_class in zip(*columns):
        values = [row["AP"] for row in of_class]
        change = None if None in (values[0], values[-1]) else values[-1] - values[0]
        rows.append([of_class[0]["class"], of_class[0]["boxes"], *values, change])
    heads = ["class", "boxes", *(f"AP of {run.place}" for run in runs), "last - first"]
    return table(heads, rows, "AP by class", sortable=True)


def _images(runs: List[Run], most: int) -> List[str]:
    """Each model at its own threshold; the first and the last side by side."""
    first, last = runs[0], runs[-1]
    change = last.test.mistakes() - first.test.mistakes()
    order = np.argsort(-abs(change), kind="stable")[:most]
    counts = (change < 0).sum(), (change > 0).sum(), (change == 0).sum()
    words = "With the last model {} images have fewer mistakes than with the first, {} more, "
    words += "{} as many."
    shown = "".join(
        figure(run, int(i), f"{run.place}: ") for i in order if change[i] for run in (first, last)
    )
    return [paragraph(words.format(*counts)), KEY, f'<div class="images">{shown}</div>']


def _made(runs: List[Run]) -> List[str]:
    parts = []
    for run in runs:
        title = Raw(f"<h3>{text(run.place)}</h3>")
        parts += [title, *made(run)]
    return parts
