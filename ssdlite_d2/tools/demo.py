"""Detectron2's demo for SSD: draw detections on images, a video or a webcam.

python -m ssdlite_d2.tools.demo --config-file configs/ssdlite_mnv2.yaml --input *.jpg \
    --output drawn --opts MODEL.WEIGHTS model.pth
"""

import argparse
import glob
import itertools
import logging
import os
import sys
import time
from pathlib import Path
from typing import Callable, Iterable, Iterator, List, Sequence, Tuple

import cv2
import numpy as np
import tqdm
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances

from ..config import load_config
from ..data.reader import image_reader
from ..engine import build_predictor, finish_config
from ..engine.predictor import SSDPredictor
from ..errors import InputError
from ..evaluation.drawing import draw_detections
from ..evaluation.operating import USUAL, choose_threshold
from .drawings import drawing_paths, make_folder, refuse_sources
from .program import parse_args, program

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
WINDOW = "SSD detections"

logger = logging.getLogger("ssdlite_d2")


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Draw an SSD model's detections")
    parser.add_argument("--config-file", required=True, metavar="FILE", help="path to config file")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", help="images, folders of them, or glob patterns")
    source.add_argument("--video-input", metavar="FILE", help="path to a video file")
    source.add_argument("--webcam", action="store_true", help="take images from the webcam")
    parser.add_argument(
        "--output",
        metavar="PATH",
        help="a folder, or a file for one image or video; without it, a window shows the result",
    )
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        metavar="T",
        help="smallest score of a detection that is drawn (default: that of the best F1 at the "
        f"last evaluation, as the weights' file has it, else {USUAL})",
    )
    parser.add_argument(
        "--across-classes",
        action="store_true",
        help="of overlapping boxes keep the best one, whatever their classes",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=8,
        metavar="N",
        help="images or frames that go through the model at once (default: 8; webcam: 1)",
    )
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        help="config options, as KEY VALUE pairs",
    )
    return parser


def find_images(inputs: Sequence[str]) -> List[str]:
    """The image files that paths, folders and glob patterns stand for.

    Raises:
        InputError: one of them stands for none.
    """
    found = []
    for item in map(os.path.expanduser, inputs):
        if os.path.isdir(item):
            paths = [str(p) for p in sorted(Path(item).iterdir()) if p.suffix.lower() in IMAGES]
        else:
            paths = [item] if os.path.isfile(item) else sorted(glob.glob(item))
        if not paths:
            raise InputError(f"--input: no image at {item}")
        found += paths
    return found


def run_on_images(
    predictor: SSDPredictor, paths: List[str], output: str, batch_size: int = 1
) -> int:
    """Draw on each image; returns how many could not be read."""
    to_file = bool(output) and Path(output).suffix.lower() in IMAGES
    if to_file and len(paths) > 1:
        raise InputError(f"--output {output} is one file for {len(paths)} images; name a folder")
    targets = {}
    if to_file:
        refuse_sources(paths, output)
        make_folder(Path(output).parent)
        targets = {paths[0]: output}
    elif output:
        targets = dict(zip(paths, drawing_paths(paths, output)))
    readable = 0
    read = image_reader(predictor.cfg)
    images = _read_images(tqdm.tqdm(paths, disable=not output), read)
    for batch in _batches(images, batch_size if output else 1):
        readable += len(batch)
        for (path, image), instances in zip(batch, detect(predictor, [x for _, x in batch])):
            logger.info(f"{path}: detected {len(instances)} instances")
            drawn = draw(image, instances, predictor.metadata)
            if not output:
                cv2.imshow(WINDOW, drawn)
                if cv2.waitKey(0) == 27:  # escape
                    return 0
            else:
                if not cv2.imwrite(str(targets[path]), drawn):
                    raise InputError(f"--output: cannot write {targets[path]}")
    return len(paths) - readable


def _read_images(paths: Iterable[str], read: Callable) -> Iterator[Tuple[str, np.ndarray]]:
    """(path, BGR image) of those that can be read; the others are logged."""
    for path in paths:
        try:
            yield path, read(path, "BGR")
        except InputError as error:
            logger.error(str(error))


def _batches(items: Iterable, size: int) -> Iterator[List]:
    """Lists of at most ``size`` items, in order."""
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


