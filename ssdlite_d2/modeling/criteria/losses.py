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
    order = loss.argsort(dim=1, descending=True)
    first = torch.arange(loss.shape[1], device=loss.device) < count
    return torch.zeros_like(positive).scatter_(1, order, first) & ~positive


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

    Args:
        logits: (N, R, K); there is no background class.
        labels: (N, R) in [-1, K]; K is background: the target is 0 in every class. Anchors of -1
            are left out.
    """

    def of_positive(score: Tensor) -> Tensor:  # a target of 1 costs x what one of 0 costs -x
        return _focal_term(-score, alpha, gamma)

    return _SigmoidLoss.apply(at_least_float(logits), labels, 1 - alpha, gamma, of_positive)


def quality_focal_loss(
    logits: Tensor, labels: Tensor, quality: Tensor, beta: float = 2.0
) -> Tensor:
    """Quality focal loss (Li et al., arXiv:2006.04388, eq. 4) over all anchors and classes, summed.

    ``|q - sigmoid(x)| ** beta`` times the cross-entropy of x with the target q, the quality in the
    class of a positive anchor and 0 elsewhere.

    Args:
        logits, labels: as of ``focal_class_loss``.
        quality: (P,) of the positive anchors, in [0, 1].
    """

    def of_positive(score: Tensor) -> Tensor:
        distance = (quality - score.sigmoid()).abs()
        return distance**beta * _cross_entropy(score, quality)

    return _SigmoidLoss.apply(at_least_float(logits), labels, 1.0, beta, of_positive)


def varifocal_loss(
    logits: Tensor, labels: Tensor, quality: Tensor, alpha: float = 0.75, gamma: float = 2.0
) -> Tensor:
    """Varifocal loss (Zhang et al., arXiv:2008.13367, eq. 2) over all anchors and classes, summed.

    A focal loss where the target is 0; in the class of a positive anchor the cross-entropy with the
    quality q, weighted by q. Arguments as of ``quality_focal_loss``.
    """

    def of_positive(score: Tensor) -> Tensor:
        return quality * _cross_entropy(score, quality)

    return _SigmoidLoss.apply(at_least_float(logits), labels, alpha, gamma, of_positive)


def distribution_focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Distribution focal loss (Li et al., arXiv:2006.04388, eq. 6), a mean over the sides: (P,).

    The cross-entropies with the two bins beside a target, weighted by its nearness to them.

    Args:
        logits: (P, S, B + 1) of the bins 0 to B of S sides.
        targets: (P, S) in bins, in [0, B].
    """
    left = targets.floor().clamp(max=logits.shape[-1] - 2)
    share = targets - left
    bins = torch.stack((left, left + 1), dim=-1).long()  # (P, S, 2)
    weights = torch.stack((1 - share, share), dim=-1)
    return -(logits.log_softmax(dim=-1).gather(2, bins) * weights).sum(dim=-1).mean(dim=-1)


class _SigmoidLoss(torch.autograd.Function):
    """``weight * sigmoid(x) ** gamma * softplus(x)``, but for the classes of positive anchors.

    Value and gradient are computed together, in few passes over the logits: autograd would take
    several times as long for them, and they are most of the loss.
    """

    @staticmethod
    def forward(ctx, logits, labels, weight, gamma, of_positive):
        """
        Args:
            logits, labels: (N, R, K) and (N, R) as of ``focal_class_loss``.
            of_positive: loss (P,) of the logits (P,) of positive anchors in their classes.
        """
        gradient = torch.empty_like(logits)
        # image by image on the CPU, whose caches hold no more
        step = 1 if logits.device.type == "cpu" else max(len(logits), 1)
        rows = [
            _negative_loss(x, weight, gamma, out).sum(dim=-1)
            for x, out in zip(logits.split(step), gradient.split(step))
        ]
        loss = torch.cat(rows)  # (N, R)
        ignored = (labels < 0).nonzero(as_tuple=True)
        loss[ignored], gradient[ignored] = 0, 0
        positive = (labels >= 0) & (labels < logits.shape[-1])
        index = (*positive.nonzero(as_tuple=True), labels[positive])
        score = logits[index]  # (P,)
        loss = loss.sum() - _negative_loss(score, weight, gamma, torch.empty_like(score)).sum()
        with torch.enable_grad():
            extra = of_positive(score.requires_grad_()).sum()
            (gradient[index],) = torch.autograd.grad(extra, score)
        ctx.save_for_backward(gradient)
        return loss + extra.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        (gradient,) = ctx.saved_tensors
        return gradient * grad_output, None, None, None, None


def _negative_loss(x: Tensor, weight: float, gamma: float, gradient: Tensor) -> Tensor:
    """``weight * sigmoid(x) ** gamma * softplus(x)``, elementwise; its derivative is written too.

    Args:
        gradient: of the shape of x; gets the derivative.
    """
    score = x.sigmoid()
    rest = torch.sub(1, score, out=gradient)
    # exact for x of both signs: of score and rest it uses the one that was not rounded near 1
    softplus = _minus_log1p(torch.minimum(score, rest)).add_(x.relu())
    power = (score**gamma).mul_(weight)
    rest.mul_(softplus).mul_(gamma).add_(score).mul_(power)
    return softplus.mul_(power)


# log((1 + z) / (1 - z)) / z by powers of z ** 2, for z in [0, 1 / 3]: relative error 4e-9
LOG_RATIO = (2.00000001, 0.66666322, 0.40024595, 0.27965158, 0.28157778)


def _minus_log1p(m: Tensor) -> Tensor:
    """``-log(1 - m)`` for m in [0, 0.5], which is overwritten.

    ``log1p`` and ``softplus`` take 17 and 20 ms for 2 million numbers on a CPU core, this 4.
    """
    if m.dtype == torch.float64:
        return m.neg_().log1p_().neg_()
    z = m.div_(2 - m)
    square = z * z
    result = square * LOG_RATIO[-1]
    for coefficient in LOG_RATIO[-2:0:-1]:
        result.add_(coefficient).mul_(square)
    return result.add_(LOG_RATIO[0]).mul_(z)


def _focal_term(x: Tensor, weight: float, gamma: float) -> Tensor:
    """Loss of logits x whose target is 0; that of target 1 is the one of -x."""
    return weight * x.sigmoid() ** gamma * F.softplus(x)


def _cross_entropy(score: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(score, target.to(score), reduction="none")


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
