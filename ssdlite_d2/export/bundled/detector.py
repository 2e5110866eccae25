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


class PredictError(ValueError):
    """Something given is wrong; the message is one line."""


def open_onnx(path, spec, threads, precision):
    """onnxruntime, on the processor."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    # threads that spin for work take it from whatever else runs: twice the time on a busy machine
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})


def open_openvino(path, spec, threads, precision):
    """OpenVINO on the processor; bf16 is much faster where the processor has it, and less exact."""
    import openvino

    hint = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}[precision or "fp32"]
    options = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    compiled = openvino.Core().compile_model(str(path), "CPU", options)
    request = compiled.create_infer_request()
    ports = list(compiled.outputs)

    def run(images):
        results = request.infer({0: images}, share_inputs=True)
        return [results[port] for port in ports]

    return run


def open_torchscript(path, spec, threads, precision):
    """PyTorch alone, without the package that trained the model."""
    import torch

    if spec["nms"]:
        import torchvision  # noqa: F401  has the operator
    if threads:
        torch.set_num_threads(threads)
    module = torch.jit.load(str(path), map_location="cpu")

    def run(images):
        with torch.inference_mode():
            return [x.numpy() for x in module(torch.from_numpy(images))]

    return run


def open_ncnn(path, spec, threads, precision):
    """ncnn; images go in one by one."""
    import ncnn

    network = ncnn.Net()
    network.opt.use_fp16_packed = network.opt.use_fp16_storage = precision == "fp16"
    network.opt.use_fp16_arithmetic = network.opt.use_bf16_storage = False
    if threads:
        network.opt.num_threads = threads
    network.load_param(str(path))
    network.load_model(str(path.with_suffix(".bin")))

    def run(images):
        results = []
        for image in images:
            extractor = network.create_extractor()
            planes = np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32)
            extractor.input("in0", ncnn.Mat(planes))
            results.append([np.array(extractor.extract(name)[1]) for name in ("out0", "out1")])
        return [np.stack(outputs) for outputs in zip(*results)]

    return run


def open_litert(path, spec, threads, precision):
    """LiteRT (TensorFlow Lite)."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=threads or None)
    runner = interpreter.get_signature_runner()
    name = next(iter(runner.get_input_details()))

    def run(images):
        results = runner(**{name: images})
        return [results[key] for key in sorted(results)]

    return run


def open_executorch(path, spec, threads, precision):
    """ExecuTorch's runtime."""
    import torch
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(str(path)).load_method("forward")
    return lambda images: [x.numpy() for x in method.execute([torch.from_numpy(images)])]


def open_coreml(path, spec, threads, precision):
    """Core ML, which runs on Apple's systems only; images go in one by one."""
    import coremltools
    from PIL import Image

    model = coremltools.models.MLModel(str(path))

    def run(images):
        results = [model.predict({"image": Image.fromarray(image)}) for image in images]
        return [np.concatenate([r[name] for r in results]) for name in ("boxes", "scores")]

    return run


RUNTIMES = {
    "onnx": (open_onnx, "onnxruntime"),
    "openvino": (open_openvino, "openvino"),
    "torchscript": (open_torchscript, "torch"),
    "ncnn": (open_ncnn, "ncnn"),
    "litert": (open_litert, "ai-edge-litert"),
    "executorch": (open_executorch, "executorch"),
    "coreml": (open_coreml, "coremltools"),
}


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


