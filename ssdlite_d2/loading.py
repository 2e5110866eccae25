"""Trained models by the place they are in: three lines from an image to named boxes."""

import os
from pathlib import Path
from typing import Any, Callable, List, NamedTuple, Optional, Sequence, Union

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from .checkpoint import ZOO, numbered_checkpoints
from .config import load_config
from .data.reader import read_image
from .engine import build_predictor, finish_config
from .errors import InputError
from .evaluation.drawing import draw_detections
from .evaluation.operating import choose_threshold
from .export.bundled.detector import Detector, PredictError

Image = Union[str, "os.PathLike[str]", np.ndarray]


class ModelFiles(NamedTuple):
    """Where a trained model is."""

    config: str
    weights: str


def resolve(name: str) -> Optional[ModelFiles]:
    """The files of weights that others have trained; None when there are none of that name."""
    weights = ZOO.get(name.removeprefix("zoo://"))
    return weights and ModelFiles(weights.config, f"zoo://{name.removeprefix('zoo://')}")


def find_model(place: str) -> ModelFiles:
    """
    Args:
        place: the output folder of a training, a ``.pth`` file beside its ``config.yaml``, or a
            name in ``checkpoint.ZOO``.

    Raises:
        InputError: there is no trained model.
    """
    path = Path(place).expanduser()
    if not path.exists():
        found = resolve(place)
        if found is None:
            raise InputError(
                f"no model {place}: there is no such folder or file; names are {', '.join(ZOO)}"
            )
        return found
    if (path / "model.json").is_file():
        raise InputError(f"{place} is an exported bundle, which its own predict.py runs")
    folder = path if path.is_dir() else path.parent
    if not (folder / "config.yaml").is_file():
        raise InputError(f"{folder} has no config.yaml, which a training writes beside its weights")
    best = [folder / "model_best.pth", folder / "model_final.pth"]
    files = [path] if path.is_file() else [*best, *numbered_checkpoints(folder)[::-1]]
    weights = next((file for file in files if file.is_file()), None)
    if weights is None:
        raise InputError(f"{place} has no model_best.pth, model_final.pth or model_<number>.pth")
    return ModelFiles(str(folder / "config.yaml"), str(weights))


class Detections(Instances):
    """Detectron2's Instances of one image, best first: pred_boxes, scores, pred_classes.

    In pixels of the image, on the CPU.
    """

    def __init__(self, image: np.ndarray, classes: Sequence[str], **fields: Any):
        """
        Args:
            image: BGR (h, w, 3).
            classes: names by class id.
        """
        self._image, self._classes = image, classes
        super().__init__(image.shape[:2], **fields)

    def __getitem__(self, item) -> "Detections":
        fields = super().__getitem__(item).get_fields()
        return Detections(self._image, self._classes, **fields)

    @property
    def class_names(self) -> List[str]:
        """Name of the class of each detection."""
        return [self._classes[i] for i in self.pred_classes.tolist()]

    def draw(self) -> np.ndarray:
        """The image with named boxes, BGR; small images are enlarged."""
        return draw_detections(self._image[:, :, ::-1], self, self._classes)[:, :, ::-1]

    def to_supervision(self):
        """``supervision.Detections``: xyxy, confidence, class_id and the names of classes.

        Raises:
            InputError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise InputError(
                "supervision is not installed: pip install 'ssdlite-d2[supervision]'"
            ) from error
        return supervision.Detections(
            xyxy=self.pred_boxes.tensor.numpy(),
            confidence=self.scores.numpy(),
            class_id=self.pred_classes.numpy(),
            data={"class_name": np.array(self.class_names, dtype=str)},
        )


class TrainedModel:
    """A model with its weights and the names of its classes.

    Attributes:
        classes: names by class id.
        threshold: smallest score of ``predict``, where it is given none: that of the best F1 when
            the weights were evaluated last, or 0.3 where they do not tell.
    """

    def __init__(
        self,
        detect: Callable[[List[np.ndarray]], List[Instances]],
        classes: List[str],
        threshold: Optional[float] = None,
    ):
        """
        Args:
            detect: BGR images to their detections, whatever their score.
            threshold: of the weights.
        """
        self._detect = detect
        self.classes = classes
        self.threshold = choose_threshold(None, threshold)

    def predict(
        self, images: Union[Image, Sequence[Image]], score_threshold: Optional[float] = None
    ) -> Union[Detections, List[Detections]]:
        """
        Args:
            images: a path, or a BGR array of uint8 (h, w, 3) as OpenCV reads it; or a list.
            score_threshold: detections have a score above; None: above ``threshold``. (Below
                MODEL.SSD.POSTPROCESS.SCORE_THRESH, 0.05, the model gives nothing.)

        Returns:
            of one image its detections, of a list a list.

        Raises:
            InputError: an image cannot be read or is of another kind.
        """
        if not isinstance(images, (list, tuple)):
            return self.predict([images], score_threshold)[0]
        arrays = [x if isinstance(x, np.ndarray) else _read(x) for x in images]
        found = []
        for array, instances in zip(arrays, self._detect(arrays) if arrays else []):
            detections = Detections(array, self.classes, **instances.to("cpu").get_fields())
            smallest = self.threshold if score_threshold is None else score_threshold
            found.append(detections[detections.scores > smallest])
        return found


def load(model: Union[str, "os.PathLike[str]"], *opts: Any) -> TrainedModel:
    """A trained model.

    Args:
        model: what ``find_model`` takes, or the folder of an exported bundle.
        opts: alternating config keys and values, such as ``"MODEL.DEVICE", "cuda"``.

    Raises:
        InputError: there is no trained model, or it is damaged.
    """
    if Path(model, "model.json").is_file():
        return _load_bundle(Path(model))
    files = find_model(str(model))
    cfg = load_config(files.config, ["MODEL.WEIGHTS", files.weights, *opts])
    finish_config(cfg)
    predictor = build_predictor(cfg)

    def detect(images: List[np.ndarray]) -> List[Instances]:
        return [output["instances"] for output in predictor.predict(images)]

    return TrainedModel(detect, class_names(cfg), predictor.threshold)


def class_names(cfg) -> List[str]:
    """Names of a finished config's classes; numbers where no data set tells."""
    from .data.datasets import resolve_classes

    classes = resolve_classes(cfg)
    return list(classes or map(str, range(cfg.MODEL.SSD.NUM_CLASSES)))


def _load_bundle(folder: Path) -> TrainedModel:
    try:
        detector = Detector(folder)
    except PredictError as error:
        raise InputError(str(error)) from error

    def detect(images: List[np.ndarray]) -> List[Instances]:
        try:
            found = detector(images)
        except PredictError as error:
            raise InputError(str(error)) from error
        return [
            Instances(
                image.shape[:2],
                pred_boxes=Boxes(torch.as_tensor(boxes)),
                scores=torch.as_tensor(scores),
                pred_classes=torch.as_tensor(classes),
            )
            for image, (boxes, scores, classes) in zip(images, found)
        ]

    return TrainedModel(detect, list(detector.classes), detector.threshold)


def _read(path: Image) -> np.ndarray:
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(f"an image is a {type(path).__name__}; a path or a numpy array is needed")
    return read_image(os.fspath(path), "BGR")
