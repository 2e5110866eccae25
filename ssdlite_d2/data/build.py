"""The training loader of a config."""

import logging
import math
from typing import Callable, Dict, List, Sequence

from detectron2.config import CfgNode
from detectron2.data import (
    DatasetFromList,
    MapDataset,
    build_batch_data_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.build import _train_loader_from_config
from detectron2.utils import comm
from torch.utils.data import DataLoader

from ..errors import InputError, one_of
from .cache import ImageCache
from .collate import Batch, MultiScale
from .dataset_mapper import ON_BAD_IMAGE, SSDDatasetMapper, treatment_of
from .datasets import dataset_errors
from .reader import image_reader
from .samplers import TrainingStream
from .skipped import SkippedImages
from .workers import check_shared_memory, outlive_signals

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
    read = image_reader(cfg)
    read = ImageCache(records, read) if cfg.DATALOADER.CACHE == "ram" else read
    on_skip = SkippedImages(cfg.OUTPUT_DIR) if cfg.INPUT.ON_BAD_IMAGE == "skip" else None
    return SSDDatasetMapper(cfg, True, records=records, read=read, on_skip=on_skip)


def build_train_loader(cfg: CfgNode) -> DataLoader:
    """Detectron2's training loader with SSD's mapper; its ``dataset`` is a TrainingStream.

    Images are not grouped by aspect ratio: all get the same size.

    Raises:
        InputError: a data set or a key is wrong.
    """
    records = DatasetFromList(load_train_records(cfg), copy=False)
    mapper = build_train_mapper(cfg, records)
    sampler = _train_loader_from_config(cfg, mapper, dataset=records)["sampler"]
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    batch_size = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
    largest = max(cfg.INPUT.MULTI_SCALE or [cfg.INPUT.SIZE], key=math.prod)
    check_shared_memory(cfg.DATALOADER.NUM_WORKERS, batch_size, largest)
    loader = build_batch_data_loader(
        TrainingStream(MapDataset(records, mapper), sampler, batch_size, seed),
        None,  # the stream has the sampler
        cfg.SOLVER.IMS_PER_BATCH,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=build_collator(cfg),
    )
    return outlive_signals(loader)


def build_collator(cfg: CfgNode) -> Callable[[List[Dict]], Batch]:
    """What makes a batch of samples."""
    half_pixel = cfg.INPUT.RESIZE != "asymmetric"
    return MultiScale(cfg.INPUT.MULTI_SCALE, half_pixel) if cfg.INPUT.MULTI_SCALE else Batch
