"""Parity with the references: their numbers for weights that anyone can make again.

The weights go through the converter, as a user's file would.
"""

import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load_bare, make_instances
from detectron2.modeling import build_model
from detectron2.structures import Boxes

from ssdlite_d2.checkpoint.convert import convert

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "goldens"))
import verify

# golden: config and source. Those of which no file is here are checked when one is put here.
GOLDENS = {
    "houqb__mobilenet_v2_ssd320_coco": ("ssdlite_mnv2.yaml", "ssdlite-pytorch"),
    "houqb__mobilenext_ssd320_coco": ("ssdlite_mnext.yaml", "ssdlite-pytorch"),
    "houqb__mobilenet_v2_ssd320_voc0712": ("ssdlite_mnv2_voc.yaml", "ssdlite-pytorch"),
    "houqb__mobilenext_ssd320_voc0712": ("ssdlite_mnext_voc.yaml", "ssdlite-pytorch"),
    "lufficc__vgg_ssd300_voc0712": ("ssd300_vgg16_voc.yaml", "lufficc"),
    "lufficc__vgg_ssd512_voc0712": ("ssd512_vgg16_voc.yaml", "lufficc"),
    "lufficc__vgg_ssd300_coco_trainval35k": ("ssd300_vgg16.yaml", "lufficc"),
    "lufficc__vgg_ssd512_coco_trainval35k": ("ssd512_vgg16.yaml", "lufficc"),
    "lufficc__mobilenet_v2_ssd320_voc0712": ("ssdlite_mnv2_lufficc_voc.yaml", "lufficc"),
    "lufficc__mobilenet_v3_ssd320_voc0712": ("ssdlite_mnv3_voc.yaml", "lufficc"),
    "lufficc__efficient_net_b3_ssd300_voc0712": ("ssd300_efficientnet_b3_voc.yaml", "lufficc"),
    "qfgaohao__mb1_ssd": ("pytorch_ssd/mb1_ssd.yaml", "pytorch-ssd"),
    "qfgaohao__mb2_ssd_lite": ("pytorch_ssd/mb2_ssd_lite.yaml", "pytorch-ssd"),
    "qfgaohao__mb3_large_ssd_lite": ("pytorch_ssd/mb3_large_ssd_lite.yaml", "pytorch-ssd"),
    "qfgaohao__vgg16_ssd": ("pytorch_ssd/vgg16_ssd.yaml", "pytorch-ssd"),
}
FILES = sorted(path.stem for path in Path(verify.HERE).glob("[!f]*.npz"))


@pytest.fixture(scope="module", params=FILES)
def golden(request):
    golden = verify.load(request.param)
    golden["name"] = request.param
    golden["focal"] = golden["meta"]["facts"]["loss"] == "FocalLoss"
    golden["size"] = golden["meta"]["facts"]["image_size"]
    return golden


@pytest.fixture(scope="module")
def model(golden):
    config, source = GOLDENS[golden["name"]]
    model = build_model(load_bare(config, "MODEL.SSD.NORM", "BN")).eval()
    weights = {name: torch.from_numpy(value) for name, value in verify.weights(golden).items()}
    model.load_state_dict(convert(source, weights, model).state)
    return model


def image(golden, key="input_u8"):
    return {"image": torch.from_numpy(golden[key].transpose(2, 0, 1).copy())}


def raw(model, inputs):
    images = model.preprocess_image(inputs)
    features = model.feature_maps(images.tensor)
    return images, features, model.head(features)


def anchors_of(golden, model):
    grids = golden["meta"]["facts"]["anchors"]["feature_maps"]
    size = (golden["size"], golden["size"])
    return Boxes.cat(model.anchor_generator([torch.zeros(1, 1, n, n) for n in grids], size))


def scaled(golden, boxes, labels, index):
    """Ground truth of an image in network pixels; label 1 is class 0."""
    height, width = golden["meta"]["image_sizes_hw"][index]
    size = golden["size"]
    classes = (labels.astype(np.int64) - 1).tolist()
    instances = make_instances(boxes.tolist(), classes, (size, size))
    instances.gt_boxes.scale(size / width, size / height)
    return instances


def truths(golden):
    return [scaled(golden, golden[f"gt{i}_boxes"], golden[f"gt{i}_labels"], i) for i in (0, 1)]


def in_source_columns(golden, logits):
    """Background first again; without the reference's column that is no class."""
    return logits if golden["focal"] else logits.roll(1, dims=-1)


