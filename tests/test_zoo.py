"""One test body over all configs."""

import math

import pytest
import torch
from conftest import ROOT, load_bare, make_input
from detectron2.modeling import build_model
from torchvision import models as torchvision_models

from ssdlite_d2.checkpoint import SSDCheckpointer
from ssdlite_d2.checkpoint.checkpointer import trunk_to_backbone
from ssdlite_d2.config import num_classes_of
from ssdlite_d2.tools.analyze import analyze

CONFIGS = sorted(
    str(p.relative_to(ROOT / "configs"))
    for p in (ROOT / "configs").rglob("*.yaml")
    if not p.name.startswith("Base")
    and not p.stem.endswith(("_bccd", "neon_trees"))
    and p.stem != "vgg16_ssd"  # slow, and ssd300_vgg16_voc but for a norm, which has a golden
)

# parameters, multiply-adds (G) and anchors of the sources' own models. The reference's COCO models
# have one class column more than there are classes, torchvision's has 91 for 81: what those columns
# add is taken off.
COUNTS = {
    "ssdlite_mnv2.yaml": (4_304_138, 0.748, 3232, 1),
    "ssdlite_mnext.yaml": (4_539_418, 0.844, 3232, 1),
    "ssdlite_mnv2_voc.yaml": (3_425_988, 0.682, 3234, 0),
    "ssdlite_mnext_voc.yaml": (3_476_308, 0.709, 3234, 0),
    "ssd300_vgg16_voc.yaml": (26_285_486, 31.37, 8732, 0),
    "ssd512_vgg16_voc.yaml": (27_188_676, 90.21, 24564, 0),
    "ssd300_vgg16.yaml": (34_305_206, 34.36, 8732, 0),
    "ssd512_vgg16.yaml": (36_038_196, 98.63, 24564, 0),
    "ssdlite_mnv2_lufficc_voc.yaml": (3_304_708, 0.680, 3234, 0),
    "ssdlite_mnv3_voc.yaml": (3_860_436, 0.485, 3234, 0),
    "ssd300_efficientnet_b3_voc.yaml": (12_656_262, 1.974, 8732, 0),
    "torchvision/ssdlite320_mobilenet_v3_large.yaml": (3_440_060, 0.583, 3234, 10),
    "torchvision/ssd300_vgg16.yaml": (35_641_826, 34.858, 8732, 10),
    "pytorch_ssd/mb1_ssd.yaml": (9_468_996, 1.526986688, 3000, 0),
    "pytorch_ssd/mb2_ssd_lite.yaml": (3_388_228, 0.660828976, 3000, 0),
    "pytorch_ssd/mb3_large_ssd_lite.yaml": (2_388_296, 0.520459536, 3000, 0),
    "pytorch_ssd/vgg16_ssd.yaml": (26_285_998, 31.373537792, 8732, 0),
    "tf/ssdlite_mobilenet_v2_coco.yaml": (None, None, 1917, 0),
}

# Most parameters (M) and multiply-adds (G) of configs without a source, at 80 classes.
LIMITS = {
    "modern/ssdlite_pan_mnv2.yaml": (2.2, 0.75),
    "modern/ssdlite_pan_efficientnet_lite0.yaml": (3.4, 1.0),
    "modern/ssdlite_pan_mobilenetv4_small.yaml": (1.7, 0.6),
    "modern/ssdlite_pan_nano.yaml": (1.2, 1.0),
    "modern/ssdlite_pan_main.yaml": (4.5, 2.6),
}


def column_cost(model):
    """Parameters and multiply-adds of one class column more."""
    parameters = madds = 0
    maps = model.eval().feature_maps(torch.zeros(1, 3, *model.input_size, device="meta"))
    anchors = model.anchor_generator.num_anchors
    for predictor, x, count in zip(model.head.cls_score, maps, anchors):
        last = [m for m in predictor.modules() if isinstance(m, torch.nn.Conv2d)][-1]
        parameters += count * (last.weight[0].numel() + 1)
        madds += count * last.weight[0].numel() * x.shape[-2] * x.shape[-1]
    return parameters, madds


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("size, anchors", [(320, 2125), (416, 3598)])
def test_modern_networks_are_small(name, size, anchors):
    opts = ["MODEL.SSD.NORM", "BN", "MODEL.DEVICE", "meta", "INPUT.SIZE", (size, size)]
    counts = analyze(load_bare(name, *opts, "MODEL.SSD.NUM_CLASSES", 80))
    parameters, madds = LIMITS[name]
    assert counts["parameters"] <= parameters * 1e6
    assert counts["madds"] <= madds * 1e9 * (size / 320) ** 2
    assert counts["anchors"] == anchors


