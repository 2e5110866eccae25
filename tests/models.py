"""Models with random weights that find something, and images."""

import struct
import zlib
from pathlib import Path
from typing import Dict, List

import cv2
import numpy as np
import torch
from detectron2.modeling import build_model
from torch import nn

from ssdlite_d2 import load_config

IMAGES = Path(__file__).resolve().parent / "assets" / "bccd" / "JPEGImages"
ENTRY = {"NAME": "export_tiny", "FORMAT": "voc", "ROOT": "bccd", "SPLIT": "all"}
ENTRY["CLASSES"] = ["RBC", "WBC", "Platelets"]
BARE = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.SSD.NORM", "BN"]


def read_all():
    return [cv2.imread(str(path)) for path in sorted(IMAGES.iterdir())]


def as_inputs(images):
    rgb = (image[:, :, ::-1].transpose(2, 0, 1) for image in images)
    return [{"image": torch.from_numpy(np.ascontiguousarray(x))} for x in rgb]


def resized(image, size):
    return cv2.cvtColor(cv2.resize(image, size[::-1]), cv2.COLOR_BGR2RGB)[None]


def lively_model(config: str, images: List[Dict], *opts):
    """A config and its model; scores spread from 0 to 1, and float32 is exact enough.

    Freshly initialised models give one score everywhere, so that nothing could be compared. Norms
    get the statistics of the images; what hardly varies in them is kept from being blown up.
    """
    torch.manual_seed(0)
    cfg = load_config(config, [*BARE, *opts])
    model = build_model(cfg).train()
    ends = {list(_convolutions(p))[-1] for p in model.head.cls_score}
    for conv in _convolutions(model):
        nn.init.normal_(conv.weight, std=(2 / conv.weight[0].numel()) ** 0.5)
        if conv in ends:
            nn.init.constant_(conv.bias, -2.0)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    with torch.no_grad():
        model.raw_outputs(model.preprocess_image(images).tensor)
        for norm in norms:
            norm.running_var += 0.2 * norm.running_var.mean() + 1e-3
        _scale_predictors(model.eval(), images)
    return cfg, model


def _scale_predictors(model, images: List[Dict]) -> None:
    """Bring every predictor's outputs to a spread of 1.5, also where no norm is in the trunk."""
    outputs = model.head(model.feature_maps(model.preprocess_image(images).tensor))
    for predictors, maps in zip((model.head.cls_score, model.head.bbox_pred), outputs):
        for predictor, x in zip(predictors, maps):
            end = list(_convolutions(predictor))[-1]
            end.weight *= 1.5 / (x.std() + 1e-6)


def _convolutions(module: nn.Module):
    return (m for m in module.modules() if isinstance(m, nn.Conv2d))


def png_of_zeros(path, width, height):
    """A PNG of one bit per pixel, which takes a tenth of a megabyte and decodes to gigabytes."""

    def chunk(kind, data):
        check = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + check

    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
