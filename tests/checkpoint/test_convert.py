import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, assert_error, exits, load_bare, make_model
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.modeling import build_model
from torch import nn
from torchvision.models.detection import ssd300_vgg16, ssdlite320_mobilenet_v3_large

import ssdlite_d2
from ssdlite_d2 import InputError
from ssdlite_d2.checkpoint.checkpointer import trunk_to_backbone
from ssdlite_d2.checkpoint.convert import convert
from ssdlite_d2.checkpoint.rows import background_last, take_columns

sys.path.insert(0, str(ROOT / "tests" / "goldens"))
import verify

COCO_IDS = [c["id"] for c in COCO_CATEGORIES if c["isthing"]]


def perturb(model: nn.Module) -> nn.Module:
    """Random weights and batch statistics whose activations stay of order one."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            std = (2 / fan_in) ** 0.5
            module.weight.data = torch.randn(module.weight.shape, generator=generator) * std
        if isinstance(module, nn.BatchNorm2d):
            shape = module.weight.shape
            module.running_mean = torch.randn(shape, generator=generator) * 0.1
            module.running_var = torch.rand(shape, generator=generator) * 0.6 + 0.7
            module.weight.data = torch.rand(shape, generator=generator) * 0.4 + 0.8
    return model.eval()


@torch.no_grad()
def calm_heads(theirs: nn.Module) -> None:
    """Scale the predictors so that scores and boxes are neither saturated nor all alike."""
    images, _ = theirs.transform([torch.rand(3, 300, 300)])
    features = list(theirs.backbone(images.tensors).values())
    for head, std in ((theirs.head.classification_head, 2.0), (theirs.head.regression_head, 1.0)):
        for predict, x in zip(head.module_list, features):
            last = [m for m in predict.modules() if isinstance(m, nn.Conv2d)][-1]
            last.weight *= std / predict(x).std()


@pytest.fixture(scope="module", params=["ssdlite320_mobilenet_v3_large", "ssd300_vgg16"])
def pair(request):
    """A model of torchvision's and ours with its weights."""
    build = {"ssdlite320_mobilenet_v3_large": ssdlite320_mobilenet_v3_large}
    build = build.get(request.param, ssd300_vgg16)
    theirs = perturb(build(weights=None, weights_backbone=None))
    calm_heads(theirs)
    ours = build_model(load_bare(f"torchvision/{request.param}.yaml")).eval()
    ours.load_state_dict(convert("torchvision", theirs.state_dict(), ours).state)
    return theirs, ours


def test_torchvisions_raw_outputs(pair):
    theirs, ours = pair
    x = torch.rand(1, 3, *ours.input_size, generator=torch.Generator().manual_seed(1)) * 255
    with torch.no_grad():
        images, _ = theirs.transform([x[0] / 255])
        features = list(theirs.backbone(images.tensors).values())
        expected = theirs.head(features)
        anchors = theirs.anchor_generator(images, features)[0]
        logits, deltas = ours.raw_outputs(ours.preprocess_image([{"image": x[0]}]).tensor)
    columns = expected["cls_logits"][..., [*COCO_IDS, 0]]
    for found, wanted in ((logits, columns), (deltas, expected["bbox_regression"])):
        assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    found = torch.cat([b.tensor for b in ours.anchors()])
    assert (found - anchors).abs().max() <= 1e-4


@pytest.mark.parametrize("size", [(320, 320), (375, 500), (200, 130)])
def test_torchvisions_detections(pair, size):
    """Their softmax also spreads over the ids that COCO does not use: those are switched off."""
    theirs, ours = pair
    generator = torch.Generator().manual_seed(sum(size))
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
    head = theirs.head.classification_head.module_list
    unused = sorted({*range(91)} - {0, *COCO_IDS})
    for module in head:
        last = [m for m in module.modules() if isinstance(m, nn.Conv2d)][-1]
        last.bias.data.view(-1, 91)[:, unused] = -1e4
    assert ours.postprocessor.score_threshold == theirs.score_thresh
    ours.load_state_dict(convert("torchvision", theirs.state_dict(), ours).state)
    with torch.no_grad():
        expected = theirs([image / 255])[0]
        found = ours([{"image": image}])[0]["instances"]
    boxes = expected["boxes"]
    whole = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(dim=1)  # Detectron2 drops boxes without area
    expected = {name: value[whole] for name, value in expected.items()}
    classes = [COCO_IDS.index(i) for i in expected["labels"].tolist()]
    assert len(found) == len(classes) > 20
    rows = sorted(zip(classes, expected["boxes"].tolist(), expected["scores"].tolist()))
    ours = sorted(
        zip(found.pred_classes.tolist(), found.pred_boxes.tensor.tolist(), found.scores.tolist())
    )
    assert [r[0] for r in rows] == [r[0] for r in ours]
    assert np.abs(np.array([r[1] for r in rows]) - np.array([r[1] for r in ours])).max() <= 0.5
    assert np.abs(np.array([r[2] for r in rows]) - np.array([r[2] for r in ours])).max() <= 1e-4


