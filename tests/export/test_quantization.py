"""INT8 models, and which layers stay in float."""

import collections
import copy
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import openvino
import pytest
from models import read_all

from ssdlite_d2 import InputError
from ssdlite_d2.export import ExportOptions, export_bundle
from ssdlite_d2.export.bundled.detector import Detector
from ssdlite_d2.export.layouts import finish_frigate
from ssdlite_d2.export.litert import convolution_names
from ssdlite_d2.export.parity import match, raw_outputs
from ssdlite_d2.export.quantization import (
    OnnxQuantizer,
    fit_budget,
    layer_groups,
    shorten_names,
)
from ssdlite_d2.export.spec import Spec
from ssdlite_d2.modeling.backbone import trunk_prefix
from ssdlite_d2.modeling.inference.rounding import round_convolutions


@pytest.fixture(scope="module")
def all_bundles(bccd_model, tmp_path_factory):
    """The same model in float32 and INT8, as ONNX and OpenVINO."""
    root = tmp_path_factory.mktemp("int8")
    for format in ("onnx", "openvino"):
        for precision in ("fp32", "int8"):
            options = ExportOptions(format, precision, ap_budget=100.0, parity_images=0)
            export_bundle(*bccd_model, str(root / format / precision), options)
    return root


@pytest.fixture
def bundles(all_bundles):
    return all_bundles / "onnx"


def scores(bundle):
    detector = Detector(bundle)
    return np.stack([detector.run(detector.prepare([p]))[1] for p in read_all()])


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_int8_is_small_and_near_the_float_model(all_bundles, format):
    exact, quantized = (all_bundles / format / precision for precision in ("fp32", "int8"))
    sizes = [Detector(bundle).spec["bytes"] for bundle in (exact, quantized)]
    assert sizes[1] <= 0.3 * sizes[0]
    exact, quantized = scores(exact), scores(quantized)
    assert 0 < np.abs(exact - quantized).mean() < 0.2 * exact.std()


def test_training_rounds_as_much_as_the_runtime(bundles, bccd_model):
    """Quantization-aware training sees errors of the runtime's size, in the same places."""
    model = copy.deepcopy(bccd_model[1])
    round_convolutions(model)
    detector = Detector(bundles / "fp32")
    inputs = [detector.prepare([image]) for image in read_all()]
    rounded = np.stack([raw_outputs(model, x, "RGB")[1] for x in inputs])
    exact, quantized = scores(bundles / "fp32"), scores(bundles / "int8")
    assert 0.7 < (rounded - exact).std() / (quantized - exact).std() < 1.3
    errors = np.stack([(rounded - exact).ravel(), (quantized - exact).ravel()])
    assert np.corrcoef(errors)[0, 1] > 0.2


