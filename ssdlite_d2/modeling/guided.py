"""A detector that a second head guides in training."""

from typing import Dict

from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from ..errors import InputError
from .layers import ConvFactory
from .norm import norm_builder
from .ssd import SSD, chosen_shapes
from .tower_head import TowerHead


@META_ARCH_REGISTRY.register()
class GuidedSSD(SSD):
    """An SSD with an auxiliary head that exists in training only, as NanoDet-Plus has it.

    The auxiliary head is wider and learns sooner. For the first part of the training the assigner
    sees its predictions, and both heads learn from that one assignment; then it rests, the assigner
    sees the head's own predictions, and an iteration costs what it costs an SSD. (NanoDet-Plus
    keeps it running to the end, cut off from the trunk's gradients.)
    """

    training_only = (*SSD.training_only, "auxiliary")

    @configurable
    def __init__(
        self,
        *,
        auxiliary: nn.Module,
        auxiliary_weight: float = 1.0,
        auxiliary_iters: int,
        **kwargs,
    ):
        """
        Args:
            auxiliary: a head for the same maps, anchors, scores and codes.
            auxiliary_weight: of its losses.
            auxiliary_iters: iterations, from the start of the training, in which it runs.
            kwargs: of the parent.
        """
        super().__init__(**kwargs)
        self.auxiliary = auxiliary
        self.auxiliary_weight = auxiliary_weight
        self.auxiliary_iters = auxiliary_iters

    @classmethod
    def from_config(cls, cfg):
        parts, node = super().from_config(cfg), cfg.MODEL.SSD.AUXILIARY
        if not 0 <= node.FRACTION <= 1:
            raise InputError(
                f"MODEL.SSD.AUXILIARY.FRACTION is {node.FRACTION}; it is from 0 to 1, a part of "
                "SOLVER.MAX_ITER"
            )
        activation, key = cfg.MODEL.SSD.HEAD.ACTIVATION, "MODEL.SSD.HEAD.ACTIVATION"
        channels = [shape.channels for shape in chosen_shapes(cfg, parts["backbone"])]
        num_anchors = parts["anchor_generator"].num_anchors
        auxiliary = TowerHead(
            in_channels=channels,
            num_anchors=num_anchors,
            num_scores=parts["criterion"].num_scores,
            code_size=parts["box2box_transform"].code_size,
            score_prior=parts["criterion"].prior,
            convs=ConvFactory(norm_builder(cfg), activation, key),
            channels=node.CHANNELS,
            num_convs=node.NUM_CONVS,
            kernel=3,
            depthwise=False,
            shared=len({*zip(channels, num_anchors)}) == 1,
        )
        return {
            "auxiliary": auxiliary,
            "auxiliary_weight": node.WEIGHT,
            "auxiliary_iters": round(node.FRACTION * cfg.SOLVER.MAX_ITER),
            **parts,
        }

    @property
    def is_guided(self) -> bool:
        """Whether the auxiliary head runs in this iteration of the training."""
        iteration = get_event_storage().iter if has_event_storage() else 0
        return iteration < self.auxiliary_iters

    def forward_training(self, images, features, predictions, gt_instances) -> Dict[str, Tensor]:
        if not self.is_guided:
            losses = super().forward_training(images, features, predictions, gt_instances)
            # a gradient for every parameter all the same: data-parallel training waits for it
            rest = 0 * sum(p.sum() for p in self.auxiliary.parameters())
            return {**losses, **{auxiliary_name(name): rest for name in losses}}
        guide = self._flatten(self.auxiliary(features))
        anchors, targets = self.anchors_and_targets(images, features, gt_instances)
        assignment = self.assign(anchors, targets, *guide)
        anchors = Boxes.cat(anchors)
        losses = self.losses(*self._flatten(predictions), anchors, assignment)
        # Divided by the head's number, not by one of their own: the parts of an accumulated batch
        # are weighted by one.
        sums, _ = self.criterion.sums(*guide, anchors, assignment, self.box2box_transform)
        for name, loss in self.divided(sums).items():
            losses[auxiliary_name(name)] = self.auxiliary_weight * loss
        return losses


def auxiliary_name(name: str) -> str:
    """``loss_cls`` to ``loss_aux_cls``."""
    return f"loss_aux_{name.removeprefix('loss_')}"
