"""Loading of weights that fit, or an error that says why they do not."""

from typing import Any, Dict

from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

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
        if path and not self.path_manager.isfile(path.split("?")[0]):
            raise InputError(f"MODEL.WEIGHTS: no file {path}")
        self._path = path
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename: str) -> Dict[str, Any]:
        try:
            checkpoint = super()._load_file(filename)
        except Exception as error:  # unpickling raises nearly every kind
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"MODEL.WEIGHTS: {filename} is no checkpoint: {reason}") from error
        state = checkpoint["model"]
        if any(name.startswith("features.") for name in state):
            checkpoint["model"] = {
                f"backbone.{name}": value
                for name, value in state.items()
                if name.startswith("features.")
            }
        return checkpoint

    def _load_model(self, checkpoint: Dict[str, Any]):
        incompatible = super()._load_model(checkpoint)
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
