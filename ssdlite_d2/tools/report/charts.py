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


def side_by_side(*charts: str) -> str:
    """Charts beside each other, or below where there is no room."""
    return f'<div class="charts">{"".join(charts)}</div>'


LEFT, TOP, WIDTH, HEIGHT = 40, 18, 226, 136  # of the axes of fractions, in points


def fractions_chart(
    axes: Tuple[str, str],
    lines: Dict[str, Tuple[np.ndarray, np.ndarray]],
    marks: Sequence[Tuple[float, float]],
    label: str,
) -> str:
    """An SVG of values from 0 to 1. Matplotlib takes 0.2 s for one, and a page may have 200.

    Args:
        axes: what is below and beside them.
        lines: x and y of each; several get a legend.
        marks: points.
        label: as that of ``Chart.svg``.
    """

    def place(x, y) -> Tuple[float, float]:
        return round(LEFT + WIDTH * float(x), 1), round(TOP + HEIGHT * (1 - float(y)), 1)

    (left, bottom), (right, top) = place(0, 0), place(1, 1)
    parts = []
    for value in (0, 0.2, 0.4, 0.6, 0.8, 1):
        x, y = place(value, value)
        parts.append(f'<path d="M{x} {top}V{bottom}M{left} {y}H{right}" opacity=".2"/>')
        parts.append(f'<text x="{x}" y="{bottom + 12}" text-anchor="middle">{value}</text>')
        parts.append(f'<text x="{left - 4}" y="{y + 3}" text-anchor="end">{value}</text>')
    parts.append(f'<path d="M{left} {top}V{bottom}H{right}"/>')
    for number, (name, points) in enumerate(lines.items()):
        colour = f"var(--series{number})"
        drawn = " ".join("{},{}".format(*place(*point)) for point in zip(*points))
        parts.append(f'<polyline points="{drawn}" style="stroke:{colour}" stroke-width="1.6"/>')
        if len(lines) > 1:
            parts.append(
                f'<text x="{left + 60 * number}" y="9" style="fill:{colour}">{name}</text>'
            )
    for x, y in (place(*mark) for mark in marks):
        parts.append(f'<circle cx="{x}" cy="{y}" r="3" style="fill:var(--series2)"/>')
    middle = left + WIDTH / 2, top + HEIGHT / 2
    parts.append(f'<text x="{middle[0]}" y="{bottom + 26}" text-anchor="middle">{axes[0]}</text>')
    turned = f'transform="translate(10 {middle[1]}) rotate(-90)" text-anchor="middle"'
    parts.append(f"<text {turned}>{axes[1]}</text>")
    return (
        f'<svg class="chart fractions" role="img" aria-label="{label}" '
        f'viewBox="0 0 {LEFT + WIDTH + 8} {TOP + HEIGHT + 32}">{"".join(parts)}</svg>'
    )


def curve_charts(of: Curve, threshold: Optional[float], label: str) -> str:
    """Precision over recall, and precision, recall and F1 over the score, with a mark at one.

    Args:
        label: HTML of what both show.
    """
    scores, precision, recall, f1 = thinned(*of)
    rates = {"precision": precision, "recall": recall, "F1": f1}
    above = int((of.scores > (2 if threshold is None else threshold)).sum())
    left = [(of.recall[above - 1], of.precision[above - 1])] if above else []
    right = [(threshold, of.f1[above - 1])] if above else []
    rated = {name: (scores, values) for name, values in rates.items()}
    if above:
        rated["threshold"] = (np.full(2, threshold), np.arange(2))
    return side_by_side(
        fractions_chart(
            ("recall", "precision"),
            {"": (recall, precision)},
            left,
            f"{label}: precision over recall",
        ),
        fractions_chart(("score", ""), rated, right, f"{label}: rates over score"),
    )


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
    return side_by_side(losses.svg(f"{label}: loss"), results.svg(f"{label}: results"))


def points_of(rows: Sequence[Dict], key: str) -> List[Tuple[int, float]]:
    """(iteration, value) where a value is a number."""
    found = ((row["iteration"], row[key]) for row in rows if row.get(key) is not None)
    return [(x, y) for x, y in found if np.isfinite(y)]


def _plain(text: str) -> str:
    """A name for the legend, which would read $ as the start of a formula, and _ as "leave out"."""
    return text.replace("$", r"\$").lstrip("_")
