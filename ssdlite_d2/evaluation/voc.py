"""PASCAL VOC's metrics beside COCO's."""

from collections import OrderedDict
from typing import Optional

from detectron2.evaluation import PascalVOCDetectionEvaluator


class VOCEvaluator(PascalVOCDetectionEvaluator):
    """The parent's metrics under the name ``voc``, from scores that are not rounded.

    The parent keeps 3 decimals of a score, which ties detections that differ, and calls its results
    ``bbox``, as COCO's are called. ``AP50`` is VOC's mAP: with 11 points for 2007, else the area.
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
        results = super().evaluate()
        return None if results is None else OrderedDict(voc=results["bbox"])
