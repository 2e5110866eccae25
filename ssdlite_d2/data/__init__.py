from .augmentation import build_augmentation
from .build import build_train_loader
from .dataset_mapper import SSDDatasetMapper
from .datasets import register_datasets, resolve_datasets, resolve_num_classes
from .skipped import report_skipped

__all__ = [
    "SSDDatasetMapper",
    "build_augmentation",
    "build_train_loader",
    "register_datasets",
    "report_skipped",
    "resolve_datasets",
    "resolve_num_classes",
]
