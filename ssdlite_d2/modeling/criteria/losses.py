"""SSD's losses, as functions of tensors: at least float32 inside, defined without positives.

Letters: N images, R anchors, K foreground classes; background is class K, and anchors of class -1
are left out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def hard_negatives(loss: Tensor, positive: Tensor, ratio: float = 3.0) -> Tensor:
    """The negatives that :paper:`SSD` (sec. 2.2, hard negative mining) keeps in each image.

    Args:
        loss: (N, R) class loss of every anchor.
        positive: (N, R) bool.
        ratio: negatives per positive.

    Returns:
        (N, R) bool: the negatives of greatest loss, ``ratio * positives`` of each image, or all.
    """
    count = positive.sum(dim=1, keepdim=True) * ratio
    loss = loss.detach().masked_fill(positive, -float("inf"))
    rank = loss.argsort(dim=1, descending=True).argsort(dim=1)
    return (rank < count) & ~positive


def multibox_class_loss(logits: Tensor, labels: Tensor, neg_pos_ratio: float = 3.0) -> Tensor:
    """Softmax cross-entropy over positives and mined negatives, summed.

    Args:
        logits: (N, R, K + 1), background last.
        labels: (N, R) in [-1, K]; K is background.
    """
    background = logits.shape[-1] - 1
    logits = at_least_float(logits).flatten(0, 1)
    loss = F.cross_entropy(logits, labels.flatten(), ignore_index=-1, reduction="none")
    loss = loss.view(labels.shape)  # 0 for -1
    positive = (labels >= 0) & (labels != background)
    chosen = positive | hard_negatives(loss, positive, neg_pos_ratio)
    return loss[chosen].sum()


def focal_class_loss(
    logits: Tensor, labels: Tensor, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Sigmoid focal loss (:paper:`RetinaNet`, eq. 5) over all anchors and classes, summed.

    fvcore's ``sigmoid_focal_loss``, with less work: the loss of a negative for every score, and at
    the few positives the difference to theirs.

    Args:
        logits: (N, R, K); there is no background class.
        labels: (N, R) in [-1, K]; K is background: the target is 0 in every class. Anchors of -1
            are left out.
    """
    logits = at_least_float(logits)
    negative = _focal_term(logits, 1 - alpha, gamma).sum(dim=-1)  # (N, R)
    positive = (labels >= 0) & (labels < logits.shape[-1])
    score = logits[positive].gather(1, labels[positive][:, None])  # (P, 1)
    extra = _focal_term(-score, alpha, gamma) - _focal_term(score, 1 - alpha, gamma)
    return (negative * (labels >= 0)).sum() + extra.sum()


def _focal_term(x: Tensor, weight: float, gamma: float) -> Tensor:
    """Loss of logits x whose target is 0; that of target 1 is the one of -x."""
    return weight * x.sigmoid() ** gamma * F.softplus(x)


def smooth_l1_loss(deltas: Tensor, targets: Tensor, beta: float = 1.0) -> Tensor:
    """Smooth L1 of box codes, summed over the code: (P,).

    Args:
        deltas, targets: (P, D); P may be 0.
        beta: where the loss turns from quadratic to linear; 0 is plain L1.
    """
    loss = F.smooth_l1_loss(deltas, targets.to(deltas), beta=beta, reduction="none")
    return loss.sum(dim=1)


def at_least_float(x: Tensor) -> Tensor:
    """At least float32."""
    return x if x.dtype == torch.float64 else x.float()
