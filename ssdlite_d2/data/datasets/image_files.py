"""What loaders need to know of image files."""

from pathlib import Path
from typing import Optional, Tuple

from PIL import Image

from ...errors import first_line
from ...files import open_regular
from .annotations import UNREADABLE, Problems

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
EXIF_ORIENTATION = 0x0112
TURNED = (5, 6, 7, 8)  # orientations that swap width and height


def image_size(path: Path, problems: Problems) -> Optional[Tuple[int, int]]:
    """(height, width) from a file's header, as its EXIF orientation wants it seen."""
    try:
        with open_regular(path) as file, Image.open(file) as image:
            width, height = image.size
            turned = image.getexif().get(EXIF_ORIENTATION) in TURNED
    except Exception as error:  # Pillow raises nearly every kind
        problems.add(UNREADABLE, path, f"cannot be read: {first_line(error)}")
        return None
    return (width, height) if turned else (height, width)
