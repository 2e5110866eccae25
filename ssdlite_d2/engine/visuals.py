"""Images of a training run: boxes on validation images, and curves."""

import contextlib
import json
import os
from typing import Callable, Dict, List, Sequence, Tuple

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase
from detectron2.evaluation import inference_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import nn

from ..data.reader import read_image
from ..evaluation.drawing import side_by_side
from .hooks import operating_point

SCORE = 0.3  # smallest score of a box that is drawn, where no evaluation tells


class PreviewHook(HookBase):
    """Shows TensorBoard detections beside true boxes on some images of every test set.

    At every evaluation; in the main process only. The images are the same each time.
    """

    def __init__(
        self,
        period: int,
        model: nn.Module,
        names: Sequence[str],
        count: int,
        image_format: str,
        metric: str,
        read: Callable[..., np.ndarray] = read_image,
    ):
        """
        Args:
            period: iterations between evaluations; 0: only the last.
            model: not wrapped for data-parallel training.
            names: of the data sets.
            count: images of each.
            image_format: of the images that the model takes, such as "RGB".
            metric: of the model's evaluation.
            read: as ``read_image``.
        """
        self._period = period
        self._model = model
        self._names = names
        self._count = count
        self._format = image_format
        self._metric = metric
        self._read = read
        self._records: List[Tuple[str, Dict]] = []

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter or (self._period > 0 and done % self._period == 0):
            self._draw()

    def _draw(self) -> None:
        self._records = self._records or self._choose()
        with inference_context(self._model), torch.no_grad():
            for name, record in self._records:
                self.trainer.storage.put_image(
                    f"{name}/{os.path.basename(record['file_name'])}", self._image(name, record)
                )

    def _choose(self) -> List[Tuple[str, Dict]]:
        """Images spread over each data set."""
        chosen = []
        for name in self._names:
            records = [r for r in DatasetCatalog.get(name) if r["annotations"]]
            places = np.linspace(0, len(records) - 1, min(self._count, len(records)))
            chosen += [(name, records[int(place)]) for place in places]
        return chosen

    def _image(self, name: str, record: Dict) -> np.ndarray:
        """(3, h, w) uint8."""
        image = self._read(record["file_name"], self._format)
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        height, width = image.shape[:2]
        found = self._model([{"image": pixels, "height": height, "width": width}])[0]["instances"]
        found = found[found.scores > self._threshold()].to("cpu")
        rgb = self._read(record["file_name"], "RGB")
        drawn = side_by_side(rgb, found, record, MetadataCatalog.get(name).get("thing_classes"))
        return drawn.transpose(2, 0, 1)

    def _threshold(self) -> float:
        """That of the last evaluation."""
        return operating_point(self.trainer.storage, self._metric).get("threshold", SCORE)


def read_metrics(file: str) -> List[Dict]:
    """Rows of a ``metrics.json`` by iteration; of a part that was run twice the second has effect.

    A line that a kill has cut off is left out.
    """
    rows: Dict[int, Dict] = {}
    with open(file) as lines:
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):
                row = json.loads(line)
                rows.setdefault(row["iteration"], {}).update(row)
    return [rows[iteration] for iteration in sorted(rows)]


def plot_training(metrics: List[Dict], file: str) -> None:
    """Draw losses, learning rate and AP over the iterations into a PNG file."""

    def curve(axes, key: str, **style) -> None:
        points = [(row["iteration"], row[key]) for row in metrics if key in row]
        if points:
            axes.plot(*zip(*points), label=key, **style)

    keys = sorted({key for row in metrics for key in row})
    figure = Figure(figsize=(8, 9), layout="constrained")
    losses, rate, precision = figure.subplots(3, sharex=True)
    for key in keys:
        if "loss" in key:
            curve(losses, key)
        if key.split("/")[-1] in ("AP", "AP50"):
            curve(precision, key, marker="o")
    curve(rate, "lr")
    for axes, name in ((losses, "loss"), (rate, "learning rate"), (precision, "AP")):
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    losses.set_yscale("log")
    precision.set_xlabel("iteration")
    FigureCanvasAgg(figure).print_png(file)


class PlotHook(HookBase):
    """Draws ``training.png`` when training ends; goes after the writer of ``metrics.json``."""

    def __init__(self, output_dir: str):
        self._folder = output_dir

    def after_train(self) -> None:
        metrics = read_metrics(os.path.join(self._folder, "metrics.json"))
        plot_training(metrics, os.path.join(self._folder, "training.png"))
