"""Assignment by a threshold that each ground truth gets from its candidates."""

from typing import List, Optional, Tuple

import torch
from detectron2.config import configurable
from detectron2.structures import Boxes
from torch import Tensor

from ..parts import SSD_ASSIGNER_REGISTRY
from .candidates import CandidateAssigner, Truths, first_topk, is_inside, paired_iou


@SSD_ASSIGNER_REGISTRY.register(name="atss")
class ATSSAssigner(CandidateAssigner):
    """Adaptive training sample selection (Zhang et al., arXiv:1912.02424, algorithm 1).

    Candidates of a ground truth are the anchors of the ``topk`` nearest cells of every level: all
    anchors of a cell, as in the authors' code, where the paper has one per cell. Those are positive
    whose IoU is at least the mean plus the standard deviation over the candidates and whose centre
    is inside the box. Quality is left to the criterion.
    """

    @configurable
    def __init__(self, *, num_classes: int, topk: int = 9):
        super().__init__(num_classes)
        self.topk = topk

    @classmethod
    def from_config(cls, cfg, num_classes: int):
        return {"num_classes": num_classes, "topk": cfg.MODEL.SSD.ASSIGNER.TOPK}

    def candidates(
        self,
        anchors: List[Boxes],
        truths: Truths,
        scores: Optional[Tensor] = None,
        boxes: Optional[Tensor] = None,
    ) -> Tuple[Tensor, Tensor, Tensor]:
        anchor = torch.cat(self._nearest(anchors, truths), dim=1)  # (G, C)
        chosen = Boxes(Boxes.cat(anchors).tensor[anchor.flatten()])  # G * C
        truth = torch.arange(len(truths), device=anchor.device)[:, None].expand_as(anchor)
        of_truth = truths.boxes[truth.flatten()]
        iou = paired_iou(of_truth, chosen.tensor).view(anchor.shape)
        std = iou.std(dim=1, keepdim=True, correction=min(1, iou.shape[1] - 1))
        threshold = iou.mean(dim=1, keepdim=True) + std
        inside = is_inside(of_truth, chosen.get_centers()).view(anchor.shape)
        positive = (iou >= threshold) & inside
        return truth[positive], anchor[positive], iou[positive]

    def _nearest(self, anchors: List[Boxes], truths: Truths) -> List[Tensor]:
        """Anchors of the nearest cells: (G, min(topk, cells) * Ai) indices per level."""
        centers, first, chosen = Boxes(truths.boxes).get_centers(), 0, []
        for level in anchors:
            count = anchors_per_cell(level)
            cells = level.get_centers()[::count]
            distance = (centers[:, None] - cells).square().sum(dim=2)  # (G, cells)
            cell = first_topk(distance, min(self.topk, len(cells)), largest=False)
            of_cell = torch.arange(count, device=cell.device)
            chosen.append((first + cell[..., None] * count + of_cell).flatten(1))
            first += len(level)
        return chosen


def anchors_per_cell(level: Boxes) -> int:
    """Ai: how many anchors follow each other at one centre, at most.

    At most, since clipping to the image can move the centres of a border cell's anchors apart. 1 if
    that is no divisor of their number: then every anchor is taken for a cell.
    """
    centers = level.get_centers()
    moves = ((centers[1:] - centers[:-1]).abs() > 1e-2).any(dim=1).nonzero().squeeze(1)
    ends = torch.cat((moves.new_tensor([-1]), moves, moves.new_tensor([len(centers) - 1])))
    count = int(ends.diff().max())
    return 1 if len(level) % count else count
