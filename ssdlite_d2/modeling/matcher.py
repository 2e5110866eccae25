"""Assignment of ground truth to anchors."""

import torch
from detectron2.modeling.matcher import Matcher
from torch import Tensor


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
