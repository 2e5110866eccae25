"""Images and videos with named boxes; needs numpy and OpenCV."""

import colorsys
from pathlib import Path

import cv2
import numpy as np
from detector import PredictError

VIDEOS = (".mp4", ".avi", ".mkv", ".mov", ".webm")


def colour_of(class_id):
    """BGR of a class, the same wherever it is drawn."""
    red, green, blue = colorsys.hsv_to_rgb(class_id * 0.618034 % 1, 0.85, 0.95)
    return tuple(round(255 * value) for value in (blue, green, red))


def draw(image, boxes, scores, classes, labels, smallest_side=480):
    """A copy of a BGR image with named boxes; smaller ones are enlarged for the names."""
    scale = max(1.0, smallest_side / min(image.shape[:2]))
    image = cv2.resize(image, None, fx=scale, fy=scale) if scale > 1 else image.copy()
    size, thickness = (least / 480 * min(image.shape[:2]) for least in (0.45, 1.0))
    thickness, font = max(1, round(thickness)), cv2.FONT_HERSHEY_SIMPLEX
    for box, score, class_id, label in zip(boxes * scale, scores, classes, labels):
        x0, y0, x1, y1 = (int(round(float(v))) for v in box)
        colour, text = colour_of(int(class_id)), f"{label} {score:.0%}"
        cv2.rectangle(image, (x0, y0), (x1, y1), colour, 2 * thickness)
        (width, height), below = cv2.getTextSize(text, font, size, thickness)
        y0 = max(y0, height + below)
        cv2.rectangle(image, (x0, y0 - height - below), (x0 + width, y0), colour, -1)
        shade = (0, 0, 0) if np.dot(colour, (0.1, 0.6, 0.3)) > 110 else (255, 255, 255)
        cv2.putText(image, text, (x0, y0 - below // 2), font, size, shade, thickness, cv2.LINE_AA)
    return image


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

    def write(self, image, boxes, scores, classes, labels):
        if self.target is None:
            return
        image = draw(image, boxes, scores, classes, labels)
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
