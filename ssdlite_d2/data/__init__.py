from .augmentation import build_augmentation
from .dataset_mapper import SSDDatasetMapper
from .datasets import register_datasets, resolve_datasets, resolve_num_classes

__all__ = [
    "SSDDatasetMapper",
    "build_augmentation",
    "register_datasets",
    "resolve_datasets",
    "resolve_num_classes",
]
