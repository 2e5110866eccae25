"""Parts of somebody else's, and what the detector asks of its parts."""

import gzip
import inspect
import json

import numpy as np
import pytest
import torch
from conftest import ROOT, make_input, run
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from models import BARE, as_inputs, lively_model, read_all, resized
from torch import nn

from ssdlite_d2 import InputError, load_config
from ssdlite_d2.export import ExportOptions, export_bundle
from ssdlite_d2.export.bundled.detector import Detector
from ssdlite_d2.export.parity import detect, match, raw_outputs
from ssdlite_d2.modeling import (
    SSD,
    SSD_ASSIGNER_REGISTRY,
    SSD_BOX_CODER_REGISTRY,
    SSD_CRITERION_REGISTRY,
    SSD_HEAD_REGISTRY,
    Assigner,
    Assignment,
    BoxCoder,
    Criterion,
    SSDHead,
)

STATE_DICTS = json.loads(
    gzip.decompress((ROOT / "tests" / "goldens" / "state_dicts.json.gz").read_bytes())
)


@SSD_ASSIGNER_REGISTRY.register()
class CenterAssigner(Assigner):
    """Anchors whose centre lies in a box belong to it; the predictions are asked for."""

    needs_predictions = True

    def __init__(self, cfg, num_classes):
        self.num_classes = num_classes

    def __call__(self, anchors, targets, scores=None, boxes=None):
        centers = torch.cat([level.get_centers() for level in anchors])  # (R, 2)
        assert scores.shape == (len(targets), len(centers), self.num_classes)
        assert boxes.shape == (len(targets), len(centers), 4)
        labels = torch.full((len(targets), len(centers)), self.num_classes)
        matched = torch.zeros(len(targets), len(centers), 4)
        for i, truth in enumerate(targets):
            for box, label in zip(truth.gt_boxes.tensor, truth.gt_classes):
                inside = ((centers > box[:2]) & (centers < box[2:])).all(dim=1)
                labels[i, inside], matched[i, inside] = label, box
        return Assignment(labels, matched)


@SSD_BOX_CODER_REGISTRY.register(name="my_corners")
class CornerCoder(BoxCoder):
    """Shifts of the two corners and a fifth number without a meaning."""

    code_size = 5

    def __init__(self, cfg):
        pass

    def get_deltas(self, src_boxes, target_boxes):
        return nn.functional.pad((target_boxes - src_boxes) / 8, (0, 1))

    def apply_deltas(self, deltas, boxes):
        return boxes + 8 * deltas[:, :4].clamp(-1, 1)

    def decode_all(self, deltas, anchors):
        return anchors + 8 * deltas[..., :4].clamp(-1, 1)


@SSD_CRITERION_REGISTRY.register()
class SquareCriterion(Criterion):
    """Squared errors of sigmoid scores and codes; a score more than classes, which is dropped."""

    @configurable
    def __init__(self, *, num_classes, weight):
        super().__init__(num_classes)
        self.weight = weight

    @classmethod
    def from_config(cls, cfg, num_classes):
        return {"num_classes": num_classes, "weight": cfg.MODEL.SSD.CRITERION.CLS_WEIGHT}

    @property
    def num_scores(self):
        return self.num_classes + 1

    def scores(self, logits):
        return logits[..., :-1].sigmoid()

    def ranking(self, logits, threshold):
        return self.scores(logits), threshold

    def scores_of_ranked(self, values):
        return values

    def sums(self, logits, deltas, anchors, assignment, box_coder):
        positive = assignment.positive(self.num_classes)
        targets = nn.functional.one_hot(assignment.labels, self.num_classes + 1)
        tiled = anchors.tensor.expand(len(positive), -1, -1)[positive]
        codes = box_coder.get_deltas(tiled, assignment.boxes[positive])
        loss = (logits.sigmoid() - targets).square().sum()
        box_loss = (deltas[positive] - codes).square().sum()
        return {"loss_mine": self.weight * loss, "loss_box": box_loss}, positive.sum()


@SSD_HEAD_REGISTRY.register()
class OneByOneHead(SSDHead):
    def predictor(self, level, in_channels, out_channels):
        return nn.Conv2d(in_channels, out_channels, kernel_size=1)


MINE = ["MODEL.SSD.ASSIGNER.NAME", "CenterAssigner", "MODEL.SSD.BOX_CODER.NAME", "my_corners"]
MINE += ["MODEL.SSD.CRITERION.NAME", "SquareCriterion", "MODEL.SSD.HEAD.NAME", "OneByOneHead"]
NO_DATA = ["DATASETS.TRAIN", "()", "DATASETS.TEST", "()", "MODEL.SSD.NUM_CLASSES", 3]


