"""What a report knows: a trained model evaluated anew, its training and its data."""

import contextlib
import io
import json
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
import tqdm
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from ...config import load_config
from ...data.datasets import dataset_errors
from ...data.layouts import find_layout
from ...data.reader import image_reader
from ...diagnostics.coverage import anchors_of
from ...diagnostics.detection_errors import Errors, confusion_matrix, error_costs, find_errors
from ...engine import finish_config
from ...engine.visuals import read_metrics
from ...errors import InputError
from ...evaluation import BoxEvaluator
from ...evaluation.operating import IGNORED, BoxTable, match
from ...loading import TrainedModel, class_names, find_model, load
from ...provenance import data_hash, hardware
from ..analyze import analyze
from ..check_data import describe


@dataclass
class Evaluated:
    """Detections of a model on a data set, compared with the true boxes.

    Attributes:
        records: dataset dicts, in the order of the tables' images.
        results: ``bbox`` and ``operating``, as BoxEvaluator gives them.
        matched: (D,) see ``operating.match``.
        milliseconds: per image, from decoded image to boxes; the median over batches.
    """

    dataset: str
    classes: List[str]
    records: List[Dict]
    results: Dict[str, Dict[str, float]]
    found: BoxTable
    true: BoxTable
    milliseconds: float
    matched: np.ndarray = field(init=False)
    errors: Errors = field(init=False)

    def __post_init__(self):
        self.matched = match(self.found, self.true)
        self.errors = find_errors(self.found, self.true, self.matched)

    @property
    def threshold(self) -> float:
        return self.results["operating"]["threshold"]

    def costs(self) -> Dict[str, float]:
        tables = self.found, self.true, self.matched, self.errors
        return error_costs(*tables, len(self.classes))

    def confusion(self) -> np.ndarray:
        tables = self.found, self.true, self.matched
        return confusion_matrix(*tables, self.threshold, len(self.classes))

    def shown(self) -> np.ndarray:
        """(D,) bool, detections above the threshold that are right or wrong."""
        return (self.found.scores > self.threshold) & (self.matched != IGNORED)

    def not_found(self) -> np.ndarray:
        """(M,) bool, true boxes that no detection above the threshold finds."""
        free = ~self.true.crowd
        free[self.matched[self.shown() & (self.matched >= 0)]] = False
        return free

    def mistakes(self) -> np.ndarray:
        """Number of wrong detections and of boxes not found, per image."""
        wrong = self.found.images[self.shown() & (self.matched < 0)]
        places = np.concatenate((wrong, self.true.images[self.not_found()]))
        return np.bincount(places, minlength=len(self.records))


@dataclass
class Run:
    """A trained model and all that its folder tells.

    Attributes:
        place: as it was given.
        metrics: rows of the training's metrics.json; empty where there is none.
        size: parameters, multiply-adds and bytes.
        data: statistics by data set.
        made: facts on how the model and its data were made.
        on_train: the same evaluation of the training set, or None.
    """

    place: str
    cfg: CfgNode
    test: Evaluated
    metrics: List[Dict]
    size: Dict[str, int]
    data: Dict[str, Dict]
    made: Dict[str, Any]
    on_train: Optional[Evaluated] = None


def read_run(place: str, data: str = "", opts: Sequence[str] = (), on_train: bool = False) -> Run:
    """Evaluate a trained model on its test set, or on other data, and collect what is known.

    Args:
        place: the output folder of a training, a ``.pth`` file, a name of weights or a bundle.
        data: a folder or annotation file to evaluate on; "": the first of DATASETS.TEST.
        opts: alternating config keys and values.
        on_train: evaluate on the first training set as well.

    Raises:
        InputError: there is no model, or no data with annotations.
    """
    folder, is_bundle = Path(place), Path(place, "model.json").is_file()
    if is_bundle:
        config, weights = str(folder / "config.yaml"), ""
    else:
        config, weights = find_model(place)
        folder = Path(weights).parent if Path(weights).is_file() else Path(config).parent
    opts = ["MODEL.WEIGHTS", weights, *opts]
    if data:
        opts += _other_data(data, config, opts)
    cfg = load_config(config, opts)
    finish_config(cfg)
    if not cfg.DATASETS.TEST:
        raise InputError(f"{place}: DATASETS.TEST names no data set; give --data DATA")
    model = load(place, *([] if is_bundle else opts))
    test = evaluate(model, cfg, cfg.DATASETS.TEST[0])
    train = evaluate(model, cfg, cfg.DATASETS.TRAIN[0]) if on_train and cfg.DATASETS.TRAIN else None
    metrics = folder / "metrics.json"
    return Run(
        place,
        cfg,
        test,
        read_metrics(str(metrics)) if metrics.is_file() else [],
        _size(cfg, folder if is_bundle else Path(weights)),
        {name: facts for name in _sets(cfg) if (facts := _describe(name, cfg))},
        _made(cfg, folder, weights or place, test),
        train,
    )


