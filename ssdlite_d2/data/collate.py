"""Batches of training samples, and how they go from a loader's worker to the training process."""

from typing import Any, Dict, List, Sequence, Tuple

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from .transforms import ResizeTransform


class Batch(list):
    """A list of samples that is pickled as one tensor of images and arrays of boxes.

    A tensor that crosses processes costs a connection and a piece of shared memory. There would be
    three of them per sample.
    """

    def __reduce__(self):
        kinds = {(sample["image"].dtype, sample["image"].shape) for sample in self}
        is_plain = len(kinds) == 1 and next(iter(kinds))[0] == torch.uint8
        if not is_plain or any(set(s["instances"]._fields) != FIELDS for s in self):
            return list, (list(self),)
        images = _shared_stack([sample["image"].permute(1, 2, 0) for sample in self])
        return _unpack, (images, [_pack(sample) for sample in self])


FIELDS = {"gt_boxes", "gt_classes"}


def _shared_stack(images: Sequence[Tensor]) -> Tensor:
    """(N, h, w, 3) in shared memory, without a copy in between."""
    shape = (len(images), *images[0].shape)
    storage = torch.UntypedStorage._new_shared(int(np.prod(shape)))
    return torch.stack(images, out=torch.tensor([], dtype=torch.uint8).set_(storage, 0, shape))


def _pack(sample: Dict) -> Tuple[Dict, Tuple[int, int], np.ndarray, np.ndarray]:
    truth = sample["instances"]
    rest = {k: v for k, v in sample.items() if k not in ("image", "instances")}
    boxes, classes = truth.gt_boxes.tensor.numpy(), truth.gt_classes.numpy()
    return rest, truth.image_size, boxes, classes


def _unpack(images: Tensor, packed: List[Tuple]) -> List[Dict[str, Any]]:
    batch = []
    for image, (rest, size, boxes, classes) in zip(images, packed):
        truth = Instances(size)
        truth.gt_boxes = Boxes(torch.from_numpy(boxes))
        truth.gt_classes = torch.from_numpy(classes)
        batch.append({**rest, "image": image.permute(2, 0, 1), "instances": truth})
    return batch


class MultiScale:
    """Collates a training batch to one of several sizes, drawn for every batch."""

    def __init__(self, sizes: Sequence[Tuple[int, int]]):
        """
        Args:
            sizes: of (height, width) in pixels.
        """
        self.sizes = [tuple(size) for size in sizes]

    def __call__(self, batch: List[Dict]) -> Batch:
        size = self.sizes[np.random.randint(len(self.sizes))]
        for sample in batch:
            image, truth = sample["image"].permute(1, 2, 0).numpy(), sample["instances"]
            transform = ResizeTransform(image.shape[:2], size)
            sample["image"] = torch.from_numpy(transform.apply_image(image)).permute(2, 0, 1)
            boxes = Boxes(torch.from_numpy(transform.apply_box(truth.gt_boxes.tensor.numpy())))
            sample["instances"] = Instances(size, gt_boxes=boxes, gt_classes=truth.gt_classes)
        return Batch(batch)
