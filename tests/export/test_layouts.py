"""What consumers of SSD models read, by decoders written from their contracts."""

import itertools
import json

import numpy as np
import openvino
import pytest
import torch
import yaml
from conftest import CLASSES
from detectron2.structures import Boxes
from models import read_all, resized
from openvino import opset8 as ops

from ssdlite_d2 import InputError
from ssdlite_d2.export import ExportedSSD, ExportOptions, export_bundle
from ssdlite_d2.export.bundled.detector import Detector, PredictError
from ssdlite_d2.export.layouts import detection_output
from ssdlite_d2.export.litert import OperatorInputs
from ssdlite_d2.export.parity import detect, match
from ssdlite_d2.export.spec import Spec
from ssdlite_d2.modeling import DeltaCoder, DistanceCoder
from ssdlite_d2.modeling.criteria import Criterion
from ssdlite_d2.modeling.postprocessing import Postprocessor

F32 = {"INFERENCE_PRECISION_HINT": "f32"}


def as_frigate(rows, width, height):
    """Rows that Frigate takes, which stops at the first weak one, in pixels of a frame."""
    boxes, scores, classes = [], [], []
    for image, label, score, xmin, ymin, xmax, ymax in rows:
        assert image == 0
        if score < 0.1 or len(scores) == 20:
            break
        boxes.append([xmin * width, ymin * height, xmax * width, ymax * height])
        scores.append(score)
        classes.append(int(label))
    return np.array(boxes), np.array(scores), np.array(classes)