def _other_data(data: str, config: str, opts: Sequence[str]) -> List[str]:
    """Overrides that evaluate on a folder, with the classes of the model."""
    layout = find_layout(Path(data).expanduser())
    classes = class_names(load_config(config, opts))
    entry = {"NAME": Path(data).resolve().stem, **(layout.val or layout.train)}
    entry.update(CLASSES=classes, OTHER_CLASSES="drop")
    names = ["DATASETS.TRAIN", "()", "DATASETS.TEST", str((entry["NAME"],))]
    return ["DATASETS.REGISTER", str([entry]), *names]


def evaluate(model: TrainedModel, cfg: CfgNode, name: str) -> Evaluated:
    """
    Raises:
        InputError: the data set is missing or has no annotations.
    """
    with dataset_errors((name,)):
        records = DatasetCatalog.get(name)
        evaluator = BoxEvaluator(name, "")
    read, step = image_reader(cfg), cfg.TEST.IMS_PER_BATCH
    evaluator.reset()
    seconds = []
    starts = range(0, len(records), step)
    for start in tqdm.tqdm(starts, unit_scale=step, unit="image", disable=None, leave=False):
        batch = records[start : start + step]
        images = [read(record["file_name"], "BGR") for record in batch]
        begin = time.perf_counter()
        found = model.predict(images, 0.0)
        seconds.append((time.perf_counter() - begin) / len(batch))
        evaluator.process(batch, [{"instances": instances} for instances in found])
    with contextlib.redirect_stdout(io.StringIO()):
        results = evaluator.evaluate()
    if "bbox" not in results:
        raise InputError(f"data set '{name}' has no annotations to evaluate by")
    by_id = {record["image_id"]: record for record in records}
    ordered = [by_id[i] for i in evaluator.image_ids if i in by_id]
    if len(ordered) < len(evaluator.image_ids):
        raise InputError(f"data set '{name}': its annotation file has images that it does not load")
    speed = 1000 * float(np.median(seconds[1:] or seconds))
    return Evaluated(name, class_names(cfg), ordered, results, *evaluator.tables, speed)


def _sets(cfg: CfgNode) -> List[str]:
    return list(dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)))


def _describe(name: str, cfg: CfgNode) -> Dict:
    """Statistics of a data set; empty where its files are elsewhere."""
    try:
        with dataset_errors((name,)):
            records = DatasetCatalog.get(name)
        anchors = anchors_of(cfg)
    except (InputError, AttributeError):  # the latter of models without such anchors
        return {}
    return {**describe(records, class_names(cfg), cfg, anchors), "hash": data_hash(records)}


def _size(cfg: CfgNode, path: Path) -> Dict[str, int]:
    meta = cfg.clone()
    meta.defrost()
    meta.MODEL.DEVICE = "meta"
    counts = analyze(meta)
    if path.is_dir():
        counts["file"] = json.loads((path / "model.json").read_text())["bytes"]
    elif path.is_file():
        counts["file"] = path.stat().st_size
    return counts


def _made(cfg: CfgNode, folder: Path, weights: str, test: Evaluated) -> Dict[str, Any]:
    """What its results.json or model.json tell of the last evaluation, and this one's facts."""
    last: Dict[str, Any] = {}
    for file, key in (("inference/results.json", "made_with"), ("model.json", "source")):
        with contextlib.suppress(OSError, ValueError):
            last = json.loads((folder / file).read_text()).get(key) or last
    return {
        "weights": weights,
        "evaluated at commit": last.get("commit", "not recorded"),
        "evaluated on": last.get("hardware", "not recorded"),
        "versions": ", ".join(f"{k} {v}" for k, v in last.get("versions", {}).items())
        or "not recorded",
        "SEED": cfg.SEED,
        "test data": f"{test.dataset}, {data_hash(test.records)}",
        "measured on": hardware(cfg.MODEL.DEVICE),
    }


def quiet(level: int = logging.ERROR) -> None:
    """Log errors only."""
    for name in ("fvcore", "detectron2", "ssdlite_d2"):
        logging.getLogger(name).setLevel(level)
