"""The model of a bundle: images in, detections out.

    from detector import Detector
    boxes, scores, classes = Detector(".")([cv2.imread("image.jpg")])[0]

Needs numpy, opencv-python 4.7 or newer, and the runtime that model.json names.
"""

import hashlib
import json
from pathlib import Path, PurePath

import cv2
import numpy as np

try:
    from .runtimes import RUNTIMES, PredictError, first_line, open_runtime
except ImportError:  # beside a program
    from runtimes import RUNTIMES, PredictError, first_line, open_runtime

# How many outputs the model has in each layout.
LAYOUTS = {"anchors": 2, "nms": 3, "frigate": 1, "detection-postprocess": 4}


def is_inside(name):
    """Whether a file's name, of model.json, stays in the bundle's folder."""
    path = PurePath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def is_count(value, most=2**31):
    """Whether a value is a number of things."""
    return type(value) is int and 0 < value <= most


def is_number(value):
    """Whether a value is a number, and not True or False."""
    return type(value) in (int, float)


USUAL_THRESHOLD = 0.3  # where no evaluation tells one

# What model.json must say for the model to run, and whether a value is right.
NEEDED = {
    "format": lambda value: value in RUNTIMES,
    "file": is_inside,
    "layout": LAYOUTS.__contains__,
    "classes": lambda value: value and all(isinstance(name, str) for name in value),
    "input.size": lambda value: len(value) == 2 and all(is_count(n, 16384) for n in value),
    "input.batch": lambda value: value == "dynamic" or is_count(value, 4096),
    "input.resize": lambda value: value in ("inside", "before"),
    "input.resampling": lambda value: value in ("half_pixel", "asymmetric", "opencv"),
    "detections.score_threshold": is_number,
    "detections.nms_threshold": is_number,
    "detections.candidates": is_count,
    "detections.candidates_per_class": lambda value: value == 0 or is_count(value),
    "detections.across_classes": lambda value: isinstance(value, bool),
    "detections.clip_before_nms": lambda value: isinstance(value, bool),
    "detections.max_detections": is_count,
}


def read_spec(folder):
    """What a bundle's model.json says.

    Raises:
        PredictError: it is missing or damaged.
    """
    path = folder / "model.json"
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is no file")
        spec = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise PredictError(f"{path} cannot be read: {first_line(error)}") from error
    return checked_spec(spec, path)


def checked_spec(spec, path):
    """What the model needs of what model.json says.

    Raises:
        PredictError: a value is missing or not of its kind.
    """
    if isinstance(spec, dict) and isinstance(spec.get("detections"), dict):
        spec["detections"].setdefault("across_classes", False)  # of older bundles
    for key, is_right in NEEDED.items():
        node, _, name = key.rpartition(".")
        try:
            value = (spec[node] if node else spec)[name]
            good = is_right(value)
        except (KeyError, TypeError, ValueError):
            good = False
        if not good:
            raise PredictError(f"{path} is damaged: '{key}' is missing or not of its kind")
    if not holds_threshold(spec.get("operating", {"threshold": 0})):
        raise PredictError(f"{path} is damaged: 'operating' has no threshold from 0 to 1")
    spec["detections"] = {
        k: v for k, v in spec["detections"].items() if f"detections.{k}" in NEEDED
    }
    return spec


def holds_threshold(operating):
    """Whether there is the score to operate at."""
    value = operating.get("threshold") if isinstance(operating, dict) else None
    return is_number(value) and 0 <= value <= 1


def check_files(folder, spec):
    """
    Raises:
        PredictError: a file of the model is missing or is not the one that was exported.
    """
    digests = spec.get("sha256")
    if not isinstance(digests, dict) or not digests or not all(map(is_inside, digests)):
        raise PredictError(f"{folder / 'model.json'} is damaged: 'sha256' names no files")
    if not any(PurePath(spec["file"]) in (PurePath(n), *PurePath(n).parents) for n in digests):
        raise PredictError(f"{folder / 'model.json'} is damaged: no sha256 of {spec['file']}")
    for name, digest in digests.items():
        path = folder / name
        if not path.is_file():
            raise PredictError(f"{path} is missing")
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise PredictError(f"{path} is not the file that was exported: its sha256 differs")