@pytest.fixture(scope="module")
def frigate(bccd_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("frigate") / "b"
    options = ExportOptions(format="openvino", layout="frigate", parity_images=4)
    return folder, export_bundle(*bccd_model, str(folder), options)


def test_frigate_reads_the_models_detections(frigate, bccd_model):
    folder, report = frigate
    assert report["violations"] == [] and report["matched"] > 50
    core, model = openvino.Core(), bccd_model[1]
    network = core.read_model(folder / "model.xml")
    (image,), (output,) = network.inputs, network.outputs
    assert image.get_element_type() == openvino.Type.u8
    assert image.partial_shape.to_string() == "[1,320,320,3]"
    assert output.partial_shape.to_string() == "[1,1,100,7]"
    shapes = (port.partial_shape for node in network.get_ops() for port in node.outputs())
    assert all(shape.is_static for shape in shapes)
    run = core.compile_model(network, "CPU", F32)
    for picture in read_all():
        height, width = picture.shape[:2]
        rows = run(resized(picture, model.input_size))[0][0, 0]
        theirs = as_frigate(rows, width, height)
        ours = detect(model, resized(picture, model.input_size)[0], "RGB", (height, width))
        ours = [x[:20] for x in ours]
        assert len(theirs[1]) == 20 and ours[1][-1] > 0.1
        pairs = match(ours, theirs, 0.5)
        assert len(pairs) == 20
        assert all(abs(ours[1][i] - theirs[1][j]) < 1e-3 for i, j in pairs)
        assert (np.diff(rows[:, 2]) <= 0).all()
        found = Detector(folder)([picture])[0]  # the bundle's own program reads it too
        assert np.allclose(found[0][:20], theirs[0], atol=1e-3)


def test_frigate_has_its_texts(frigate):
    folder, _ = frigate
    labels = [line.split(" ", 1) for line in (folder / "labelmap.txt").read_text().splitlines()]
    assert labels == [[str(i), name] for i, name in enumerate(CLASSES)]
    lines = yaml.safe_load((folder / "frigate.yml").read_text())
    assert lines["detectors"]["ov"]["type"] == "openvino"
    assert (lines["model"]["width"], lines["model"]["height"]) == (320, 320)
    assert lines["model"]["model_type"] == "ssd" and lines["objects"]["track"] == CLASSES
    spec = json.loads((folder / "model.json").read_text())
    assert {"labelmap.txt", "frigate.yml", "model.bin", "model.json"} < set(spec["files"])
    assert set(spec["files"]) == {path.name for path in folder.iterdir()}
    assert set(spec["sha256"]) == {"model.xml", "model.bin"} and spec["layout"] == "frigate"


def test_openvinos_devices(frigate):
    assert Detector(frigate[0], device="cpu").device == "cpu"
    there = {name.partition(".")[0] for name in openvino.Core().available_devices}
    assert Detector(frigate[0], device="auto").device == "cpu" or there != {"CPU"}
    for name, package in (("GPU", "intel-opencl-icd"), ("NPU", "npu")):
        if name not in there:
            with pytest.raises(PredictError, match=f"OpenVINO finds .*CPU.*; install .*{package}"):
                Detector(frigate[0], device=f"openvino:{name}")


def frigate_rows(boxes, scores, size, options):
    """Rows (N, 7) of a model that has nothing but its suppression."""
    inputs = [ops.parameter(x[None].shape, np.float32) for x in (boxes, scores)]
    model = openvino.Model([ops.result(x) for x in inputs], inputs, "raw")
    for port, name in zip(model.outputs, ("boxes", "scores")):
        port.set_names({name})
    spec = Spec("openvino", "", "fp32", "frigate", {"size": list(size)}, {}, [], options, {})
    run = openvino.Core().compile_model(detection_output(model, spec), "CPU", F32)
    return run([boxes[None], scores[None]])[0][0, 0]


def test_fixed_shapes_do_what_the_postprocessor_does():
    """On boxes that overlap or lie outside, with every limit in and out of force."""
    rng = np.random.default_rng(0)
    size, anchors, classes = (200, 300), 300, 4
    corners = rng.uniform(-60, 280, (anchors, 2))
    boxes = np.hstack((corners, corners + rng.uniform(1, 90, (anchors, 2)))).astype(np.float32)
    scores = rng.uniform(0, 1, (anchors, classes)).astype(np.float32) ** 3
    # the coder moves no box for deltas of 0, and the criterion's scores are sigmoids
    raw = (torch.from_numpy(scores)[None].logit(), torch.zeros(1, anchors, 4))
    parts = (Boxes(torch.from_numpy(boxes)), size, Criterion(classes), DeltaCoder())
    limits = itertools.product((0.05, 0.5), (2000, 90), (0, 25), (False, True), (100, 10))
    names = ("score_threshold", "candidates", "candidates_per_class", "clip_before_nms")
    for values in limits:
        options = dict(zip((*names, "max_detections"), values), nms_threshold=0.5)
        ours = Postprocessor(**options)(*raw, *parts)[0]
        ours.pred_boxes.clip(size)
        ours = ours[ours.pred_boxes.nonempty()]
        rows = frigate_rows(boxes, scores, size, options)
        found = rows[rows[:, 2] > 0]
        assert len(rows) == options["max_detections"] and len(found) == len(ours) >= 5
        assert found[:, 1].tolist() == ours.pred_classes.tolist()
        assert np.allclose(found[:, 2], ours.scores, atol=1e-5)
        assert np.allclose(found[:, 3:] * (size[::-1] * 2), ours.pred_boxes.tensor, atol=1e-3)
        assert (rows[len(found) :, 2] == 0).all() and (rows[:, 0] == 0).all()


def as_operator(codes, anchors, scales):
    """Boxes XYXY as TensorFlow Lite's operator decodes them, in parts of the image."""
    y, x, h, w = (codes / scales).T
    yc, xc, height, width = anchors.T
    yc, xc = y * height + yc, x * width + xc
    h, w = np.exp(h) * height / 2, np.exp(w) * width / 2
    return np.stack((xc - w, yc - h, xc + w, yc + h), axis=1)


def test_the_operator_decodes_the_models_boxes(bccd_model, monkeypatch):
    """Codes that it knows, with any weights; others, and boxes that are clipped, by the graph."""
    model = bccd_model[1]
    image = torch.from_numpy(resized(read_all()[0], model.input_size))
    clips, coder = model.postprocessor, DeltaCoder(weights=(8.0, 12.0, 4.0, 6.0))
    for box_coder, clip in ((coder, False), (coder, True), (DistanceCoder(), False)):
        monkeypatch.setattr(clips, "clip_before_nms", clip)
        monkeypatch.setattr(model, "box2box_transform", box_coder)
        detector = ExportedSSD(model)
        module = OperatorInputs(detector)
        assert module.decoded == (clip or box_coder is not coder)
        with torch.no_grad():
            boxes, scores, *codes = (x[0].numpy() for x in module(image))
            plain = [x[0].numpy() for x in detector(image)]
        assert np.array_equal(boxes, plain[0]) and np.array_equal(scores, plain[1])
        assert len(codes) == 1 + module.decoded
        theirs = as_operator(codes[-1], module.anchors(), module.scales) * 320
        boxes = boxes.clip(0, 320) if clip else boxes
        assert np.abs(theirs - boxes).max() < 0.02 and np.ptp(boxes) > 300


def test_layouts_name_what_cannot_be():
    cases = {
        "it is one of anchors, nms, frigate, detection-postprocess": {"layout": "tflite"},
        "--layout detection-postprocess is not for --format onnx; it is for litert": {
            "layout": "detection-postprocess"
        },
        "--layout detection-postprocess takes one image": {
            "layout": "detection-postprocess",
            "format": "litert",
            "batch": "2",
        },
        "--layout frigate is not for --format onnx; it is for openvino": {"layout": "frigate"},
        "takes one image": {"layout": "frigate", "format": "openvino", "batch": "dynamic"},
    }
    for words, values in cases.items():
        with pytest.raises(InputError, match=words):
            ExportOptions(**values).check()
