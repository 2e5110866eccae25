"""Assignment by the predictions: the anchors that score and locate a ground truth best."""

from typing import List, Optional, Tuple

import torch
from detectron2.config import configurable
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor

from ..parts import SSD_ASSIGNER_REGISTRY
from .assigner import Assigner, Assignment
from .atss import ATSSAssigner
from .candidates import CandidateAssigner, Truths, first_topk, is_inside, paired_iou

TINY = torch.finfo(torch.float32).tiny


@SSD_ASSIGNER_REGISTRY.register(name="task_aligned")
class TaskAlignedAssigner(CandidateAssigner):
    """Task-aligned assignment (TOOD, Feng et al., arXiv:2108.07755, sec. 3.2).

    The alignment of an anchor with a ground truth is ``score ** alpha * IoU ** beta`` of its
    predictions. Of the anchors with their centre in the box the ``topk`` best aligned are positive.
    Quality is the alignment, scaled so that its maximum over a ground truth's anchors is their
    maximum IoU. The one anchor of a ground truth that would have none (see ``bind_lost``) has at
    least its own IoU as its quality, so that there is something to learn from.

    Early predictions say little: for the first ``warmup_iters`` iterations, counted by Detectron2's
    event storage, another assigner decides, as in PicoDet.
    """

    needs_predictions = True

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        topk: int = 13,
        alpha: float = 1.0,
        beta: float = 6.0,
        warmup: Optional[Assigner] = None,
        warmup_iters: int = 0,
    ):
        super().__init__(num_classes)
        self.topk = topk
        self.alpha = alpha
        self.beta = beta
        self.warmup = warmup
        self.warmup_iters = warmup_iters

    @classmethod
    def from_config(cls, cfg, num_classes: int):
        node = cfg.MODEL.SSD.ASSIGNER
        return {
            "num_classes": num_classes,
            "topk": node.ALIGNED_TOPK,
            "alpha": node.ALPHA,
            "beta": node.BETA,
            "warmup": ATSSAssigner(cfg, num_classes=num_classes),
            "warmup_iters": node.WARMUP_ITERS,
        }

    def __call__(
        self,
        anchors: List[Boxes],
        targets: List[Instances],
        scores: Optional[Tensor] = None,
        boxes: Optional[Tensor] = None,
    ) -> Assignment:
        if has_event_storage() and get_event_storage().iter < self.warmup_iters:
            return self.warmup(anchors, targets, scores, boxes)
        return super().__call__(anchors, targets, scores, boxes)

    def candidates(
        self, anchors: List[Boxes], truths: Truths, scores: Tensor, boxes: Tensor
    ) -> Tuple[Tensor, Tensor, Tensor]:
        inside = is_inside(truths.boxes[:, None], Boxes.cat(anchors).get_centers())  # (G, R)
        truth, anchor = inside.nonzero(as_tuple=True)  # (C,), row by row
        alignment, iou = self.alignment(truth, anchor, truths, scores, boxes)
        count = inside.sum(dim=1)
        first = count.cumsum(dim=0) - count  # (G,)
        rows = alignment.new_zeros(len(truths), max(int(count.max()), self.topk))
        rows[truth, torch.arange(len(truth), device=truth.device) - first[truth]] = alignment
        best = first_topk(rows, self.topk)  # (G, topk)
        pair = (first[:, None] + best)[rows.gather(1, best) > 0]
        return truth[pair], anchor[pair], iou[pair]

    def alignment(
        self, truth: Tensor, anchor: Tensor, truths: Truths, scores: Tensor, boxes: Tensor
    ) -> Tuple[Tensor, Tensor]:
        """Alignment and IoU of pairs, (C,) each."""
        image = truths.image[truth]
        iou = paired_iou(boxes[image, anchor], truths.boxes[truth])
        score = scores[image, anchor, truths.classes[truth]]
        return (score**self.alpha * iou**self.beta).nan_to_num(0.0), iou

    def quality(
        self,
        owner: Tensor,
        bound: Tensor,
        anchors: Tensor,
        truths: Truths,
        scores: Tensor,
        boxes: Tensor,
    ) -> Tensor:
        slot = (owner < len(truths)).nonzero().squeeze(1)  # (P,)
        truth, anchor = owner[slot], slot % len(anchors)
        alignment, iou = self.alignment(truth, anchor, truths, scores, boxes)
        zeros = iou.new_zeros(len(truths))
        best_alignment, best_iou = (
            zeros.scatter_reduce(0, truth, x, "amax")[truth] for x in (alignment, iou)
        )
        value = alignment / best_alignment.clamp(min=TINY) * best_iou
        least = paired_iou(anchors[anchor], truths.boxes[truth]) * bound[slot]
        return iou.new_zeros(owner.shape).index_put((slot,), value.maximum(least))
