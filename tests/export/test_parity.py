"""Exported models say what the PyTorch models say."""

import copy
import json

import numpy as np
import pytest
import torch
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, pairwise_iou
from models import as_inputs, lively_model, read_all, resized

from ssdlite_d2 import InputError
from ssdlite_d2.export import ExportedSSD, ExportOptions, WithNMS, export_bundle, samples
from ssdlite_d2.export.accuracy import average_precision
from ssdlite_d2.export.bundled.detector import (
    Detector,
    PredictError,
    fit,
    open_runtime,
    rank,
    select,
    suppress,
)
from ssdlite_d2.export.formats import FORMATS, Job
from ssdlite_d2.export.parity import detect, match, raw_outputs, remarks
from ssdlite_d2.modeling import DeltaCoder, InputResize

# One of every trunk, head and loss; VGG's configs differ in classes and thresholds only.
CONFIGS = [
    "ssdlite_mnv2.yaml",
    "ssdlite_mnext_voc.yaml",
    "ssdlite_mnv3_voc.yaml",
    "ssd300_efficientnet_b3_voc.yaml",
    "ssd300_vgg16_voc.yaml",
    "torchvision/ssdlite320_mobilenet_v3_large.yaml",
    "tf/ssdlite_mobilenet_v2_coco.yaml",
    "pytorch_ssd/mb1_ssd.yaml",
    "pytorch_ssd/mb3_large_ssd_lite.yaml",
]
# OpenVINO reads the ONNX file, and ncnn's converter takes long; where operators differ from others.
OPENVINO = ["ssdlite_mnv2.yaml", "torchvision/ssdlite320_mobilenet_v3_large.yaml"]


@pytest.mark.parametrize("config", CONFIGS)
def test_every_runtime_gives_the_models_boxes_and_scores(config, tmp_path):
    images = read_all()
    _, model = lively_model(config, as_inputs(images))
    image = resized(images[0], model.input_size)
    boxes, scores = raw_outputs(model, image, "RGB")
    names = ["onnx", "torchscript", *(["openvino"] if config in OPENVINO else [])]
    for name in names + ["ncnn"] * (config == OPENVINO[-1]):
        path, last = tmp_path / FORMATS[name].file, FORMATS[name].channels_last
        module = ExportedSSD(model, channels_last=last)
        example = torch.zeros(image.shape if last else (1, 3, *model.input_size)).byte()
        FORMATS[name].write(Job(module, example, path, "fp32", False, False, ("boxes", "scores")))
        run, _ = open_runtime(path, {"format": name, "layout": "anchors"})
        outputs = run(image)
        assert np.abs(outputs[1] - scores).max() < 1e-4, name
        size = np.abs(boxes).clip(min=max(model.input_size))
        assert (np.abs(outputs[0] - boxes) / size).max() < 1e-4, name
    assert np.ptp(scores) > 0.01  # there is something to compare


@pytest.mark.parametrize("format", ["onnx", "openvino", "torchscript"])
def test_bundle_detects_what_the_model_detects(format, bccd_model, tmp_path):
    cfg, model = bccd_model
    report = export_bundle(cfg, model, str(tmp_path / "b"), ExportOptions(format=format))
    assert report["violations"] == []
    assert report["detections"] == report["exported_detections"] == report["matched"] > 50
    assert report["matched_boxes_px"]["max"] < 0.5
    assert json.loads((tmp_path / "b" / "parity.json").read_text()) == report
    assert {p.name for p in tmp_path.iterdir()} == {"b"}


@pytest.mark.parametrize("format", ["onnx", "openvino", "torchscript"])
@pytest.mark.parametrize("batch", ["1", "3"])
def test_suppression_inside_equals_suppression_outside(format, batch, bccd_model, tmp_path):
    cfg, model = bccd_model
    options = ExportOptions(format=format, layout="nms", batch=batch, parity_images=0)
    export_bundle(cfg, model, str(tmp_path / "b"), options)
    images = read_all()
    results = Detector(tmp_path / "b")(images)
    for image, inside in zip(images, results):
        rgb = resized(image, model.input_size)[0]
        ours = detect(model, rgb, "RGB", image.shape[:2])
        assert len(match(ours, inside, 0.5)) == len(ours[1]) == len(inside[1]) > 10


def test_suppression_inside_limits_each_class(bccd_model, monkeypatch):
    """A limit per class that leaves fewer than the limits of the image would."""
    model = bccd_model[1]
    monkeypatch.setattr(model.postprocessor, "candidates_per_class", 20)
    inside = WithNMS(ExportedSSD(model))
    for image in read_all():
        rgb = resized(image, model.input_size)
        boxes, scores, classes = (x[0].detach().numpy() for x in inside(torch.from_numpy(rgb)))
        found = [x[scores > 0] for x in (boxes.clip(0, 320), scores, classes)]
        ours = detect(model, rgb[0], "RGB", model.input_size)
        assert len(match(ours, found, 0.5)) == len(ours[1]) == len(found[1])
        assert 10 < len(ours[1]) <= 60


@pytest.mark.parametrize("format", ["onnx", "openvino", "torchscript"])
@pytest.mark.parametrize("method", InputResize.methods)
def test_resize_inside_takes_any_image(format, method, bccd_model, tmp_path, monkeypatch):
    cfg, model = bccd_model
    monkeypatch.setattr(model, "resize", InputResize(model.input_size, method))
    options = ExportOptions(format=format, resize=True, parity_images=0)
    export_bundle(cfg, model, str(tmp_path / "b"), options)
    detector = Detector(tmp_path / "b")
    for image in (read_all()[0], read_all()[1][:200, :333]):
        ours = detect(model, image[:, :, ::-1], "RGB", image.shape[:2])
        theirs = detector([image])[0]
        assert len(match(ours, theirs, 0.5)) == len(ours[1]) == len(theirs[1]) > 10


@pytest.mark.parametrize("format", ["onnx", "openvino", "torchscript"])
def test_dynamic_batch_equals_single_images(format, bccd_model, tmp_path):
    cfg, model = bccd_model
    options = ExportOptions(format=format, batch="dynamic", parity_images=0)
    export_bundle(cfg, model, str(tmp_path / "b"), options)
    detector, images = Detector(tmp_path / "b"), read_all()
    together = detector(images)
    for image, found in zip(images, together):
        assert len(match(detector([image])[0], found, 0.01)) == len(found[1]) > 10


def test_models_trained_on_bgr_take_rgb(bccd_model):
    model = bccd_model[1]
    image = torch.from_numpy(resized(read_all()[0], model.input_size))
    with torch.no_grad():
        rgb = ExportedSSD(model)(image)
        mean = model.pixel_mean.clone()
        model.pixel_mean.copy_(mean.flip(0))
        model.pixel_std.copy_(model.pixel_std.flip(0))
        weight = ExportedSSD(model, image_format="BGR")
        model.pixel_mean.copy_(mean)
        model.pixel_std.copy_(model.pixel_std.flip(0))
        first = weight.model.backbone.features[0][0]
        first.weight.copy_(first.weight.flip(1))
        assert torch.allclose(rgb[1], weight(image)[1], atol=1e-5)


@pytest.mark.parametrize("format, weights", [("onnx", "model.onnx"), ("ncnn", "model.bin")])
def test_half_weights_take_half_the_space(format, weights, bccd_model, tmp_path):
    cfg, model = bccd_model
    sizes = {}
    for precision in ("fp32", "fp16"):
        options = ExportOptions(format=format, precision=precision)
        report = export_bundle(cfg, model, str(tmp_path / precision), options)
        assert report["violations"] == [] and report["matched"] > 50
        sizes[precision] = (tmp_path / precision / weights).stat().st_size
    assert sizes["fp16"] < 0.55 * sizes["fp32"]


def test_a_model_outside_its_tolerance_is_not_exported(bccd_model, tmp_path, monkeypatch):
    cfg, model = bccd_model
    decode = DeltaCoder.decode_all
    monkeypatch.setattr(DeltaCoder, "decode_all", lambda *args: decode(*args) + 1)
    with pytest.raises(InputError, match="boxes differ by 3.1e-03"):
        export_bundle(cfg, model, str(tmp_path / "b"), ExportOptions(parity_images=1))
    assert not list(tmp_path.iterdir())
    options = ExportOptions(parity_images=1, allow_difference=True)
    report = export_bundle(cfg, model, str(tmp_path / "b"), options)
    assert report["boxes_px"]["mean"] == pytest.approx(1, abs=0.01)


def test_suppression_equals_detectron2s():
    rng = np.random.default_rng(0)
    for count in (0, 1, 700):
        corners = rng.uniform(0, 250, (count, 2))
        boxes = np.hstack((corners, corners + rng.uniform(5, 90, (count, 2)))).astype(np.float32)
        scores = np.sort(rng.uniform(0, 1, count).astype(np.float32))[::-1].copy()
        classes = rng.integers(0, 3, count)
        tensors = (torch.from_numpy(x) for x in (boxes, scores, classes))
        expected = batched_nms(*tensors, 0.45).tolist()
        assert suppress(boxes, scores, classes, 0.45, 10_000).tolist() == expected
        assert suppress(boxes, scores, classes, 0.45, 20).tolist() == expected[:20]


def test_candidate_limits():
    scores = np.array([[0.9, 0.1], [0.8, 0.7], [0.6, 0.2], [0.5, 0.65]], dtype=np.float32)
    boxes = np.array([[i * 100, 0, i * 100 + 9, 9] for i in range(4)], dtype=np.float32)
    options = dict(size=(9, 9), score_threshold=0.15, nms_threshold=0.5, clip_before_nms=False)
    options.update(candidates=100, candidates_per_class=0, max_detections=100)
    _, found, classes = select(boxes, scores, **options)
    assert found.tolist() == pytest.approx([0.9, 0.8, 0.7, 0.65, 0.6, 0.5, 0.2])
    _, found, _ = select(boxes, scores, **{**options, "candidates": 3})
    assert found.tolist() == pytest.approx([0.9, 0.8, 0.7])
    _, found, classes = select(boxes, scores, **{**options, "candidates_per_class": 1})
    assert found.tolist() == pytest.approx([0.9, 0.7]) and classes.tolist() == [0, 1]
    assert rank(np.array([1, 0, 1, 1, 0])).tolist() == [0, 0, 1, 2, 1]


def test_suppression_across_classes_is_the_same_everywhere(bccd_model):
    by_class = copy.deepcopy(bccd_model[1])
    by_class.postprocessor.clip_before_nms = True  # boxes that are cut overlap otherwise
    model, size = copy.deepcopy(by_class), by_class.input_size
    model.postprocessor.across_classes = True
    rgb = resized(read_all()[0], size)

    def overlap(found):
        boxes = Boxes(torch.from_numpy(found[0]))
        return pairwise_iou(boxes, boxes).fill_diagonal_(0).max()

    ours = detect(model, rgb[0], "RGB", size)
    assert overlap(ours) <= model.postprocessor.nms_threshold + 1e-4
    assert overlap(detect(by_class, rgb[0], "RGB", size)) > 0.7
    raw = [x[0] for x in raw_outputs(model, rgb, "RGB")]
    selected = select(*raw, size=size, **model.postprocessor.options())
    with torch.no_grad():
        outputs = WithNMS(ExportedSSD(model))(torch.from_numpy(rgb))
    boxes, scores, classes = (x[0].numpy() for x in outputs)
    inside = boxes[classes >= 0], scores[classes >= 0], classes[classes >= 0]
    for found in (selected, inside):
        _, scores, classes = fit(*found, size, size)
        assert scores == pytest.approx(ours[1], abs=1e-4) and len(set(classes)) > 1
        assert (classes == ours[2]).mean() > 0.95


def test_remarks_say_what_the_difference_means():
    for precision, exported, words in (
        ("int8", 57.65, ["AP 57.65, PyTorch 58.13: -0.48, budget 0.5: kept"]),
        ("int8", 57.13, ["AP 57.13, PyTorch 58.13: -1.00, budget 0.5: not kept"]),
        ("fp32", 58.13, ["AP 58.13, PyTorch 58.13: +0.00"]),
        ("fp32", 58.2, ["AP 58.20, PyTorch 58.13: +0.07", "The bundle resizes images in whole"]),
    ):
        report = {"AP": 58.13, "exported_AP": exported}
        found = remarks(report, ExportOptions(precision=precision))
        assert len(found) == len(words) and all(a.startswith(b) for a, b in zip(found, words))
    assert remarks({"AP": None}, ExportOptions()) == []


@pytest.mark.parametrize("size, count, chosen", [(72, None, 72), (500, None, 50), (72, 5, 5)])
def test_small_data_sets_are_compared_whole(monkeypatch, size, count, chosen):
    monkeypatch.setattr(samples, "classes_of", lambda name: ())
    monkeypatch.setattr(samples.DatasetCatalog, "get", lambda name: list(range(size)))
    found = samples.choose_records("some", count, "--flag")
    assert len(found) == len(set(found)) == chosen and found[0] == 0 and found[-1] == size - 1


def test_average_precision_by_hand():
    box = {"bbox": [10, 10, 60, 60], "bbox_mode": 0, "category_id": 0}
    records = [{"annotations": [box]}, {"annotations": [box]}]
    hit = (np.array([[10.0, 10, 60, 60]]), np.array([0.9]), np.array([0]))
    none = (np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=int))
    assert average_precision(records, [hit, hit]) == pytest.approx(100)
    assert average_precision(records, [hit, none]) == pytest.approx(50.5, abs=0.1)  # 51 of 101
    assert average_precision(records, [none, none]) == 0
    assert average_precision([{}, {}], [hit, hit]) is None


def test_padding_of_detections_is_empty(bccd_model):
    model = bccd_model[1]
    module = WithNMS(ExportedSSD(model))
    module.score_threshold = 2.0
    boxes, scores, classes = module(torch.zeros(1, *model.input_size, 3, dtype=torch.uint8))
    assert boxes.shape == (1, 100, 4) and boxes.abs().max() == 0
    assert scores.abs().max() == 0 and (classes == -1).all()


def test_images_of_other_kinds_are_named(bccd_model, tmp_path):
    export_bundle(*bccd_model, str(tmp_path / "b"), ExportOptions(parity_images=0))
    detector = Detector(tmp_path / "b")
    colour = read_all()[0]
    for image in (colour[:, :, 0], colour[:, :, :2], colour.astype(np.float32)):
        with pytest.raises(PredictError, match=r"uint8 \(height, width, 3\) is needed"):
            detector([image])
