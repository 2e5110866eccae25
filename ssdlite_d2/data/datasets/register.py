"""Data sets named in the YAML, and the classes of a config's data sets."""

import contextlib
import logging
import os
from typing import Iterator, Optional, Tuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.pascal_voc import CLASS_NAMES as VOC_CLASSES

from ...errors import InputError
from . import builtin, coco, voc, yolo  # noqa: F401 (they define the formats)
from .entry import Entry

logger = logging.getLogger(__name__)


def register_datasets(cfg: CfgNode) -> None:
    """Register the data sets of DATASETS.REGISTER; nothing is read yet.

    An entry replaces one of the same name that was registered from another config.

    Raises:
        InputError: an entry is wrong, or has the name of one of Detectron2's own data sets.
    """
    for mapping in cfg.DATASETS.REGISTER:
        entry = Entry.parse(mapping)
        if entry.name in DatasetCatalog.list():
            previous = entry_of(entry.name)
            if previous == entry:
                continue
            if previous is None:
                raise InputError(
                    f"DATASETS.REGISTER: '{entry.name}' is registered already, by other code; "
                    "choose another NAME"
                )
            DatasetCatalog.remove(entry.name)
            MetadataCatalog.remove(entry.name)
        DatasetCatalog.register(entry.name, entry.load)
        MetadataCatalog.get(entry.name).set(ssd_entry=entry)


def entry_of(name: str) -> Optional[Entry]:
    """The entry that a data set was registered from; None for Detectron2's own."""
    return getattr(MetadataCatalog.get(name), "ssd_entry", None)


def classes_of(name: str) -> Optional[Tuple[str, ...]]:
    """Class names of a registered data set; None when its metadata has none.

    Raises:
        InputError: there is no such data set, or its files are needed and missing.
    """
    if name not in DatasetCatalog.list():
        raise InputError(
            f"data set '{name}' is unknown: list it in DATASETS.REGISTER, or correct "
            "DATASETS.TRAIN or DATASETS.TEST"
        )
    metadata, entry = MetadataCatalog.get(name), entry_of(name)
    if entry is not None and not hasattr(metadata, "thing_classes"):
        names = entry.find_classes()
        is_voc = entry.format == "voc" and set(names) == set(VOC_CLASSES)
        evaluator = "pascal_voc" if is_voc else "coco"
        metadata.set(thing_classes=list(names), evaluator_type=evaluator, **entry.metadata())
    classes = metadata.get("thing_classes", None)
    return None if classes is None else tuple(classes)


def resolve_classes(cfg: CfgNode) -> Optional[Tuple[str, ...]]:
    """The classes of a config: of its training sets, or else of its test sets, merged by name.

    A class has its place by its first appearance. None when no data set tells its classes.
    Registers the data sets of DATASETS.REGISTER.

    Raises:
        InputError: classes cannot be merged, or a test set has classes that are not trained.
    """
    register_datasets(cfg)
    for key in ("TRAIN", "TEST"):
        if not all(isinstance(name, str) for name in cfg.DATASETS[key]):
            raise InputError(f"DATASETS.{key} is {cfg.DATASETS[key]}; it is a list of names")
    names = tuple(dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)))
    by_set = {name: classes for name in names if (classes := classes_of(name)) is not None}
    told = [by_set[name] for name in cfg.DATASETS.TRAIN or cfg.DATASETS.TEST if name in by_set]
    merged = tuple(dict.fromkeys(c for classes in told for c in classes)) or None
    for name, classes in by_set.items():
        if classes == merged or merged is None:
            continue
        others = [c for c in classes if c not in merged]
        if others:
            raise InputError(
                f"data set '{name}' has classes that no training set has: {_some(others)}; leave "
                "them out with CLASSES and OTHER_CLASSES: drop in DATASETS.REGISTER"
            )
        if entry_of(name) is None:
            raise InputError(
                f"data set '{name}' has {len(classes)} of {len(merged)} classes; for its classes "
                "to be merged by name, list it in DATASETS.REGISTER with FORMAT: detectron2, "
                f"DATASET: {name} and another NAME"
            )
        logger.info(f"Data set '{name}' has {len(classes)} of the {len(merged)} classes")
    return merged


def resolve_num_classes(cfg: CfgNode) -> int:
    """K of a config: MODEL.SSD.NUM_CLASSES, or that of its data sets when the key is 0.

    Raises:
        InputError: the data sets and the key contradict each other, or no class is known.
    """
    classes, declared = resolve_classes(cfg), cfg.MODEL.SSD.NUM_CLASSES
    if classes is None and not declared:
        raise InputError(
            "MODEL.SSD.NUM_CLASSES is 0 and no data set of the config tells its classes"
        )
    if classes is not None and declared not in (0, len(classes)):
        names = ", ".join(cfg.DATASETS.TRAIN or cfg.DATASETS.TEST)
        raise InputError(
            f"MODEL.SSD.NUM_CLASSES is {declared}, but data set '{names}' has {len(classes)} "
            f"classes ({_some(classes)}); 0 takes the number from the data set"
        )
    return declared or len(classes)


def resolve_datasets(cfg: CfgNode) -> None:
    """Write the number of classes, and the classes of registered data sets, into the config.

    A config saved with a model then needs no data set to run the model.
    """
    cfg.MODEL.SSD.NUM_CLASSES = resolve_num_classes(cfg)
    used = {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST}
    classes = resolve_classes(cfg)
    cfg.DATASETS.REGISTER = [
        {**entry, "CLASSES": list(classes)} if entry["NAME"] in used else entry
        for entry in cfg.DATASETS.REGISTER
    ]
    register_datasets(cfg)  # the entries with classes take the place of those without
    for name in used:
        classes_of(name)


def _some(names: Tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


@contextlib.contextmanager
def dataset_errors(names: Tuple[str, ...]) -> Iterator[None]:
    """Turn what Detectron2's own data sets lack into an error that names the data set."""
    try:
        yield
    except ImportError as error:
        raise InputError(
            f"data set '{', '.join(names)}' needs a package: pip install {error.name}"
        ) from error
    except (FileNotFoundError, NotADirectoryError) as error:
        root = os.getenv("DETECTRON2_DATASETS", "datasets")
        raise InputError(
            f"data set '{', '.join(names)}': {error.filename} does not exist; the environment "
            f"variable DETECTRON2_DATASETS (now '{root}') names the folder of the data sets"
        ) from error