class Detector:
    """The model of a bundle: BGR images, as OpenCV reads them, to detections in their pixels."""

    def __init__(self, folder, threads=0, precision=None, device=None, spec=None):
        """
        Args:
            folder: the bundle.
            threads: of the processor; 0 leaves the number to the runtime.
            precision: fp32, bf16 or fp16 arithmetic, for runtimes that let one choose.
            device: cpu, cuda, tensorrt, openvino:GPU, openvino:NPU or coreml, of which a runtime
                has some; auto takes the first that is there; None is the runtime's usual one.
                ``self.device`` says which it is.
            spec: what model.json will say, when it is not written yet; no digests are compared.

        Raises:
            PredictError: the bundle is damaged or not whole, or its runtime or the device is not
                there.
        """
        folder = Path(folder)
        if spec is None:
            self.spec = read_spec(folder)
            check_files(folder, self.spec)
        else:
            self.spec = checked_spec(spec, folder / "model.json")
        path = folder / self.spec["file"]
        self._run, self.device = open_runtime(path, self.spec, threads, precision, device)
        self.classes = self.spec["classes"]
        # above which predict.py shows detections: that of the best F1 at the last evaluation
        self.threshold = self.spec.get("operating", {}).get("threshold", USUAL_THRESHOLD)
        self.input_size = tuple(self.spec["input"]["size"])  # (H, W)
        self.resize_inside = self.spec["input"]["resize"] == "inside"
        self.batch = self.spec["input"]["batch"]  # a number, or "dynamic"

    def __call__(self, images, threshold=None):
        """
        Args:
            images: uint8 arrays (h, w, 3), BGR, of any sizes.
            threshold: smallest score; None is the model's own, low enough for AP. ``threshold``
                is the one to show detections above.

        Returns:
            list of (boxes (D, 4) XYXY in pixels of the image, scores (D,), classes (D,)), best
            first.
        """
        results = []
        step = 1 if self.resize_inside or self.batch == "dynamic" else self.batch
        if self.batch == "dynamic" and not self.resize_inside:
            step = len(images)
        for start in range(0, len(images), step):
            chunk = images[start : start + step]
            outputs = self.run(self.prepare(chunk))
            for i, image in enumerate(chunk):
                size = self.input_size if not self.resize_inside else image.shape[:2]
                found = self.detections([x[i] for x in outputs], size, threshold)
                results.append(fit(*found, size, image.shape[:2]))
        return results

    def run(self, images):
        """The model's outputs for a prepared batch.

        Raises:
            PredictError: the model is not the one that model.json tells of.
        """
        try:
            outputs = self._run(images)
            layout = self.spec["layout"]
            if len(outputs) != LAYOUTS[layout]:
                raise ValueError(f"it has {len(outputs)} outputs")
            if layout == "anchors" and outputs[1].shape[-1] != len(self.classes):
                scores = outputs[1].shape[-1]
                raise ValueError(f"it has {scores} scores for {len(self.classes)} classes")
            return outputs
        except Exception as error:  # each runtime has its own kinds
            raise PredictError(f"{self.spec['file']} does not run: {first_line(error)}") from error

    def prepare(self, images):
        """The model's input, uint8 RGB (N, H, W, 3), of BGR images; a short batch is filled."""
        prepared = []
        for image in images:
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                raise PredictError(
                    f"an image is {image.dtype} of shape {image.shape}; "
                    "uint8 (height, width, 3) is needed"
                )
            if not self.resize_inside and image.shape[:2] != self.input_size:
                image = resize(image, self.input_size, self.spec["input"]["resampling"])
            prepared.append(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
        if self.batch != "dynamic":
            prepared += [prepared[-1]] * (self.batch - len(prepared))
        return prepared[0][None] if len(prepared) == 1 else np.stack(prepared)

    def detections(self, outputs, size, threshold=None):
        """One image's boxes, scores and classes from the model's outputs for it."""
        if self.spec["layout"] == "anchors":
            options = dict(self.spec["detections"])
            if threshold is not None:
                options["score_threshold"] = threshold
            return select(*outputs, size=size, **options)
        if self.spec["layout"] == "frigate":
            _, classes, scores, *sides = outputs[0][0].T
            boxes = np.stack(sides, 1) * np.array(size[::-1] * 2, dtype=np.float32)
        elif self.spec["layout"] == "detection-postprocess":
            boxes, classes, scores = (x[: int(outputs[3])] for x in outputs[:3])
            boxes = boxes[:, [1, 0, 3, 2]] * np.array(size[::-1] * 2, dtype=np.float32)
        else:
            boxes, scores, classes = outputs
        keep = (classes >= 0) & (classes < len(self.classes)) & (scores > (threshold or 0))
        return boxes[keep], scores[keep], classes[keep].astype(int)


def resize(image, size, resampling):
    """An image stretched to (height, width), bilinear without antialias, as model.json says."""
    if resampling != "asymmetric":
        return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    # "asymmetric", as in TensorFlow 1: pixel i shows the coordinate i * scale, not its centre
    scale_y, scale_x = (old / new for old, new in zip(image.shape, size))
    matrix = np.array([[scale_x, 0, 0], [0, scale_y, 0]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, matrix, size[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)


def select(
    boxes,
    scores,
    *,
    size,
    score_threshold,
    nms_threshold,
    candidates,
    candidates_per_class,
    clip_before_nms,
    max_detections,
    across_classes=False,
):
    """The detections among all boxes (R, 4) and scores (R, K) of one image, best first.

    Returns:
        boxes (D, 4), scores (D,), classes (D,).
    """
    pairs = np.flatnonzero(scores > score_threshold)  # of an anchor and a class
    values = scores.ravel()[pairs]
    # a class limit comes first, so all that it may leave have to stay
    if len(values) > candidates and not candidates_per_class:
        best = np.argpartition(-values, candidates - 1)[:candidates]
        pairs, values = pairs[best], values[best]
    order = np.argsort(-values, kind="stable")
    if candidates_per_class:
        classes = pairs[order] % scores.shape[1]
        order = order[rank(classes) < candidates_per_class][:candidates]
    anchors, classes = np.divmod(pairs[order], scores.shape[1])
    values = values[order]
    boxes = boxes[anchors]
    if clip_before_nms:
        boxes = clip(boxes, size)
    groups = np.zeros_like(classes) if across_classes else classes
    kept = suppress(boxes, values, groups, nms_threshold, max_detections)
    return boxes[kept], values[kept], classes[kept]


def rank(groups):
    """How many earlier entries of the same group each entry has."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    first = np.searchsorted(ordered, ordered)
    ranks = np.empty(len(groups), dtype=int)
    ranks[order] = np.arange(len(groups)) - first
    return ranks


def suppress(boxes, scores, classes, threshold, limit, block=500):
    """Non-maximum suppression within classes of boxes (T, 4) that come best first.

    Boxes are taken block by block until ``limit`` are kept, so that many candidates cost little.

    Returns:
        indices of at most ``limit`` kept boxes, best first.
    """
    corners_and_sizes = np.hstack((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]))
    # OpenCV reads rows of float64 in a third of the time that it needs for those of float32
    corners_and_sizes, classes = corners_and_sizes.astype(np.float64), classes.astype(np.int32)
    kept = np.empty(0, dtype=int)
    for start in range(0, len(boxes), block):
        # what is kept comes before the block's boxes, and is kept again
        new = np.concatenate((kept, np.arange(start, min(start + block, len(boxes)))))
        chosen = cv2.dnn.NMSBoxesBatched(
            corners_and_sizes[new], scores[new], classes[new], 0.0, threshold
        )
        kept = new[np.ravel(chosen).astype(int)]
        if len(kept) >= limit:
            break
    return kept[:limit]


def clip(boxes, size):
    """Boxes (D, 4) cut to an image of (height, width)."""
    height, width = size
    return boxes.clip(0, np.array((width, height, width, height), dtype=boxes.dtype))


def fit(boxes, scores, classes, size, image_size):
    """Boxes from (height, width) of the model's pixels to an image's; empty ones are dropped."""
    ratios = np.array(image_size[::-1] * 2, dtype=np.float32) / np.array(size[::-1] * 2)
    boxes = clip(boxes * ratios.astype(boxes.dtype), image_size)
    keep = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    return boxes[keep], scores[keep], classes[keep]


def as_json(result, classes):
    """JSON values for one image's boxes, scores and classes."""
    return [
        {
            "class": classes[int(c)],
            "score": round(float(s), 6),
            "box": [round(float(v), 3) for v in box],
        }
        for box, s, c in zip(*result)
    ]
