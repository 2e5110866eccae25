"""What became of bad images: INPUT.ON_BAD_IMAGE skip."""

import logging
from pathlib import Path
from typing import List

from detectron2.utils import comm

logger = logging.getLogger(__name__)

FILE = "skipped_images.txt"


class SkippedImages:
    """A list of images and reasons in a file, which loader workers add to."""

    def __init__(self, output_dir: str):
        """
        Args:
            output_dir: the run's folder; a list of an earlier run there is removed.
        """
        self.path = Path(output_dir) / FILE
        self.seen = set()
        if comm.is_main_process():
            self.path.unlink(missing_ok=True)

    def __call__(self, file_name: str, reason: str) -> None:
        """Note an image, once."""
        if file_name in self.seen:
            return
        self.seen.add(file_name)
        logger.warning(f"Skipped: {reason}")
        with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(reason.replace("\n", " ") + "\n")


def report_skipped(output_dir: str) -> List[str]:
    """Log the list of a run; returns one reason for every image that any process skipped."""
    path = Path(output_dir) / FILE
    reasons = sorted(set(path.read_text(encoding="utf-8").splitlines())) if path.is_file() else []
    if reasons:
        lines = "\n  ".join(reasons)
        logger.warning(f"{len(reasons)} images were skipped ({path}):\n  {lines}")
    return reasons
