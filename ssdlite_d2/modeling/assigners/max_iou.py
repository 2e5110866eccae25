"""Matching by overlap, as SSD was published."""

from typing import List, Optional

import torch
from detectron2.config import configurable
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor

from ..parts import SSD_ASSIGNER_REGISTRY
from .assigner import Assigner, Assignment, ignore_regions


class SSDMatcher(Matcher):
    """Matching of :paper:`SSD`, sec. 2.2: IoU at a threshold, and the best anchor of every box.

    Unlike the parent's low-quality matches, the best anchor of a ground truth is bound to *that*
    ground truth and there is one per ground truth, so that a box which no anchor covers cannot make
    every anchor positive. Of two ground truths with the same best anchor, the later one has it.
    """

    def __init__(self, iou_threshold: float = 0.5):
        super().__init__([iou_threshold], [0, 1], allow_low_quality_matches=False)

    def __call__(self, match_quality_matrix: Tensor):
        """
        Args:
            match_quality_matrix: (M, R) IoU of ground truths and anchors; M may be 0.

        Returns:
            (R,) int64 index of each anchor's ground truth and (R,) int8 label, 1 positive and 0
            background. The index of a background anchor has no meaning.
        """
        matches, labels = super().__call__(match_quality_matrix)
        if match_quality_matrix.numel() == 0:
            return matches, labels
        best_iou, best_anchor = match_quality_matrix.max(dim=1)
        truths = torch.arange(len(best_anchor), device=best_anchor.device)
        bound = best_iou > 0  # a box outside every anchor is bound to none
        best_anchor, truths = best_anchor[bound], truths[bound]
        matches = matches.scatter_reduce(0, best_anchor, truths, "amax", include_self=False)
        labels[best_anchor] = 1
        return matches, labels


@SSD_ASSIGNER_REGISTRY.register(name="max_iou")
class MaxIoUAssigner(Assigner):
    """An anchor is positive from an IoU on, and the best anchor of every ground truth is."""

    @configurable
    def __init__(self, *, num_classes: int, iou_threshold: float = 0.5):
        self.num_classes = num_classes
        self.iou_threshold = iou_threshold
        self.matcher = SSDMatcher(iou_threshold)

    @classmethod
    def from_config(cls, cfg, num_classes: int):
        return {"num_classes": num_classes, "iou_threshold": cfg.MODEL.SSD.ASSIGNER.IOU_THRESHOLD}

    @torch.no_grad()
    def __call__(
        self,
        anchors: List[Boxes],
        targets: List[Instances],
        scores: Optional[Tensor] = None,
        boxes: Optional[Tensor] = None,
    ) -> Assignment:
        all_anchors = Boxes.cat(anchors)
        labels, matched, best = [], [], []
        for instances in targets:
            is_region = instances.gt_classes < 0
            regions, instances = instances.gt_boxes[is_region], instances[~is_region]
            quality = pairwise_iou(instances.gt_boxes, all_anchors)  # (M, R)
            matches, positive = self.matcher(quality)
            if len(instances):
                classes = instances.gt_classes[matches]
                classes[positive == 0] = self.num_classes
                matched.append(instances.gt_boxes.tensor[matches])
                best.append(quality.amax(dim=1))
            else:
                classes = torch.full_like(matches, self.num_classes)
                matched.append(all_anchors.tensor)
            ignore_regions(classes, all_anchors, regions, self.num_classes)
            labels.append(classes)
        self._log_coverage(best)
        return Assignment(torch.stack(labels), torch.stack(matched))

    def _log_coverage(self, best: List[Tensor]) -> None:
        """Log how well anchors cover the boxes.

        Args:
            best: (M,) IoU of every box with its best anchor, per image that has boxes.
        """
        if best and has_event_storage():
            iou = torch.cat(best)
            covered = (iou >= self.iou_threshold).float()
            get_event_storage().put_scalars(
                boxes_covered=float(covered.mean()), best_anchor_iou=float(iou.mean())
            )