def test_logits_and_box_codes(golden, model):
    with torch.no_grad():
        images = model.preprocess_image([image(golden)])
        logits, deltas = model.raw_outputs(images.tensor)
    stride = golden["meta"]["strides"]["anchors"]
    logits = in_source_columns(golden, logits)[0, ::stride]
    columns = logits.shape[1]
    for ours, theirs in (
        (logits.numpy(), golden["cls_sample"][:, :columns]),
        (deltas[0, ::stride].numpy(), golden["loc_sample"]),
    ):
        assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


def test_anchors(golden, model):
    boxes = anchors_of(golden, model).tensor
    centers, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    priors = torch.cat((centers, sizes), dim=1) / golden["size"]
    assert verify.compare(golden, priors=priors.numpy())["priors"] <= 1e-5


def test_matching(golden, model):
    anchors = anchors_of(golden, model)
    labels, boxes, _ = model.assigner([anchors], truths(golden))
    codes = [model.box2box_transform.get_deltas(anchors.tensor, b) for b in boxes]
    for i in range(2):
        theirs = torch.from_numpy(golden[f"match{i}_labels"].astype(np.int64))
        theirs = torch.where(theirs == 0, model.num_classes, theirs - 1)
        assert torch.equal(labels[i], theirs)
        positive = torch.from_numpy(golden[f"match{i}_pos"].astype(np.int64))
        expected = torch.from_numpy(golden[f"match{i}_locs"])
        assert torch.allclose(codes[i][positive], expected, atol=1e-4)


def test_best_anchor_of_a_box_that_none_covers(golden, model):
    box, label = verify.fillmod.tiny_target()
    instances = scaled(golden, box, label, 1)
    labels = model.assigner([anchors_of(golden, model)], [instances]).labels
    positive = (labels[0] != model.num_classes).nonzero().flatten().tolist()
    assert len(positive) == 1
    assert positive[0] in golden["tiny_tied"]  # several share the IoU; rounding picks one


def test_losses(golden, model):
    with torch.no_grad():
        images, features, predictions = raw(model, [image(golden), image(golden, "input1_u8")])
        losses = model.forward_training(images, features, predictions, truths(golden))
    expected = golden["loss_eval"]
    if golden["focal"]:
        expected = golden["loss_eval_f64_without_last_channel"]
    assert losses["loss_box_reg"].item() == pytest.approx(expected[0], rel=1e-5)
    assert losses["loss_cls"].item() == pytest.approx(expected[1], rel=1e-5)


def test_training_losses(golden, model):
    """With batch statistics, in float64: over the 2 values of a 1 x 1 map float32 is too coarse."""
    model = copy.deepcopy(model).double().train()
    for module in model.modules():
        if type(module).__name__ == "StochasticDepth":
            module.eval()
    batch = [image(golden), image(golden, "input1_u8")]
    for sample, instances in zip(batch, truths(golden)):
        sample["instances"] = instances
    with torch.no_grad():
        losses = model(batch)
    expected = golden["loss_train_fp64_network"]
    assert losses["loss_box_reg"].item() == pytest.approx(expected[0], rel=1e-5)
    # the focal references count a column that is no class, 1e-6 of the loss
    assert losses["loss_cls"].item() == pytest.approx(expected[1], rel=1e-5)
    running = [b.sum() for name, b in model.named_buffers() if "running" in name]
    expected = float(golden["train_running_sum_fp64"])
    assert float(sum(running)) == pytest.approx(expected, rel=1e-6)


def test_detections(golden, model):
    height, width = golden["meta"]["image_sizes_hw"][0]
    with torch.no_grad():
        found = model([{**image(golden), "height": height, "width": width}])[0]["instances"]
    # the reference does not clip boxes to the image; Detectron2 does
    limits = np.array([width, height, width, height], dtype=np.float32)
    clipped = {**golden, "det_boxes": golden["det_boxes"].clip(0, limits)}
    report = verify.compare(
        clipped,
        boxes=found.pred_boxes.tensor.numpy(),
        scores=found.scores.numpy(),
        labels=found.pred_classes.numpy() + 1,
    )
    assert report["count"] == [len(golden["det_boxes"])] * 2
    assert report["missing"] == report["extra"] == 0
    assert report["worst_box_px"] <= 0.01
    assert report["worst_score"] <= 1e-5