def test_columns_of_every_anchor_are_taken():
    value = torch.arange(12).view(6, 2)  # two anchors of three columns
    assert take_columns(value, 3, background_last(2)).tolist() == [
        *([2, 3], [4, 5], [0, 1]),
        *([8, 9], [10, 11], [6, 7]),
    ]


def test_dropped_tensors_have_a_reason(pair):
    theirs, ours = pair
    converted = convert("torchvision", theirs.state_dict(), ours)
    assert all(converted.dropped.values())
    used = len(theirs.state_dict()) - sum("num_batches" in name for name in converted.dropped)
    assert used == len([k for k in converted.state if not k.endswith("batches_tracked")])


def test_left_over_and_missing_tensors_are_named():
    model = make_model(3)
    state = {k: v for k, v in model.state_dict().items() if "batches" not in k}
    state["extra.weight"] = torch.zeros(1)
    del state["backbone.features.0.0.weight"]
    with pytest.raises(InputError) as error:
        convert("lufficc", state, model)
    assert "1 tensors of the file have no place in the model: extra.weight" in str(error.value)
    assert "1 tensors of the model are not in the file: backbone.features.0.0" in str(error.value)
    with pytest.raises(InputError, match="--source is 'keras'; it is one of ssdlite-pytorch"):
        convert("keras", state, model)


def test_vgg_trunks_fill_the_changed_layers():
    fc6 = torch.arange(4096.0 * 25088).view(4096, 25088)
    state = {"features.0.weight": torch.zeros(64, 3, 3, 3), "classifier.0.weight": fc6}
    state["classifier.0.bias"] = torch.arange(4096.0)
    state["classifier.3.weight"] = torch.arange(4096.0 * 4096).view(4096, 4096)
    state["classifier.3.bias"] = torch.arange(4096.0)
    trunk = trunk_to_backbone(state)
    six, seven = trunk["backbone.features.31.weight"], trunk["backbone.features.33.weight"]
    assert six.shape == (1024, 512, 3, 3) and seven.shape == (1024, 1024, 1, 1)
    assert six[2, 5, 1, 2] == fc6[8, 5 * 49 + 3 * 7 + 6]
    assert seven[3, 7, 0, 0] == state["classifier.3.weight"][12, 28]
    assert trunk["backbone.features.33.bias"][10] == 40
    reduced = trunk_to_backbone({"0.weight": torch.zeros(1), "33.bias": torch.zeros(2)})
    assert list(reduced) == ["backbone.features.0.weight", "backbone.features.33.bias"]


class Code:
    """Something that a file of tensors must not hold."""


