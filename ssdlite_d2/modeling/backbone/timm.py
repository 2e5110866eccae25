"""Trunks of timm, by name."""

from typing import Dict, List, Tuple

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import Tensor, nn

from ...errors import InputError
from ..norm import Norm, norm_builder
from .build import build_ssd_backbone
from .pyramid import SSDBackbone, Tap

KEY = "MODEL.SSD.BACKBONE.TIMM_NAME"
STRIDES = {8: "c3", 16: "c4", 32: "c5"}
NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


class TimmBackbone(SSDBackbone):
    """An SSDBackbone whose trunk is a ``features_only`` network of timm; taps count its maps."""

    def trunk_maps(self, x: Tensor) -> Tuple[Tensor, Dict[str, Tensor]]:
        found = self.features(x)
        outputs = {tap.name: found[index] for index, tap in self.taps.items()}
        return found[-1], outputs


@BACKBONE_REGISTRY.register()
def build_ssd_timm_backbone(cfg, input_shape: ShapeSpec) -> TimmBackbone:
    """The trunk MODEL.SSD.BACKBONE.TIMM_NAME with maps c3, c4, c5 and the extras of the config.

    Its norms are by MODEL.SSD.NORM. A trunk with TensorFlow's SAME padding (``tf_...``) has it
    whatever PADDING says. FREEZE_AT counts its stem's layers, then its stages.

    Raises:
        InputError: timm is not installed, or has no such trunk, or that has no such maps.
    """
    timm, name = import_timm(), cfg.MODEL.SSD.BACKBONE.TIMM_NAME
    if not timm.is_model(name):
        known = timm.list_models(f"*{name.split('_')[0]}*") if name else timm.list_models("mobile*")
        raise InputError(f"{KEY} is '{name}'; timm has {', '.join(known[:12]) or 'no such model'}")
    try:
        trunk = timm.create_model(name, features_only=True)
    except (RuntimeError, AttributeError, TypeError) as error:  # it has no features
        raise InputError(f"{KEY} {name} gives no feature maps: {error}") from error
    infos = {info["reduction"]: i for i, info in enumerate(trunk.feature_info.get_dicts())}
    if not set(STRIDES) <= set(infos) or infos[32] != max(infos.values()):
        raise InputError(
            f"{KEY} {name} has maps of stride {', '.join(map(str, infos))}; an SSD needs 8, 16, 32"
        )
    channels = trunk.feature_info.channels()
    taps = [Tap(c, infos[stride], channels[infos[stride]], stride) for stride, c in STRIDES.items()]
    names = {flat(key): key for key in trunk.state_dict()}
    for old, new in replace_norms(trunk, norm_builder(cfg)).items():
        names = {k: v.replace(old, new, 1) if v.startswith(old) else v for k, v in names.items()}
    built = trunk.state_dict()  # another kind of norm lacks some
    names = {key: value for key, value in names.items() if value in built}
    same = any(isinstance(m, timm.layers.Conv2dSame) for m in trunk.modules())
    backbone = build_ssd_backbone(
        cfg, trunk, taps, kind=TimmBackbone, blocks=trunk_blocks(trunk), same=same
    )
    backbone.trunk_names = names
    return backbone


def flat(name: str) -> str:
    """A tensor's name without dots, where timm's networks and their ``features_only`` differ."""
    return name.replace(".", "_")


def import_timm():
    """The module timm.

    Raises:
        InputError: it is not installed.
    """
    try:
        import timm
        import timm.layers
    except ImportError as error:
        raise InputError(
            f"timm cannot be imported ({error}): pip install 'ssdlite-d2[timm]'"
        ) from error
    return timm


def replace_norms(module: nn.Module, norm: Norm, prefix: str = "") -> Dict[str, str]:
    """Put norms of the config into a trunk, in place of its batch norms.

    timm's batch norms often have the activation inside; those become a Sequential of both.

    Returns:
        dict: how the names of the latter begin, before -> now.
    """
    renamed = {}
    for name, child in module.named_children():
        if not isinstance(child, NORMS):
            renamed.update(replace_norms(child, norm, f"{prefix}{name}."))
            continue
        new = norm(child.num_features)
        new.load_state_dict(child.state_dict(), strict=False)  # some start with weights of 0
        if hasattr(child, "act"):
            new = nn.Sequential(new, child.drop, child.act)
            renamed[f"{prefix}{name}."] = f"{prefix}{name}.0."
        setattr(module, name, new)
    return renamed


def trunk_blocks(trunk: nn.Module) -> List[str]:
    """The names of the layers of a trunk's stem that have weights, then of its stages."""
    staged = {name.split(".")[0] for name in trunk.feature_info.module_name() if "." in name}
    names = []
    for name, child in trunk.named_children():
        names += [f"{name}.{part}" for part in child._modules] if name in staged else [name]
    return [name for name in names if any(True for _ in trunk.get_submodule(name).parameters())]
