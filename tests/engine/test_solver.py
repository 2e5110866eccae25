"""Optimizers, their parameter groups, freezing and clipping."""

import pytest
import torch
from conftest import bare_config
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model

from ssdlite_d2 import InputError
from ssdlite_d2.engine.solver import amp_dtype, build_optimizer, set_schedule


def built(*opts, config="ssdlite_mnv2.yaml"):
    cfg = bare_config(3, "INPUT.SIZE", "(64, 64)", *opts, config=config)
    model = build_model(cfg)
    return model, build_optimizer(cfg, model)


def options_of(model, optimizer):
    """name -> (learning rate, weight decay)."""
    groups = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    return {
        name: (groups[id(p)]["lr"], groups[id(p)]["weight_decay"])
        for name, p in model.named_parameters()
        if id(p) in groups
    }


def test_length_follows_the_number_of_images():
    keys = ["SOLVER.EPOCHS", 10.0, "TEST.EVALUATIONS", 10, "SOLVER.IMS_PER_BATCH", 16]
    keys += ["SOLVER.WARMUP_ITERS", 100, "SOLVER.CHECKPOINT_PERIOD", 5000]
    for images, iterations, tenth, warmup in (
        (292, 183, 19, 19),
        (30, 19, 2, 2),
        (5000, 3125, 313, 100),
    ):
        cfg = bare_config(3, *keys)
        set_schedule(cfg, images)
        assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS) == (iterations, warmup)
        assert cfg.TEST.EVAL_PERIOD == cfg.SOLVER.CHECKPOINT_PERIOD == tenth
        saved = cfg.clone()
        set_schedule(cfg, 7)  # a saved config keeps its iterations
        assert cfg == saved
    cfg = bare_config(3)
    before = cfg.clone()
    set_schedule(cfg, 292)
    assert cfg == before


def test_norms_biases_and_trunk_are_set_apart():
    keys = ["SOLVER.BASE_LR", 0.1, "SOLVER.WEIGHT_DECAY", 1e-3, "SOLVER.WEIGHT_DECAY_NORM", 1e-4]
    keys += ["SOLVER.WEIGHT_DECAY_BIAS", 0.0, "SOLVER.TRUNK_LR_FACTOR", 0.1]
    options = options_of(*built(*keys))
    assert options["backbone.features.0.0.weight"] == (pytest.approx(0.01), 1e-3)
    assert options["backbone.features.0.1.weight"] == (pytest.approx(0.01), 1e-4)
    assert options["backbone.extras.0.conv.0.0.weight"] == (0.1, 1e-3)
    assert options["head.cls_score.0.3.weight"] == (0.1, 1e-3)
    assert options["head.cls_score.0.3.bias"] == (0.1, 0.0)


def test_trunk_without_a_name_has_no_rate_of_its_own():
    network = torch.nn.ParameterList([torch.zeros(2)])
    with pytest.raises(InputError, match="TRUNK_LR_FACTOR is 0.1, but the backbone does not say"):
        build_optimizer(bare_config(3, "SOLVER.TRUNK_LR_FACTOR", 0.1), network)
    model = torch.nn.Module()
    model.backbone = torch.nn.ModuleDict(
        {"stem": torch.nn.Linear(1, 1), "rest": torch.nn.Linear(1, 1)}
    )
    model.backbone.trunk_prefix = "stem."
    keys = ["SOLVER.TRUNK_LR_FACTOR", 0.1, "SOLVER.BASE_LR", 0.1]
    options = options_of(model, build_optimizer(bare_config(3, *keys), model))
    assert options["backbone.stem.weight"][0] == pytest.approx(0.01)
    assert options["backbone.rest.weight"][0] == 0.1


@pytest.mark.parametrize("value, expected", [("None", 1e-3), (0.0, 0.0)])
def test_weight_decay_of_l2norm_follows_its_key(value, expected):
    keys = ["SOLVER.WEIGHT_DECAY", 1e-3, "SOLVER.WEIGHT_DECAY_L2NORM", value]
    options = options_of(*built(*keys, config="ssd300_vgg16_voc.yaml"))
    assert options["backbone.tap_norms.c4.weight"][1] == expected
    assert options["backbone.features.0.weight"][1] == 1e-3


def test_adamw_is_built_with_its_betas():
    _, optimizer = built("SOLVER.OPTIMIZER", "AdamW", "SOLVER.BETAS", "(0.8, 0.99)")
    assert isinstance(optimizer, torch.optim.AdamW)
    assert all(group["betas"] == (0.8, 0.99) for group in optimizer.param_groups)


def test_frozen_blocks_and_norms_have_no_gradient():
    model, optimizer = built("MODEL.SSD.BACKBONE.FREEZE_AT", 3)
    trained = {name.split(".")[2] for name in options_of(model, optimizer) if "features" in name}
    assert trained == {str(i) for i in range(3, 19)}
    frozen = [isinstance(m, FrozenBatchNorm2d) for m in model.backbone.features[:3].modules()]
    assert sum(frozen) == 1 + 2 + 3
    model, _ = built("MODEL.SSD.BACKBONE.FREEZE_NORM", True)
    kinds = {type(m) for m in model.backbone.features.modules() if "Norm2d" in type(m).__name__}
    assert kinds == {FrozenBatchNorm2d}
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in model.head.modules())


@pytest.mark.parametrize(
    "kind, clipped",
    [("value", [0.5, 0.5, 0.5]), ("norm", [0.3, 0.4, 0.5]), ("full_model", [0.15, 0.2, 0.433])],
)
def test_clipping_bounds_what_it_names(kind, clipped):
    """Gradients (3, 4) and 8.66, whose norms are 5 and 8.66, together 10; the limit is 0.5."""
    keys = ["SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", kind]
    keys += ["SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.5]
    keys += ["SOLVER.MOMENTUM", 0.0, "SOLVER.BASE_LR", 1.0]
    network = torch.nn.ParameterList([torch.zeros(2), torch.zeros(1)])
    optimizer = build_optimizer(bare_config(3, *keys), network)
    network[0].grad, network[1].grad = torch.tensor([3.0, 4.0]), torch.tensor([75**0.5])
    optimizer.step()
    moved = [-x for p in network for x in p.tolist()]
    assert moved == pytest.approx(clipped, abs=1e-3)


@pytest.mark.parametrize(
    "keys, words",
    [
        (["SOLVER.OPTIMIZER", "Lion"], "SOLVER.OPTIMIZER is 'Lion'"),
        (["MODEL.SSD.BACKBONE.FREEZE_AT", 20], "FREEZE_AT is 20; the trunk has 19 blocks"),
        (
            ["SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "all"],
            "CLIP_TYPE is 'all'",
        ),
    ],
)
def test_wrong_keys_are_named(keys, words):
    with pytest.raises(InputError, match=words.replace("(", r"\(")):
        built(*keys)


def test_mixed_precision_by_device():
    assert amp_dtype(bare_config()) is None
    on = ["SOLVER.AMP.ENABLED", True]
    assert amp_dtype(bare_config(3, *on)) == torch.bfloat16
    assert amp_dtype(bare_config(3, *on, "MODEL.DEVICE", "cuda")) == torch.float16
    with pytest.raises(InputError, match="float16 needs CUDA"):
        amp_dtype(bare_config(3, *on, "SOLVER.AMP.DTYPE", "float16"))