# What model.json must say for the model to run, and whether a value is right.
NEEDED = {
    "format": lambda value: value in RUNTIMES,
    "file": is_inside,
    "nms": lambda value: isinstance(value, bool),
    "classes": lambda value: value and all(isinstance(name, str) for name in value),
    "input.size": lambda value: len(value) == 2 and all(is_count(n, 16384) for n in value),
    "input.batch": lambda value: value == "dynamic" or is_count(value, 4096),
    "input.resize": lambda value: value in ("inside", "before"),
    "detections.score_threshold": is_number,
    "detections.nms_threshold": is_number,
    "detections.candidates": is_count,
    "detections.candidates_per_class": lambda value: value == 0 or is_count(value),
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
    for key, is_right in NEEDED.items():
        node, _, name = key.rpartition(".")
        try:
            value = (spec[node] if node else spec)[name]
            good = is_right(value)
        except (KeyError, TypeError, ValueError):
            good = False
        if not good:
            raise PredictError(f"{path} is damaged: '{key}' is missing or not of its kind")
    spec["detections"] = {
        k: v for k, v in spec["detections"].items() if f"detections.{k}" in NEEDED
    }
    return spec


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


def first_line(error):
    """What an error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class Detector:
    """The model of a bundle: BGR images, as OpenCV reads them, to detections in their pixels."""

    def __init__(self, folder, threads=0, precision=None, verify=True):
        """
        Args:
            folder: the bundle.
            threads: of the processor; 0 leaves the number to the runtime.
            precision: fp32, bf16 or fp16 arithmetic, for runtimes that let one choose.
            verify: compare the model's files with the digests in model.json.

        Raises:
            PredictError: the bundle is damaged or not whole, or its runtime is not installed.
        """
        folder = Path(folder)
        self.spec = read_spec(folder)
        if verify:
            check_files(folder, self.spec)
        path = folder / self.spec["file"]
        open_runtime, package = RUNTIMES[self.spec["format"]]
        try:
            self._run = open_runtime(path, self.spec, threads, precision)
        except ImportError as error:
            raise PredictError(
                f"{path.name} needs {package}: pip install {package} ({error})"
            ) from error
        except Exception as error:  # each runtime has its own kinds
            raise PredictError(f"{path} cannot be opened: {first_line(error)}") from error
        self.classes = self.spec["classes"]
        self.input_size = tuple(self.spec["input"]["size"])  # (H, W)
        self.resize_inside = self.spec["input"]["resize"] == "inside"
        self.batch = self.spec["input"]["batch"]  # a number, or "dynamic"

    def __call__(self, images, threshold=None):
        """
        Args:
            images: uint8 arrays (h, w, 3), BGR, of any sizes.
            threshold: smallest score; None is the model's own.

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
            scores = outputs[1].shape[-1]
            if len(outputs) != (3 if self.spec["nms"] else 2):
                raise ValueError(f"it has {len(outputs)} outputs")
            if not self.spec["nms"] and scores != len(self.classes):
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
                image = cv2.resize(image, self.input_size[::-1], interpolation=cv2.INTER_LINEAR)
            prepared.append(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
        if self.batch != "dynamic":
            prepared += [prepared[-1]] * (self.batch - len(prepared))
        return np.stack(prepared)

    def detections(self, outputs, size, threshold=None):
        """One image's boxes, scores and classes from the model's outputs for it."""
        if self.spec["nms"]:
            boxes, scores, classes = outputs
            keep = (classes >= 0) & (classes < len(self.classes)) & (scores > (threshold or 0))
            return boxes[keep], scores[keep], classes[keep].astype(int)
        options = dict(self.spec["detections"])
        if threshold is not None:
            options["score_threshold"] = threshold
        return select(*outputs, size=size, **options)


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
):
    """The detections among all boxes (R, 4) and scores (R, K) of one image, best first.

    Returns:
        boxes (D, 4), scores (D,), classes (D,).
    """
    anchors, classes = np.nonzero(scores > score_threshold)
    values = scores[anchors, classes]
    if len(values) > candidates:
        best = np.argpartition(-values, candidates - 1)[:candidates]
        # a class limit comes first, so all that it may leave have to stay
        best = np.arange(len(values)) if candidates_per_class else best
        anchors, classes, values = anchors[best], classes[best], values[best]
    order = np.argsort(-values, kind="stable")
    if candidates_per_class:
        order = order[rank(classes[order]) < candidates_per_class]
    order = order[:candidates]
    anchors, classes, values = anchors[order], classes[order], values[order]
    boxes = boxes[anchors]
    if clip_before_nms:
        boxes = clip(boxes, size)
    kept = suppress(boxes, values, classes, nms_threshold, max_detections)
    return boxes[kept], values[kept], classes[kept]


def rank(groups):
    """How many earlier entries of the same group each entry has."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    first = np.searchsorted(ordered, ordered)
    ranks = np.empty(len(groups), dtype=int)
    ranks[order] = np.arange(len(groups)) - first
    return ranks


def suppress(boxes, scores, classes, threshold, limit, block=300):
    """Non-maximum suppression within classes of boxes (T, 4) that come best first.

    Boxes are taken block by block until ``limit`` are kept, so that many candidates cost little.

    Returns:
        indices of at most ``limit`` kept boxes, best first.
    """
    corners_and_sizes = np.hstack((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]))
    kept = np.empty(0, dtype=int)
    for start in range(0, len(boxes), block):
        # what is kept comes before the block's boxes, and is kept again
        new = np.concatenate((kept, np.arange(start, min(start + block, len(boxes)))))
        chosen = cv2.dnn.NMSBoxesBatched(
            corners_and_sizes[new], scores[new], classes[new].astype(np.int32), 0.0, threshold
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
