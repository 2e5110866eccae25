"""From scores and box codes of all anchors to detections."""

from typing import NamedTuple

import torch
from detectron2.layers import batched_nms
from torch import Tensor

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
