"""Checkpoints that are whole, and weights that fit, or an error that says why they do not."""

import contextlib
import itertools
import logging
import os
import re
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import InputError
from ..files import write_atomically
from ..modeling.backbone import trunk_prefix
from .identity import check_identity
from .reading import read_checkpoint, read_weights
from .timm_weights import timm_to_backbone

NUMBERED = re.compile(r"model_\d{7}\.pth")  # of whatever else is there, nothing is touched
OF_A_TRUNK = "not found in the checkpoint", "keys that are not used by the model"
COUNTER = "num_batches_tracked"  # of batch norms; converted weights have none


class SSDCheckpointer(DetectionCheckpointer):
    """A DetectionCheckpointer that knows classification trunks and refuses tensors that do not fit.

    A file with the names of a trunk (``features.*``) goes to the backbone. A tensor of another
    shape is an error, where the parent leaves the model's random one in place with a warning. Files
    appear under their names when they are complete.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        reinit_head: bool = False,
        identity: Optional[Dict[str, Any]] = None,
        **kwargs: Any,
    ):
        """
        Args:
            reinit_head: keep the model's own, newly initialised predictors where the file's are of
                another shape (MODEL.SSD.REINIT_HEAD_ON_MISMATCH).
            identity: ``identity_of`` the config; saved as ``ssd``, and compared in loading.
        """
        super().__init__(model, save_dir, **kwargs)
        self.reinit_head = reinit_head
        self.identity = identity
        self._purpose = "run"
        self._resumable = None

    def load(
        self, path: str, checkpointables: Optional[List[str]] = None, *, purpose: str = "run"
    ) -> Dict[str, Any]:
        """
        Args:
            purpose: ``"run"``: the file has all of the model, trained for the same classes.
                ``"resume"``: the same run. ``"start"``: a training, which may start from a trunk.

        Raises:
            InputError: the file is missing, unreadable, does not fit the model or the purpose, or
                has numbers that are not finite.
        """
        self._path, self._purpose = path, purpose
        # Of several processes only the main one needs the file: the parent sees to that.
        alone = not isinstance(self.model, DistributedDataParallel)
        if path and alone and not self.path_manager.isfile(path.split("?")[0]):
            raise InputError(f"MODEL.WEIGHTS: no file {path}")
        try:
            with self._expecting_new_parts():
                return super().load(path, checkpointables)
        except OSError as error:
            raise InputError(f"MODEL.WEIGHTS: {path}: {error}") from error
        finally:
            self._parsed_url_during_load = None  # the parent leaves it after an error

    def resume_or_load(self, path: str, *, resume: bool = True) -> Dict[str, Any]:
        if resume and self.has_checkpoint():
            return self.load(self.get_checkpoint_file(), purpose="resume")
        return self.load(path, checkpointables=[], purpose="start")

    def save(self, name: str, **extra: Any) -> None:
        """Save the model and everything a run resumes from as ``<name>.pth``, or nothing at all.

        Raises:
            InputError: the file cannot be written, or a weight is not finite. The checkpoints
                written before are intact.
        """
        state = {key: thing.state_dict() for key, thing in self.checkpointables.items()}
        if self._write(name, self.model.state_dict(), **state, **extra):
            self.tag_last_checkpoint(f"{name}.pth")

    def export(self, name: str, model: nn.Module, **extra: Any) -> bool:
        """Save a model for inference as ``<name>.pth``; no run resumes from it.

        It has none of the parts that its model names in ``training_only``.

        Returns:
            bool: whether this process saves files.

        Raises:
            InputError: as ``save`` does.
        """
        parts = training_prefixes(model)
        state = {k: v for k, v in model.state_dict().items() if not k.startswith(parts)}
        return self._write(name, state, **extra)

    def _write(self, name: str, state: Dict[str, Tensor], **extra: Any) -> bool:
        if not self.save_dir or not self.save_to_disk:
            return False
        if not all(v.isfinite().all() for v in state.values() if v.is_floating_point()):
            raise InputError(f"weights are not finite: {name}.pth is not written")
        if self.identity:
            extra["ssd"] = self.identity
        self.logger.info(f"Saving {name}.pth to {self.save_dir}")
        write_atomically(
            os.path.join(self.save_dir, f"{name}.pth"),
            lambda out: torch.save({"model": state, **extra}, out),
        )
        return True

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        self._resumable = None
        content = last_filename_basename.encode()
        write_atomically(
            os.path.join(self.save_dir, "last_checkpoint"), lambda out: out.write(content)
        )

    def has_checkpoint(self) -> bool:
        return bool(self.get_checkpoint_file())

    def get_checkpoint_file(self) -> str:
        """The newest file in the folder that a run can resume from; "" when it never had one.

        Files that are damaged are passed over with a warning.

        Raises:
            InputError: all of them are damaged.
        """
        if self._resumable is None:
            self._resumable = self._find_resumable()
        return self._resumable

    def _find_resumable(self) -> str:
        folder, tag = Path(self.save_dir), Path(self.save_dir, "last_checkpoint")
        numbered = numbered_checkpoints(folder)[::-1]
        tagged = tag.read_text(errors="replace").strip() if tag.is_file() else ""
        last = [folder / tagged] if re.fullmatch(r"[\w.-]+\.pth", tagged) else []
        candidates = [*last, *(file for file in numbered if file not in last)]
        for file in candidates:
            try:
                if "trainer" in read_weights(file):
                    return str(file)
                reason = "it has no state of a run"
            except InputError as error:
                reason = str(error)
            self.logger.warning(f"Not resuming from {file}: {reason}; looking for one before it")
        if candidates:
            raise InputError(
                f"OUTPUT_DIR {folder}: none of {len(candidates)} checkpoints can be resumed from; "
                "leave --resume out to start anew"
            )
        return ""

    def _load_file(self, filename: str) -> Dict[str, Any]:
        try:
            checkpoint = read_checkpoint(filename, self._parsed_url_during_load.query)
        except InputError as error:
            raise InputError(f"MODEL.WEIGHTS: {error}") from error
        core = getattr(self.model, "module", self.model)
        prefix = trunk_prefix(core)
        if prefix is not None:
            checkpoint["model"] = trunk_to_backbone(checkpoint["model"], prefix)
        names = getattr(core.backbone, "trunk_names", {}) if prefix is not None else {}
        if names:
            checkpoint["model"] = timm_to_backbone(checkpoint["model"], prefix, names)
        return checkpoint

    def _load_model(self, checkpoint: Dict[str, Any]):
        average = checkpoint.get("ema", {}) if "ema" in self.checkpointables else {}
        for key, value in itertools.chain(checkpoint["model"].items(), average.items()):
            value = torch.as_tensor(value)
            if value.is_floating_point() and not value.isfinite().all():
                raise InputError(f"MODEL.WEIGHTS: {self._path}: {key} is not finite")
        incompatible = self._load_fitting(checkpoint)
        self._check_missing([k for k in incompatible.missing_keys if not k.endswith(COUNTER)])
        if self.identity:
            check_identity(self._path, checkpoint.get("ssd"), self.identity, self._purpose)
        return incompatible

    def _check_missing(self, missing: List[str]) -> None:
        wanted = [key for key in self.model.state_dict() if not key.endswith(COUNTER)]
        if missing and (self._purpose != "start" or len(missing) == len(wanted)):
            raise InputError(
                f"MODEL.WEIGHTS: {self._path} lacks {len(missing)} of this model's {len(wanted)} "
                f"tensors, such as {missing[0]}; give those of a training, such as model_final.pth"
            )

    @contextlib.contextmanager
    def _expecting_new_parts(self) -> Iterator[None]:
        """Log what a file lacks, or has besides, as information where it may be a trunk."""

        def soften(record: logging.LogRecord) -> bool:
            if any(words in str(record.msg) for words in OF_A_TRUNK):
                record.levelno, record.levelname = logging.INFO, "INFO"
            return True

        softened = self._purpose == "start"
        loggers = [self.logger, logging.getLogger("fvcore.common.checkpoint")] if softened else []
        for logger in loggers:
            logger.addFilter(soften)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(soften)

    def _load_fitting(self, checkpoint: Dict[str, Any]):
        """The parent's ``_load_model``, or an error that says why tensors do not fit."""
        incompatible = super()._load_model(checkpoint)
        if self._purpose != "resume":
            parts, missing = training_prefixes(self.model), incompatible.missing_keys
            missing[:] = [key for key in missing if not key.startswith(parts)]
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
            may_start = self.reinit_head or self._path.startswith("zoo://")
            if may_start and self._purpose == "start":
                self.logger.warning(
                    f"Predictors newly initialised: {len(wrong)} tensors of {self._path} have "
                    f"another shape, {name} {there} where the model has {here}"
                )
                names = {key for key, *_ in wrong}
                missing = [key for key in incompatible.missing_keys if key not in names]
                return incompatible._replace(incorrect_shapes=[], missing_keys=missing)
            if name.startswith("head.cls_score") and there[1] == here[1] > 1:  # no depthwise
                raise InputError(
                    f"MODEL.WEIGHTS: {self._path} is for {self._classes(there)} classes, the model "
                    f"has {self._classes(here)} ({name} is {there} and {here}); set "
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
        background = model.criterion.num_scores - model.num_classes
        return str(shape[0] / anchors - background).removesuffix(".0")


def training_prefixes(model: nn.Module) -> Tuple[str, ...]:
    """What the names of parameters begin with that inference has not."""
    model = getattr(model, "module", model)
    return tuple(f"{name}." for name in getattr(model, "training_only", ()))


def numbered_checkpoints(folder: str) -> List[Path]:
    """The files ``model_<iteration>.pth`` of a folder, by their iteration."""
    return sorted(
        file for file in Path(folder).glob("model_*.pth") if NUMBERED.fullmatch(file.name)
    )


def trunk_to_backbone(
    state: Dict[str, Tensor], prefix: str = "backbone.features."
) -> Dict[str, Tensor]:
    """A classification trunk's tensors under the names of a model; other states as they are.

    Known are torchvision's files and those named like them (``features.*``), and the VGG16 whose
    fully connected layers are convolutions already (bare numbers, as the references use it).
    """
    state = {name.removeprefix("module."): value for name, value in state.items()}
    if all(name.split(".")[0].isdigit() for name in state):
        return {prefix + name: value for name, value in state.items()}
    trunk = {
        prefix + name.removeprefix("features."): value
        for name, value in state.items()
        if name.startswith("features.")
    }
    fc6 = state.get("classifier.0.weight")
    if trunk and fc6 is not None and fc6.shape == (4096, 25088):
        trunk.update({prefix + name: value for name, value in _decimate_vgg(state).items()})
    return trunk or state


def _decimate_vgg(state: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """VGG16's fc6 and fc7 as SSD's dilated 3x3 and 1x1 convolutions of 1024 channels, by layer.

    Every 4th output, every 3rd place and, in fc7, every 4th input is kept (:paper:`SSD`, sec. 3).
    """
    fc6 = state["classifier.0.weight"].view(4096, 512, 7, 7)[::4, :, ::3, ::3]
    fc7 = state["classifier.3.weight"].view(4096, 4096, 1, 1)[::4, ::4]
    return {
        "31.weight": fc6.clone(),
        "31.bias": state["classifier.0.bias"][::4].clone(),
        "33.weight": fc7.clone(),
        "33.bias": state["classifier.3.bias"][::4].clone(),
    }
