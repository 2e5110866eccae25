"""COCO's metrics, by faster-coco-eval where it is installed."""

import itertools
import json
import os
from typing import Dict, List

from detectron2.evaluation import COCOEvaluator

try:
    import faster_coco_eval
except ImportError:
    faster_coco_eval = None


class BoxEvaluator(COCOEvaluator):
    """COCOEvaluator for boxes; with faster-coco-eval it gives the same numbers sooner."""

    def __init__(self, dataset_name: str, output_dir: str):
        """
        Args:
            output_dir: gets the detections in COCO's format.
        """
        super().__init__(
            dataset_name,
            ("bbox",),
            output_dir=output_dir,
            use_fast_impl=False,
            allow_cached_coco=False,
        )

    def _eval_predictions(self, predictions: List[Dict], img_ids=None) -> None:
        if faster_coco_eval is None or not self._do_evaluation or img_ids is not None:
            super()._eval_predictions(predictions, img_ids)
            return
        found = list(itertools.chain.from_iterable(p["instances"] for p in predictions))
        dataset_ids = getattr(self._metadata, "thing_dataset_id_to_contiguous_id", None)
        if dataset_ids:
            original = {ours: theirs for theirs, ours in dataset_ids.items()}
            for detection in found:
                detection["category_id"] = original[detection["category_id"]]
        with open(os.path.join(self._output_dir, "coco_instances_results.json"), "w") as out:
            json.dump(found, out)
        evaluation = evaluate_boxes(self._coco_api.dataset, found) if found else None
        self._results["bbox"] = self._derive_coco_results(
            evaluation, "bbox", class_names=self._metadata.get("thing_classes")
        )


def evaluate_boxes(truth: Dict, detections: List[Dict]):
    """faster-coco-eval's evaluation; its images have numbers, where those of VOC have names.

    Args:
        truth: a COCO annotation file's content.
        detections: in COCO's result format; at least one.
    """
    number = {name: i + 1 for i, name in enumerate(sorted(p["id"] for p in truth["images"]))}
    images = [{**image, "id": number[image["id"]]} for image in truth["images"]]
    boxes = [{**box, "image_id": number[box["image_id"]]} for box in truth["annotations"]]
    detections = [{**box, "image_id": number[box["image_id"]]} for box in detections]
    api = faster_coco_eval.COCO({**truth, "images": images, "annotations": boxes})
    evaluation = faster_coco_eval.COCOeval_faster(api, api.loadRes(detections), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation
