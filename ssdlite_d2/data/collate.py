"""Batches of training samples, and how they go from a loader's worker to the training process."""

from typing import Any, Dict, List, Sequence, Tuple, Union

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torch.utils.data import get_worker_info

from .transforms import ResizeTransform


class Batch(list):
    """A list of samples whose images a loader's worker puts into one piece of shared memory.

    A tensor that crosses processes costs a connection and a piece of shared memory. There would be
    three of them per sample. The piece is taken when the batch is made: the thread that sends it
    could not tell the main process that there is no room, which would wait for ever.
    """

    def __init__(self, samples: Sequence[Dict]):
        super().__init__(samples)
        self._pixels = None
        if get_worker_info() is not None and len({sample["image"].dtype for sample in self}) == 1:
            self._pixels = _shared_pixels([_flat(sample["image"]) for sample in self])

    def __reduce__(self):
        if self._pixels is None:
            return list, (list(self),)
        return _unpack, (self._pixels, [_pack(sample) for sample in self])


FIELDS = {"gt_boxes", "gt_classes"}


def _flat(image: Tensor) -> Tensor:
    """The bytes of an image (3, h, w), channels last."""
    return image.permute(1, 2, 0).contiguous().view(-1).view(torch.uint8)


def _shared_pixels(images: Sequence[Tensor]) -> Union[Tensor, np.ndarray]:
    """The bytes of all images: a tensor in shared memory, without a copy in between.

    Where that is full they are an array, which is sent through a pipe.
    """
    size = sum(len(image) for image in images)
    try:
        storage = torch.UntypedStorage._new_shared(size)
    except RuntimeError:
        return torch.cat(list(images)).numpy()
    return torch.cat(
        list(images), out=torch.tensor([], dtype=torch.uint8).set_(storage, 0, (size,))
    )


def _pack(sample: Dict) -> Tuple:
    """A sample without its pixels and, if it has the usual truth, without tensors."""
    image, truth = sample["image"], sample.get("instances")
    rest = {k: v for k, v in sample.items() if k not in ("image", "instances")}
    if truth is not None and set(truth._fields) == FIELDS:
        truth = truth.image_size, truth.gt_boxes.tensor.numpy(), truth.gt_classes.numpy()
    return rest, image.shape, image.dtype, truth


def _unpack(pixels: Union[Tensor, np.ndarray], packed: List[Tuple]) -> List[Dict[str, Any]]:
    batch, start = [], 0
    for rest, (channels, height, width), dtype, truth in packed:
        end = start + channels * height * width * dtype.itemsize
        image = torch.as_tensor(pixels[start:end]).view(dtype).view(height, width, channels)
        sample = {**rest, "image": image.permute(2, 0, 1)}
        if isinstance(truth, tuple):
            size, boxes, classes = truth
            truth = Instances(size, gt_boxes=Boxes(torch.from_numpy(boxes)))
            truth.gt_classes = torch.from_numpy(classes)
        if truth is not None:
            sample["instances"] = truth
        batch.append(sample)
        start = end
    return batch


class MultiScale:
    """Collates a training batch to one of several sizes, drawn for every batch."""

    def __init__(self, sizes: Sequence[Tuple[int, int]], half_pixel: bool = True):
        """
        Args:
            sizes: of (height, width) in pixels.
            half_pixel: as ResizeTransform has it.
        """
        self.sizes = [tuple(size) for size in sizes]
        self.half_pixel = half_pixel

    def __call__(self, batch: List[Dict]) -> Batch:
        size = self.sizes[np.random.randint(len(self.sizes))]
        for sample in batch:
            image, truth = sample["image"].permute(1, 2, 0).numpy(), sample["instances"]
            transform = ResizeTransform(image.shape[:2], size, self.half_pixel)
            sample["image"] = torch.from_numpy(transform.apply_image(image)).permute(2, 0, 1)
            boxes = Boxes(torch.from_numpy(transform.apply_box(truth.gt_boxes.tensor.numpy())))
            sample["instances"] = Instances(size, gt_boxes=boxes, gt_classes=truth.gt_classes)
        return Batch(batch)
