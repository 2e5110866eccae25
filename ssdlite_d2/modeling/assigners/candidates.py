"""What assigners by candidates share: conflicts, truths that have no anchor, and the targets."""

from typing import List, NamedTuple, Optional, Tuple

import torch
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.structures.boxes import matched_pairwise_iou
from torch import Tensor

from .assigner import Assigner, Assignment, ignore_regions


class Truths(NamedTuple):
    """All G ground truths of N images, those of an image together.

    Attributes:
        boxes: (G, 4).
        classes, image: (G,) int64; the image is an index in [0, N).
    """

    boxes: Tensor
    classes: Tensor
    image: Tensor

    def __len__(self) -> int:
        return len(self.boxes)


class CandidateAssigner(Assigner):
    """Pairs of a ground truth and an anchor, of which an anchor keeps the one of highest IoU.

    A ground truth that is left without an anchor gets one, see ``bind_lost``. All images are done
    at once.
    """

    def __init__(self, num_classes: int):
        self.num_classes = num_classes

    def candidates(
        self,
        anchors: List[Boxes],
        truths: Truths,
        scores: Optional[Tensor],
        boxes: Optional[Tensor],
    ) -> Tuple[Tensor, Tensor, Tensor]:
        """The pairs: index of the truth, index of the anchor, IoU; (C,) each. G is not 0."""
        raise NotImplementedError

    def quality(
        self,
        owner: Tensor,
        bound: Tensor,
        anchors: Tensor,
        truths: Truths,
        scores: Optional[Tensor],
        boxes: Optional[Tensor],
    ) -> Optional[Tensor]:
        """Target scores (N * R,), or None.

        Args:
            owner: (N * R,) index of each anchor's truth; G is background.
            bound: (N * R,) bool: anchors that ``bind_lost`` gave.
            anchors: (R, 4).
        """
        return None

    @torch.no_grad()
    def __call__(
        self,
        anchors: List[Boxes],
        targets: List[Instances],
        scores: Optional[Tensor] = None,
        boxes: Optional[Tensor] = None,
    ) -> Assignment:
        all_anchors = Boxes.cat(anchors)
        truths = gather_truths(targets)
        shape = len(targets), len(all_anchors)
        owner = won = torch.full((shape[0] * shape[1],), len(truths), device=all_anchors.device)
        if len(truths):
            truth, anchor, iou = self.candidates(anchors, truths, scores, boxes)
            slot = truths.image[truth] * shape[1] + anchor
            won = highest_iou(owner, slot, truth, iou)
            owner = bind_lost(won, truths, all_anchors)
        quality = self.quality(owner, owner != won, all_anchors.tensor, truths, scores, boxes)
        classes = torch.cat((truths.classes, owner.new_full((1,), self.num_classes)))
        labels = classes[owner].view(shape)
        for image, instances in enumerate(targets):
            regions = instances.gt_boxes[instances.gt_classes < 0]
            ignore_regions(labels[image], all_anchors, regions, self.num_classes)
        matched = torch.cat((truths.boxes, truths.boxes.new_zeros(1, 4)))[owner]
        return Assignment(
            labels, matched.view(*shape, 4), None if quality is None else quality.view(shape)
        )


def gather_truths(targets: List[Instances]) -> Truths:
    """The ground truths of a batch without the regions to ignore."""
    boxes = Boxes.cat([x.gt_boxes for x in targets]).tensor
    classes = torch.cat([x.gt_classes for x in targets])
    counts = torch.tensor([len(x) for x in targets], device=classes.device)
    image = torch.arange(len(targets), device=classes.device).repeat_interleave(counts)
    kept = classes >= 0
    return Truths(boxes[kept], classes[kept], image[kept])


def highest_iou(owner: Tensor, slot: Tensor, truth: Tensor, iou: Tensor) -> Tensor:
    """Owners (N * R,) after C truths asked for anchors: the highest IoU wins, then the first truth.

    Args:
        owner: (N * R,) so far.
        slot: (C,) which of the N * R anchors is asked for.
        truth, iou: (C,).
    """
    best = iou.new_full(owner.shape, -1.0).scatter_reduce(0, slot, iou, "amax")
    wins = iou == best[slot]
    return owner.scatter_reduce(0, slot[wins], truth[wins], "amin", include_self=False)


def bind_lost(owner: Tensor, truths: Truths, anchors: Boxes) -> Tensor:
    """Owners (N * R,) in which a truth without an anchor has the one of highest IoU with its box.

    That is for boxes smaller than a cell, which contain no anchor's centre, and for those that lost
    all to others. They take background anchors or another truth's, but never the best one that
    another truth has; of several that want the same, the others take their next best. Only a box
    that overlaps no such anchor stays without.

    Args:
        owner: (N * R,) index of each anchor's truth; G is background.
    """
    background, count = len(truths), len(anchors)
    lost = (owner.bincount(minlength=background + 1)[:-1] == 0).nonzero().squeeze(1)
    if not len(lost):
        return owner
    slot = (owner < background).nonzero().squeeze(1)
    iou = paired_iou(truths.boxes[owner[slot]], anchors.tensor[slot % count])
    best = iou.new_zeros(background).scatter_reduce(0, owner[slot], iou, "amax")
    free = torch.ones_like(owner, dtype=torch.bool)
    free[slot[iou == best[owner[slot]]]] = False
    iou = pairwise_iou(Boxes(truths.boxes[lost]), anchors)  # (lost, R)
    while len(lost):  # at least one is served each time, or none is left
        best, anchor = (iou * free.view(-1, count)[truths.image[lost]]).max(dim=1)
        lost, iou, best, anchor = (x[best > 0] for x in (lost, iou, best, anchor))
        slot = truths.image[lost] * count + anchor
        owner = highest_iou(owner, slot, lost, best)
        free[slot] = False
        left = owner[slot] != lost
        lost, iou = lost[left], iou[left]
    return owner


def first_topk(values: Tensor, k: int, largest: bool = True) -> Tensor:
    """Indices (G, k) of the largest or smallest of each row; of equal ones the first.

    ``topk`` leaves open which of equal ones it takes, on CUDA and the CPU differently.

    Args:
        values: (G, C), not negative; compared as float32. C >= k.
    """
    place = torch.arange(values.shape[1], device=values.device)
    # such floats are in the order of their bits
    order = values.float().contiguous().view(torch.int32).long() << 32
    order += place.flip(0) if largest else place
    return order.topk(k, largest=largest).indices


def paired_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU (C,) of the i-th boxes of (C, 4) and (C, 4); 0 where both are empty or one is NaN."""
    return matched_pairwise_iou(Boxes(boxes), Boxes(others)).nan_to_num(0.0)


def is_inside(boxes: Tensor, points: Tensor) -> Tensor:
    """Whether points (..., 2) lie in boxes (..., 4), not on the border; shapes broadcast."""
    x, y = points.unbind(-1)
    left, top, right, bottom = boxes.unbind(-1)
    return (x > left) & (x < right) & (y > top) & (y < bottom)
