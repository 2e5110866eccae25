from .entry import Entry
from .register import (
    dataset_errors,
    entry_of,
    register_datasets,
    resolve_classes,
    resolve_datasets,
    resolve_num_classes,
)

__all__ = [
    "Entry",
    "dataset_errors",
    "entry_of",
    "register_datasets",
    "resolve_classes",
    "resolve_datasets",
    "resolve_num_classes",
]
