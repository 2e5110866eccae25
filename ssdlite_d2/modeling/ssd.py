"""The detectors: read this file first."""

from typing import Dict, List, Optional, Sequence, Tuple, Union

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    Backbone,
    build_anchor_generator,
    build_backbone,
)
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from ..config import num_classes_of
from ..errors import InputError
from .assigners import Assigner, Assignment
from .box_coders import BoxCoder
from .criteria import Criterion
from .parts import (
    SSD_ASSIGNER_REGISTRY,
    SSD_BOX_CODER_REGISTRY,
    SSD_CRITERION_REGISTRY,
    SSD_HEAD_REGISTRY,
    SSD_NECK_REGISTRY,
    SSD_POSTPROCESSOR_REGISTRY,
)
from .postprocessing import Postprocessor
from .resize import InputResize


@META_ARCH_REGISTRY.register()
class SSD(DenseDetector):
    """:paper:`SSD`: class scores and box codes for the anchors of several feature maps, at once.

    Takes images of any size and stretches them to its input size; boxes come out in the pixels of
    the image (or of ``height`` and ``width`` of its input dict), as Detectron2 wants them.

    Attributes:
        batch_normalizer: what the losses of the newest training batch were divided by, before it
            is kept from being 0; a mean over the processes of the job.
    """

    default_head = "ssd"
    training_only = ("assigner",)  # parts that copies for inference are without

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: Sequence[str],
        anchor_generator: nn.Module,
        box2box_transform: BoxCoder,
        assigner: Assigner,
        criterion: Criterion,
        postprocessor: Postprocessor,
        num_classes: int,
        input_size: Union[Sequence[int], InputResize],
        multi_scale: bool = False,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ):
        """
        Args:
            head: maps L feature maps to L class logits and L box codes.
            num_classes: foreground classes K; K itself stands for background.
            input_size: (H, W) of the network input in pixels, or what brings images to it.
            multi_scale: in training, take batches at the size they come in.
        """
        super().__init__(
            backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std
        )
        self.anchor_generator = anchor_generator
        self.box2box_transform = box2box_transform
        self.assigner = assigner
        self.criterion = criterion
        self.postprocessor = postprocessor
        self.num_classes = num_classes
        is_resize = isinstance(input_size, InputResize)
        self.resize = input_size if is_resize else InputResize(input_size)
        self.input_size = self.resize.size  # (H, W)
        self.multi_scale = multi_scale
        self.batch_normalizer: Optional[Tensor] = None
        # Depthwise networks run nearly twice as fast in this layout on CPU cores.
        self.to(memory_format=torch.channels_last)

    @classmethod
    def from_config(cls, cfg):
        num_classes = num_classes_of(cfg)
        backbone = build_backbone(cfg)
        if cfg.MODEL.SSD.NECK.NAME:
            backbone = SSD_NECK_REGISTRY.build(cfg, bottom_up=backbone)
        shapes = chosen_shapes(cfg, backbone)
        anchor_generator = build_anchor_generator(cfg, shapes)
        if len(cfg.INPUT.MULTI_SCALE) and len(cfg.MODEL.ANCHOR_GENERATOR.STRIDES):
            raise InputError(
                "INPUT.MULTI_SCALE needs MODEL.ANCHOR_GENERATOR.STRIDES []: fixed strides fit one "
                "input size only"
            )
        box_coder = SSD_BOX_CODER_REGISTRY.build(cfg)
        criterion = SSD_CRITERION_REGISTRY.build(cfg, num_classes=num_classes)
        return {
            "backbone": backbone,
            "head": SSD_HEAD_REGISTRY.build(
                cfg,
                name=cfg.MODEL.SSD.HEAD.NAME or cls.default_head,
                input_shape=shapes,
                num_anchors=anchor_generator.num_anchors,
                num_scores=criterion.num_scores,
                code_size=box_coder.code_size,
                score_prior=criterion.prior,
            ),
            "head_in_features": cfg.MODEL.SSD.IN_FEATURES,
            "anchor_generator": anchor_generator,
            "box2box_transform": box_coder,
            "assigner": SSD_ASSIGNER_REGISTRY.build(cfg, num_classes=num_classes),
            "criterion": criterion,
            "postprocessor": SSD_POSTPROCESSOR_REGISTRY.build(cfg),
            "num_classes": num_classes,
            "input_size": InputResize(cfg.INPUT.SIZE, cfg.INPUT.RESIZE),
            "multi_scale": len(cfg.INPUT.MULTI_SCALE) > 0,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def preprocess_image(self, batched_inputs: List[Dict[str, Tensor]]) -> ImageList:
        """Stretch every image to the input size and normalise.

        Unlike the parent, which pads. The resampling is that of training (``ResizeTransform``); an
        image of the input size is taken as it is.

        Returns:
            ImageList: tensor (N, 3, H, W); ``image_sizes`` are the sizes the images came in.
        """
        images = [self._move_to_current_device(x["image"]) for x in batched_inputs]
        sizes = [tuple(image.shape[-2:]) for image in images]
        size = sizes[0] if self.training and self.multi_scale else self.input_size
        if any(each != size for each in sizes):
            images = [self.resize(image[None], size)[0] for image in images]
        # to the layout of the network together with the type: one pass over small integers
        stacked = torch.stack(images).to(torch.float32, memory_format=torch.channels_last)
        return ImageList((stacked - self.pixel_mean) / self.pixel_std, sizes)

    def feature_maps(self, images: Tensor) -> List[Tensor]:
        """Normalised images (N, 3, H, W) to the L maps (N, Ci, Hi, Wi) that the head takes."""
        features = self.backbone(images)
        return [features[name] for name in self.head_in_features]

    def raw_outputs(self, images: Tensor) -> Tuple[Tensor, Tensor]:
        """Normalised images (N, 3, H, W) to logits (N, R, Kc) and deltas (N, R, D)."""
        return self._flatten(self.head(self.feature_maps(images)))

    def _flatten(self, predictions) -> Tuple[Tensor, Tensor]:
        """Per-level maps to logits (N, R, Kc) and deltas (N, R, D)."""
        columns = self.criterion.num_scores, self.box2box_transform.code_size
        logits, deltas = (flatten(maps, n) for maps, n in zip(predictions, columns))
        return logits, deltas

    def anchors(
        self, features: Optional[List[Tensor]] = None, size: Optional[Tuple[int, int]] = None
    ) -> List[Boxes]:
        """The anchors of L feature maps and an input of ``size`` (H, W), per level.

        Without arguments those of ``input_size``, for which the backbone runs once.
        """
        if features is None:
            size, training = self.input_size, self.training
            with torch.no_grad():
                images = torch.zeros(1, 3, *size, device=self.device)
                features = self.eval().feature_maps(images)
            self.train(training)
        return self.anchor_generator(features, size)

    def forward_training(self, images, features, predictions, gt_instances):
        logits, deltas = self._flatten(predictions)
        anchors, targets = self.anchors_and_targets(images, features, gt_instances)
        assignment = self.assign(anchors, targets, logits, deltas)
        return self.losses(logits, deltas, Boxes.cat(anchors), assignment)

    def anchors_and_targets(
        self, images: ImageList, features: List[Tensor], gt_instances: List[Instances]
    ) -> Tuple[List[Boxes], List[Instances]]:
        """The anchors of every level and the ground truth, in pixels of the network input."""
        size = tuple(images.tensor.shape[-2:])
        return self.anchors(features, size), scale_targets(gt_instances, images.image_sizes, size)

    def losses(
        self, logits: Tensor, deltas: Tensor, anchors: Boxes, assignment: Assignment
    ) -> Dict[str, Tensor]:
        """The criterion's losses of predictions (N, R, Kc) and (N, R, D) for R anchors."""
        sums, self.batch_normalizer = self.criterion(
            logits, deltas, anchors, assignment, self.box2box_transform
        )
        if has_event_storage():
            positive = assignment.positive(self.num_classes)
            get_event_storage().put_scalar("num_pos_anchors", float(positive.sum()) / len(positive))
        return self.divided(sums)

    def divided(self, sums: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """Losses summed over the batch, divided by its ``batch_normalizer``."""
        count = self.batch_normalizer.clamp(min=1.0 / comm.get_world_size())
        return {name: loss / count for name, loss in sums.items()}

    @torch.no_grad()
    def assign(
        self, anchors: List[Boxes], targets: List[Instances], logits: Tensor, deltas: Tensor
    ) -> Assignment:
        """Assign targets to anchors; the predictions (N, R, Kc) and (N, R, D) may guide it."""
        if not self.assigner.needs_predictions:
            return self.assigner(anchors, targets)
        scores = self.criterion.scores(logits.detach().float())
        all_anchors = Boxes.cat(anchors).tensor
        boxes = self.box2box_transform.decode_all(deltas.detach().float(), all_anchors)
        return self.assigner(anchors, targets, scores, boxes)

    def forward_inference(self, images, features, predictions) -> List[Instances]:
        logits, deltas = self._flatten(predictions)
        size = tuple(images.tensor.shape[-2:])
        anchors = Boxes.cat(self.anchors(features, size))
        return self.postprocessor(
            logits, deltas, anchors, size, self.criterion, self.box2box_transform
        )


@META_ARCH_REGISTRY.register()
class SSDLite(SSD):
    """SSD with depthwise-separable predictors (:paper:`MobileNetV2`, sec. 6.2)."""

    default_head = "ssdlite"


def chosen_shapes(cfg: CfgNode, backbone: Backbone) -> List[ShapeSpec]:
    """The shapes of MODEL.SSD.IN_FEATURES.

    Raises:
        InputError: the backbone has no such map.
    """
    shapes = backbone.output_shape()
    unknown = [name for name in cfg.MODEL.SSD.IN_FEATURES if name not in shapes]
    if unknown:
        raise InputError(
            f"MODEL.SSD.IN_FEATURES names {', '.join(unknown)}; "
            f"the backbone has {', '.join(shapes)}"
        )
    return [shapes[name] for name in cfg.MODEL.SSD.IN_FEATURES]


def flatten(maps: List[Tensor], columns: int) -> Tensor:
    """L maps (N, Ai * columns, Hi, Wi) to (N, R, columns), R = sum of Hi * Wi * Ai."""
    flat = [x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, columns) for x in maps]
    return torch.cat(flat, dim=1)


def scale_targets(
    targets: List[Instances], image_sizes: List[Tuple[int, int]], size: Tuple[int, int]
) -> List[Instances]:
    """Ground truth in pixels of the network input (H, W), from that in pixels of the images.

    The caller's boxes stay as they are.
    """
    scaled = []
    for instances, (height, width) in zip(targets, image_sizes):
        if (height, width) != size:
            boxes = instances.gt_boxes.clone()
            boxes.scale(size[1] / width, size[0] / height)
            instances = Instances(size, gt_boxes=boxes, gt_classes=instances.gt_classes)
        scaled.append(instances)
    return scaled
