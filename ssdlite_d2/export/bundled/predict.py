#!/usr/bin/env python
"""Detect objects with the exported SSD model of this folder; prints JSON.

python predict.py image.jpg folder video.mp4 --output drawn > detections.json
python predict.py --check

Needs numpy, opencv-python 4.7 or newer, and the runtime that model.json names; nothing of
the training side.
"""

import argparse
import json
import os
import sys
from pathlib import Path

# pixels of the largest image that is decoded: a file of 100 kB can take gigabytes
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", "100000000")

import cv2  # reads the limit once
import numpy as np
from detector import Detector, PredictError, as_json, first_line
from drawing import VIDEOS, Drawing, drawing_paths

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


class UnreadableError(PredictError):
    """An image or video that cannot be read; the others can."""


def find(inputs):
    """The image and video files that paths and folders stand for."""
    found = []
    for path in map(Path, inputs):
        known = IMAGES + VIDEOS
        files = path.iterdir() if path.is_dir() else ()
        inside = sorted(p for p in files if p.suffix.lower() in known and p.is_file())
        if not inside and not path.is_file():
            raise PredictError(f"no image or video at {path}")
        found += inside or [path]
    return found


def frames(path):
    """A file's images: one, or those of a video.

    Raises:
        UnreadableError: the file cannot be read.
    """
    if path.suffix.lower() not in VIDEOS:
        try:
            image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        except cv2.error as error:
            limit = os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"]
            reason = (
                f"OPENCV_IO_MAX_IMAGE_PIXELS is {limit}" if "PIXELS" in error.err else error.err
            )
            raise UnreadableError(f"{path} cannot be read: {reason}") from error
        if image is None:
            raise UnreadableError(f"{path} cannot be read as an image")
        yield image
        return
    video = cv2.VideoCapture(str(path))
    if not video.isOpened():
        raise UnreadableError(f"{path} cannot be read as a video")
    while True:
        good, image = video.read()
        if not good:
            return
        yield image


def batches(source, size):
    """(number of the first, list of images) of a file, in lists of at most ``size``."""
    batch, start = [], 0
    for image in frames(source):
        batch.append(image)
        if len(batch) == size:
            yield start, batch
            start, batch = start + size, []
    if batch:
        yield start, batch


def run(args, out):
    """Detect on every input; writes a JSON list with one object per image or frame.

    Returns:
        the exit status: 1 when a file could not be read.
    """
    detector = Detector(args.model, args.threads, args.precision, args.device)
    if args.device == "auto":
        print(f"device: {detector.device}", file=sys.stderr)
    if args.check:
        check(args.model, detector, out)
        return 0
    if args.across_classes:
        if detector.spec["layout"] != "anchors":
            raise PredictError("--across-classes: suppression is in the model, by class")
        detector.spec["detections"]["across_classes"] = True
    threshold = detector.threshold if args.threshold is None else args.threshold
    size = args.batch_size if detector.batch == "dynamic" else detector.batch
    sources, unreadable, separator = find(args.inputs), 0, ""
    targets = drawing_paths(sources, args.output)
    out.write("[\n")
    for source, target in zip(sources, targets):
        drawing = Drawing(source, target)
        try:
            for start, images in batches(source, size):
                for i, result in enumerate(detector(images, threshold)):
                    labels = [detector.classes[c] for c in result[2]]
                    entry = describe(source, start + i, images[i])
                    entry["detections"] = as_json(result, detector.classes)
                    out.write(separator + json.dumps(entry))
                    separator = ",\n"
                    drawing.write(images[i], *result, labels)
        except UnreadableError as error:
            print(f"error: {error}", file=sys.stderr)
            unreadable += 1
        drawing.close()
    out.write("\n]\n")
    return int(unreadable > 0)


def describe(source, number, image):
    """Of which file, or which frame of a video, and of what size an image is."""
    entry = {"file": str(source), "width": image.shape[1], "height": image.shape[0]}
    if source.suffix.lower() in VIDEOS:
        entry["frame"] = number
    return entry


def check(folder, detector, out):
    """Compare a bundle's detections on its example with those that it was exported with.

    Raises:
        PredictError: they differ, or the example is damaged.
    """
    for name, digest in detector.spec["sha256"].items():
        out.write(f"{name}: sha256 {digest} as exported\n")
    path = Path(folder, "example.json")
    if not path.is_file():
        detector([np.zeros((*detector.input_size, 3), np.uint8)])
        out.write(f"the model runs on {detector.device}; the bundle has no example\n")
        return
    try:
        example = json.loads(path.read_bytes())
        name, expected = example["file"], example["detections"]
        pixels, score = example["tolerance"]["pixels"], example["tolerance"]["score"]
        if Path(name).name != name or not Path(folder, name).is_file():
            raise ValueError("its image is not in the folder")
        found = as_json(detector([next(frames(Path(folder, name)), None)])[0], detector.classes)
        for side, some, others in (("expected", expected, found), ("found", found, expected)):
            odd = unlike(some, others, pixels, score)
            if odd:
                raise PredictError(
                    f"{name}: {odd['class']} {odd['score']:.3f} at {odd['box']} is {side} only, "
                    f"on {detector.device}, within {pixels} px and {score} of the score"
                )
    except PredictError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise PredictError(f"{path} is damaged: {first_line(error)}") from error
    out.write(f"{name}: {len(found)} detections as expected, on {detector.device}\n")


def unlike(some, others, pixels, score):
    """The first detection that the others lack; None when there is none.

    One whose score is hardly above the least may be missing for that.
    """
    least = min((d["score"] for d in [*some, *others]), default=0) + score
    for one in some:
        if one["score"] >= least and not any(
            one["class"] == other["class"]
            and abs(one["score"] - other["score"]) <= score
            and np.abs(np.subtract(one["box"], other["box"])).max() <= pixels
            for other in others
        ):
            return one
    return None


def main():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("inputs", nargs="*", help="images, videos, and folders of them")
    parser.add_argument(
        "--check", action="store_true", help="check the bundle's files and its example, and end"
    )
    parser.add_argument("--output", metavar="DIR", help="folder for drawn images and videos")
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="T",
        help="smallest score (default: that of the best F1 at the last evaluation of the training)",
    )
    parser.add_argument(
        "--across-classes",
        action="store_true",
        help="of overlapping boxes keep the best one, whatever their classes",
    )
    parser.add_argument("--model", default=str(Path(__file__).parent), metavar="DIR", help="bundle")
    parser.add_argument("--threads", type=int, default=0, help="of the processor (default: all)")
    parser.add_argument(
        "--batch-size", type=int, default=1, help="images at once, for --batch dynamic models"
    )
    parser.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16"), help="arithmetic; openvino and ncnn only"
    )
    parser.add_argument(
        "--device",
        metavar="D",
        help="cpu, cuda, tensorrt, openvino:GPU, openvino:NPU, coreml: what the runtime has of "
        "them; auto takes the first that is there and says so (default: the runtime's usual)",
    )
    args = parser.parse_args()
    if bool(args.inputs) == args.check:
        parser.error("name images, videos or folders, or --check alone")
    try:
        sys.exit(run(args, sys.stdout))
    except PredictError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
