"""The detectors: read this file first."""

import math
from typing import Dict, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    Backbone,
    build_anchor_generator,
    build_backbone,
)
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, ImageList, Instances, pairwise_ioa, pairwise_iou
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from ..data.datasets import resolve_num_classes
from ..errors import InputError
from .detections import best_candidates, suppress
from .head import SSDHead, SSDLiteHead
from .losses import box_loss, focal_class_loss, multibox_class_loss
from .matcher import SSDMatcher
from .norm import norm_builder

LOSSES = ("focal", "multibox")


@META_ARCH_REGISTRY.register()
class SSD(DenseDetector):
    """:paper:`SSD`: class scores and box codes for the anchors of several feature maps, at once.

    Takes images of any size and stretches them to its input size; boxes come out in the pixels of
    the image (or of ``height`` and ``width`` of its input dict), as Detectron2 wants them.
    """

    head_class = SSDHead

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: Sequence[str],
        anchor_generator: nn.Module,
        box2box_transform: Box2BoxTransform,
        anchor_matcher: SSDMatcher,
        num_classes: int,
        input_size: Tuple[int, int],
        multi_scale: bool = False,
        loss: str = "focal",
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        neg_pos_ratio: float = 3.0,
        min_negatives: int = 0,
        smooth_l1_beta: float = 1.0,
        cls_loss_weight: float = 1.0,
        box_loss_weight: float = 1.0,
        test_score_thresh: float = 0.05,
        test_nms_thresh: float = 0.5,
        test_topk_candidates: int = 2000,
        test_topk_per_class: int = 0,
        clip_before_nms: bool = False,
        max_detections_per_image: int = 100,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ):
        """
        Args:
            head: maps L feature maps to L class logits and L box codes.
            num_classes: foreground classes K; K itself stands for background.
            input_size: (H, W) of the network input in pixels.
            multi_scale: in training, take batches at the size they come in.
            loss: ``"focal"``: sigmoid scores, Kc = K. ``"multibox"``: softmax scores, Kc = K + 1,
                background last.
            test_topk_candidates: (anchor, class) pairs of an image that enter suppression.

        The rest is told where ``add_ssd_config`` defines the key of the same name.

        Raises:
            InputError: ``loss`` is unknown.
        """
        super().__init__(
            backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std
        )
        if loss not in LOSSES:
            raise InputError(f"MODEL.SSD.LOSS is '{loss}'; it is one of {', '.join(LOSSES)}")
        self.anchor_generator = anchor_generator
        self.box2box_transform = box2box_transform
        self.anchor_matcher = anchor_matcher
        self.num_classes = num_classes
        self.num_scores = num_classes + (loss == "multibox")
        self.input_size = tuple(int(n) for n in input_size)
        self.multi_scale = multi_scale

        self.loss = loss
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.neg_pos_ratio = neg_pos_ratio
        self.min_negatives = min_negatives
        self.smooth_l1_beta = smooth_l1_beta
        self.cls_loss_weight = cls_loss_weight
        self.box_loss_weight = box_loss_weight
        # Of the newest training batch: its positive anchors, and what its losses were divided by.
        self.num_positives = self.loss_normalizer = None

        self.test_score_thresh = test_score_thresh
        self.test_nms_thresh = test_nms_thresh
        self.test_topk_candidates = test_topk_candidates
        self.test_topk_per_class = test_topk_per_class
        self.clip_before_nms = clip_before_nms
        self.max_detections_per_image = max_detections_per_image

        # Depthwise networks run nearly twice as fast in this layout on CPU cores.
        self.to(memory_format=torch.channels_last)

    @classmethod
    def from_config(cls, cfg):
        node = cfg.MODEL.SSD
        num_classes = resolve_num_classes(cfg)
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        unknown = [name for name in node.IN_FEATURES if name not in shapes]
        if unknown:
            raise InputError(
                f"MODEL.SSD.IN_FEATURES names {', '.join(unknown)}; "
                f"the backbone has {', '.join(shapes)}"
            )
        feature_shapes = [shapes[name] for name in node.IN_FEATURES]
        anchor_generator = build_anchor_generator(cfg, feature_shapes)
        if len(cfg.INPUT.MULTI_SCALE) and len(cfg.MODEL.ANCHOR_GENERATOR.STRIDES):
            raise InputError(
                "INPUT.MULTI_SCALE needs MODEL.ANCHOR_GENERATOR.STRIDES []: fixed strides fit one "
                "input size only"
            )
        head = cls.head_class(
            in_channels=[shape.channels for shape in feature_shapes],
            num_anchors=anchor_generator.num_anchors,
            num_scores=num_classes + (node.LOSS == "multibox"),
            score_prior=node.FOCAL_PRIOR if node.LOSS == "focal" else None,
            norm=norm_builder(cfg),
            depthwise_bias=node.HEAD.DEPTHWISE_BIAS,
            last_1x1=node.HEAD.LAST_1X1,
        )
        return {
            "backbone": backbone,
            "head": head,
            "head_in_features": node.IN_FEATURES,
            "anchor_generator": anchor_generator,
            "box2box_transform": Box2BoxTransform(weights=node.BBOX_REG_WEIGHTS),
            "anchor_matcher": SSDMatcher(node.IOU_THRESHOLD),
            "num_classes": num_classes,
            "input_size": cfg.INPUT.SIZE,
            "multi_scale": len(cfg.INPUT.MULTI_SCALE) > 0,
            "loss": node.LOSS,
            "focal_alpha": node.FOCAL_ALPHA,
            "focal_gamma": node.FOCAL_GAMMA,
            "neg_pos_ratio": node.NEG_POS_RATIO,
            "min_negatives": node.MIN_NEGATIVES,
            "smooth_l1_beta": node.SMOOTH_L1_BETA,
            "cls_loss_weight": node.CLS_LOSS_WEIGHT,
            "box_loss_weight": node.BOX_LOSS_WEIGHT,
            "test_score_thresh": node.SCORE_THRESH_TEST,
            "test_nms_thresh": node.NMS_THRESH_TEST,
            "test_topk_candidates": node.TOPK_CANDIDATES_TEST,
            "test_topk_per_class": node.TOPK_PER_CLASS_TEST,
            "clip_before_nms": node.CLIP_BEFORE_NMS_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def preprocess_image(self, batched_inputs: List[Dict[str, Tensor]]) -> ImageList:
        """Stretch every image to the input size and normalise.

        Unlike the parent, which pads. The resampling is bilinear without antialias, as in training
        (``ResizeTransform``); an image of the input size is taken as it is.

        Returns:
            ImageList: tensor (N, 3, H, W); ``image_sizes`` are the sizes the images came in.
        """
        images = [self._move_to_current_device(x["image"]) for x in batched_inputs]
        sizes = [tuple(image.shape[-2:]) for image in images]
        size = sizes[0] if self.training and self.multi_scale else self.input_size
        if any(each != size for each in sizes):
            images = [self._resize(image, size) for image in images]
        # to the layout of the network together with the type: one pass over small integers
        stacked = torch.stack(images).to(torch.float32, memory_format=torch.channels_last)
        return ImageList((stacked - self.pixel_mean) / self.pixel_std, sizes)

    def _resize(self, image: Tensor, size: Optional[Tuple[int, int]] = None) -> Tensor:
        """(3, h, w) of any type to (3, H, W) float, bilinear without antialias."""
        image, size = image.float(), size or self.input_size
        if tuple(image.shape[-2:]) == size:
            return image
        return F.interpolate(image[None], size, mode="bilinear", align_corners=False)[0]

    def forward_training(self, images, features, predictions, gt_instances):
        logits, deltas = self._flatten(predictions)
        anchors = Boxes.cat(self.anchor_generator(features, images.tensor.shape[-2:]))
        self._scale_to_input(gt_instances, images)
        labels, boxes = self.label_anchors(anchors, gt_instances)
        return self.losses(anchors, logits, deltas, labels, boxes)

    def _flatten(self, predictions) -> Tuple[Tensor, Tensor]:
        """Per-level maps to logits (N, R, Kc) and deltas (N, R, 4)."""
        logits, deltas = self._transpose_dense_predictions(predictions, [self.num_scores, 4])
        return torch.cat(logits, dim=1), torch.cat(deltas, dim=1)

    def _scale_to_input(self, gt_instances: List[Instances], images: ImageList) -> None:
        """Bring boxes from the pixels of the images to those of the network input."""
        height, width = images.tensor.shape[-2:]
        for instances, (h, w) in zip(gt_instances, images.image_sizes):
            if (h, w) != (height, width):
                instances.gt_boxes.scale(width / w, height / h)

    @torch.no_grad()
    def label_anchors(
        self, anchors: Boxes, gt_instances: List[Instances]
    ) -> Tuple[Tensor, List[Tensor]]:
        """
        Args:
            anchors: R boxes.
            gt_instances: N images with ``gt_boxes`` (M, 4) and ``gt_classes`` (M,); M may be 0.
                Boxes of class -1 are regions to ignore.

        Returns:
            (N, R) class of every anchor, K for background and -1 for background that lies by half
            or more in a region to ignore, and the (R, 4) ground-truth box of every anchor per
            image, which has no meaning for anchors that are not positive.
        """
        labels, boxes, best = [], [], []
        for instances in gt_instances:
            is_region = instances.gt_classes < 0
            regions, instances = instances.gt_boxes[is_region], instances[~is_region]
            quality = pairwise_iou(instances.gt_boxes, anchors)  # (M, R)
            matches, positive = self.anchor_matcher(quality)
            if len(instances):
                classes = instances.gt_classes[matches]
                classes[positive == 0] = self.num_classes
                boxes.append(instances.gt_boxes.tensor[matches])
                best.append(quality.amax(dim=1))
            else:
                classes = torch.full_like(matches, self.num_classes)
                boxes.append(anchors.tensor)
            if len(regions):
                inside = (pairwise_ioa(regions, anchors) >= 0.5).any(dim=0)
                classes[inside & (classes == self.num_classes)] = -1
            labels.append(classes)
        self._record_matches(best)
        return torch.stack(labels), boxes

    def _record_matches(self, best: List[Tensor]) -> None:
        """Put into the event storage how well anchors fit.

        Args:
            best: (M,) IoU of every box with its best anchor, per image that has boxes.
        """
        if best and has_event_storage():
            iou = torch.cat(best)
            covered = (iou >= self.anchor_matcher.thresholds[1]).float()
            get_event_storage().put_scalars(
                boxes_covered=float(covered.mean()), best_anchor_iou=float(iou.mean())
            )

    def losses(
        self,
        anchors: Boxes,
        logits: Tensor,
        deltas: Tensor,
        labels: Tensor,
        boxes: List[Tensor],
    ) -> Dict[str, Tensor]:
        """
        Args:
            logits, deltas: (N, R, Kc) and (N, R, 4).
            labels, boxes: of ``label_anchors``.

        Returns:
            dict: ``loss_cls`` and ``loss_box_reg``, each a sum over the batch divided by its number
            of positive anchors; finite, and with a gradient for every input, without any.
        """
        positive = (labels >= 0) & (labels != self.num_classes)  # (N, R)
        self.num_positives = _mean_over_job(positive)
        count = self.loss_normalizer = self.num_positives.clamp(min=1.0 / comm.get_world_size())
        if has_event_storage():
            get_event_storage().put_scalar("num_pos_anchors", float(count) / len(labels))

        anchor_of_positive = anchors.tensor.expand(len(labels), -1, -1)[positive]  # (P, 4)
        targets = self.box2box_transform.get_deltas(
            anchor_of_positive, torch.stack(boxes)[positive]
        )
        loss_box = box_loss(deltas[positive], targets, self.smooth_l1_beta)
        if self.loss == "focal":
            loss_cls = focal_class_loss(logits, labels, self.focal_alpha, self.focal_gamma)
        else:
            loss_cls = multibox_class_loss(logits, labels, self.neg_pos_ratio, self.min_negatives)
        return {
            "loss_cls": self.cls_loss_weight * loss_cls / count,
            "loss_box_reg": self.box_loss_weight * loss_box / count,
        }

    def forward_inference(self, images, features, predictions) -> List[Instances]:
        logits, deltas = self._flatten(predictions)
        size = tuple(images.tensor.shape[-2:])
        anchors = Boxes.cat(self.anchor_generator(features, size))
        return self.detect(anchors, logits, deltas, size)

    def scores(self, logits: Tensor) -> Tensor:
        """Class logits (..., Kc) to scores (..., K)."""
        if self.loss == "focal":
            return logits.sigmoid()
        return logits.softmax(dim=-1)[..., :-1]

    def detect(
        self, anchors: Boxes, logits: Tensor, deltas: Tensor, size: Tuple[int, int]
    ) -> List[Instances]:
        """Detections of every image, in pixels of the network input, best first.

        Only candidates above the threshold are decoded, those of all images together.

        Args:
            anchors: R boxes.
            logits, deltas: (N, R, Kc) and (N, R, 4).
            size: (H, W) of the network input.
        """
        threshold = self.test_score_thresh
        if self.loss == "focal":  # a logit is compared sooner than a sigmoid is computed
            values, threshold = logits, _logit(threshold)
        else:
            values = self.scores(logits)
        candidates = best_candidates(
            values, threshold, self.test_topk_candidates, self.test_topk_per_class
        )
        scores = candidates.value.sigmoid() if self.loss == "focal" else candidates.value
        boxes = self.box2box_transform.apply_deltas(
            deltas[candidates.image, candidates.anchor], anchors.tensor[candidates.anchor]
        )
        if self.clip_before_nms:
            clipped = Boxes(boxes)
            clipped.clip(size)
            boxes = clipped.tensor
        counts = candidates.image.bincount(minlength=len(logits)).tolist()
        parts = (x.split(counts) for x in (boxes, scores, candidates.label))
        return [self._suppress(*image, size) for image in zip(*parts)]

    def _suppress(self, boxes: Tensor, scores: Tensor, labels: Tensor, size) -> Instances:
        kept = suppress(boxes, scores, labels, self.test_nms_thresh, self.max_detections_per_image)
        return Instances(
            size, pred_boxes=Boxes(boxes[kept]), scores=scores[kept], pred_classes=labels[kept]
        )


def _logit(score: float) -> float:
    if score <= 0:
        return -math.inf
    return math.log(score / (1 - score)) if score < 1 else math.inf


def _mean_over_job(positive: Tensor) -> Tensor:
    """Positive anchors of a process's batch, averaged over the processes.

    Divided by it, losses have, after the processes' gradients are averaged, the gradient of one
    process with the whole batch. (The reference counts per process.)
    """
    count = positive.sum().float()
    world = comm.get_world_size()
    if world > 1:
        torch.distributed.all_reduce(count)
    return count / world


@META_ARCH_REGISTRY.register()
class SSDLite(SSD):
    """SSD with depthwise-separable predictors (:paper:`MobileNetV2`, sec. 6.2)."""

    head_class = SSDLiteHead
