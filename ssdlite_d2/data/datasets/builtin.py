"""A data set that is registered with Detectron2 already, with other classes."""

import json
from typing import Dict, List, Tuple

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

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
        ids, areas = self.class_ids(problems), self._areas()
        dicts = []
        for record in DatasetCatalog.get(self.keys["DATASET"]):
            kept = []
            for a in record["annotations"]:
                class_id = ids.find(names[a["category_id"]], record["file_name"])
                area = areas.get((record["image_id"], *a["bbox"]))
                if class_id is not None:
                    area = {} if area is None else {"area": area}
                    kept.append({**a, **area, "category_id": class_id})
            dicts.append({**record, "annotations": kept})
        return dicts

    def _areas(self) -> Dict[Tuple, float]:
        """Image id and box to COCO's ``area``, which Detectron2's loader leaves out."""
        file = MetadataCatalog.get(self.keys["DATASET"]).get("json_file", None)
        if file is None:
            return {}
        with PathManager.open(file) as stream:
            annotations = json.load(stream).get("annotations", [])
        return {(a["image_id"], *a["bbox"]): a["area"] for a in annotations if "area" in a}
