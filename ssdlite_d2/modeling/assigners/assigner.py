"""What an assigner is: it says which anchors answer for which ground truth."""

from typing import List, NamedTuple, Optional

from detectron2.structures import Boxes, Instances, pairwise_ioa
from torch import Tensor


class Assignment(NamedTuple):
    """Targets of all R anchors of N images.

    Attributes:
        labels: (N, R) int64 class; K for background, -1 for what is ignored in the loss.
        boxes: (N, R, 4) ground-truth box; without a meaning where the anchor is not positive.
        quality: (N, R) target score in [0, 1] of positive anchors, 0 for the others. None: the
            assigner gives none, and the criterion uses its own.
    """

    labels: Tensor
    boxes: Tensor
    quality: Optional[Tensor] = None

    def positive(self, num_classes: int) -> Tensor:
        """(N, R) bool."""
        return (self.labels >= 0) & (self.labels != num_classes)


class Assigner:
    """
    Attributes:
        needs_predictions: whether it wants the predicted scores and boxes.
    """

    needs_predictions = False

    def __call__(
        self,
        anchors: List[Boxes],
        targets: List[Instances],
        scores: Optional[Tensor] = None,
        boxes: Optional[Tensor] = None,
    ) -> Assignment:
        """
        Args:
            anchors: of every level, R in all.
            targets: N images with ``gt_boxes`` (M, 4) in pixels of the network input and
                ``gt_classes`` (M,); M may be 0. Boxes of class -1 are regions to ignore.
            scores, boxes: (N, R, K) and (N, R, 4) predictions, without gradient, if
                ``needs_predictions``.
        """
        raise NotImplementedError


def ignore_regions(labels: Tensor, anchors: Boxes, regions: Boxes, background: int) -> None:
    """Set background labels (R,) to -1, in place, of anchors that lie by half in a region."""
    if len(regions):
        inside = (pairwise_ioa(regions, anchors) >= 0.5).any(dim=0)
        labels[inside & (labels == background)] = -1
