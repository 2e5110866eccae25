"""Static INT8 quantization of an exported model, with the layers that it hurts kept in float."""

import logging
import re
import shutil
import tempfile
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
from detectron2.config import CfgNode

from ..data.reader import image_reader
from ..errors import InputError
from ..modeling import SSD
from ..modeling.backbone import trunk_prefix
from .accuracy import average_precision
from .bundled.detector import Detector
from .formats import save_openvino
from .litert import LitertQuantizer
from .options import ExportOptions
from .samples import choose_records
from .spec import Spec

logger = logging.getLogger(__name__)

RANKING_IMAGES = 16  # for the order in which layers go back to float


class OnnxQuantizer:
    """onnxruntime's static quantization: QDQ nodes, per-channel weights.

    What comes between convolutions has to be quantized as well. With the convolutions alone,
    every ReLU6 (ONNX's Clip) stays in float between a pair of conversions, and the model is slower
    than in float32; a Clip inside is swallowed by the convolution before it.
    """

    operators = ["Conv", "Clip", "Relu", "Add", "MaxPool"]

    def __init__(
        self, model: Path, images: Sequence[np.ndarray], work: Path, network: Optional[SSD] = None
    ):
        """
        Args:
            model: the float model's file.
            images: for calibration, as they go into the model (1, H, W, 3).
            work: a folder for intermediate files.
            network: the PyTorch model, for a format that has lost the names of its modules.
        """
        from onnxruntime.quantization.shape_inference import quant_pre_process

        self.source = work / "prepared.onnx"
        self.ranges = work / "ranges.json"
        self.images = images
        quant_pre_process(str(model), str(self.source), skip_symbolic_shape=True)

    def nodes(self) -> List[Tuple[str, str]]:
        """(name, operator) of the network's nodes, without what decodes its outputs."""
        import onnx

        graph = onnx.load(str(self.source)).graph
        found = [(node.name, node.op_type) for node in graph.node]
        network = re.compile("(/model)?/(backbone|head)/(?!.*tap_norms)")
        return [x for x in found if network.match(x[0])]

    def convolutions(self) -> List[str]:
        """In order."""
        return [name for name, operator in self.nodes() if operator == "Conv"]

    def write(self, path: Path, float_layers: Sequence[str]) -> None:
        """Write the quantized model; ``float_layers`` are convolutions left as they are."""
        from onnxruntime import quantization

        chosen = [name for name, operator in self.nodes() if operator in self.operators]
        known = self.ranges.is_file()
        quantization.quantize_static(
            str(self.source),
            str(path),
            None if known else _Reader(self.images),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=self.operators,
            nodes_to_quantize=[name for name in chosen if name not in set(float_layers)],
            # float biases take a third of the space; the runtime quantizes them when it loads them
            extra_options={"QuantizeBias": False},
            calibration_cache_path=self.ranges if known else None,
        )


def shorten_names(path: Path) -> None:
    """Number the tensors and nodes of an ONNX file, but for its inputs and outputs.

    Names are 7 % of the quantized PAN: every weight's name stands in four places. A model with a
    graph in a node, which may use any of them, stays as it is.
    """
    import onnx

    model = onnx.load(str(path))
    graph = model.graph
    if any(a.HasField("g") or a.graphs for node in graph.node for a in node.attribute):
        return
    names = {"": "", **{value.name: value.name for value in (*graph.input, *graph.output)}}
    for tensor in graph.initializer:
        tensor.name = names.setdefault(tensor.name, f"{len(names)}")
    for node in graph.node:
        node.name = ""
        for tensors in (node.input, node.output):
            tensors[:] = [names.setdefault(name, f"{len(names)}") for name in tensors]
    del graph.value_info[:]
    onnx.save(model, str(path))


class _Reader:
    """Calibration images as onnxruntime asks for them."""

    def __init__(self, images: Sequence[np.ndarray]):
        self.images = iter(images)

    def get_next(self) -> Optional[Dict[str, np.ndarray]]:
        image = next(self.images, None)
        return None if image is None else {"image": image}