@pytest.mark.parametrize("name", COUNTS)
def test_counts_equal_the_sources(name):
    cfg = load_bare(name, "MODEL.SSD.NORM", "BN", "MODEL.DEVICE", "meta")
    counts = analyze(cfg)
    parameters, madds, anchors, columns = COUNTS[name]
    assert counts["anchors"] == anchors
    if cfg.MODEL.SSD.CRITERION.NAME == "multibox":  # whose sources limit a class at most
        limits = cfg.MODEL.SSD.POSTPROCESS
        pairs = (limits.TOPK_PER_CLASS or anchors) * num_classes_of(cfg)
        assert limits.TOPK_CANDIDATES >= pairs
    if parameters is None:  # its source publishes none
        return
    more_parameters, more_madds = column_cost(build_model(cfg))
    assert counts["parameters"] + columns * more_parameters == parameters
    exact = name.startswith("pytorch_ssd/")
    tolerance = 1e-12 if exact else 0.005
    assert (counts["madds"] + columns * more_madds) / 1e9 == pytest.approx(madds, rel=tolerance)


@pytest.mark.parametrize("name", CONFIGS)
def test_trains_detects_and_is_saved(name, tmp_path):
    torch.manual_seed(0)
    cfg = load_bare(name, "MODEL.SSD.NORM", "BN")
    # large enough for every convolution without padding, small enough for a test
    cfg.INPUT.SIZE = [256, 256] if "mobile" in cfg.MODEL.BACKBONE.NAME else cfg.INPUT.SIZE
    cfg.MODEL.SSD.POSTPROCESS.SCORE_THRESH = 0.005
    cfg.MODEL.SSD.POSTPROCESS.TOPK_CANDIDATES = 500
    model = build_model(cfg).train()
    size = tuple(cfg.INPUT.SIZE)
    batch = [make_input([[20.0, 30, 150, 160]], [3], size), make_input([], [], size, seed=1)]
    has_norm = any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
    losses = model(batch if has_norm else batch[:1])  # without norm, one image tells as much
    sum(losses.values()).backward()
    if not has_norm:
        with torch.no_grad():
            losses.update({f"{key} without boxes": v for key, v in model(batch[1:]).items()})
    assert all(math.isfinite(value.item()) for value in losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

    model.eval()
    with torch.no_grad():
        before = model([{"image": batch[0]["image"]}])[0]["instances"]
    assert (before.pred_classes < model.num_classes).all()
    SSDCheckpointer(model, str(tmp_path)).save("model")
    again = build_model(cfg).eval()
    SSDCheckpointer(again).load(str(tmp_path / "model.pth"))
    with torch.no_grad():
        after = again([{"image": batch[0]["image"]}])[0]["instances"]
    assert torch.equal(before.scores, after.scores)
    assert torch.equal(before.pred_boxes.tensor, after.pred_boxes.tensor)


@pytest.mark.parametrize(
    "name, trunk",
    [
        ("ssdlite_mnv2.yaml", torchvision_models.mobilenet_v2),
        ("ssdlite_mnv3_voc.yaml", torchvision_models.mobilenet_v3_large),
        ("ssd300_efficientnet_b3_voc.yaml", torchvision_models.efficientnet_b3),
        ("ssd300_vgg16_voc.yaml", torchvision_models.vgg16),
    ],
)
def test_torchvisions_trunks_fill_the_backbone(name, trunk):
    state = trunk_to_backbone(trunk().state_dict())
    ours = build_model(load_bare(name, "MODEL.SSD.NORM", "BN")).state_dict()
    for key, value in ours.items():
        if key.startswith("backbone.features."):
            assert state[key].shape == value.shape, key


@pytest.mark.parametrize(
    "new, old",
    [
        ("modern/ssdlite_mnv2_tal.yaml", "ssdlite_mnv2.yaml"),
        ("modern/ssdlite_mnv2_tal_bccd.yaml", "ssdlite_mnv2_bccd.yaml"),
    ],
)
def test_new_training_leaves_network_and_anchors(new, old):
    """Who has deployed the old one puts the new weights in its place."""
    models = [build_model(load_bare(name, "MODEL.SSD.NORM", "BN")).eval() for name in (new, old)]
    shapes = [{k: v.shape for k, v in model.state_dict().items()} for model in models]
    assert shapes[0] == shapes[1]
    models[0].load_state_dict(models[1].state_dict())
    image = torch.rand(1, 3, *models[0].input_size)
    with torch.no_grad():
        for a, b in zip(*(model.raw_outputs(image) for model in models)):
            assert torch.equal(a, b)
    for a, b in zip(*(model.anchors() for model in models)):
        assert torch.equal(a.tensor, b.tensor)
    assert type(models[0].box2box_transform) is type(models[1].box2box_transform)
