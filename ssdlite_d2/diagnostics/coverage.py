"""How well a config's anchors cover the boxes of its training sets.

Letters: R anchors, M boxes. Boxes are XYXY in pixels of the network input.
"""

from typing import List, NamedTuple, Tuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, BoxMode, pairwise_iou
from torch import Tensor, nn

from ..data.datasets import dataset_errors


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
    """The boxes of all training sets of a config."""

    boxes: np.ndarray  # (M, 4)
    classes: np.ndarray  # (M,) int64

    def sample(self, most: int, seed: int = 0) -> "TrainingBoxes":
        """At most so many of the boxes, drawn at random."""
        chosen = np.random.default_rng(seed).permutation(len(self.boxes))[:most]
        return TrainingBoxes(self.boxes[chosen], self.classes[chosen])


def training_boxes(cfg: CfgNode) -> TrainingBoxes:
    """The boxes of DATASETS.TRAIN that have area and are no crowd, images stretched to the input.

    Raises:
        InputError: a data set is unknown or its files are missing or wrong.
    """
    boxes, classes = [np.zeros((0, 4))], [np.zeros(0)]
    height, width = cfg.INPUT.SIZE
    for name in cfg.DATASETS.TRAIN:
        with dataset_errors((name,)):
            images = DatasetCatalog.get(name)
        for image in images:
            found = [a for a in image.get("annotations", []) if not a.get("iscrowd", 0)]
            corners = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in found]
            scale = np.array([width / image["width"], height / image["height"]] * 2)
            boxes.append(np.array(corners, dtype=np.float64).reshape(-1, 4) * scale)
            classes.append([a["category_id"] for a in found])
    boxes, classes = np.concatenate(boxes), np.concatenate(classes).astype(np.int64)
    keep = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    return TrainingBoxes(boxes[keep], classes[keep])