class OpenVinoQuantizer:
    """NNCF's static quantization of an OpenVINO model: per-channel weights, bias correction.

    Activations have one range per tensor, from the smallest to the largest value seen. NNCF's
    defaults, ranges per channel in front of depthwise convolutions and means over the images,
    are slower and cost more AP on BCCD (0.7 against 0.3), and the file is larger.
    """

    def __init__(
        self, model: Path, images: Sequence[np.ndarray], work: Path, network: Optional[SSD] = None
    ):
        import nncf
        import openvino

        nncf.set_log_level(logging.ERROR)
        # the files will be written over while this model is in use
        for file in (model, model.with_suffix(".bin")):
            shutil.copyfile(file, work / file.name)
        self.model = openvino.Core().read_model(str(work / model.name))
        self.images = images

    def convolutions(self) -> List[str]:
        kinds = ("Convolution", "GroupConvolution")
        operations = self.model.get_ordered_ops()
        return [o.get_friendly_name() for o in operations if o.get_type_name() in kinds]

    def write(self, path: Path, float_layers: Sequence[str]) -> None:
        import nncf
        from nncf.quantization.advanced_parameters import QuantizationParameters
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet

        decoding = "^(?!.*/(backbone|head)/).*$"
        quantized = nncf.quantize(
            self.model,
            nncf.Dataset(list(self.images)),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(self.images),
            ignored_scope=nncf.IgnoredScope(
                names=list(float_layers), patterns=[decoding], validate=False
            ),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                activations_quantization_params=QuantizationParameters(per_channel=False),
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
            ),
        )
        share_ranges(quantized)
        save_openvino(quantized, path)


def share_ranges(model) -> None:
    """Let every FakeQuantize of an openvino.Model take its output range from its input range.

    NNCF writes equal ones twice, each number with a node of its own.
    """
    for operation in model.get_ops():
        if operation.get_type_name() == "FakeQuantize":
            for source, target in ((1, 3), (2, 4)):
                ranges = [operation.input_value(i).get_node() for i in (source, target)]
                if np.array_equal(*(node.data for node in ranges)):
                    operation.input(target).replace_source_output(ranges[0].output(0))


QUANTIZERS = {
    "onnx": OnnxQuantizer,
    "web": OnnxQuantizer,
    "openvino": OpenVinoQuantizer,
    "litert": LitertQuantizer,
}


def quantize(cfg: CfgNode, model: SSD, folder: Path, spec: Spec, options: ExportOptions) -> Dict:
    """Put an INT8 model in the place of a bundle's float32 one.

    When all of it in INT8 costs more AP on the calibration images than the budget allows, groups
    of layers go back to float, the one that brings the outputs nearest to the float model's
    first, until the budget is met.

    Args:
        model: the bundle's, whose backbone names its trunk.
        spec: of the float32 model.

    Returns:
        dict: what was done, for model.json.

    Raises:
        InputError: there are no calibration images, or the budget cannot be met.
    """
    name = options.calibration or next(iter(cfg.DATASETS.TRAIN), None)
    if name is None:
        raise InputError("DATASETS.TRAIN names no data set; name one with --calibration")
    records = choose_records(name, options.calibration_images, "--calibration")
    read = image_reader(cfg)
    images = [read(record["file_name"], "BGR") for record in records]
    trial = Trial(folder, spec, records, images)
    path = folder / spec.file
    prepared = [trial.detector.prepare([image]) for image in images]
    with tempfile.TemporaryDirectory() as work:
        quantizer = QUANTIZERS[options.format](path, prepared, Path(work), model)
        groups = layer_groups(quantizer.convolutions(), trunk_prefix(model))
        kept = fit_budget(quantizer, trial, path, options.ap_budget, groups)
    if isinstance(quantizer, OnnxQuantizer):
        shorten_names(path)
    return {
        "calibration": name,
        "images": len(records),
        "float_layers": kept,
        "AP_on_calibration": trial.float_ap,
        "quantized_AP_on_calibration": trial.last_ap,
    }


