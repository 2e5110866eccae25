"""A training that tells the console little and the log file everything."""

import contextlib
import io
import json
import logging
import math
import shlex
from pathlib import Path
from typing import Dict, Iterator, List

import torch
import tqdm
from detectron2.config import CfgNode
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, get_event_storage

from ..evaluation.operating import RATES
from ..evaluation.report import in_tables
from .hooks import metric_of, of_average
from .trainer import SSDTrainer

logger = logging.getLogger(__name__)

LINES = 20  # of progress, besides one per evaluation


class ConsoleTrainer(SSDTrainer):
    """SSDTrainer with a screen of facts, a line per evaluation or epoch, and a progress bar.

    Of an evaluation alone it prints the tables.
    """

    def train(self):
        if comm.is_main_process():
            print(describe(self.cfg, self.model), flush=True)
        result = super().train()
        if comm.is_main_process():
            print(outcome(self.cfg.OUTPUT_DIR))
        return result

    @classmethod
    def evaluate_only(cls, cfg: CfgNode, resume: bool = False) -> Dict:
        results = super().evaluate_only(cfg, resume)
        if comm.is_main_process() and results:
            print(in_tables(results, cfg.DATASETS.TEST))
        return results

    def _main_hooks(self) -> List[HookBase]:
        images = self.checkpointer.identity["images"]
        metric = shown_metric(self.cfg)
        writer = ConsoleWriter(self.max_iter, images / self.cfg.SOLVER.IMS_PER_BATCH, metric)
        return [*super()._main_hooks(), hooks.PeriodicWriter([writer], period=1)]

    @classmethod
    def test_averaged(cls, *args) -> Dict:
        with printed_to_log():
            return super().test_averaged(*args)


class ConsoleWriter(EventWriter):
    """Progress: a bar on a terminal, and lines."""

    def __init__(self, iterations: int, per_epoch: float, metric: str):
        """
        Args:
            per_epoch: iterations of a pass over the training images.
            metric: the result that is shown, such as "bbox/AP".
        """
        self._iterations, self._per_epoch, self._metric = iterations, per_epoch, metric
        self._step = max(per_epoch, iterations / LINES)
        self._next, self._evaluated = self._step, -1
        self._bar = tqdm.tqdm(total=iterations, disable=None, leave=False, unit="it")

    def write(self) -> None:
        storage = get_event_storage()
        done = min(storage.iter + 1, self._iterations)
        latest = storage.latest()
        loss = storage.history("total_loss").median(20) if "total_loss" in latest else math.nan
        result, at = latest.get(self._metric, (math.nan, -1))
        self._bar.update(done - self._bar.n)
        self._bar.set_postfix_str(f"loss {loss:.2f}" + (f", AP {result:.1f}" if at >= 0 else ""))
        # after the last iteration an evaluation follows
        if (done < self._next or done == self._iterations) and at == self._evaluated:
            return
        self._next = self._step * (math.floor(done / self._step) + 1)
        text = f"epoch {done / self._per_epoch:5.1f}  iteration {done}/{self._iterations}"
        text += f"  loss {loss:.2f}  {self._left(done)}"
        if at != self._evaluated:
            text += f"  AP {result:.1f}"
        self._evaluated = at
        tqdm.tqdm.write(text)

    def _left(self, done: int) -> str:
        times = get_event_storage().histories().get("time")  # not of the first iterations
        seconds = int(times.median(20) * (self._iterations - done)) if times else 0
        return f"{seconds // 60}:{seconds % 60:02} left"

    def close(self) -> None:
        self._bar.close()


@contextlib.contextmanager
def printed_to_log() -> Iterator[None]:
    """What others print goes to the log."""
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            yield
    finally:
        if text.getvalue():
            logger.info(f"Printed by the evaluation:\n{text.getvalue()}")


def shown_metric(cfg: CfgNode) -> str:
    """The result to show: SOLVER.BEST_METRIC or AP, of the average where there is one."""
    metric = cfg.SOLVER.BEST_METRIC or metric_of(cfg, False)
    return of_average(metric) if cfg.MODEL.EMA.ENABLED else metric


def outcome(folder: str) -> str:
    """What a run has left in its folder."""
    lines, best = [], Path(folder, "best.json")
    if best.is_file():
        told = json.loads(best.read_text())
        lines = [
            f"best      {told['metric'].split('/')[-1]} {told['value']:.1f}, {told['weights']} "
            f"after iteration {told['iteration'] + 1}: model_best.pth"
        ]
        if told["operating"].get("F1"):
            lines.append("threshold " + in_words(told["operating"]))
        elif not told["value"]:
            lines.append("          no object is found: train longer, and see: ssdlite view DATA")
    command = f"ssdlite predict {shlex.quote(folder)} IMAGE --output drawn"
    lines.append(f"done      {folder}; try: {command}")
    return "\n".join(lines)


def in_words(operating: Dict[str, float]) -> str:
    """A threshold and what it gives: predict, the demo and bundles take it."""
    known = {key: value for key, value in operating.items() if key in RATES}
    rates = ", ".join(f"{key} {value:.1f}" for key, value in known.items())
    return f"{operating['threshold']:.2f}, of the best F1 at IoU 0.5: {rates} %"


def describe(cfg: CfgNode, model: torch.nn.Module) -> str:
    """What is trained, how long, on what, and where it goes."""
    count = sum(p.numel() for p in model.parameters()) / 1e6
    height, width = cfg.INPUT.SIZE
    solver = cfg.SOLVER
    device = cfg.MODEL.DEVICE
    if device == "cpu":
        device = f"cpu, {torch.get_num_threads()} threads"
    period = cfg.TEST.EVAL_PERIOD
    return "\n".join(
        (
            f"model     {cfg.MODEL.META_ARCHITECTURE}, {cfg.MODEL.BACKBONE.NAME}, "
            f"{count:.1f} M parameters, {height} x {width}, {cfg.MODEL.SSD.NUM_CLASSES} classes",
            f"start     {cfg.MODEL.WEIGHTS or 'random weights'}",
            f"schedule  {solver.MAX_ITER} iterations of {solver.IMS_PER_BATCH} images, learning "
            f"rate {solver.BASE_LR:g}, evaluated "
            + (f"every {period}" if period else "at the end")
            + (f", ends after {solver.PATIENCE} without a better one" if solver.PATIENCE else ""),
            f"device    {device}"
            + ("" if comm.get_world_size() == 1 else f", {comm.get_world_size()} processes"),
            f"output    {cfg.OUTPUT_DIR} (log.txt has all messages)",
        )
    )
