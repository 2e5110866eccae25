import sys

import pytest
import timm
import torch
from conftest import bare_config
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_backbone
from torch import nn

from ssdlite_d2 import InputError


def backbone(name, *opts):
    torch.manual_seed(0)
    keys = ["MODEL.BACKBONE.NAME", "build_ssd_timm_backbone", "MODEL.SSD.BACKBONE.TIMM_NAME", name]
    keys += ["MODEL.SSD.BACKBONE.EXTRA_CHANNELS", "[]", "MODEL.SSD.BACKBONE.EXTRA_EXPANSION", "[]"]
    return build_backbone(bare_config(3, *keys, *opts))


@torch.no_grad()
@pytest.mark.parametrize(
    "name, channels, eps",
    [
        ("lcnet_050", [64, 128, 256], 1e-5),
        ("tf_mobilenetv3_small_minimal_100", [24, 48, 576], 1e-3),  # SAME padding
        ("resnet10t", [128, 256, 512], 1e-5),  # norms without activation
        ("edgenext_xx_small", [48, 88, 168], 1e-5),  # layer norms stay
    ],
)
def test_maps_are_timms(name, channels, eps):
    built = backbone(name, "MODEL.SSD.NORM_EPS", eps).eval()
    trunk = timm.create_model(name, features_only=True).eval()
    state = {k.replace(".", "_"): v for k, v in trunk.state_dict().items()}
    built.features.load_state_dict({built.trunk_names[k]: v for k, v in state.items()})
    x = torch.rand(1, 3, 75, 96)
    outputs = built(x)
    assert list(outputs) == ["c3", "c4", "c5"]
    for a, b in zip(outputs.values(), trunk(x)[-3:]):
        assert torch.allclose(a, b, atol=1e-5)
    shapes = [ShapeSpec(channels=c, stride=s) for c, s in zip(channels, (8, 16, 32))]
    assert list(built.output_shape().values()) == shapes


def test_norms_are_those_of_the_config():
    opts = ["MODEL.SSD.NORM_EPS", 1e-3, "MODEL.SSD.NORM_MOMENTUM", 0.03]
    norms = [m for m in backbone("lcnet_050", *opts).modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 27
    assert {(type(m), m.eps, m.momentum) for m in norms} == {(nn.BatchNorm2d, 1e-3, 0.03)}
    built = backbone("lcnet_050", "MODEL.SSD.NORM", "FrozenBN")
    assert len([m for m in built.modules() if isinstance(m, FrozenBatchNorm2d)]) == 27
    assert not any("num_batches_tracked" in name for name in built.trunk_names)


def test_freezing_counts_the_stem_and_the_stages():
    built = backbone("lcnet_050", "MODEL.SSD.BACKBONE.FREEZE_AT", 4)  # conv, norm, two stages
    trained = {n.split(".")[1] for n, p in built.features.named_parameters() if p.requires_grad}
    assert trained == {"2", "3", "4", "5"}  # of blocks
    still = [n for n, m in built.features.named_modules() if isinstance(m, FrozenBatchNorm2d)]
    assert still[0] == "bn1" and {n[:8] for n in still[1:]} == {"blocks.0", "blocks.1"}
    built = backbone("lcnet_050", "MODEL.SSD.BACKBONE.FREEZE_NORM", True)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in built.features.modules())
    built.features.train()(torch.rand(1, 3, 64, 64))[-1].sum().backward()  # activations are there
    with pytest.raises(InputError, match="FREEZE_AT is 9; the trunk has 8 blocks"):
        backbone("lcnet_050", "MODEL.SSD.BACKBONE.FREEZE_AT", 9)


def test_extra_blocks_and_same_padding_by_key():
    opts = ["MODEL.SSD.BACKBONE.EXTRA_CHANNELS", "[32, 16]"]
    opts += ["MODEL.SSD.BACKBONE.EXTRA_EXPANSION", "[0.5, 0.5]"]
    maps = backbone("lcnet_050", *opts, "MODEL.SSD.BACKBONE.PADDING", "same")(
        torch.rand(2, 3, 64, 64)
    )
    assert [tuple(x.shape[1:]) for x in maps.values()][2:] == [(256, 2, 2), (32, 1, 1), (16, 1, 1)]


def test_trunks_that_cannot_be_built_are_named(monkeypatch):
    cases = {
        "lcnet_0555": "TIMM_NAME is 'lcnet_0555'; timm has lcnet_035",
        "vit_tiny_patch16_224": "has maps of stride 16; an SSD needs 8, 16, 32",
    }
    for name, message in cases.items():
        with pytest.raises(InputError, match=message):
            backbone(name)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"pip install 'ssdlite-d2\[timm\]'"):
        backbone("lcnet_050")
