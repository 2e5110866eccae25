"""Norms that become part of convolutions, and those that cannot."""

import detectron2.layers
import pytest
import timm
import torch
import torchvision
from conftest import load_bare
from detectron2.modeling import build_model
from torch import nn

from ssdlite_d2.modeling.backbone.blocks import Conv2dSame
from ssdlite_d2.modeling.inference.folding import FOLDABLE, fold_norms

# one of every trunk, extra block and head; norms of each
ZOO = {
    "ssd300_efficientnet_b3_voc.yaml": 77,
    "pytorch_ssd/mb1_ssd.yaml": 27,
    "pytorch_ssd/mb3_large_ssd_lite.yaml": 87,
    "ssdlite_mnext.yaml": 96,
    "ssdlite_mnv2.yaml": 74,
    "ssdlite_mnv3_voc.yaml": 68,
    "tf/ssdlite_mobilenet_v2_coco.yaml": 76,
    "torchvision/ssdlite320_mobilenet_v3_large.yaml": 70,
}


def trained(model: nn.Module) -> nn.Module:
    """The model with norms that do something."""
    generator = torch.Generator().manual_seed(0)
    for norm in norms_of(model):
        norm.running_mean.normal_(0, 0.1, generator=generator)
        norm.running_var.uniform_(0.5, 2, generator=generator)
    return model.eval()


def norms_of(model: nn.Module):
    return [m for m in model.modules() if isinstance(m, FOLDABLE)]


@torch.no_grad()
def assert_folded(model: nn.Module, call, norms: int, left: int = 0) -> nn.Module:
    """So many norms were there, so few stay, and the outputs are the same."""
    torch.manual_seed(0)
    assert len(norms_of(trained(model))) == norms
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    folded = fold_norms(model)
    assert len(norms_of(folded)) == left and len(norms_of(model)) == norms
    rest = [name for name, _ in folded.named_modules(remove_duplicate=False)]
    assert [name for name in names if name in rest] == rest
    for a, b in zip(call(model), call(folded)):
        assert (a - b).abs().max() <= 1e-5 * a.abs().max().clamp(min=1)
    return folded


@pytest.mark.parametrize("config", ZOO)
def test_every_norm_of_the_zoo_folds(config):
    model = build_model(load_bare(config, "MODEL.SSD.NUM_CLASSES", 3, "MODEL.SSD.NORM", "BN"))
    image = torch.randn(1, 3, *model.input_size)
    folded = assert_folded(model, lambda m: m.raw_outputs(image), ZOO[config])
    assert folded.assigner is None and model.assigner is not None  # only training uses it


def test_norms_of_plain_modules_fold():
    image = torch.randn(1, 3, 64, 64)
    assert_folded(torchvision.models.resnet18(), lambda m: m(image), 20)
    trunk = timm.create_model("efficientnet_lite0", features_only=True)  # norms with activations
    assert_folded(trunk, lambda m: m(image), 48)
    trunk = timm.create_model("mobilenetv4_conv_small", features_only=True)
    assert_folded(trunk, lambda m: m(image), 45)


def conv(inputs=4, outputs=4):
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def detectron2_conv(**kwargs):
    return detectron2.layers.Conv2d(4, 4, 3, padding=1, **kwargs)


def test_all_kinds_of_pairs_fold():
    layers = [
        *(Conv2dSame(4, 4, 3, 2), detectron2.layers.FrozenBatchNorm2d(4)),
        *(nn.Conv2d(4, 4, 1, bias=False), torchvision.ops.FrozenBatchNorm2d(4)),
        *(conv(), detectron2.layers.NaiveSyncBatchNorm(4), nn.ReLU(inplace=True)),
        *(conv(), nn.BatchNorm2d(4, affine=False)),
        detectron2_conv(norm=nn.BatchNorm2d(4), activation=torch.relu),
    ]
    image = torch.randn(2, 4, 9, 9)
    folded = assert_folded(nn.Sequential(*layers), lambda m: m(image), 5)
    assert type(folded[0]) is Conv2dSame and type(folded[1]) is nn.Identity


class Odd(nn.Module):
    """Every way in which a convolution before a norm is not the norm's own."""

    def __init__(self):
        super().__init__()
        self.tapped, self.after_tapped = conv(), nn.BatchNorm2d(4)
        self.before, self.after_norm = nn.BatchNorm2d(4), conv()
        self.one, self.two, self.shared = conv(), conv(), nn.BatchNorm2d(4)
        self.active, self.after_active = detectron2_conv(activation=torch.relu), nn.BatchNorm2d(4)
        self.grouped = detectron2_conv(norm=nn.GroupNorm(2, 4))
        self.tower = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU())
        self.unclear = Unclear()

    def forward(self, x):
        x = self.tapped(x)
        x = x + self.after_tapped(x)
        x = self.after_norm(self.before(x))
        x = self.shared(self.one(x)) + self.shared(self.two(x))
        x = self.grouped(self.after_active(self.active(x)))
        return self.unclear(self.tower(self.tower(x)))  # one pair, used twice


class Unclear(nn.Module):
    """A forward that depends on values, with a pair inside it that does not."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(conv(), nn.BatchNorm2d(4))

    def forward(self, x):
        return self.block(x) if x.sum() > 1e9 else self.block(-x)


class SharedTowers(nn.Module):
    """One convolution for all maps, and norms of their own."""

    def __init__(self):
        super().__init__()
        shared = conv()
        self.towers = nn.ModuleList(nn.Sequential(shared, nn.BatchNorm2d(4)) for _ in range(3))

    def forward(self, maps):
        return [tower(x) for tower, x in zip(self.towers, maps)]


def test_a_shared_convolution_becomes_one_for_each_norm():
    maps = [torch.randn(1, 4, size, size) for size in (9, 5, 3)]
    folded = assert_folded(SharedTowers(), lambda m: m(maps), 3)
    assert len({tower[0] for tower in folded.towers}) == 3


def test_norms_that_stay_are_named(caplog):
    image = torch.randn(2, 4, 9, 9)
    assert_folded(Odd(), lambda m: m(image), 6, left=4)
    [message] = [r.getMessage() for r in caplog.records if "not folded" in r.getMessage()]
    assert message == (
        "5 norms are not folded into convolutions: after_tapped, before, shared, after_active, "
        "grouped.norm"
    )
