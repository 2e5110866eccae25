"""A data set that is registered with Detectron2 already, with other classes."""

from typing import Dict, List, Tuple

from detectron2.data import DatasetCatalog, MetadataCatalog

from ...errors import InputError
from .annotations import Problems
from .entry import Entry


class RegisteredEntry(Entry):
    """DATASET: the name it is registered by. Its classes take the ids of CLASSES by name."""

    format = "detectron2"
    required = ("DATASET",)

    def has_class_list(self) -> bool:
        return True

    def file_classes(self) -> Tuple[str, ...]:
        dataset = self.keys["DATASET"]
        if dataset not in DatasetCatalog.list():
            raise InputError(
                f"DATASETS.REGISTER, data set '{self.name}': DATASET {dataset} is not registered"
            )
        classes = MetadataCatalog.get(dataset).get("thing_classes", None)
        if classes is None:
            raise InputError(f"data set '{self.name}': {dataset} does not tell its classes")
        return tuple(classes)

    def read(self, problems: Problems) -> List[Dict]:
        names = self.file_classes()
        ids = self.class_ids(problems)
        dicts = []
        for record in DatasetCatalog.get(self.keys["DATASET"]):
            annotations = [
                {**a, "category_id": ids.find(names[a["category_id"]], record["file_name"])}
                for a in record["annotations"]
            ]
            kept = [a for a in annotations if a["category_id"] is not None]
            dicts.append({**record, "annotations": kept})
        return dicts
