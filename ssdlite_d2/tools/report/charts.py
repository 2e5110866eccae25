"""Charts as SVG whose colours follow the page's, light or dark."""

import io
import re
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from ...evaluation.operating import Curve

# Stand for the page's colours, which they become: text and lines of the axes, then the series.
TEXT = "#010101"
SERIES = ("#010102", "#010103", "#010104", "#010105", "#010106")
POINTS = 200  # of a drawn curve, at most
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "ssdlite_d2", "font.size": 9}
STYLE.update(dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor"), TEXT))
STYLE.update(dict.fromkeys(("xtick.color", "ytick.color"), TEXT))
STYLE.update({"axes.facecolor": "none", "figure.facecolor": "none", "legend.framealpha": 0})
STYLE.update({"axes.spines.top": False, "axes.spines.right": False, "lines.linewidth": 1.6})


class Chart:
    """Axes that are drawn into an SVG."""

    def __init__(self, **options):
        """
        Args:
            options: of the axes, such as ``xlabel``.
        """
        with rc_context(STYLE):
            self.figure = Figure(figsize=(3.8, 2.6), layout="constrained")
            self.axes = self.figure.subplots()
        self.axes.grid(alpha=0.2, color=TEXT)
        self.axes.set(**options)

    def svg(self, label: str) -> str:
        """The SVG, which may stand in HTML.

        Args:
            label: HTML that tells those what it shows who cannot see it.
        """
        out = io.StringIO()
        with rc_context(STYLE):
            if self.axes.get_legend_handles_labels()[0]:
                self.axes.legend(fontsize=8)
            FigureCanvasSVG(self.figure).print_svg(out)
        text = out.getvalue()
        text = text[text.index("<svg") :]
        text = re.sub(r"(?s)<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text)
        text = re.sub(r' id="[\w.]+_\d+"|font-family: [^;"]*;? ?', "", text)
        text = re.sub(r"(\.\d)\d+", r"\1", text)
        text = text.replace(TEXT, "currentColor")
        for number, colour in enumerate(SERIES):
            text = text.replace(colour, f"var(--series{number})")
        width = re.search(r'width="([\d.]+)pt"', text)[1]
        text = re.sub(r"<svg[^>]*viewBox", "<svg viewBox", text, count=1)
        start = f'<svg class="chart" role="img" aria-label="{label}" style="max-width:{width}pt"'
        return re.sub(r"\n\s*", "\n", text.replace("<svg", start, 1))


def thinned(*columns: np.ndarray) -> List[np.ndarray]:
    """The same points of some curves, few enough to draw."""
    chosen = np.unique(np.linspace(0, len(columns[0]) - 1, POINTS).round().astype(int))
    return [column[chosen] if len(column) else column for column in columns]


def side_by_side(label: str, **charts: Chart) -> str:
    """Charts beside each other, or below where there is no room.

    Args:
        label: HTML of what all show.
        charts: by what each one shows.
    """
    drawn = (chart.svg(f"{label}: {name.replace('_', ' ')}") for name, chart in charts.items())
    return f'<div class="charts">{"".join(drawn)}</div>'


def curve_charts(of: Curve, threshold: Optional[float], label: str) -> str:
    """Precision over recall, and precision, recall and F1 over the score, with a mark at one."""
    limits = {"xlim": (0, 1.01), "ylim": (0, 1.03)}
    left = Chart(xlabel="recall", ylabel="precision", **limits)
    right = Chart(xlabel="score", **limits)
    scores, precision, recall, f1 = thinned(*of)
    left.axes.plot(recall, precision, color=SERIES[0])
    series = (("precision", precision), ("recall", recall), ("F1", f1))
    for (name, values), colour in zip(series, SERIES):
        right.axes.plot(scores, values, color=colour, label=name)
    above = int((of.scores > (2 if threshold is None else threshold)).sum())
    if above:
        right.axes.axvline(threshold, color=TEXT, linestyle="--", linewidth=1)
        left.axes.plot(of.recall[above - 1], of.precision[above - 1], "o", color=SERIES[2])
        right.axes.plot(threshold, of.f1[above - 1], "o", color=SERIES[2])
    return side_by_side(label, precision_over_recall=left, rates_over_score=right)


def training_charts(runs: Dict[str, List[Dict]], label: str) -> str:
    """Losses and AP over the iterations, of one training or of several.

    Args:
        runs: rows of metrics.json, by the name that the legend has.
    """
    losses = Chart(xlabel="iteration", ylabel="loss", yscale="log")
    results = Chart(xlabel="iteration", ylabel="AP")
    several = len(runs) > 1
    keys = sorted({key for rows in runs.values() for row in rows for key in row})
    ends = {key: key.split("/")[-1] for key in keys}
    shown = [k for k in keys if (k == "total_loss" if several else "loss" in ends[k])]
    tasks = [k for k in keys if ends[k] in (("AP",) if several else ("AP", "AP50"))]
    for chart, wanted, mark in ((losses, shown, ""), (results, tasks, "o")):
        lines = [(name, key, points_of(rows, key)) for name, rows in runs.items() for key in wanted]
        for number, (name, key, points) in enumerate(line for line in lines if line[2]):
            chart.axes.plot(
                *thinned(*map(np.array, zip(*points))),
                ("-", "--", ":")[number // len(SERIES) % 3],
                color=SERIES[number % len(SERIES)],
                label=_plain(f"{name} {key}" if several else key),
                marker=mark,
                markersize=3,
            )
    return side_by_side(label, loss=losses, results=results)


def points_of(rows: Sequence[Dict], key: str) -> List[Tuple[int, float]]:
    """(iteration, value) where a value is a number."""
    found = ((row["iteration"], row[key]) for row in rows if row.get(key) is not None)
    return [(x, y) for x, y in found if np.isfinite(y)]


def _plain(text: str) -> str:
    """A name for the legend, which would read $ as the start of a formula, and _ as "leave out"."""
    return text.replace("$", r"\$").lstrip("_")