def detect(predictor: SSDPredictor, images: List[np.ndarray]) -> List[Instances]:
    """Detections of BGR images above the threshold, computed together; the time is logged."""
    start = time.perf_counter()
    found = [output["instances"].to("cpu") for output in predictor.predict(images)]
    found = [instances[instances.scores > predictor.threshold] for instances in found]
    seconds = (time.perf_counter() - start) / len(images)
    logger.debug(f"{len(images)} images, {1000 * seconds:.0f} ms each")
    return found


def draw(image: np.ndarray, instances: Instances, metadata, enlarge: bool = True) -> np.ndarray:
    """Detections on a BGR image (h, w, 3); returns the like, as ``draw_boxes`` does."""
    names = metadata.get("thing_classes")
    return draw_detections(image[:, :, ::-1], instances, names, enlarge)[:, :, ::-1]


def run_on_video(predictor: SSDPredictor, source, output: str, batch_size: int = 1) -> None:
    """Draw on every frame of a video file (a path) or of a webcam (a number)."""
    video = cv2.VideoCapture(source)
    if not video.isOpened():
        raise InputError(f"cannot open the video {source}")
    width, height = (
        int(video.get(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
    )
    frames = int(video.get(cv2.CAP_PROP_FRAME_COUNT)) if isinstance(source, str) else None
    writer = None
    if output:
        target = Path(output)
        if target.suffix.lower() not in (".mp4", ".mkv", ".avi"):
            target = target / (Path(str(source)).stem + ".mp4")
        if target.exists():
            raise InputError(f"--output: {target} exists")
        make_folder(target.parent)
        fps = video.get(cv2.CAP_PROP_FPS) or 30.0
        writer = cv2.VideoWriter(str(target), cv2.VideoWriter_fourcc(*"mp4v"), fps, (width, height))
        if not writer.isOpened():
            raise InputError(f"--output: cannot write {target}")
    batches = _batches(tqdm.tqdm(_frames(video), total=frames), batch_size if output else 1)
    for frame, instances in (
        pair for batch in batches for pair in zip(batch, detect(predictor, batch))
    ):
        drawn = draw(frame, instances, predictor.metadata, enlarge=False)
        if writer is not None:
            writer.write(cv2.resize(drawn, (width, height)))
        else:
            cv2.imshow(WINDOW, drawn)
            if cv2.waitKey(1) == 27:  # escape
                break
    video.release()
    if writer is not None:
        writer.release()
        logger.info(f"Wrote {target}")


def _frames(video: cv2.VideoCapture) -> Iterator[np.ndarray]:
    while True:
        good, frame = video.read()
        if not good:
            return
        yield frame


def has_display() -> bool:
    """Whether a window can be shown; without a display OpenCV ends the program."""
    on_linux = sys.platform.startswith("linux")
    return not on_linux or bool(os.getenv("DISPLAY") or os.getenv("WAYLAND_DISPLAY"))


def run(args: argparse.Namespace) -> int:
    """Returns the exit status: 1 when an image could not be read."""
    if args.webcam and args.output:
        raise InputError("--webcam shows a window; --output is for images and video files")
    if not args.output and not has_display():
        raise InputError("there is no display to show a window on; give --output, a folder or file")
    if args.batch_size < 1:
        raise InputError(f"--batch-size is {args.batch_size}; 1 is the least")
    cfg = load_config(args.config_file, args.opts)
    postprocess = cfg.MODEL.SSD.POSTPROCESS
    if args.confidence_threshold is not None:
        postprocess.SCORE_THRESH = args.confidence_threshold
    postprocess.ACROSS_CLASSES = postprocess.ACROSS_CLASSES or args.across_classes
    paths = find_images(args.input) if args.input else []
    finish_config(cfg)
    predictor = build_predictor(cfg)
    predictor.threshold = choose_threshold(args.confidence_threshold, predictor.threshold)
    logger.info(f"Detections have a score above {predictor.threshold:.2f}")
    if not hasattr(predictor, "metadata"):  # the config names no data set for testing
        predictor.metadata = MetadataCatalog.get("__unused")
    if args.input:
        return int(run_on_images(predictor, paths, args.output, args.batch_size) > 0)
    source = 0 if args.webcam else args.video_input
    run_on_video(predictor, source, args.output, args.batch_size)
    return 0


def main() -> None:
    args = parse_args(get_parser())
    with program(logging.INFO):
        sys.exit(run(args))


if __name__ == "__main__":
    main()
