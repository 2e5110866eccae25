"""Reading of image files."""

import struct
import zlib
from functools import partial
from io import BytesIO
from typing import Callable, Optional, Tuple

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import detection_utils
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError

from ..errors import InputError, first_line
from ..files import read_regular

# OpenCV decodes JPEGs to a fraction of their size without computing the rest.
REDUCED = {
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
PNG = b"\x89PNG\r\n\x1a\n"
END_OF_JPEG, START_OF_SCAN = b"\xff\xd9", b"\xff\xda"
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # a JPEG's markers that a size follows
MAX_PIXELS = 100_000_000


def read_image(
    path: str, image_format: str = "RGB", reduction: int = 1, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """An image as its EXIF orientation wants it seen, grey ones as colour, alpha left out.

    Args:
        image_format: ``"RGB"`` or ``"BGR"``; others are Detectron2's.
        reduction: 1, 2, 4 or 8: the size is divided by it, rounding up; a pixel is the mean of
            those that fall together.
        max_pixels: INPUT.MAX_PIXELS. A larger image is not decoded: a file of 100 kB can take
            gigabytes. 0: any.

    Returns:
        (ceil(h / reduction), ceil(w / reduction), 3) uint8.

    Raises:
        InputError: the file is missing, damaged, too large or no image.
    """
    try:
        data = read_regular(PathManager.get_local_path(path) if "://" in path else path)
        if max_pixels:
            width, height = _stored_size(data)
            if width * height > max_pixels:
                raise ValueError(
                    f"it has {width} x {height} pixels, and INPUT.MAX_PIXELS is {max_pixels}"
                )
        check_png(data)
        is_jpeg = data[:2] == b"\xff\xd8"
        image = _decode(data, image_format, is_jpeg, reduction)
        if image is None:  # what OpenCV does not read, Pillow may; and it says what is wrong
            return reduce_image(detection_utils.read_image(path, format=image_format), reduction)
        return image if is_jpeg else reduce_image(image, reduction)
    except Exception as error:  # decoders raise nearly every kind
        raise InputError(f"image {path} cannot be read: {first_line(error)}") from error


def image_reader(cfg: CfgNode) -> Callable[..., np.ndarray]:
    """``read_image`` with the config's limit."""
    return partial(read_image, max_pixels=cfg.INPUT.MAX_PIXELS)


def _stored_size(data: bytes) -> Tuple[int, int]:
    """(width, height) in an image file's header. Pillow knows all formats, and takes longer."""
    if data.startswith(PNG) and len(data) >= 24:
        return struct.unpack(">II", data[16:24])
    place = 2 if data[:2] == b"\xff\xd8" else len(data)
    while place + 9 <= len(data) and data[place] == 0xFF:
        if data[place + 1] in FRAMES:
            return struct.unpack(">HH", data[place + 5 : place + 9])[::-1]
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    try:
        with Image.open(BytesIO(data)) as image:
            return image.size
    except UnidentifiedImageError as error:
        raise ValueError("cannot identify image file") from error


def check_png(data: bytes) -> None:
    """Compare a PNG's checksums, past whose errors OpenCV reads on; other files are not looked at.

    Raises:
        ValueError: the file is damaged.
    """
    place, view = len(PNG), memoryview(data)
    while data.startswith(PNG) and place + 8 <= len(data):
        kind, end = (
            data[place + 4 : place + 8],
            place + 8 + int.from_bytes(view[place : place + 4], "big"),
        )
        if kind == b"IEND":
            return
        if end + 4 > len(data):
            raise ValueError("image file is truncated")
        if zlib.crc32(view[place + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise ValueError(f"image file is damaged: wrong checksum of a PNG chunk {kind}")
        place = end + 4


def reduce_image(image: np.ndarray, reduction: int) -> np.ndarray:
    """An image (h, w, 3) at a fraction of its size, as ``read_image`` gives it."""
    if reduction == 1:
        return image
    height, width = (-(-side // reduction) for side in image.shape[:2])
    borders = 0, height * reduction - image.shape[0], 0, width * reduction - image.shape[1]
    whole = cv2.copyMakeBorder(image, *borders, cv2.BORDER_REPLICATE)
    return cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)


def _decode(data: bytes, image_format: str, is_jpeg: bool, reduction: int) -> Optional[np.ndarray]:
    """The image, of a JPEG reduced; None where OpenCV cannot."""
    is_truncated = is_jpeg and data.rfind(END_OF_JPEG) < data.rfind(START_OF_SCAN)
    if image_format not in ("RGB", "BGR") or not data or is_truncated:
        return None
    flags = cv2.IMREAD_COLOR_RGB if image_format == "RGB" else cv2.IMREAD_COLOR_BGR
    is_reduced = is_jpeg and reduction > 1
    flags = REDUCED[reduction] if is_reduced else flags
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is not None and is_reduced and image_format == "RGB":  # OpenCV has no flag for both
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return image
