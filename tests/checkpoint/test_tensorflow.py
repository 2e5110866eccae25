"""The original TensorFlow SSDLite, layer by layer, without TensorFlow."""

import sys

import numpy as np
import pytest
import torch
from conftest import exits, load_bare
from detectron2.modeling import build_model
from tensorboard.compat.proto import graph_pb2
from tensorboard.util.tensor_util import make_tensor_proto

from ssdlite_d2 import InputError
from ssdlite_d2.checkpoint.convert import convert
from ssdlite_d2.checkpoint.sources import read_source
from ssdlite_d2.checkpoint.tensorflow import COCO_COLUMNS, is_variable, rename
from ssdlite_d2.modeling.backbone.blocks import Conv2dSame

CONFIG = "tf/ssdlite_mobilenet_v2_coco.yaml"


def same_convolution(x, kernel, stride):
    """SAME as TensorFlow documents it, written out. x (H, W, C), kernel (h, w, C, O)."""
    height, width, _ = x.shape
    k = kernel.shape[0]
    out_h, out_w = -(-height // stride), -(-width // stride)
    pad_h = max((out_h - 1) * stride + k - height, 0)
    pad_w = max((out_w - 1) * stride + k - width, 0)
    top, left = pad_h // 2, pad_w // 2  # the odd one goes to bottom and right
    padded = np.zeros((height + pad_h, width + pad_w, x.shape[2]))
    padded[top : top + height, left : left + width] = x
    out = np.zeros((out_h, out_w, kernel.shape[3]))
    for i in range(out_h):
        for j in range(out_w):
            window = padded[i * stride : i * stride + k, j * stride : j * stride + k]
            out[i, j] = np.tensordot(window, kernel, axes=3)
    return out


@pytest.mark.parametrize("size", [(10, 10), (5, 5), (10, 5), (19, 38), (2, 1), (1, 1)])
@pytest.mark.parametrize("kernel, stride", [(3, 2), (3, 1), (5, 2)])
def test_same_padding_on_even_and_odd_maps(size, kernel, stride):
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((*size, 3)), rng.standard_normal((kernel, kernel, 3, 4))
    layer = Conv2dSame(3, 4, kernel, stride, bias=False).double()
    layer.weight.data = torch.from_numpy(weight.transpose(3, 2, 0, 1).copy())
    found = layer(torch.from_numpy(x.transpose(2, 0, 1)[None].copy()))[0].detach()
    expected = same_convolution(x, weight, stride).transpose(2, 0, 1)
    assert found.shape == expected.shape
    assert np.abs(found.numpy() - expected).max() <= 1e-12


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(load_bare(CONFIG)).eval()


def variables(model, classes=90):
    """Random TensorFlow variables of the model, under TensorFlow's names and layouts."""
    trunk, rng, out = "FeatureExtractor/MobilenetV2/", np.random.default_rng(0), {}

    def norm(scope, channels):
        for name in ("gamma", "beta", "moving_mean", "moving_variance"):
            out[f"{scope}/BatchNorm/{name}"] = rng.uniform(0.5, 1.5, channels)

    def conv(scope, inputs, outputs, kernel=1):
        out[f"{scope}/weights"] = rng.standard_normal((kernel, kernel, inputs, outputs))
        norm(scope, outputs)

    def depthwise(scope, channels):
        out[f"{scope}/depthwise_weights"] = rng.standard_normal((3, 3, channels, 1))
        norm(scope, channels)

    conv(f"{trunk}Conv", 3, 32, 3)
    widths = [16, 24, 24, 32, 32, 32, *[64] * 4, *[96] * 3, *[160] * 3, 320]
    inputs = 32
    for i, outputs in enumerate(widths):
        scope = f"{trunk}expanded_conv" + (f"_{i}" if i else "")
        middle = inputs * (6 if i else 1)
        if i:
            conv(f"{scope}/expand", inputs, middle)
        depthwise(f"{scope}/depthwise", middle)
        conv(f"{scope}/project", middle, outputs)
        inputs = outputs
    conv(f"{trunk}Conv_1", 320, 1280)
    inputs = 1280
    for i, outputs in enumerate((512, 256, 256, 128), start=2):
        scope = f"{trunk}layer_19_2_Conv2d_{i}_3x3_s2_{outputs}"
        conv(f"{trunk}layer_19_1_Conv2d_{i}_1x1_{outputs // 2}", inputs, outputs // 2)
        depthwise(f"{scope}_depthwise", outputs // 2)
        conv(scope, outputs // 2, outputs)
        inputs = outputs
    for i, channels in enumerate((576, 1280, 512, 256, 256, 128)):
        for kind, columns in (("BoxEncoding", 4), ("Class", classes + 1)):
            scope = f"BoxPredictor_{i}/{kind}Predictor"
            outputs = columns * (6 if i else 3)
            depthwise(f"{scope}_depthwise", channels)
            out[f"{scope}/weights"] = rng.standard_normal((1, 1, channels, outputs))
            out[f"{scope}/biases"] = rng.standard_normal(outputs)
    out["global_step"] = np.array(5)
    out[f"{trunk}Conv/weights/RMSProp_1"] = np.zeros((3, 3, 3, 32))
    return {name: np.asarray(value, dtype=np.float32) for name, value in out.items()}


def test_every_variable_finds_its_place(model):
    source = {name: torch.from_numpy(value) for name, value in variables(model).items()}
    converted = convert("tensorflow", source, model)
    state = converted.state
    model.load_state_dict(state)
    assert converted.dropped["global_step"] == "a variable of training"
    trunk = "FeatureExtractor/MobilenetV2/"
    depthwise = source[f"{trunk}expanded_conv_3/depthwise/depthwise_weights"]
    assert torch.equal(state["backbone.features.4.conv.1.0.weight"][5, 0], depthwise[:, :, 5, 0])
    kernel = source[f"{trunk}layer_19_2_Conv2d_4_3x3_s2_256/weights"]
    assert torch.equal(state["backbone.extras.2.2.0.weight"][9, 7], kernel[0, 0, 7, 9, None, None])
    variance = source[f"{trunk}Conv_1/BatchNorm/moving_variance"]
    assert torch.equal(state["backbone.features.18.1.running_var"], variance)


def test_box_codes_and_classes_are_reordered(model):
    source = {name: torch.from_numpy(value) for name, value in variables(model).items()}
    state = convert("tensorflow", source, model).state
    boxes = source["BoxPredictor_1/BoxEncodingPredictor/biases"].view(6, 4)  # ty, tx, th, tw
    assert torch.equal(state["head.bbox_pred.1.3.bias"].view(6, 4), boxes[:, [1, 0, 3, 2]])
    classes = source["BoxPredictor_0/ClassPredictor/biases"].view(3, 91)
    found = state["head.cls_score.0.3.bias"].view(3, 80)
    assert torch.equal(found[:, 0], classes[:, 1])  # person
    assert torch.equal(found[:, 79], classes[:, 90])  # toothbrush
    assert torch.equal(found, classes[:, COCO_COLUMNS])
    assert rename("BoxPredictor_0/Other/weights") is None
    assert not is_variable("BoxPredictor_0/stack/1")
    assert all(is_variable(name) for name in source if rename(name))


def write_graph(path, values):
    """A frozen graph with these constants, among what else such a graph has."""
    graph = graph_pb2.GraphDef()
    for name, value in {"Preprocessor/mul/x": np.float32(2 / 255), **values}.items():
        node = graph.node.add(name=name, op="Const")
        node.attr["value"].tensor.CopyFrom(make_tensor_proto(value))
        graph.node.add(name=f"{name}/read", op="Identity", input=[name])
    graph.node.add(name="image_tensor", op="Placeholder")
    path.write_bytes(graph.SerializeToString())


def test_the_graph_is_read_without_tensorflow(model, tmp_path):
    """One of two classes: graph and .npz give the same tensors, and they fit two classes only."""
    values = variables(model, classes=2)
    del values["global_step"]
    write_graph(tmp_path / "a.pb", values)
    np.savez(tmp_path / "a.npz", **values)
    read = [read_source(str(tmp_path / name)) for name in ("a.pb", "a.npz")]
    weights = {name for name in values if is_variable(name)}
    assert set(read[0]) == weights < set(read[1])
    assert all(torch.equal(read[0][name], read[1][name]) for name in weights)
    assert "tensorflow" not in sys.modules
    two = build_model(load_bare(CONFIG, "MODEL.SSD.NUM_CLASSES", 2, "DATASETS.TRAIN", "()"))
    state = convert("tensorflow", read[0], two).state
    two.load_state_dict(state)
    columns = torch.from_numpy(values["BoxPredictor_1/ClassPredictor/biases"]).view(6, 3)
    assert torch.equal(state["head.cls_score.1.3.bias"].view(6, 2), columns[:, 1:])
    with pytest.raises(InputError, match="the file is of 2 classes, the config of 80"):
        convert("tensorflow", read[0], model)
    with pytest.raises(
        InputError, match="1 tensors of the file have no place in the model: Other/weights"
    ):
        convert("tensorflow", {**read[0], "Other/weights": torch.zeros(1)}, two)


def test_broken_graphs_are_named(model, tmp_path):
    path = tmp_path / "a.pb"
    write_graph(path, {"Conv/weights": np.zeros((3, 3, 3, 8), dtype=np.float32)})
    cut = path.read_bytes()[:-200]
    cases = {"is no frozen graph": cut, "is damaged": b"no graph", "has no weights": b""}
    for words, content in cases.items():
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"a.pb .*{words}"):
            read_source(str(path))
    with pytest.raises(InputError, match="b.pb: No such file"):
        read_source(str(tmp_path / "b.pb"))
    write_graph(path, {"Conv/weights": np.zeros((3, 3, 3, 8), dtype=np.float32)})
    with pytest.raises(InputError, match="1 tensors of the file have no place in the model: Conv"):
        convert("tensorflow", read_source(str(path)), model)  # of another model


def test_anchors_are_tensorflows(model):
    """Written out from the description of its SSD anchors: scales, ratios, order, count."""
    scales = [0.2 + 0.15 * i for i in range(6)] + [1.0]
    expected = []
    for i, grid in enumerate((19, 10, 5, 3, 2, 1)):
        if i == 0:
            shapes = [(0.1, 1.0), (0.2, 2.0), (0.2, 0.5)]
        else:
            shapes = [(scales[i], r) for r in (1.0, 2.0, 0.5, 3.0, 0.3333)]
            shapes.append((np.sqrt(scales[i] * scales[i + 1]), 1.0))
        for y in range(grid):
            for x in range(grid):
                for scale, ratio in shapes:
                    w, h = scale * np.sqrt(ratio), scale / np.sqrt(ratio)
                    cy, cx = (y + 0.5) / grid, (x + 0.5) / grid
                    expected.append([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
    maps = model.feature_maps(torch.zeros(1, 3, 300, 300))
    assert [tuple(m.shape[-2:]) for m in maps] == [(n, n) for n in (19, 10, 5, 3, 2, 1)]
    found = torch.cat([b.tensor for b in model.anchors()])
    assert len(found) == 1917
    assert np.abs(found.numpy() - 300 * np.array(expected)).max() <= 1e-3


def test_scores_are_sigmoids_without_background(model):
    assert model.criterion.num_scores == 80
    logits = torch.tensor([[-1.0, 0.0, 2.0]])
    assert torch.allclose(model.criterion.scores(logits), 1 / (1 + (-logits).exp()))


def test_network_by_hand_from_the_variables(model):
    """The first layers and one extra block from the variables themselves, in numpy."""
    values = variables(model)
    source = {name: torch.from_numpy(value) for name, value in values.items()}
    model.load_state_dict(convert("tensorflow", source, model).state)
    trunk = "FeatureExtractor/MobilenetV2/"

    def norm(x, scope, relu=True):
        g, b, m, v = (
            values[f"{scope}/BatchNorm/{n}"].astype(float)
            for n in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        y = (x - m) / np.sqrt(v + 1e-3) * g + b
        return y.clip(0, 6) if relu else y

    def depthwise(x, scope, stride=1):
        kernel = values[f"{scope}/depthwise_weights"].astype(float)
        channels = [
            same_convolution(x[:, :, c, None], kernel[:, :, c, None], stride)
            for c in range(x.shape[2])
        ]
        return norm(np.concatenate(channels, axis=2), scope)

    rng = np.random.default_rng(1)
    x = rng.standard_normal((6, 7, 3))
    y = norm(same_convolution(x, values[f"{trunk}Conv/weights"].astype(float), 2), f"{trunk}Conv")
    scope = f"{trunk}expanded_conv"
    y = depthwise(y, f"{scope}/depthwise")
    y = norm(y @ values[f"{scope}/project/weights"][0, 0].astype(float), f"{scope}/project", False)
    double = torch.from_numpy(x.transpose(2, 0, 1)[None].copy())
    layers = model.double().backbone
    found = layers.features[1](layers.features[0](double))[0].detach().numpy().transpose(1, 2, 0)
    assert np.abs(found - y).max() <= 1e-9

    x = rng.standard_normal((5, 4, 512))
    first = f"{trunk}layer_19_1_Conv2d_3_1x1_128"
    second = f"{trunk}layer_19_2_Conv2d_3_3x3_s2_256"
    y = norm(x @ values[f"{first}/weights"][0, 0].astype(float), first)
    y = depthwise(y, f"{second}_depthwise", stride=2)
    y = norm(y @ values[f"{second}/weights"][0, 0].astype(float), second)
    double = torch.from_numpy(x.transpose(2, 0, 1)[None].copy())
    found = layers.extras[1](double)[0].detach().numpy().transpose(1, 2, 0)
    model.float()
    assert np.abs(found - y).max() <= 1e-9 * np.abs(y).max()


def test_the_tool_reads_npz(model, tmp_path):
    np.savez(tmp_path / "tf.npz", **variables(model))
    output = tmp_path / "out.pth"
    command = ["--source", "tensorflow", "--config-file", CONFIG, tmp_path / "tf.npz", output]
    assert exits("ssdlite_d2.tools.convert_checkpoint", command) == [0]
    model.load_state_dict(torch.load(output, weights_only=True)["model"])
