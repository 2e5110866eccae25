"""From scores and box codes of all anchors to detections."""

from typing import Any, Dict, List, NamedTuple, Tuple

import torch
from detectron2.config import configurable
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances
from torch import Tensor

from .box_coders import BoxCoder
from .criteria import Criterion
from .parts import SSD_POSTPROCESSOR_REGISTRY

BLOCK = 500  # boxes that enter suppression at once


class Candidates(NamedTuple):
    """(anchor, class) pairs of a batch, those of an image together and best first; (C,) each."""

    image: Tensor
    anchor: Tensor
    label: Tensor
    value: Tensor


def best_candidates(
    values: Tensor, threshold: float, per_image: int, per_class: int = 0
) -> Candidates:
    """The pairs above a threshold, at most so many of an image, and of a class in an image.

    Args:
        values: (N, R, K) scores, or logits whose order is that of the scores.
        per_class: 0 is no limit.
    """
    images, anchors, classes = values.shape
    flat = values.flatten()
    index = (flat > threshold).nonzero().squeeze(1)  # (C,)
    value, order = flat[index].sort(descending=True, stable=True)
    index = index[order]
    image = index.div(anchors * classes, rounding_mode="floor")
    label = index % classes
    keep = None
    if per_class:
        keep = _rank(image * classes + label) < per_class
        index, value, image, label = (x[keep] for x in (index, value, image, label))
    if images > 1:
        image, order = image.sort(stable=True)
        index, value, label = (x[order] for x in (index, value, label))
    if len(index) > per_image:
        keep = _rank(image) < per_image
        index, value, image, label = (x[keep] for x in (index, value, image, label))
    anchor = index.div(classes, rounding_mode="floor") % anchors
    return Candidates(image, anchor, label, value)


def _rank(group: Tensor) -> Tensor:
    """How many earlier entries of the same group each entry (C,) has."""
    ordered, order = group.sort(stable=True)
    first = torch.searchsorted(ordered, ordered)
    rank = torch.empty_like(group)
    rank[order] = torch.arange(len(group), device=group.device) - first
    return rank


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float, limit: int) -> Tensor:
    """Non-maximum suppression within classes that stops at ``limit`` kept boxes.

    Boxes are taken block by block until ``limit`` are kept: suppression of all candidates at once
    takes time that grows with their square.

    Args:
        boxes, scores, labels: (C, 4), (C,) and (C,), best first.

    Returns:
        indices of the kept boxes, best first.
    """
    kept = torch.empty(0, dtype=torch.int64, device=boxes.device)
    for start in range(0, len(boxes), BLOCK):
        # what is kept comes before the block's boxes, and is kept again
        block = torch.arange(start, min(start + BLOCK, len(boxes)), device=boxes.device)
        new = torch.cat((kept, block))
        kept = new[batched_nms(boxes[new], scores[new], labels[new], threshold)]
        if len(kept) >= limit:
            break
    return kept[:limit]


@SSD_POSTPROCESSOR_REGISTRY.register(name="nms")
class Postprocessor:
    """Score threshold, best candidates, decoding of those, non-maximum suppression."""

    @configurable
    def __init__(
        self,
        *,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        candidates: int = 2000,
        candidates_per_class: int = 0,
        across_classes: bool = False,
        clip_before_nms: bool = False,
        max_detections: int = 100,
    ):
        """
        Args:
            candidates: (anchor, class) pairs of an image that enter suppression.
            candidates_per_class: the same for each class; 0 is no limit.
            across_classes: suppress boxes of other classes, too.
            clip_before_nms: clip boxes to the input before suppression, not only after it.
            max_detections: of an image.
        """
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.candidates = candidates
        self.candidates_per_class = candidates_per_class
        self.across_classes = across_classes
        self.clip_before_nms = clip_before_nms
        self.max_detections = max_detections

    @classmethod
    def from_config(cls, cfg):
        node = cfg.MODEL.SSD.POSTPROCESS
        return {
            "score_threshold": node.SCORE_THRESH,
            "nms_threshold": node.NMS_THRESH,
            "candidates": node.TOPK_CANDIDATES,
            "candidates_per_class": node.TOPK_PER_CLASS,
            "across_classes": node.ACROSS_CLASSES,
            "clip_before_nms": node.CLIP_BEFORE_NMS,
            "max_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
        }

    def options(self) -> Dict[str, Any]:
        """What a bundle has to know to do the same; JSON values, by the constructor's names."""
        return dict(vars(self))

    def __call__(
        self,
        logits: Tensor,
        deltas: Tensor,
        anchors: Boxes,
        size: Tuple[int, int],
        criterion: Criterion,
        box_coder: BoxCoder,
    ) -> List[Instances]:
        """Detections of every image, in pixels of the network input, best first.

        Only candidates above the threshold are decoded, those of all images together.

        Args:
            logits, deltas: (N, R, Kc) and (N, R, D).
            anchors: R boxes.
            size: (H, W) of the network input.
        """
        values, threshold = criterion.ranking(logits, self.score_threshold)
        chosen = best_candidates(values, threshold, self.candidates, self.candidates_per_class)
        boxes = box_coder.apply_deltas(
            deltas[chosen.image, chosen.anchor], anchors.tensor[chosen.anchor]
        )
        if self.clip_before_nms:
            clipped = Boxes(boxes)
            clipped.clip(size)
            boxes = clipped.tensor
        scores = criterion.scores_of_ranked(chosen.value)
        counts = chosen.image.bincount(minlength=len(logits)).tolist()
        parts = (x.split(counts) for x in (boxes, scores, chosen.label))
        return [self._suppress(*image, size) for image in zip(*parts)]

    def _suppress(self, boxes: Tensor, scores: Tensor, labels: Tensor, size) -> Instances:
        groups = torch.zeros_like(labels) if self.across_classes else labels
        kept = suppress(boxes, scores, groups, self.nms_threshold, self.max_detections)
        return Instances(
            size, pred_boxes=Boxes(boxes[kept]), scores=scores[kept], pred_classes=labels[kept]
        )
