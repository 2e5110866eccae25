"""SSD's default boxes."""

import math
from typing import List, Optional, Sequence, Tuple

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY, DefaultAnchorGenerator
from detectron2.structures import Boxes
from torch import Tensor

from ..errors import InputError, one_of

CLIP_MODES = ("none", "corners", "center", "size")


@ANCHOR_GENERATOR_REGISTRY.register()
class SSDAnchorGenerator(DefaultAnchorGenerator):
    """Anchors of :paper:`SSD`, sec. 2.2: two squares and pairs of wide and tall boxes per cell.

    Unlike its parent, it pairs each level's two sizes as SSD does, its aspect ratios are w / h and
    come in both directions, strides are floats or follow from the input size, and anchors are
    clipped on request.

    The anchors of a cell come in the order small square, large square, then for each ratio the
    wide and the tall box.
    """

    @configurable
    def __init__(
        self,
        *,
        sizes: Sequence[Sequence[float]],
        aspect_ratios: Sequence[Sequence[float]],
        feature_strides: Sequence[int],
        boxes: Sequence[Sequence[Sequence[float]]] = (),
        strides: Sequence[float] = (),
        offset: float = 0.5,
        clip: str = "none",
    ):
        """
        Args:
            sizes: [s, t] per level, in pixels of the network input.
            aspect_ratios: ratios above 1, per level.
            feature_strides: nominal stride of each feature map; used when a caller gives no image
                size.
            boxes: [[w, h], ...] per level, in place of sizes and aspect ratios.
            strides: distance of anchor centres per level, in pixels. Empty: image size / map size.
            offset: place of the first centre, in strides.
            clip: one of ``none``, ``corners``, ``center``, ``size``; see ``add_ssd_config``.

        Raises:
            InputError: the lists do not fit the feature maps or each other.
        """
        levels = len(feature_strides)
        key = "MODEL.ANCHOR_GENERATOR"
        if not boxes:
            for pair in sizes:
                if not isinstance(pair, Sequence) or len(pair) != 2 or min(pair) <= 0:
                    raise InputError(f"{key}.SIZES has an entry {pair}; each is [s, t], in pixels")
        shapes = {"BOXES": boxes} if boxes else {"SIZES": sizes, "ASPECT_RATIOS": aspect_ratios}
        for name, values in {**shapes, **({"STRIDES": strides} if strides else {})}.items():
            if len(values) != levels:
                raise InputError(
                    f"{key}.{name} has {len(values)} entries for {levels} feature maps "
                    "(MODEL.SSD.IN_FEATURES)"
                )
        one_of(f"{key}.CLIP", clip, CLIP_MODES)
        if boxes:  # the parent hands each level's entries to generate_cell_anchors
            sizes, aspect_ratios = boxes, [[]] * levels
        super().__init__(
            sizes=sizes, aspect_ratios=aspect_ratios, strides=feature_strides, offset=offset
        )
        self.center_strides = [float(s) for s in strides]
        self.clip = clip
        self._cache = {}

    @classmethod
    def from_config(cls, cfg, input_shape: List[ShapeSpec]):
        node = cfg.MODEL.ANCHOR_GENERATOR
        return {
            "sizes": node.SIZES,
            "aspect_ratios": node.ASPECT_RATIOS,
            "feature_strides": [shape.stride for shape in input_shape],
            "boxes": node.BOXES,
            "strides": node.STRIDES,
            "offset": node.OFFSET,
            "clip": node.CLIP,
        }

    def generate_cell_anchors(self, sizes: Sequence, aspect_ratios: Sequence[float]):
        """The (A, 4) XYXY anchors of one cell around the origin; A = 2 + 2 * ratios.

        ``sizes`` are [s, t], or the widths and heights of all A.
        """
        if isinstance(sizes[0], Sequence):
            shapes = list(sizes)
        else:
            small, large = sizes[0], math.sqrt(sizes[0] * sizes[1])
            shapes = [(small, small), (large, large)]
            for ratio in aspect_ratios:
                root = math.sqrt(ratio)
                shapes += [(small * root, small / root), (small / root, small * root)]
        return torch.tensor([(-w / 2, -h / 2, w / 2, h / 2) for w, h in shapes])

    def forward(self, features: List[Tensor], image_size: Optional[Tuple[int, int]] = None):
        """
        Args:
            features: L maps (N, Ci, Hi, Wi).
            image_size: (H, W) of the network input. None: finest map times its nominal stride.

        Returns:
            list[Boxes]: (Hi * Wi * Ai, 4) per level, XYXY in pixels of the network input; row by
            row, all anchors of a cell together. The same tensors are returned for the same sizes.
        """
        grids = [tuple(int(n) for n in x.shape[-2:]) for x in features]
        if image_size is None:
            image_size = tuple(n * self.strides[0] for n in grids[0])
        image_size = tuple(int(n) for n in image_size)
        key = (*grids, image_size, features[0].device)
        if key not in self._cache:
            self._cache[key] = [
                Boxes(self._level_anchors(i, grid, image_size)) for i, grid in enumerate(grids)
            ]
        return self._cache[key]

    def cell_centers(
        self, level: int, grid: Tuple[int, int], image_size: Tuple[int, int]
    ) -> Tuple[Tensor, Tensor]:
        """Where the cells of a feature map stand: x (Wi,) and y (Hi,) in pixels, float64.

        Args:
            grid: (Hi, Wi).
            image_size: (H, W) of the network input.
        """
        if self.center_strides:
            strides = [self.center_strides[level]] * 2
        else:
            strides = [side / n for side, n in zip(image_size, grid)]
        y, x = (
            (torch.arange(n, dtype=torch.float64) + self.offset) * stride
            for n, stride in zip(grid, strides)
        )
        return x, y

    def _level_anchors(self, level: int, grid: Tuple[int, int], image_size: Tuple[int, int]):
        height, width = image_size
        cell = list(self.cell_anchors)[level].double()  # (A, 4)
        x, y = (c.to(cell.device) for c in self.cell_centers(level, grid, image_size))
        y, x = torch.meshgrid(y, x, indexing="ij")
        centers = torch.stack((x, y), dim=-1).reshape(-1, 1, 2)  # (Hi * Wi, 1, 2)
        sizes = (cell[:, 2:] - cell[:, :2]).expand(len(centers), -1, 2)  # (Hi * Wi, A, 2)
        limit = cell.new_tensor([width, height])
        if self.clip == "center":
            centers = centers.clamp(min=0).minimum(limit)
        if self.clip in ("center", "size"):
            sizes = sizes.minimum(limit)
        anchors = torch.cat((centers - sizes / 2, centers + sizes / 2), dim=-1)
        if self.clip == "corners":
            anchors = anchors.clamp(min=0).minimum(limit.repeat(2))
        return anchors.reshape(-1, 4).float()