def test_parts_of_others_train_detect_and_export(tmp_path):
    cfg, model = lively_model("ssdlite_mnv2.yaml", as_inputs(read_all()), *NO_DATA, *MINE)
    assert isinstance(model.head.cls_score[0], nn.Conv2d)
    assert model.head.bbox_pred[0].out_channels == 6 * 5
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    batch = [make_input([[40.0, 60, 180, 200]], [1]), make_input(seed=1)]
    losses = model.train()(batch)
    assert set(losses) == {"loss_mine", "loss_box"}
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    optimizer.step()
    found = model.eval()(as_inputs(read_all()))
    assert all(len(x["instances"]) for x in found)
    export_bundle(cfg, model, str(tmp_path / "bundle"), ExportOptions(parity_images=0))
    detector, image = Detector(tmp_path / "bundle"), read_all()[0]
    inputs = resized(image, model.input_size)
    for ours, theirs in zip(raw_outputs(model, inputs, "RGB"), detector.run(inputs)):
        assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(ours).max()
    ours, theirs = detect(model, inputs[0], "RGB", image.shape[:2]), detector([image])[0]
    assert len(ours[1]) == len(theirs[1]) == len(match(ours, theirs, 0.5)) > 10


def test_constructor_and_its_parts_by_name():
    names = "backbone head head_in_features anchor_generator box2box_transform assigner criterion "
    names += "postprocessor num_classes input_size multi_scale pixel_mean pixel_std"
    assert list(inspect.signature(SSD.__init__).parameters) == ["self", *names.split()]
    cfg = load_config("ssdlite_mnv2.yaml", [*BARE, *NO_DATA])
    parts = SSD.from_config(cfg)
    assert SSD(**{**parts, "input_size": (320, 256)}).input_size == (320, 256)
    for key in ("ASSIGNER", "BOX_CODER", "CRITERION", "HEAD", "POSTPROCESS", "NECK"):
        cfg = load_config(
            "ssdlite_mnv2.yaml", [*BARE, *NO_DATA, f"MODEL.SSD.{key}.NAME", "nowhere"]
        )
        with pytest.raises(InputError, match=f"MODEL.SSD.{key}.NAME is 'nowhere'; it is one of"):
            build_model(cfg)


def test_old_keys_tell_the_new_ones(tmp_path):
    with pytest.raises(InputError, match=r"MODEL.SSD.LOSS is called MODEL.SSD.CRITERION.NAME now"):
        load_config("ssdlite_mnv2.yaml", ["MODEL.SSD.LOSS", "multibox"])
    path = tmp_path / "old.yaml"
    path.write_text("MODEL: {SSD: {IOU_THRESHOLD: 0.4}}\n")
    with pytest.raises(InputError, match=r"old.yaml: .*MODEL.SSD.ASSIGNER.IOU_THRESHOLD"):
        load_config(str(path))


def test_state_dicts_have_the_names_they_always_had():
    for name, expected in STATE_DICTS.items():
        cfg = load_config(f"{name}.yaml", [*BARE, "MODEL.DEVICE", "meta"])
        suffix, kinds = name.split("_")[-1], {"bccd": 3, "trees": 1, "voc": 20}
        cfg.MODEL.SSD.NUM_CLASSES = kinds.get(suffix, 80)
        cfg.MODEL.SSD.NORM = load_config(f"{name}.yaml").MODEL.SSD.NORM
        state = build_model(cfg).state_dict()
        assert {key: list(value.shape) for key, value in state.items()} == expected, name


def test_building_asks_no_data_set():
    entry = {"NAME": "gone", "FORMAT": "coco", "JSON": "/nowhere/a.json", "IMAGES": "/nowhere"}
    opts = ["DATASETS.REGISTER", str([entry]), "DATASETS.TRAIN", "('gone',)"]
    cfg = load_config("ssdlite_mnv2.yaml", [*BARE, *opts, "MODEL.SSD.NUM_CLASSES", 2])
    assert isinstance(build_model(cfg), META_ARCH_REGISTRY.get("SSDLite"))
    cfg.MODEL.SSD.NUM_CLASSES = 0
    with pytest.raises(InputError, match="NUM_CLASSES is 0 and the config does not list"):
        build_model(cfg)
    cfg.DATASETS.REGISTER = [{**entry, "CLASSES": ["a", "b", "c"]}]
    assert build_model(cfg).num_classes == 3


def test_modeling_imports_no_data():
    code = (
        "import sys, types; p = types.ModuleType('ssdlite_d2'); p.__path__ = ['ssdlite_d2']; "
        "sys.modules['ssdlite_d2'] = p; import ssdlite_d2.modeling; "
        "print([m for m in sys.modules if m.startswith('ssdlite_d2.data')])"
    )
    done = run("-c", code)
    assert done.stdout.strip() == "[]", done.stderr