def test_no_float_activation_is_left_between_convolutions(bundles, tmp_path):
    """What made INT8 slower than float32: a Clip in float behind each convolution."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "run.onnx")
    options.log_severity_level = 3
    model = str(bundles / "int8" / "model.onnx")
    onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
    graph = onnx.load(str(tmp_path / "run.onnx")).graph
    nodes = collections.Counter(node.op_type for node in graph.node)
    assert nodes["QLinearConv"] > 80 and nodes["Conv"] == 0
    assert nodes["Clip"] <= 1  # of the box decoding


def test_weights_are_quantized_per_channel(bundles):
    graph = onnx.load(str(bundles / "int8" / "model.onnx")).graph
    shapes = {x.name: list(x.dims) for x in graph.initializer}
    weights = [n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in shapes]
    assert len(weights) > 80
    for values, scale, _ in (node.input for node in weights):
        assert shapes[scale] == shapes[values][:1]


def test_names_are_numbers_and_the_outputs_the_same(bundles, tmp_path):
    model = shutil.copy(bundles / "fp32" / "model.onnx", tmp_path)
    shorten_names(Path(model))
    graph = onnx.load(model).graph
    assert all(x.name.isdigit() for x in graph.initializer) and not graph.value_info
    image = read_all()[:1]
    feed = {"image": Detector(bundles / "fp32").prepare(image)}
    outputs = [
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feed)
        for path in (bundles / "fp32" / "model.onnx", model)
    ]
    assert all(map(np.array_equal, *outputs))


def test_a_graph_inside_a_node_keeps_all_names(tmp_path):
    branch = onnx.parser.parse_graph("b () => (float[1] y) { y = Neg(x) }")
    text = '<ir_version: 8, opset_import: ["": 17]> g (bool c, float[1] x) => (float[1] z) {}'
    model = onnx.parser.parse_model(text)
    choice = onnx.helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch)
    model.graph.node.append(choice)
    onnx.save(model, str(tmp_path / "m.onnx"))
    before = (tmp_path / "m.onnx").read_bytes()
    shorten_names(tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == before


def test_openvino_computes_convolutions_in_int8(all_bundles):
    model = openvino.Core().compile_model(
        str(all_bundles / "openvino" / "int8" / "model.xml"), "CPU"
    )
    kinds = collections.Counter()
    for operation in model.get_runtime_model().get_ops():
        info = operation.get_rt_info()
        if info["layerType"].astype(str) == "Convolution":
            kinds[info["runtimePrecision"].astype(str)] += 1
    assert sum(kinds.values()) > 80 and set(kinds) <= {"i8", "u8"}


def test_int8_detects_the_same_in_frigates_layout(all_bundles, tmp_path):
    plain, folder = all_bundles / "openvino" / "int8", tmp_path / "b"
    shutil.copytree(plain, folder)
    spec = Spec(**{**json.loads((plain / "model.json").read_text()), "layout": "frigate"})
    finish_frigate(folder, spec)
    detectors = Detector(plain), Detector(folder, spec=spec.values())
    for expected, found in zip(*(detector(read_all()) for detector in detectors)):
        assert len(match(expected, found, 0.01)) == len(expected[1]) == len(found[1]) > 10


def test_named_layers_stay_in_float(bundles, tmp_path):
    detector = Detector(bundles / "fp32")
    images = [detector.prepare([image]) for image in read_all()]
    quantizer = OnnxQuantizer(bundles / "fp32" / "model.onnx", images, tmp_path)
    groups = layer_groups(quantizer.convolutions(), "backbone.features.")
    assert len(groups["class predictors"]) == len(groups["box predictors"]) == 6
    assert len(groups["first convolution"]) == 1 and "features.0" in groups["first convolution"][0]
    assert sum(map(len, groups.values())) == len(quantizer.convolutions())
    quantizer.write(tmp_path / "kept.onnx", groups["class predictors"])
    graph = onnx.load(str(tmp_path / "kept.onnx")).graph
    makers = {output: node.op_type for node in graph.node for output in node.output}
    kept = {n.name for n in graph.node if n.op_type == "Conv" and n.input[1] not in makers}
    assert kept == set(groups["class predictors"])


class Recorded:
    """A quantizer and a trial in one, with given AP drops by what is in float."""

    names = [f"/model/backbone/features.{i}/Conv" for i in range(4)]

    def __init__(self, gains, drop):
        self.gains, self.whole, self.float_layers = gains, drop, []

    def write(self, path, float_layers):
        self.float_layers = float_layers

    def drop(self):
        return self.whole - sum(self.gains[name] for name in self.float_layers)

    error = drop


def test_layers_go_back_to_float_until_the_budget_is_met():
    names = Recorded.names
    case = Recorded(dict(zip(names, (0.5, 3.0, 0.1, 0.2))), 4.0)
    groups = layer_groups(names, "backbone.features.")

    def fit(budget):
        return fit_budget(case, case, None, budget, groups)

    assert fit(10.0) == []
    assert fit(1.0) == [names[1]]
    assert fit(0.6) == [names[1], names[0]]
    tried = "first convolution, trunk 1/3, trunk 2/3, trunk 3/3"
    with pytest.raises(InputError, match=f"INT8 costs 0.20 AP .*: {tried}; --ap-budget is 0.1"):
        fit(0.1)


def test_convolutions_of_any_name_are_in_a_group():
    names = {
        "first convolution": ["/model/backbone/bottom_up/features.0/features.0.0/Conv"],
        "trunk 1/3": ["/model/backbone/bottom_up/features/blocks.0/Conv"],
        "extra blocks": ["/model/backbone/bottom_up/extras.0/Conv"],
        "neck": ["/model/backbone/pan/laterals.0/Conv", "/model/backbone/last/Conv"],
        "class predictors": ["/model/head/cls_score.0/Conv", "/model/head/cls_score.0/Conv_1"],
        "box predictors": ["/model/head/bbox_pred.0/bbox_pred.0.3/Conv"],
        "rest of the head": ["/model/head/tower.0/Conv", "/model/head/bbox_pred.0/0/Conv"],
        "others": ["/elsewhere/Conv"],
    }
    every = [name for layers in names.values() for name in layers]
    every.insert(0, every.pop(every.index("/model/head/bbox_pred.0/0/Conv")))  # before the last
    groups = layer_groups(every, "backbone.bottom_up.features.")
    assert {k: sorted(v) for k, v in groups.items()} == {k: sorted(v) for k, v in names.items()}
    foreign = ["/model/backbone/stages.0/Conv", "/model/backbone/stages.1/Conv"]
    assert layer_groups(foreign, None) == {"others": foreign}


def test_a_models_convolutions_are_in_the_groups(bccd_model):
    names = convolution_names(bccd_model[1])
    groups = layer_groups(names, trunk_prefix(bccd_model[1]))
    assert (
        len(set(names)) == len(names) == sum(map(len, groups.values())) and "others" not in groups
    )
    assert groups["first convolution"] == names[:1] == ["/model/backbone/features.0/0/Conv"]
    assert len(groups["class predictors"]) == len(groups["box predictors"]) == 6
