"""Whatever the files hold, training goes on with finite losses, or one line says what is wrong."""

import cv2
import numpy as np
import pytest
import torch
from conftest import bare_config, make_model
from detectron2.structures import BoxMode
from PIL import Image

from ssdlite_d2.data import SSDDatasetMapper

SIZE = (96, 128)


def save(kind, path):
    """An image of a kind; returns its (height, width) as it is seen."""
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    image, suffix = Image.fromarray(noise), ".png"
    exif = Image.Exif()
    if kind in ("L", "RGBA", "P"):
        image = image.convert(kind)
    elif kind == "CMYK":
        image, suffix = image.convert(kind), ".jpg"
    elif kind == "EXIF-rotated":
        exif[0x0112], suffix = 6, ".jpg"
    elif kind == "1x1":
        image, suffix = image.resize((1, 1)), ".jpg"
    elif kind == "10000x10":
        image, suffix = image.resize((10000, 10)), ".jpg"
    path = str(path / f"a{suffix}")
    if kind == "16-bit":
        cv2.imwrite(path, noise.astype(np.uint16) * 257)
    else:
        image.save(path, **({"exif": exif} if kind == "EXIF-rotated" else {}))
    return path, (image.size if kind == "EXIF-rotated" else image.size[::-1])


@pytest.fixture(scope="module")
def models():
    keys = [
        "INPUT.SIZE",
        (64, 64),
        "MODEL.ANCHOR_GENERATOR.STRIDES",
        [],
        "MODEL.SSD.NORM",
        "FrozenBN",
    ]
    return [
        make_model(3, *keys, "MODEL.SSD.CRITERION.NAME", loss).train()
        for loss in ("focal", "multibox")
    ]


NAN, INF = float("nan"), float("inf")
BOXES = {
    "whole": [0, 0, 1, 1],  # in shares of the image
    "nan": [NAN, 0, 1, 1],
    "infinite": [0, 0, INF, 1],
    "inverted": [0.9, 0.9, 0.1, 0.1],
    "no width": [0.5, 0.1, 0.5, 0.9],
    "outside": [2, 2, 3, 3],
    "huge": [-1e9, -1e9, 1e9, 1e9],
    "negative": [-0.5, -0.5, 0.6, 0.6],
    "none": None,
}


@pytest.mark.parametrize(
    "kind", ["RGB", "L", "RGBA", "P", "CMYK", "16-bit", "EXIF-rotated", "1x1", "10000x10"]
)
def test_every_image_with_every_box_trains(kind, tmp_path, models):
    path, (height, width) = save(kind, tmp_path)
    for fast in (True, False):
        cfg = bare_config(3, "INPUT.FAST", fast, "INPUT.SIZE", (64, 64))
        mapper, batch = SSDDatasetMapper(cfg, True), []
        np.random.seed(0)
        for name, box in BOXES.items():
            scale = np.array([width, height, width, height])
            annotation = {"bbox_mode": BoxMode.XYXY_ABS, "category_id": 1}
            annotations = [] if box is None else [{"bbox": (scale * box).tolist(), **annotation}]
            record = {
                "file_name": path,
                "height": height,
                "width": width,
                "annotations": annotations,
            }
            batch.append(mapper(record))
            valid = name in ("whole", "huge", "negative")
            assert len(batch[-1]["instances"]) == int(valid), name
            assert batch[-1]["image"].shape == (3, 64, 64)
        for model in models:
            losses = model(batch)
            assert all(torch.isfinite(loss) for loss in losses.values())
            assert losses["loss_box_reg"] > 0
