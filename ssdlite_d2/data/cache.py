"""Decoded images kept in memory that all loader workers share."""

import mmap
from typing import Callable, Dict, Sequence

import numpy as np

from ..errors import InputError
from .reader import read_image, reduce_image

FREE_SHARE = 0.9  # of the free memory, at most


class ImageCache:
    """Reads images as ``read_image`` does, and decodes each of a data set's once.

    An image is put into the memory by whichever process reads it first. Workers that are started
    by fork share the memory; others have one each.
    """

    def __init__(self, records: Sequence[Dict], read: Callable[..., np.ndarray] = read_image):
        """
        Args:
            records: dataset dicts with ``file_name``, ``height`` and ``width``.
            read: as ``read_image``.

        Raises:
            InputError: the images do not fit into the free memory.
        """
        self.read = read
        self.slots = {}  # first byte, height, width
        end = len(records)  # that many bytes say which images are there
        for index, record in enumerate(records):
            height, width = record["height"], record["width"]
            self.slots[record["file_name"]] = (index, end, height, width)
            end += height * width * 3
        free = _free_memory()
        if end > FREE_SHARE * free:
            raise InputError(
                f"DATALOADER.CACHE ram needs {end / 1e9:.1f} GB for {len(records)} images, "
                f"{free / 1e9:.1f} GB are free; set DATALOADER.CACHE none"
            )
        self.size = end
        self._allocate()

    def _allocate(self) -> None:
        self.memory = np.frombuffer(mmap.mmap(-1, self.size), dtype=np.uint8)  # zeros, unused yet

    def __getstate__(self) -> Dict:
        return {"slots": self.slots, "size": self.size, "read": self.read}

    def __setstate__(self, state: Dict) -> None:
        self.__dict__.update(state)
        self._allocate()

    def __call__(self, path: str, image_format: str = "RGB", reduction: int = 1) -> np.ndarray:
        """As ``read_image``; an image of another size than annotated is not kept."""
        index, start, height, width = self.slots[path]
        kept = self.memory[start : start + height * width * 3].reshape(height, width, 3)
        if not self.memory[index]:
            image = self.read(path, image_format)
            if image.shape != kept.shape:
                return image
            kept[...] = image
            self.memory[index] = 1
        return reduce_image(kept, reduction)


def _free_memory() -> float:
    """Bytes that can be had without swapping; infinite where the system does not tell."""
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":") for line in file)
        return float(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return float("inf")
