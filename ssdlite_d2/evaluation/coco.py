"""COCO's metrics of boxes, by faster-coco-eval where it is installed."""

import itertools
import json
import logging
import math
import os
from typing import Dict, List, Optional, Sequence

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .operating import box_table, operating_results

try:
    import faster_coco_eval
except ImportError:
    faster_coco_eval = None

# The evaluation needs a detection; this one is outside of any image.
NOTHING = {"bbox": [-2.0, -2.0, 1.0, 1.0], "score": 0.0}


class BoxEvaluator(COCOEvaluator):
    """COCOEvaluator for boxes, whatever the ids in the files.

    A data set with ``json_file`` in its metadata, as Detectron2's own, is evaluated by that file;
    any other by the dataset dicts of its loader. The parent needs unique annotation ids above 0,
    ``area`` and ``iscrowd`` in such a file; here they may be absent.

    Attributes:
        image_ids: after ``evaluate``, in the order of the tables.
        tables: detections and true boxes, as BoxTable.
    """

    def __init__(self, dataset_name: str, output_dir: str):
        """
        Args:
            output_dir: gets the detections in COCO's format, with the files' image and class ids;
                "": they are not written.
        """
        self._logger = logging.getLogger(__name__)
        self._distributed, self._output_dir = True, output_dir
        self._cpu_device = torch.device("cpu")
        self._metadata = metadata = MetadataCatalog.get(dataset_name)
        ids = metadata.get("thing_dataset_id_to_contiguous_id", None)
        ids = {ours: theirs for theirs, ours in ids.items()} if ids else {}
        self._classes = metadata.get("thing_classes", None)
        self._category_ids = [ids.get(i, i) for i in range(len(ids or self._classes))]
        if hasattr(metadata, "json_file"):
            with PathManager.open(metadata.json_file) as file:
                self._truth = json.load(file)
        else:
            self._truth = coco_truth(DatasetCatalog.get(dataset_name), self._category_ids)

    def _eval_predictions(self, predictions: List[Dict], img_ids=None) -> None:
        found = list(itertools.chain.from_iterable(p["instances"] for p in predictions))
        for detection in found:
            detection["category_id"] = self._category_ids[detection["category_id"]]
        if self._output_dir:
            with open(os.path.join(self._output_dir, "coco_instances_results.json"), "w") as out:
                json.dump(found, out)
        if not self._truth.get("annotations"):  # such as a test set of a challenge
            self._logger.info("There are no annotations to evaluate by")
            return
        given = found
        if not found:
            self._logger.info(
                "The model found nothing, so AP is 0.0: train longer, or lower "
                "MODEL.SSD.POSTPROCESS.SCORE_THRESH"
            )
            found = [{**NOTHING, "image_id": self._truth["images"][0]["id"]}]
            found[0]["category_id"] = self._category_ids[0]
        evaluation = evaluate_boxes(self._truth, found, img_ids)
        self._results["bbox"] = self._derive_coco_results(
            evaluation, "bbox", class_names=self._classes
        )
        several = self._classes if len(self._classes or ()) > 1 else ()
        halves = evaluation.eval["precision"][0, :, :, 0, -1]  # (recall, K) at IoU 0.5
        for name, precision in zip(several, halves.T):
            known = precision[precision > -1]
            self._results["bbox"][f"AP50-{name}"] = 100 * known.mean() if known.size else math.nan
        self.image_ids = image_order(self._truth) if img_ids is None else img_ids
        self.tables = tuple(
            box_table(entries, self.image_ids, self._category_ids)
            for entries in (given, self._truth["annotations"])
        )
        self._results["operating"] = operating_results(*self.tables, several)


def coco_truth(records: Sequence[Dict], category_ids: Sequence[int]) -> Dict:
    """Dataset dicts as the content of a COCO annotation file.

    Args:
        records: with ``image_id`` and ``annotations``, which may have ``area`` (the box's, if
            absent) and ``iscrowd``.
        category_ids: COCO's id of each class.
    """
    annotations = []
    for record in records:
        for a in record.get("annotations", ()):
            box = BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYWH_ABS)
            truth = {"image_id": record["image_id"], "bbox": list(box)}
            truth["category_id"] = category_ids[a["category_id"]]
            annotations.append({**truth, **{k: a[k] for k in ("area", "iscrowd") if k in a}})
    images = [{"id": image_id} for image_id in {r["image_id"]: None for r in records}]
    categories = [{"id": i, "name": str(i)} for i in category_ids]
    return {"images": images, "annotations": annotations, "categories": categories}


def image_order(truth: Dict) -> List:
    """Image ids of a COCO file, which may be names, in the order of the evaluation."""
    ids = (image["id"] for image in truth["images"])
    return sorted(ids, key=lambda i: (isinstance(i, str), i))


def evaluate_boxes(truth: Dict, detections: List[Dict], image_ids: Optional[Sequence] = None):
    """The finished COCOeval of detections.

    The evaluation takes annotation 0 for "no match" and leaves out all but one of those that share
    an id, and image ids may be names: all are numbered anew from 1.

    Args:
        truth: a COCO annotation file's content, of unique image ids.
        detections: in COCO's result format; at least one.
        image_ids: images to evaluate on; None: all.
    """
    number = {name: i for i, name in enumerate(image_order(truth), 1)}
    boxes = [a for a in truth["annotations"] if a["image_id"] in number]
    boxes = [{"area": a["bbox"][2] * a["bbox"][3], "iscrowd": 0, **a} for a in boxes]
    fast = faster_coco_eval is not None
    api = faster_coco_eval.COCO() if fast else COCO()
    api.dataset = {
        "images": [{**image, "id": number[image["id"]]} for image in truth["images"]],
        "annotations": [
            {**a, "id": i, "image_id": number[a["image_id"]]} for i, a in enumerate(boxes, 1)
        ],
        "categories": truth["categories"],
    }
    api.createIndex()
    found = api.loadRes([{**a, "image_id": number[a["image_id"]]} for a in detections])
    evaluation = (faster_coco_eval.COCOeval_faster if fast else COCOeval)(api, found, "bbox")
    if image_ids is not None:
        evaluation.params.imgIds = sorted(number[i] for i in image_ids)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation
