"""LiteRT's operator, INT8 and float16. In an environment of its own: make test-litert."""

import json
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from conftest import data_opts, run
from models import ENTRY, as_inputs, lively_model, read_all, resized
from torch import nn
from torch.nn import functional

from ssdlite_d2.export import ExportOptions, export_bundle
from ssdlite_d2.export.bundled.runtimes import open_litert
from ssdlite_d2.export.formats import Job, write_litert
from ssdlite_d2.export.parity import detect, match
from ssdlite_d2.export.quantization import LitertQuantizer
from ssdlite_d2.modeling.backbone.blocks import L2Norm

litert_torch = pytest.importorskip("litert_torch", reason="make test-litert has it")

# A consumer, where neither PyTorch nor this package is: it reads the four outputs by their index.
CONSUMER = """
import json, sys
for name in ("torch", "detectron2", "ssdlite_d2"):
    sys.modules[name] = None
import numpy as np
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(model_path=sys.argv[1])
interpreter.allocate_tensors()
(image,), ends = interpreter.get_input_details(), interpreter.get_output_details()
results = [[[list(map(int, end["shape"])), end["dtype"].__name__] for end in (image, *ends)]]
for pixels in np.load(sys.argv[2]):
    interpreter.set_tensor(image["index"], pixels[None])
    interpreter.invoke()
    results.append([interpreter.get_tensor(end["index"])[0].tolist() for end in ends])
print(json.dumps(results))
"""


def consume(folder: Path, images):
    """What the interpreter says of its ends, and its outputs for images."""
    np.save(folder / "images.npy", np.concatenate(images))
    done = run("-c", CONSUMER, folder / "model.tflite", folder / "images.npy")
    assert done.returncode == 0, done.stderr
    ends, *outputs = json.loads(done.stdout.splitlines()[-1])
    return ends, [[np.array(x) for x in rows] for rows in outputs]


def assert_found(model, folder: Path):
    """A model's 20 best detections are the operator's, in pixels of the image."""
    pictures = read_all()
    ends, outputs = consume(folder, [resized(x, model.input_size) for x in pictures])
    rows, (height, width) = model.postprocessor.max_detections, model.input_size
    shapes = [[1, height, width, 3], [1, rows, 4], [1, rows], [1, rows], [1]]
    assert ends == [[shape, "float32" if i else "uint8"] for i, shape in enumerate(shapes)]
    for picture, (boxes, classes, scores, count) in zip(pictures, outputs):
        size = picture.shape[:2]
        assert count == rows and (np.diff(scores) <= 0).all()
        boxes = boxes.clip(0, 1)[:, [1, 0, 3, 2]] * (size[::-1] * 2)
        ours = detect(model, resized(picture, model.input_size)[0], "RGB", size)
        ours = [x[:20] for x in ours]
        pairs = match(ours, (boxes, scores, classes), 0.5)
        assert len(pairs) == 20
        assert all(abs(ours[1][i] - scores[j]) < 1e-3 for i, j in pairs)


@pytest.fixture(scope="module")
def bundles(bccd_model, tmp_path_factory):
    """The same model in all precisions, and the reports; converted once, which takes long."""
    root, convert, converted, sources = tmp_path_factory.mktemp("b"), litert_torch.convert, [], []

    def once(*args, **kwargs):
        converted[:] = converted or [convert(*args, **kwargs)]
        return converted[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(litert_torch, "convert", once)
        for precision in ("fp32", "fp16", "int8"):
            options = ExportOptions(
                format="litert",
                layout="detection-postprocess",
                precision=precision,
                parity_images=4,
                calibration_images=4,
                ap_budget=100.0,
            )
            folder = root / precision
            sources.append((folder, export_bundle(*bccd_model, str(folder), options)))
    (root / "source.tflite").write_bytes(converted[0].model_content())
    return sources


def tensors(model: Path):
    """The operators of a file, with the types of their inputs that are computed."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(str(model), experimental_op_resolver_type=resolver)
    kinds = {t["index"]: t["dtype"].__name__ for t in interpreter.get_tensor_details()}
    return [
        (o["op_name"], kinds[o["inputs"][0]], kinds[o["outputs"][0]])
        for o in interpreter._get_ops_details()
    ]


def test_the_operator_finds_the_models_detections(bundles, bccd_model):
    folder, report = bundles[0]
    assert report["violations"] == [] and report["matched"] > 50
    assert_found(bccd_model[1], folder)
    assert tensors(folder / "model.tflite")[-1][0] == "TFLite_Detection_PostProcess"
    check = run("-c", f"import sys, runpy; {HIDE}", "--check", cwd=folder)
    assert check.returncode == 0 and "detections as expected" in check.stdout, check.stderr


HIDE = """sys.modules.update(torch=None, detectron2=None, ssdlite_d2=None)
sys.path.insert(0, ".")
sys.argv[0] = "predict.py"
runpy.run_path("predict.py", run_name="__main__")"""


def test_half_weights_take_half_the_space(bundles):
    (full, _), (half, report), _ = bundles
    assert report["violations"] == [] and report["matched"] > 50
    sizes = [(folder / "model.tflite").stat().st_size for folder in (full, half)]
    assert sizes[1] < 0.52 * sizes[0]


def test_int8_is_small_and_whole(bundles):
    (full, _), _, (folder, report) = bundles
    sizes = [(x / "model.tflite").stat().st_size for x in (full, folder)]
    assert sizes[1] <= 0.3 * sizes[0]
    spec = json.loads((folder / "model.json").read_text())
    assert spec["quantization"]["float_layers"] == [] and spec["layout"] == "detection-postprocess"
    first, *inner, last = tensors(folder / "model.tflite")
    assert first == ("QUANTIZE", "uint8", "int8") and last[0] == "TFLite_Detection_PostProcess"
    ends = [("DEQUANTIZE", "int8", "float32")] * 2  # the codes and the scores
    assert [x for x in inner if "float32" in x] == ends
    pixels = [resized(x, (320, 320)) for x in read_all()]
    _, exact = consume(full, pixels)
    _, rounded = consume(folder, pixels)
    difference = [np.abs(a[2] - b[2]).mean() for a, b in zip(exact, rounded)]
    assert 0 < max(difference) < 0.05


def test_named_layers_stay_in_float(bundles, bccd_model, tmp_path):
    source = bundles[0][0].parent / "source.tflite"
    images = [resized(read_all()[0], (320, 320))]
    quantizer = LitertQuantizer(source, images, tmp_path, bccd_model[1])
    names = quantizer.convolutions()
    quantizer.write(tmp_path / "some.tflite", names[1:3])
    found = [kinds for name, *kinds in tensors(tmp_path / "some.tflite") if "CONV" in name]
    floats = [names[i] for i, kinds in enumerate(found) if "float32" in kinds]
    assert len(found) == len(names) and floats == names[1:3]


def test_codes_that_the_operator_does_not_know_are_decoded(bccd, tmp_path, clean_catalog):
    images = as_inputs(read_all())
    cfg, model = lively_model("modern/ssdlite_pan_mnv2.yaml", images, *data_opts(ENTRY))
    options = ExportOptions(format="litert", layout="detection-postprocess", parity_images=0)
    export_bundle(cfg, model, str(tmp_path / "b"), options)
    assert_found(model, tmp_path / "b")


class Trunk(nn.Module):
    """VGG's layers: equal shapes of weights, pooling that rounds up, dilation and L2Norm."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        convolutions = [nn.Conv2d(64, 64, 3, padding=6, dilation=6) for _ in range(4)]
        pool = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.layers = nn.Sequential(nn.Conv2d(3, 64, 3), L2Norm(64), pool, *convolutions)

    def forward(self, image):
        return (self.layers(image.permute(0, 3, 1, 2)),)


def test_vggs_layers(tmp_path):
    """The converter takes weights in another memory format for each other, and makes nothing of
    F.normalize between convolutions."""
    from ai_edge_litert.interpreter import Interpreter

    module, path = Trunk().eval().to(memory_format=torch.channels_last), tmp_path / "l2.tflite"
    image, maps = torch.randint(0, 256, (1, 21, 21, 3), dtype=torch.uint8), torch.randn(2, 64, 5, 5)
    with torch.no_grad():
        (expected,) = module(image.float())
        normed = module.layers[1](maps)
    write_litert(Job(module, image, path, "fp32", False, False, ("maps",)))
    interpreter = Interpreter(str(path))
    found = interpreter.get_signature_runner()(image=image.numpy())["maps"]
    assert np.abs(found - expected.numpy()).max() < 1e-3 * expected.abs().max()
    assert torch.allclose(normed, functional.normalize(maps) * 20, rtol=1e-5)
    names = [name for name, *_ in tensors(path)]
    assert names.count("L2_NORMALIZATION") == 1 and "DIV" not in names


def test_one_thread_where_the_operator_would_lose_a_class(monkeypatch):
    chosen = []
    package, module = ModuleType("ai_edge_litert"), ModuleType("ai_edge_litert.interpreter")
    module.Interpreter = lambda model_path, num_threads: chosen.append(num_threads) or MagicMock()
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for layout, threads in (
        ("detection-postprocess", 2),
        ("detection-postprocess", 3),
        ("anchors", 2),
    ):
        spec = {"layout": layout, "classes": ["a", "b", "c"], "outputs": ["boxes"]}
        open_litert("model.tflite", spec, threads, "fp32", "cpu")
    assert chosen == [1, 3, 2]
