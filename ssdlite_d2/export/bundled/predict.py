#!/usr/bin/env python
"""Detect objects with the exported SSD model of this folder; prints JSON.

python predict.py image.jpg folder video.mp4 --output drawn > detections.json

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
from detector import Detector, PredictError

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
VIDEOS = (".mp4", ".avi", ".mkv", ".mov", ".webm")


class UnreadableError(PredictError):
    """An image or video that cannot be read; the others can."""


def draw(image, boxes, scores, labels):
    """A copy of a BGR image with named boxes."""
    image = image.copy()
    thickness = max(1, round(min(image.shape[:2]) / 250))
    for box, score, label in zip(boxes, scores, labels):
        x0, y0, x1, y1 = (int(round(float(v))) for v in box)
        hue = sum(map(ord, label)) * 47 % 180
        colour = cv2.cvtColor(np.uint8([[[hue, 220, 230]]]), cv2.COLOR_HSV2BGR)[0, 0].tolist()
        cv2.rectangle(image, (x0, y0), (x1, y1), colour, thickness)
        text, font = f"{label} {score:.2f}", cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(image, text, (x0, max(12, y0 - 4)), font, 0.4 * thickness, colour, thickness)
    return image


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


def drawing_paths(sources, folder):
    """A file in a folder for each source, which is made: its name, numbered if another has it.

    Raises:
        PredictError: the folder cannot be made, or a source would be overwritten.
    """
    if folder is None:
        return [None] * len(sources)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PredictError(f"--output: {folder}: {error.strerror}") from error
    originals = {source.resolve() for source in sources}
    places = {source.parent.resolve() for source in sources} | {p.parent for p in originals}
    paths, taken = [], {}  # the source of each name
    for source in sources:
        suffix = ".mp4" if source.suffix.lower() in VIDEOS else source.suffix
        name, number = source.stem + suffix, 2
        while taken.setdefault(name, source.resolve()) != source.resolve():
            name, number = f"{source.stem}_{number}{suffix}", number + 1
        paths.append(Path(folder, name))
        if Path(folder).resolve() in places or paths[-1].resolve() in originals:
            raise PredictError(
                f"--output: {folder} is where the input is, which would be overwritten; name "
                "another folder"
            )
    return paths


class Drawing:
    """Writes drawn images or a drawn video of one source file to a path; or nothing."""

    def __init__(self, source, target):
        self.source, self.target, self.video = source, target, None

    def write(self, image, boxes, scores, labels):
        if self.target is None:
            return
        image = draw(image, boxes, scores, labels)
        target = self.target
        if self.source.suffix.lower() not in VIDEOS:
            good = cv2.imwrite(str(target), image)
        else:
            if self.video is None:
                rate = cv2.VideoCapture(str(self.source)).get(cv2.CAP_PROP_FPS) or 30.0
                code = cv2.VideoWriter_fourcc(*"mp4v")
                size = image.shape[1::-1]
                self.video = cv2.VideoWriter(str(target), code, rate, size)
            good = self.video.isOpened()
            self.video.write(image)
        if not good:
            raise PredictError(f"--output: cannot write {target}")

    def close(self):
        if self.video is not None:
            self.video.release()


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
    detector = Detector(args.model, args.threads, args.precision)
    size = args.batch_size if detector.batch == "dynamic" else detector.batch
    sources, unreadable, separator = find(args.inputs), 0, ""
    targets = drawing_paths(sources, args.output)
    out.write("[\n")
    for source, target in zip(sources, targets):
        drawing = Drawing(source, target)
        try:
            for start, images in batches(source, size):
                for i, result in enumerate(detector(images, args.threshold)):
                    labels = [detector.classes[c] for c in result[2]]
                    entry = describe(source, start + i, images[i], result, labels)
                    out.write(separator + json.dumps(entry))
                    separator = ",\n"
                    drawing.write(images[i], *result[:2], labels)
        except UnreadableError as error:
            print(f"error: {error}", file=sys.stderr)
            unreadable += 1
        drawing.close()
    out.write("\n]\n")
    return int(unreadable > 0)


def describe(source, number, image, result, labels):
    """The JSON object of one image, or of one frame of a video."""
    entry = {"file": str(source), "width": image.shape[1], "height": image.shape[0]}
    if source.suffix.lower() in VIDEOS:
        entry["frame"] = number
    entry["detections"] = [
        {"class": label, "score": round(float(s), 6), "box": [round(float(v), 3) for v in box]}
        for box, s, label in zip(*result[:2], labels)
    ]
    return entry


def main():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("inputs", nargs="+", help="images, videos, and folders of them")
    parser.add_argument("--output", metavar="DIR", help="folder for drawn images and videos")
    parser.add_argument(
        "--threshold", type=float, metavar="T", help="smallest score (default: as in model.json)"
    )
    parser.add_argument("--model", default=str(Path(__file__).parent), metavar="DIR", help="bundle")
    parser.add_argument("--threads", type=int, default=0, help="of the processor (default: all)")
    parser.add_argument(
        "--batch-size", type=int, default=1, help="images at once, for --batch dynamic models"
    )
    parser.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16"), help="arithmetic; openvino and ncnn only"
    )
    args = parser.parse_args()
    try:
        sys.exit(run(args, sys.stdout))
    except PredictError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
