import ctypes
import sys

import pytest
import torch
from conftest import bare_config
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from torchvision.models import mobilenet_v2

from ssdlite_d2 import InputError


@pytest.mark.parametrize("tap, channels", [("block", 96), ("expansion", 576)])
@pytest.mark.parametrize("size", [(320, 320), (192, 320)])
def test_maps_have_the_declared_shapes(tap, channels, size):
    backbone = build_backbone(bare_config(3, "MODEL.SSD.BACKBONE.TAP", tap)).eval()
    outputs = backbone(torch.zeros(1, 3, *size))
    shapes = backbone.output_shape()
    names = ["c3", "c4", "c5", "extra0", "extra1", "extra2", "extra3"]
    assert list(outputs) == list(shapes) == names
    assert shapes["c4"].channels == channels
    for name, x in outputs.items():
        assert x.shape[1] == shapes[name].channels
        # stride-2 convolutions round up
        assert tuple(x.shape[2:]) == tuple(-(-n // shapes[name].stride) for n in size)


@pytest.mark.parametrize("tap, index", [("block", 13), ("expansion", 14)])
def test_taps_are_torchvisions_tensors(tap, index):
    trunk = mobilenet_v2().eval()
    backbone = build_backbone(bare_config(3, "MODEL.SSD.BACKBONE.TAP", tap)).eval()
    backbone.features.load_state_dict(trunk.features.state_dict())
    x = torch.rand(1, 3, 64, 64)
    outputs = backbone(x)
    assert torch.allclose(outputs["c5"], trunk.features(x), atol=1e-5)
    expected = trunk.features[:index](x) if tap == "expansion" else trunk.features[: index + 1](x)
    if tap == "expansion":
        expected = trunk.features[14].conv[0](expected)
    assert torch.allclose(outputs["c4"], expected, atol=1e-5)


MOBILE = ["mobilenetv1", "mobilenetv2", "mobilenetv3", "mobilenetv3_se_last"]
MOBILE += ["mobilenext", "efficientnet_b3"]


@pytest.mark.parametrize("name", MOBILE)
@pytest.mark.parametrize("last", [True, False])
def test_every_mobile_trunk_has_maps_of_stride_8_16_and_32(name, last):
    opts = ["MODEL.BACKBONE.NAME", f"build_ssd_{name}_backbone", "MODEL.DEVICE", "meta"]
    opts += ["MODEL.SSD.BACKBONE.LAST_CONV", last, "MODEL.SSD.BACKBONE.EXTRA_CHANNELS", "[]"]
    backbone = build_backbone(bare_config(3, *opts, "MODEL.SSD.BACKBONE.EXTRA_EXPANSION", "[]"))
    outputs = backbone(torch.zeros(2, 3, 64, 64))
    assert list(outputs) == ["c3", "c4", "c5"]
    for stride, (key, x) in zip((8, 16, 32), outputs.items()):
        assert backbone.output_shape()[key] == ShapeSpec(channels=x.shape[1], stride=stride)
        assert x.shape[2:] == (64 // stride, 64 // stride)


def test_norm_options_reach_every_layer():
    opts = ["MODEL.SSD.NORM_EPS", 1e-3, "MODEL.SSD.NORM_MOMENTUM", 0.03]
    backbone = build_backbone(bare_config(3, *opts))
    norms = [m for m in backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == 52 + 12
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.03)}


def test_wrong_options_are_named():
    with pytest.raises(InputError, match="TAP is 'c3'"):
        build_backbone(bare_config(3, "MODEL.SSD.BACKBONE.TAP", "c3"))
    with pytest.raises(InputError, match="EXTRA_CHANNELS has 1 entries and EXTRA_EXPANSION has 4"):
        build_backbone(bare_config(3, "MODEL.SSD.BACKBONE.EXTRA_CHANNELS", "[512]"))


@pytest.fixture
def dirty_memory():
    """New memory is not zero (glibc fills it with 0xfe), as it is not in a long run."""
    if sys.platform != "linux":
        pytest.skip("needs glibc")
    perturb, libc = -6, ctypes.CDLL(None)
    libc.mallopt(perturb, 1)
    yield
    libc.mallopt(perturb, 0)


@pytest.mark.parametrize("block", ["inverted_residual", "depthwise", "sandglass", "conv"])
def test_gradients_of_taps_that_see_padding_only_are_zero(block, dirty_memory):
    """In bfloat16 on the CPU, with maps down to 2 x 1 and 1 x 1; found by large numbers."""
    keys = {"EXTRA_BLOCK": block, "EXTRA_CONVS": [[3, 2, 1]] * 4}
    opts = [word for k, v in keys.items() for word in (f"MODEL.SSD.BACKBONE.{k}", v)]
    extras = build_backbone(bare_config(3, *opts)).train().extras
    x = torch.randn(2, 1280, 8, 2).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        for extra in extras:
            x = extra(x)
    x.float().square().sum().backward()
    strided = [m for m in extras.modules() if isinstance(m, torch.nn.Conv2d) and m.stride[0] > 1]
    assert len(strided) == 4
    for conv in strided:
        assert conv.weight.grad.abs().max() < 1e6
    centre = torch.zeros(3, 3, dtype=torch.bool)
    centre[1, 1] = True
    assert (strided[-1].weight.grad[..., ~centre] == 0).all()  # of a map of one pixel
