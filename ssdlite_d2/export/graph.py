"""The module that every format is made from."""

from typing import Tuple

import torch
from detectron2.structures import Boxes
from torch import Tensor, nn
from torchvision.ops import nms

from ..modeling import SSD
from ..modeling.inference.folding import fold_norms


class ExportedSSD(nn.Module):
    """An SSD from uint8 images to decoded boxes and scores; norms folded, anchors constant.

    It holds the network's input size, and nothing in its graph depends on the data, except that
    with ``resize`` the images may have any size.
    """

    def __init__(
        self,
        model: SSD,
        *,
        image_format: str = "RGB",
        channels_last: bool = True,
        resize: bool = False,
    ):
        """
        Args:
            model: a trained model; it is copied.
            image_format: what the model was trained on, INPUT.FORMAT. Images are RGB here always.
            channels_last: images are (N, H, W, 3), as cameras and files have them, else
                (N, 3, H, W).
            resize: images of any size come in, and boxes in their pixels go out. Without it
                images are of the network's input size.
        """
        super().__init__()
        anchors = Boxes.cat(model.anchors()).tensor
        self.model = fold_norms(model)
        self.input_size = model.input_size
        self.channels_last = channels_last
        self.resize = resize
        self.flip = image_format == "BGR"
        mean, std = (x.flip(0) if self.flip else x for x in (model.pixel_mean, model.pixel_std))
        self.register_buffer("pixel_mean", mean)
        self.register_buffer("pixel_std", std)
        self.register_buffer("anchors", anchors)  # (R, 4)
        self.eval()

    def forward(self, image: Tensor) -> Tuple[Tensor, Tensor]:
        """
        Args:
            image: (N, H, W, 3) or (N, 3, H, W), RGB, 0 to 255, of any number type.

        Returns:
            boxes (N, R, 4), XYXY in pixels of ``image``, and scores (N, R, K).
        """
        x = image.permute(0, 3, 1, 2) if self.channels_last else image
        height, width = x.shape[-2:]
        scores, deltas = self.codes(x)
        boxes = self.model.box2box_transform.decode_all(deltas, self.anchors)
        if self.resize:
            boxes = boxes * (_tensor(width, height) / _tensor(*self.input_size[::-1])).repeat(2)
        return boxes, scores

    def codes(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        """Scores (N, R, K) and box codes (N, R, D) of images (N, 3, H, W)."""
        x = self.model.resize(x) if self.resize else x.float()
        x = (x - self.pixel_mean) / self.pixel_std
        if self.flip:
            x = x.flip(1)
        logits, deltas = self.model.raw_outputs(x)
        return self.model.criterion.scores(logits), deltas


class WithNMS(nn.Module):
    """An ExportedSSD followed by non-maximum suppression; its outputs have a fixed shape."""

    def __init__(self, detector: ExportedSSD, candidates: int = 2000):
        """
        Args:
            candidates: best (anchor, class) pairs of an image that enter suppression, at most the
                model's own number.
        """
        super().__init__()
        self.detector = detector
        self.num_classes = detector.model.num_classes
        options = detector.model.postprocessor.options()
        pairs = len(detector.anchors) * self.num_classes
        self.candidates = min(candidates, options["candidates"], pairs)
        self.per_class = options["candidates_per_class"]
        self.detections = min(options["max_detections"], self.candidates)
        self.across_classes = options["across_classes"]
        self.clip = options["clip_before_nms"]
        self.score_threshold = options["score_threshold"]
        self.nms_threshold = options["nms_threshold"]
        self.eval()

    def forward(self, image: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """
        Returns:
            boxes (N, D, 4), scores (N, D) best first, and classes (N, D); what is left of D after
            the last detection has score 0 and class -1.
        """
        boxes, scores = self.detector(image)
        if self.clip:
            height, width = self.detector.input_size
            boxes = boxes.clamp(min=0).minimum(boxes.new_tensor([width, height] * 2))
        if 0 < self.per_class < scores.shape[1]:  # as in the postprocessor, this limit comes first
            least = scores.topk(self.per_class, dim=1).values[:, -1:]
            scores = torch.where(scores >= least, scores, torch.zeros_like(scores))
        scores, pairs = scores.flatten(1).topk(self.candidates)  # (N, T)
        anchors = torch.div(pairs, self.num_classes, rounding_mode="floor")
        classes = pairs - anchors * self.num_classes
        boxes = boxes.gather(1, anchors[..., None].expand(-1, -1, 4))
        # boxes of different classes are moved apart, to suppress within a class only
        span = boxes.amax(dim=(1, 2), keepdim=True) - boxes.amin(dim=(1, 2), keepdim=True) + 1
        apart = boxes if self.across_classes else boxes + classes[..., None].float() * span
        suppress = OnnxNMS.apply if torch.onnx.is_in_onnx_export() else keep
        kept = suppress(apart, scores, self.nms_threshold, self.score_threshold, self.detections)
        # kept rows are moved to the front by their scores; the others become empty
        scores = torch.where(kept, scores, torch.zeros_like(scores))
        scores, order = scores.topk(self.detections)
        boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
        classes = classes.gather(1, order)
        empty = scores <= 0
        return (
            boxes.masked_fill(empty[..., None], 0.0),
            scores,
            classes.masked_fill(empty, -1).int(),
        )


def keep(boxes, scores, iou_threshold: float, score_threshold: float, limit: int) -> Tensor:
    """Which boxes (N, T, 4) of scores (N, T), best first, survive suppression: (N, T) bool."""
    rows = []
    for b, s in zip(boxes.unbind(), scores.unbind()):
        chosen = nms(b, s, iou_threshold)[:limit]
        rows.append(torch.zeros_like(s).index_fill(0, chosen, 1.0))
    return (torch.stack(rows) * (scores > score_threshold)).bool()


class OnnxNMS(torch.autograd.Function):
    """``keep``, which becomes ONNX's operator in an ONNX export."""

    @staticmethod
    def forward(ctx, *args) -> Tensor:
        return keep(*args)

    @staticmethod
    def symbolic(g, boxes, scores, iou_threshold, score_threshold, limit):
        def constant(value):
            return g.op("Constant", value_t=value)

        one_class = g.op("Unsqueeze", scores, constant(torch.tensor([1])))  # (N, 1, T)
        chosen = g.op(  # rows (image, 0, box)
            "NonMaxSuppression",
            boxes,
            one_class,
            constant(torch.tensor([limit])),
            constant(torch.tensor([iou_threshold])),
            constant(torch.tensor([score_threshold])),
        )
        rows = g.op("Gather", chosen, constant(torch.tensor([0, 2])), axis_i=1)
        zeros = g.op("Mul", scores, constant(torch.tensor(0.0)))
        count = g.op("Slice", g.op("Shape", rows), *(constant(torch.tensor([i])) for i in (0, 1)))
        ones = g.op("ConstantOfShape", count, value_t=torch.tensor([1.0]))
        kept = g.op("ScatterND", zeros, rows, ones)
        return g.op("Cast", kept, to_i=9).setType(scores.type().with_dtype(torch.bool))


def _tensor(*sizes) -> Tensor:
    """Numbers, which a graph tracer hands out as tensors, in one tensor."""
    return torch.stack([n if isinstance(n, Tensor) else torch.tensor(n) for n in sizes]).float()