class Trial:
    """Measures candidate models in a bundle's folder against its float model."""

    def __init__(
        self, folder: Path, spec: Spec, records: Sequence[Dict], images: Sequence[np.ndarray]
    ):
        self.folder = folder
        self.spec = spec
        self.records = records
        self.images = images
        self.detector = self.open()
        self.float_outputs = self.outputs(self.detector)
        self.float_ap = self.last_ap = self.ap(self.detector)

    def open(self) -> Detector:
        """The model that the folder has now."""
        return Detector(self.folder, spec=self.spec.values())

    def ap(self, detector: Detector) -> Optional[float]:
        found = [detector([image])[0] for image in self.images]
        return average_precision(self.records, found)

    def outputs(self, detector: Detector) -> List[np.ndarray]:
        images = self.images[:RANKING_IMAGES]
        return [detector.run(detector.prepare([image]))[1].copy() for image in images]

    def drop(self) -> float:
        """AP points that the model in the folder has less than the float model."""
        self.last_ap = self.ap(self.open())
        return 0.0 if self.float_ap is None else self.float_ap - self.last_ap

    def error(self) -> float:
        """Mean difference of the scores that count, those above 0.05 in the float model."""
        pairs = zip(self.float_outputs, self.outputs(self.open()))
        differences = [np.abs(a - b)[a > 0.05] for a, b in pairs]
        return float(np.concatenate(differences).mean())


def fit_budget(
    quantizer, trial: Trial, path: Path, budget: float, groups: Dict[str, List[str]]
) -> List[str]:
    """Quantize with as few float layers as the budget of AP points allows.

    Args:
        groups: convolutions that stay in float together, by the name of the group.

    Returns:
        the convolutions left in float.

    Raises:
        InputError: not even with all groups in float is it met.
    """
    quantizer.write(path, [])
    drop = trial.drop()
    logger.info(f"INT8 everywhere: AP {-drop:+.2f}")
    if drop <= budget:
        return []
    errors = {}
    for name, layers in groups.items():
        quantizer.write(path, layers)
        errors[name] = trial.error()
    kept: List[str] = []
    for name in sorted(errors, key=errors.get):
        kept += groups[name]
        quantizer.write(path, kept)
        drop = trial.drop()
        logger.info(f"{name} in float as well: AP {-drop:+.2f}")
        if drop <= budget:
            return kept
    raise InputError(
        f"INT8 costs {drop:.2f} AP on the calibration images even with these in float: "
        f"{', '.join(groups)}; --ap-budget is {budget}"
    )


def layer_groups(convolutions: Sequence[str], trunk: Optional[str]) -> Dict[str, List[str]]:
    """Convolutions, by their names in execution order, in groups that stay in float together.

    Args:
        trunk: prefix of the trunk's parameters, such as ``"backbone.features."``. What else is in
            the trunk's parent are the extra blocks, what else is in the backbone is the neck.

    Returns:
        dict: every convolution once; "others" are those that no name is known for.
    """
    left, groups = list(convolutions), {}

    def take(pattern: str) -> List[str]:
        found = [name for name in left if re.search(pattern, name)]
        left[:] = [name for name in left if name not in found]
        return found

    if trunk is not None:
        *around, _ = path = trunk.rstrip(".").split(".")
        layers = take(_inside(path))
        groups["first convolution"] = layers[:1]
        for i, part in enumerate(np.array_split(layers[1:], 3), 1):
            groups[f"trunk {i}/3"] = [str(name) for name in part]
        groups["extra blocks"] = take(_inside(around))
        groups["neck"] = take(_inside(around[:1]))
    for group, kind in (("class predictors", "cls_score"), ("box predictors", "bbox_pred")):
        ends = {}  # of a predictor, its last module
        for name in left:
            predictor = re.search(rf"/head/({kind}\.\d+)/", name)
            if predictor:
                ends[predictor[1]] = name.rpartition("/Conv")[0]
        groups[group] = [name for end in ends.values() for name in take(f"^{re.escape(end)}/Conv")]
    groups["rest of the head"] = take("/head/")
    groups["others"] = left
    return {name: layers for name, layers in groups.items() if layers}


def _inside(path: Sequence[str]) -> str:
    """A pattern of the names of nodes in a module, such as ``/model/backbone/features.0/Conv``."""
    return "(^|/)" + "/".join(map(re.escape, path)) + "[./]"
