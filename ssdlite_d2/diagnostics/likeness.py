"""Images that show the same, though their files differ: a perceptual hash.

The signs of an image's lowest frequencies, as in Zauner, "Implementation and benchmarking of
perceptual image hash functions" (2010).
"""

from typing import Iterator, Sequence, Tuple

import cv2
import numpy as np

SIDE, FREQUENCIES = 64, 16  # of the image that is transformed, and kept of it each way
# Bits of 256 in which two hashes of one image may differ. JPEG at quality 40 and other sizes and
# brightnesses change up to 34; different images of BCCD and COCO differ in 80 and more.
ALIKE = 40
ROWS = 1024  # compared at once


def likeness(image: np.ndarray) -> bytes:
    """The hash, of 256 bits, of an image (h, w, 3)."""
    grey = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA).mean(2, dtype=np.float32)
    low = cv2.dct(grey)[:FREQUENCIES, :FREQUENCIES]
    return np.packbits(low > np.median(low)).tobytes()


def alike(some: Sequence[bytes], others: Sequence[bytes]) -> Iterator[Tuple[int, int]]:
    """(i, j) of each of some hashes that has one like it among others, and of the most alike."""
    if not others:
        return
    a, b = (_signs(hashes) for hashes in (some, others))
    for start in range(0, len(a), ROWS):
        products = a[start : start + ROWS] @ b.T  # bits less twice those that differ
        best = products.argmax(1)
        near = products[np.arange(len(best)), best] >= a.shape[1] - 2 * ALIKE
        yield from ((start + int(i), int(best[i])) for i in near.nonzero()[0])


def _signs(hashes: Sequence[bytes]) -> np.ndarray:
    """(N, 256) of 1 and -1."""
    rows = np.frombuffer(b"".join(hashes), dtype=np.uint8).reshape(len(hashes), -1)
    return np.unpackbits(rows, axis=1).astype(np.float32) * 2 - 1
