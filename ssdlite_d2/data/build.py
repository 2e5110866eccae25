"""The training loader of a config."""

import logging
from typing import Callable, Dict, List, Sequence

from detectron2.config import CfgNode
from detectron2.data import (
    DatasetFromList,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)

from ..errors import InputError, one_of
from .cache import ImageCache
from .collate import Batch, MultiScale
from .dataset_mapper import ON_BAD_IMAGE, SSDDatasetMapper, treatment_of
from .datasets import dataset_errors
from .reader import read_image
from .skipped import SkippedImages

logger = logging.getLogger(__name__)

CACHES = ("none", "ram")


def load_train_records(cfg: CfgNode) -> List[Dict]:
    """The dataset dicts of DATASETS.TRAIN.

    Raises:
        InputError: there is none to train on, or a data set is wrong.
    """
    if not cfg.DATASETS.TRAIN:
        raise InputError("DATASETS.TRAIN names no data set")
    names = ", ".join(cfg.DATASETS.TRAIN)
    try:
        with dataset_errors(cfg.DATASETS.TRAIN):
            records = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False)
    except AssertionError as error:  # what Detectron2 says of a set without images
        raise InputError(f"DATASETS.TRAIN, {names}: {error}") from error
    if not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        return records
    treatment = cfg.DATASETS.CROWD, cfg.DATASETS.DIFFICULT
    kept = [
        record
        for record in records
        if any(treatment_of(a, *treatment) == "keep" for a in record["annotations"])
    ]
    logger.info(f"{len(records) - len(kept)} images left out, without a box to train on")
    if not kept:
        raise InputError(
            f"DATASETS.TRAIN, {names}: none of {len(records)} images has a box to train on; "
            "ssdlite_d2.tools.check_data tells what is in them"
        )
    return kept


def build_train_mapper(cfg: CfgNode, records: Sequence[Dict]) -> SSDDatasetMapper:
    """The mapper of the training loader, with cache, mosaics and skipping as configured.

    Raises:
        InputError: DATALOADER.CACHE or INPUT.ON_BAD_IMAGE is unknown, or memory too small.
    """
    one_of("DATALOADER.CACHE", cfg.DATALOADER.CACHE, CACHES)
    one_of("INPUT.ON_BAD_IMAGE", cfg.INPUT.ON_BAD_IMAGE, ON_BAD_IMAGE)
    read = ImageCache(records) if cfg.DATALOADER.CACHE == "ram" else read_image
    on_skip = SkippedImages(cfg.OUTPUT_DIR) if cfg.INPUT.ON_BAD_IMAGE == "skip" else None
    return SSDDatasetMapper(cfg, True, records=records, read=read, on_skip=on_skip)


def build_train_loader(cfg: CfgNode, **kwargs):
    """Detectron2's training loader with SSD's mapper.

    Args:
        kwargs: for ``build_detection_train_loader``.

    Raises:
        InputError: a data set or a key is wrong.
    """
    records = DatasetFromList(load_train_records(cfg), copy=False)
    return build_detection_train_loader(
        cfg,
        dataset=records,
        mapper=build_train_mapper(cfg, records),
        collate_fn=build_collator(cfg),
        **kwargs,
    )


def build_collator(cfg: CfgNode) -> Callable[[List[Dict]], Batch]:
    """What makes a batch of samples."""
    return MultiScale(cfg.INPUT.MULTI_SCALE) if cfg.INPUT.MULTI_SCALE else Batch
