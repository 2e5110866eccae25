"""Make the demo's data set: aerial images of trees, as COCO JSON, from the deepforest wheel.

The scenes and their crowns come with the Python package deepforest (code MIT): aerial images of
the National Ecological Observatory Network (NEON). Each scene is cut into tiles. Training and
validation have scenes of their own, far apart on the ground.

python datasets/prepare_neon_trees.py --wheel deepforest-2.1.0-py3-none-any.whl \
    --output datasets/neon_trees
"""

import argparse
import io
import json
import os
import shutil
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path
from typing import Dict, List, Tuple

import numpy as np
from PIL import Image

from ssdlite_d2.errors import InputError
from ssdlite_d2.tools.program import one_line_errors

# scene: stem of its XML file and name of its image, in deepforest/data
SCENES = {
    "train": (
        ("2019_YELL_2_528000_4978000_image_crop2", ".png"),
        ("SOAP_061", ".png"),
    ),
    "val": (
        ("2019_YELL_2_541000_4977000_image_crop", ".png"),
        ("OSBS_029", ".png"),
    ),
}
TILE = 200  # pixels: crowns of 40 px become 64 px of a 320 px input
TRAIN_STEP = 100  # training tiles overlap, validation tiles do not
MIN_VISIBLE = 0.4  # share of a crown's area inside a tile for the crown to count there


def tile_windows(height: int, width: int, overlap: bool) -> List[Tuple[int, int, int, int]]:
    """XYXY windows that cover a scene, of at most TILE pixels a side.

    Overlapping ones are all of TILE; the others are equal parts of the scene.
    """

    def spans(length: int) -> List[Tuple[int, int]]:
        if overlap:
            starts = np.linspace(0, length - TILE, 1 + -(-(length - TILE) // TRAIN_STEP))
            return [(int(s), int(s) + TILE) for s in starts]
        edges = np.linspace(0, length, 1 + -(-length // TILE)).astype(int).tolist()
        return list(zip(edges, edges[1:]))

    return [(x0, y0, x1, y1) for y0, y1 in spans(height) for x0, x1 in spans(width)]


def boxes_in(window: Tuple[int, int, int, int], boxes: np.ndarray) -> np.ndarray:
    """The (M', 4) boxes that a window shows enough of, clipped, in its pixels."""
    x0, y0, x1, y1 = window
    clipped = boxes.clip((x0, y0, x0, y0), (x1, y1, x1, y1))
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    visible = (clipped[:, 2:] - clipped[:, :2]).prod(axis=1)
    return clipped[visible >= MIN_VISIBLE * area] - (x0, y0, x0, y0)


def read_scene(wheel: zipfile.ZipFile, stem: str, suffix: str) -> Tuple[Image.Image, np.ndarray]:
    """A scene's image and its (M, 4) XYXY crowns."""
    image = Image.open(io.BytesIO(wheel.read(f"deepforest/data/{stem}{suffix}"))).convert("RGB")
    tree = ElementTree.fromstring(wheel.read(f"deepforest/data/{stem}.xml"))
    tags = ("xmin", "ymin", "xmax", "ymax")
    boxes = [[float(b.findtext(t)) for t in tags] for b in tree.iterfind("object/bndbox")]
    return image, np.array(boxes) - (1, 1, 0, 0)  # 1-based inclusive, as VOC has it


def make_split(wheel: zipfile.ZipFile, split: str, output: Path) -> Dict:
    """Write a split's tiles; returns its COCO dict."""
    (output / split).mkdir(parents=True)
    images, annotations = [], []
    for stem, suffix in SCENES[split]:
        image, boxes = read_scene(wheel, stem, suffix)
        for window in tile_windows(image.height, image.width, overlap=split == "train"):
            x0, y0, x1, y1 = window
            name = f"{split}/{stem}_{x0:04d}_{y0:04d}.jpg"
            image.crop(window).save(output / name, quality=95)
            image_id = len(images) + 1
            images.append({"id": image_id, "file_name": name, "width": x1 - x0, "height": y1 - y0})
            for left, top, right, bottom in boxes_in(window, boxes).tolist():
                w, h = right - left, bottom - top
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": 1,
                        "bbox": [left, top, w, h],
                        "area": w * h,
                        "iscrowd": 0,
                    }
                )
    return {
        "info": {"description": "NEON tree crowns from deepforest, cut into tiles"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "tree"}],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the data set of aerial images of trees")
    parser.add_argument("--wheel", required=True, help="the file deepforest-2.1.0-py3-none-any.whl")
    parser.add_argument("--output", required=True, help="folder to make")
    with one_line_errors():
        run(parser.parse_args())


def run(args: argparse.Namespace) -> None:
    output = Path(args.output)
    unfinished = output.with_name(output.name + ".unfinished")
    try:
        if output.exists():
            raise InputError(f"--output: {output} exists")
        shutil.rmtree(unfinished, ignore_errors=True)
        with zipfile.ZipFile(args.wheel) as wheel:
            for split in SCENES:
                coco = make_split(wheel, split, unfinished)
                (unfinished / f"{split}.json").write_text(json.dumps(coco))
                counts = f"{len(coco['images'])} tiles, {len(coco['annotations'])} crowns"
                print(f"{output / split}: {counts}")
        os.replace(unfinished, output)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{args.wheel}: {error}") from error


if __name__ == "__main__":
    main()
