"""Loading of weights that fit, or an error that says why they do not."""

import os
from typing import Any, Dict

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import InputError


class SSDCheckpointer(DetectionCheckpointer):
    """A DetectionCheckpointer that knows classification trunks and refuses tensors that do not fit.

    A file with the names of a trunk (``features.*``) goes to the backbone. A tensor of another
    shape is an error, where the parent leaves the model's random one in place with a warning.
    """

    def __init__(self, model: nn.Module, save_dir: str = "", *, reinit_head=False, **kwargs: Any):
        """
        Args:
            reinit_head: keep the model's own, newly initialised predictors where the file's are of
                another shape (MODEL.SSD.REINIT_HEAD_ON_MISMATCH).
        """
        super().__init__(model, save_dir, **kwargs)
        self.reinit_head = reinit_head

    def load(self, path: str, *args: Any, **kwargs: Any) -> Dict[str, Any]:
        """
        Raises:
            InputError: the file is missing, unreadable or does not fit the model.
        """
        self._path = path
        # Of several processes only the main one needs the file: the parent sees to that.
        alone = not isinstance(self.model, DistributedDataParallel)
        if path and alone and not self.path_manager.isfile(path.split("?")[0]):
            raise InputError(f"MODEL.WEIGHTS: no file {path}")
        try:
            return super().load(path, *args, **kwargs)
        except OSError as error:
            raise InputError(f"MODEL.WEIGHTS: {path}: {error}") from error

    def export(self, name: str, model: nn.Module, **extra: Any) -> None:
        """Save a model alone, in a file ``<name>.pth`` from which no run resumes."""
        if self.save_dir and self.save_to_disk:
            file = os.path.join(self.save_dir, f"{name}.pth")
            self.logger.info(f"Saving weights to {file}")
            with self.path_manager.open(file, "wb") as out:
                torch.save({"model": model.state_dict(), **extra}, out)

    def _load_file(self, filename: str) -> Dict[str, Any]:
        try:
            checkpoint = super()._load_file(filename)
        except Exception as error:  # unpickling raises nearly every kind
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"MODEL.WEIGHTS: {filename} is no checkpoint: {reason}") from error
        state = checkpoint["model"]
        if isinstance(state.get("state_dict"), dict):  # as image classifiers are often saved
            state = state["state_dict"]
        checkpoint["model"] = trunk_to_backbone(state)
        return checkpoint

    def _load_model(self, checkpoint: Dict[str, Any]):
        incompatible = super()._load_model(checkpoint)
        foreign = [key for key in incompatible.unexpected_keys if not key.startswith("backbone.")]
        if foreign and any(key.startswith("head.") for key in incompatible.missing_keys):
            raise InputError(
                f"MODEL.WEIGHTS: {self._path} has other names than this model, such as "
                f"{foreign[0]}; ssdlite_d2.tools.convert_checkpoint converts public SSD weights"
            )
        wrong = incompatible.incorrect_shapes
        if not wrong:
            return incompatible
        name, there, here = wrong[0]
        if all(key.startswith("head.") for key, *_ in wrong):
            if self.reinit_head:
                self.logger.warning(
                    f"Predictors newly initialised: {len(wrong)} tensors of {self._path} have "
                    f"another shape, {name} {there} where the model has {here}"
                )
                return incompatible._replace(incorrect_shapes=[])
            raise InputError(
                f"MODEL.WEIGHTS: {self._path} is for {self._classes(there)} classes, the model has "
                f"{self._classes(here)} ({name} is {there} and {here}); set "
                "MODEL.SSD.REINIT_HEAD_ON_MISMATCH True to train new predictors"
            )
        raise InputError(
            f"MODEL.WEIGHTS: {self._path} is of another model: {name} is {there} there and {here} "
            "here"
        )

    def _classes(self, shape) -> str:
        """Number of classes that a first class predictor of this output shape is for."""
        model = getattr(self.model, "module", self.model)
        anchors = model.anchor_generator.num_anchors[0]
        background = model.num_scores - model.num_classes
        return str(shape[0] / anchors - background).removesuffix(".0")


def trunk_to_backbone(state: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """A classification trunk's tensors under the backbone's names; other states as they are.

    Known are torchvision's files and those named like them (``features.*``), and the VGG16 whose
    fully connected layers are convolutions already (bare numbers, as the references use it).
    """
    state = {name.removeprefix("module."): value for name, value in state.items()}
    if all(name.split(".")[0].isdigit() for name in state):
        return {f"backbone.features.{name}": value for name, value in state.items()}
    trunk = {f"backbone.{k}": v for k, v in state.items() if k.startswith("features.")}
    fc6 = state.get("classifier.0.weight")
    if trunk and fc6 is not None and fc6.shape == (4096, 25088):
        trunk.update(_decimate_vgg(state))
    return trunk or state


def _decimate_vgg(state: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """VGG16's fc6 and fc7 as SSD's dilated 3x3 and 1x1 convolutions of 1024 channels.

    Every 4th output, every 3rd place and, in fc7, every 4th input is kept (:paper:`SSD`, sec. 3).
    """
    fc6 = state["classifier.0.weight"].view(4096, 512, 7, 7)[::4, :, ::3, ::3]
    fc7 = state["classifier.3.weight"].view(4096, 4096, 1, 1)[::4, ::4]
    return {
        "backbone.features.31.weight": fc6.clone(),
        "backbone.features.31.bias": state["classifier.0.bias"][::4].clone(),
        "backbone.features.33.weight": fc7.clone(),
        "backbone.features.33.bias": state["classifier.3.bias"][::4].clone(),
    }
