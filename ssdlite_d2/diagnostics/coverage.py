"""How well a config's anchors cover the boxes of its training sets.

Letters: R anchors, M boxes. Boxes are XYXY in pixels of the network input.
"""

import itertools
from typing import List, NamedTuple, Tuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor, nn

from ..data import SSDDatasetMapper
from ..data.build import load_train_records

PASSES = 30  # over the training images, at most


def anchor_coverage(anchors: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Best IoU that any anchor has with each box.

    Args:
        anchors: (R, 4); R may be 0.
        boxes: (M, 4); M may be 0.

    Returns:
        (M,) in [0, 1]. Where it reaches MODEL.SSD.ASSIGNER.IOU_THRESHOLD, the box is matched by its
        overlap; the others get their best anchor only.
    """
    if len(anchors) == 0:
        return np.zeros(len(boxes))
    anchor_boxes = Boxes(torch.as_tensor(anchors, dtype=torch.float32))
    chunks = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4).split(1024)
    best = [pairwise_iou(Boxes(chunk), anchor_boxes).amax(dim=1) for chunk in chunks]
    return torch.cat(best).double().numpy()


def anchors_of(cfg: CfgNode) -> np.ndarray:
    """(R, 4) anchors of a finished config's model for images of the input size.

    Raises:
        InputError: the config's model cannot be built.
    """
    generator, features = anchor_generator_of(cfg)
    return Boxes.cat(generator(features, cfg.INPUT.SIZE)).tensor.numpy()


def anchor_generator_of(cfg: CfgNode) -> Tuple[nn.Module, List[Tensor]]:
    """The anchor generator of a finished config, on the CPU, and its L feature maps.

    The maps (1, Ci, Hi, Wi) are on the meta device: shapes without values.

    Raises:
        InputError: the config's model cannot be built.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg).eval()
    generator, model.anchor_generator = model.anchor_generator, None
    return generator, model.to("meta").feature_maps(
        torch.empty(1, 3, *model.input_size, device="meta")
    )


class TrainingBoxes(NamedTuple):
    """Boxes that a training sees."""

    boxes: np.ndarray  # (M, 4)
    classes: np.ndarray  # (M,) int64


def training_boxes(cfg: CfgNode, least: int = 10_000, seed: int = 0) -> TrainingBoxes:
    """The boxes of augmented training images, as the mapper gives them; no file is read.

    Args:
        cfg: finished.
        least: boxes; images are drawn until there are so many, each at most PASSES times.
        seed: of the order of images and of augmentation.

    Raises:
        InputError: there is nothing to train on, or a data set is wrong.
    """
    records = load_train_records(cfg)
    sizes = {record["file_name"]: (record["height"], record["width"]) for record in records}

    def read_blank(path: str, _: str, reduction: int = 1) -> np.ndarray:
        return np.zeros((*(-(-side // reduction) for side in sizes[path]), 3), np.uint8)

    mapper = SSDDatasetMapper(cfg, True, records=records, read=read_blank)
    boxes, classes, count = [np.zeros((0, 4))], [np.zeros(0, np.int64)], 0
    state = np.random.get_state()  # what augmentations draw from
    np.random.seed(seed)
    order = (np.random.permutation(len(records)) for _ in range(PASSES))
    for number in itertools.chain.from_iterable(order):
        truth = mapper(records[number])["instances"]
        of_classes = truth.gt_classes.numpy()
        boxes.append(truth.gt_boxes.tensor.numpy()[of_classes >= 0])
        classes.append(of_classes[of_classes >= 0])
        count += len(classes[-1])
        if count >= least:
            break
    np.random.set_state(state)
    return TrainingBoxes(np.concatenate(boxes).astype(np.float64), np.concatenate(classes))
