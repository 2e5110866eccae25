"""PASCAL VOC's metrics beside COCO's."""

import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import Optional
from unittest import mock

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import PascalVOCDetectionEvaluator, pascal_voc_evaluation
from detectron2.structures import BoxMode
from detectron2.utils import comm


class VOCEvaluator(PascalVOCDetectionEvaluator):
    """The parent's metrics under the name ``voc``, from scores that are not rounded.

    The parent keeps 3 decimals of a score, which ties detections that differ, and calls its results
    ``bbox``, as COCO's are called. ``AP50`` is VOC's mAP: with 11 points for 2007, else the area.

    Objects of DATASETS.REGISTER's sets are those that the loader gave: the parent reads the files
    again, demands boxes that were dropped, and fails at coordinates that are no integers.
    """

    def process(self, inputs, outputs) -> None:
        for image, output in zip(inputs, outputs):
            instances = output["instances"].to(self._cpu_device)
            rows = zip(instances.pred_boxes, instances.scores, instances.pred_classes)
            for box, score, class_id in rows:
                x0, y0, x1, y1 = box.tolist()
                # 1-based and inclusive, as the loader of the data set read them
                self._predictions[int(class_id)].append(
                    f"{image['image_id']} {score:.8f} {x0 + 1:.3f} {y0 + 1:.3f} {x1:.3f} {y1:.3f}"
                )

    def evaluate(self) -> Optional[OrderedDict]:
        own = hasattr(MetadataCatalog.get(self._dataset_name), "ssd_entry")
        if own and comm.is_main_process():
            results = self._evaluate_by_records()
        else:
            results = super().evaluate()
        return None if results is None else OrderedDict(voc=results["bbox"])

    def _evaluate_by_records(self) -> OrderedDict:
        """The parent's ``evaluate`` with dataset dicts in the place of XML files."""
        records = {r["image_id"]: r for r in DatasetCatalog.get(self._dataset_name)}

        def objects(image_id: str):
            for a in records[image_id]["annotations"]:
                x0, y0, x1, y1 = BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
                name = self._class_names[a["category_id"]]
                yield {"name": name, "difficult": a["difficult"], "bbox": [x0 + 1, y0 + 1, x1, y1]}

        with tempfile.TemporaryDirectory() as folder:
            images = Path(folder, "images.txt")
            images.write_text("\n".join(records))
            self._image_set_path, self._anno_file_template = str(images), "{}"
            with mock.patch.object(pascal_voc_evaluation, "parse_rec", objects):
                return super().evaluate()