def test_the_tool_writes_a_whole_checkpoint_or_nothing(tmp_path):
    theirs = perturb(ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None))
    good, bad = tmp_path / "good.pth", tmp_path / "bad.pth"
    torch.save(theirs.state_dict(), good)
    torch.save({"model": theirs.state_dict(), "code": Code()}, bad)
    half = tmp_path / "half.pth"
    half.write_bytes(good.read_bytes()[:100_000])
    out = tmp_path / "out.pth"
    config = ["--config-file", "torchvision/ssdlite320_mobilenet_v3_large.yaml"]
    vgg = ["--config-file", "torchvision/ssd300_vgg16.yaml"]
    cases = [
        (["--source", "keras", *config, good, out], ["keras"]),
        (["--source", "torchvision", *vgg, good, out], ["does not fit the config"]),
        (["--source", "lufficc", *config, good, out], ["have no place in the model"]),
        (["--source", "torchvision", *config, half, out], ["half.pth"]),
        (["--source", "torchvision", *config, bad, out], ["bad.pth", "could run code"]),
        (["--source", "torchvision", *config, tmp_path / "no.pth", out], ["No such file"]),
        (["--source", "tensorflow", *config, tmp_path / "no.pb", out], ["no.pb: No such file"]),
        (["--source", "tensorflow", *config, tmp_path / "a.ckpt", out], ["pip install tensorflow"]),
    ]
    codes = exits("ssdlite_d2.tools.convert_checkpoint", *(case for case, _ in cases))
    for code, (_, words) in zip(codes, cases):
        assert_error(code, *words)
    assert not out.exists()
    command = ["--source", "torchvision", *config, good, out]
    assert exits("ssdlite_d2.tools.convert_checkpoint", command) == [0]
    state = torch.load(out, weights_only=True)["model"]
    model = build_model(load_bare(config[1]))
    model.load_state_dict(state)
    last = "head.classification_head.module_list.5.1.bias"
    theirs_bias = theirs.state_dict()[last].view(6, 91)
    assert torch.equal(model.head.cls_score[5][3].bias.view(6, 81)[:, 80], theirs_bias[:, 0])
    assert torch.equal(model.head.cls_score[5][3].bias.view(6, 81)[:, 79], theirs_bias[:, 90])


@pytest.fixture
def jetson(tmp_path):
    """A folder of pytorch-ssd's users: mb2-ssd-lite of three classes and its labels.txt."""
    golden = verify.load("qfgaohao__mb2_ssd_lite")
    params = {**golden["meta"]["params"], "num_classes": 4}
    entries = [entry[:3] for entry in golden["entries"]]
    for entry in entries:
        if verify.fillmod.is_cls_predictor(*entry[:2], golden["meta"]["params"]):
            entry[1] = [entry[1][0] // 21 * 4, *entry[1][1:]]
    state = {k: torch.from_numpy(v) for k, v in verify.fillmod.fill(entries, params).items()}
    torch.save(state, tmp_path / "mb2.pth")
    (tmp_path / "labels.txt").write_text("BACKGROUND\nhand gun\nknife\nfork\n")
    (tmp_path / "out").mkdir()
    return tmp_path


def test_classes_of_a_labels_file(jetson):
    out, voc, other = jetson / "out" / "mb2.pth", jetson / "voc.txt", jetson / "other.txt"
    names = MetadataCatalog.get("voc_2007_test").thing_classes
    voc.write_text("\n".join(["BACKGROUND", *names, ""]))
    other.write_text("hand gun\nknife\n")
    command = ["--source", "pytorch-ssd", "--config-file", "pytorch_ssd/mb2_ssd_lite.yaml"]
    files = [jetson / "mb2.pth", out]
    cases = [
        [*command, *files],
        [*command, *files],
        [*command, "--labels", voc, *files],
        [*command, "--labels", other, *files],
        [*command, "--labels", jetson / "no.txt", *files],
        [*command, *files, "--opts", "INPUT.SIZE", "(320, 320)"],
    ]
    first, again, *codes = exits("ssdlite_d2.tools.convert_checkpoint", *cases)
    assert first == again == 0
    errors = (
        ("the file is of 3 classes, the config of 20", "MODEL.SSD.NUM_CLASSES"),
        ("other.txt is no list of classes", "BACKGROUND"),
        ("no.txt: No such file",),
        ("config.yaml is of another model",),
    )
    for code, words in zip(codes, errors):
        assert_error(code, *words)
    model = ssdlite_d2.load(out, "MODEL.DEVICE", "cpu")
    assert model.classes == ["hand gun", "knife", "fork"]
    image = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    found = model.predict(image, 0.0)
    assert len(found) > 0 and set(found.class_names) <= set(model.classes)
    there = torch.load(jetson / "mb2.pth")["classification_headers.5.bias"].view(6, 4)
    content = torch.load(out, weights_only=True)
    assert content["ssd"] == {"classes": model.classes}
    here = content["model"]["head.cls_score.5.bias"].view(6, 4)
    assert torch.equal(here, there[:, [1, 2, 3, 0]])  # the background is the last one here
