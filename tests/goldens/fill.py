"""Deterministic weights, test images and ground truth for the SSD/SSDLite goldens.

Self-contained: numpy and the standard library only. Nothing here depends on
torch or on any reference implementation. README.md (same folder) says how the
pieces are used; the golden's `meta` holds the `params`.

    entries = [(name, shape, dtype), ...]      # the golden's own `entries`
    weights = fill(entries, params)            # dict name -> ndarray

Every value is a function of (name, shape, params) only, so the order of the
entries does not matter and a converter may rename a tensor AFTER filling it.
"""
import re
import zlib

import numpy as np

RECIPE_VERSION = 1


# --------------------------------------------------------------------------- weights
def role(name, shape):
    """What a state_dict entry is, from its name and shape alone."""
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return "counter"
    if leaf == "running_mean":
        return "running_mean"
    if leaf == "running_var":
        return "running_var"
    if leaf == "bias":
        return "bias"
    if leaf == "weight":
        if len(shape) >= 2:
            return "matrix"                     # convolution or linear
        return "l2norm" if "l2_norm" in name else "bn_weight"
    raise KeyError("no recipe for %r %r" % (name, tuple(shape)))


def is_cls_predictor(name, shape, params):
    """The last convolution of a class header (its weight or its bias)."""
    return re.search(params["cls_regex"], name) is not None and shape[0] % params["num_classes"] == 0


def is_loc_predictor(name, shape, params):
    return re.search(params["loc_regex"], name) is not None


def fill_one(name, shape, params):
    """One entry as an ndarray (float32, or int64 for num_batches_tracked)."""
    shape = tuple(int(s) for s in shape)
    kind = role(name, shape)
    if kind == "counter":
        return np.ones(shape, np.int64)
    rng = np.random.default_rng(zlib.crc32(name.encode("utf-8")))
    if kind == "matrix":
        fan_in = int(np.prod(shape[1:]))        # (in/groups) * kh * kw
        value = rng.standard_normal(shape) * np.sqrt(2.0 / fan_in)
        if is_cls_predictor(name, shape, params):
            value *= params["cls_scale"]
        elif is_loc_predictor(name, shape, params):
            value *= params["loc_scale"]
        for pattern, factor in params["gains"]:  # every rule that matches multiplies
            if re.search(pattern, name):
                value *= factor
    elif kind == "bias":
        value = rng.standard_normal(shape) * 0.05
        if is_cls_predictor(name, shape, params):
            # channel index = anchor * num_classes + class
            if params["cls_offset_on"] == "all":
                value += params["cls_offset"]
            elif params["cls_offset_on"] == "class0":
                value[0::params["num_classes"]] += params["cls_offset"]
            else:
                raise ValueError(params["cls_offset_on"])
    elif kind == "bn_weight":
        value = rng.uniform(0.8, 1.2, shape)
    elif kind == "running_mean":
        value = rng.standard_normal(shape) * 0.1
    elif kind == "running_var":
        value = rng.uniform(0.7, 1.3, shape)
    elif kind == "l2norm":
        value = rng.uniform(15.0, 25.0, shape)
    return value.astype(np.float32)


def fill(entries, params):
    """entries: iterable of (name, shape[, dtype]); returns dict name -> ndarray."""
    return {e[0]: fill_one(e[0], e[1], params) for e in entries}


def crc(array):
    """CRC-32 of an array's little-endian C-order bytes."""
    a = np.ascontiguousarray(array)
    return zlib.crc32(a.astype(a.dtype.newbyteorder("<"), copy=False).tobytes())


# --------------------------------------------------------------------------- images
def _upsample(grid, h, w):
    """Bilinear upsampling in integers (16.8 fixed point): same result on any machine."""
    gh, gw = grid.shape[:2]
    ys = (np.arange(h, dtype=np.int64) * (gh - 1) * 256) // max(h - 1, 1)
    xs = (np.arange(w, dtype=np.int64) * (gw - 1) * 256) // max(w - 1, 1)
    y0, fy = np.minimum(ys >> 8, gh - 2), None
    x0, fx = np.minimum(xs >> 8, gw - 2), None
    fy = (ys - (y0 << 8))[:, None, None]
    fx = (xs - (x0 << 8))[None, :, None]
    g = grid.astype(np.int64)
    a, b = g[y0][:, x0], g[y0][:, x0 + 1]
    c, d = g[y0 + 1][:, x0], g[y0 + 1][:, x0 + 1]
    top, bottom = a * (256 - fx) + b * fx, c * (256 - fx) + d * fx
    return (top * (256 - fy) + bottom * fy) >> 16


def make_image(seed, height, width):
    """uint8 RGB image (height, width, 3): smooth blobs at two scales, grain, rectangles."""
    rng = np.random.default_rng(seed)
    coarse = _upsample(rng.integers(0, 256, (6, 8, 3)), height, width)
    middle = _upsample(rng.integers(0, 256, (24, 32, 3)), height, width)
    grain = rng.integers(0, 256, (height, width, 3))
    image = (9 * coarse + 6 * middle + grain) // 16
    for _ in range(9):
        h = int(rng.integers(8, height // 2))
        w = int(rng.integers(8, width // 2))
        y = int(rng.integers(0, height - h))
        x = int(rng.integers(0, width - w))
        colour = rng.integers(0, 256, 3)
        image[y:y + h, x:x + w] = (image[y:y + h, x:x + w] + 3 * colour) // 4
    return image.astype(np.uint8)


IMAGES = ((20240501, 375, 500), (20240502, 480, 640))    # (seed, height, width)


def make_test_image(index=0):
    return make_image(*IMAGES[index])


# --------------------------------------------------------------------------- ground truth
def make_test_targets(num_classes):
    """Per image: (boxes float32 (N,4) x1,y1,x2,y2 in pixels of that image, labels int64).

    num_classes counts the background (21 or 81); labels run 1..num_classes-1.
    Image 0: boxes 2 and 3 nearly coincide and carry different labels (in most
    anchor sets both have the same best prior), box 4 nearly fills the image, box 1
    is wide, box 5 tall. Image 1: one small box. The boxes were searched so that in
    all anchor sets here no prior lies within 1e-3 of the IoU threshold, no positive
    prior is nearly tied between two boxes, and no box is nearly tied between two
    priors: the matching does not hang on rounding.
    """
    top = num_classes - 1
    boxes0 = np.array([[51, 27, 174, 236],
                       [225, 13, 467, 135],
                       [305, 128, 413, 287],
                       [302, 125, 417, 288],
                       [7, 30, 500, 371],
                       [72, 213, 153, 356],
                       [145, 250, 239, 318]], np.float32)
    labels0 = np.array([1, 5, top, 7, 15, 12, 5], np.int64)
    boxes1 = np.array([[434, 308, 531, 381]], np.float32)
    labels1 = np.array([3], np.int64)
    return [(boxes0, labels0), (boxes1, labels1)]


def tiny_target():
    """One 8x7 pixel box for image 1. It lies wholly inside several priors of equal
    area, so its best prior is a tie that only rounding decides: see `tiny_tied`."""
    return np.array([[333, 207, 341, 214]], np.float32), np.array([3], np.int64)


if __name__ == "__main__":
    for i in range(len(IMAGES)):
        im = make_test_image(i)
        print(i, im.shape, im.dtype, "mean %.3f std %.3f crc32 %d" % (im.mean(), im.std(), crc(im)))
