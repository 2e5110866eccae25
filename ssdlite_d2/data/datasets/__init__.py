from .register import dataset_errors, register_datasets, resolve_datasets, resolve_num_classes

__all__ = ["dataset_errors", "register_datasets", "resolve_datasets", "resolve_num_classes"]
