import pytest
import torch
from conftest import bare_config, make_input
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager

from ssdlite_d2 import InputError
from ssdlite_d2.checkpoint import SSDCheckpointer

MAPS = ["p3", "p4", "p5", "p6"]


def pan_model(*opts, num_classes: int = 3):
    torch.manual_seed(0)
    return build_model(pan_config(*opts, num_classes=num_classes))


def pan_config(*opts, num_classes: int = 3):
    """A small one, which predicts from p3 to p6 with one anchor per cell."""
    keys = [
        "MODEL.META_ARCHITECTURE",
        "SSD",
        "MODEL.WEIGHTS",
        "",
        "MODEL.SSD.IN_FEATURES",
        str(MAPS),
    ]
    keys += ["MODEL.SSD.BACKBONE.EXTRA_CHANNELS", "[]", "MODEL.SSD.BACKBONE.EXTRA_EXPANSION", "[]"]
    keys += ["MODEL.SSD.BACKBONE.LAST_CONV", "False", "MODEL.SSD.NECK.NAME", "pan"]
    keys += ["MODEL.SSD.NECK.CHANNELS", "32", "MODEL.SSD.HEAD.NAME", "tower"]
    keys += ["MODEL.SSD.HEAD.CHANNELS", "32", "MODEL.ANCHOR_GENERATOR.STRIDES", "[8, 16, 32, 64]"]
    boxes = [[[s, s]] for s in (64, 128, 256, 512)]
    keys += ["MODEL.ANCHOR_GENERATOR.BOXES", str(boxes), "MODEL.ANCHOR_GENERATOR.CLIP", "none"]
    return bare_config(num_classes, *keys, *opts)


@pytest.mark.parametrize(
    "size, sides", [(320, (40, 20, 10, 5)), (300, (38, 19, 10, 5)), (416, (52, 26, 13, 7))]
)
@torch.no_grad()
def test_maps_anchors_and_outputs_fit_at_every_size(size, sides):
    model = pan_model("INPUT.SIZE", (size, size)).eval()
    maps = model.backbone(torch.zeros(1, 3, size, size))
    assert list(maps) == list(model.backbone.output_shape()) == MAPS
    assert [tuple(x.shape) for x in maps.values()] == [(1, 32, n, n) for n in sides]
    assert [shape.stride for shape in model.backbone.output_shape().values()] == [8, 16, 32, 64]
    cells = sum(n * n for n in sides)
    logits, deltas = model.raw_outputs(torch.zeros(1, 3, size, size))
    assert logits.shape == (1, cells, 3) and deltas.shape == (1, cells, 4)
    for boxes, n, stride in zip(model.anchors(), sides, (8, 16, 32, 64)):
        centers = boxes.get_centers().view(n, n, 2)
        assert centers[0, 0].tolist() == [stride / 2] * 2
        assert centers[1, 2].tolist() == [2.5 * stride, 1.5 * stride]
        assert boxes.area().unique().tolist() == [(8 * stride) ** 2]


def test_anchor_distances_follow_the_input_when_no_strides_are_given():
    model = pan_model("INPUT.SIZE", (300, 300), "MODEL.ANCHOR_GENERATOR.STRIDES", "[]").eval()
    first = model.anchors()[0].get_centers()[:2, 0]
    assert torch.allclose(first, torch.tensor([0.5, 1.5]) * 300 / 38)


@pytest.mark.parametrize(
    "boxes, classes", [([[20, 30, 90, 120], [150, 100, 310, 300]], [0, 2]), ([], [])]
)
@pytest.mark.parametrize("shared", [False, True])
def test_every_parameter_gets_a_finite_gradient(boxes, classes, shared):
    model = pan_model("MODEL.SSD.HEAD.SHARED", shared, "MODEL.SSD.HEAD.SEPARATE", shared).train()
    losses = model([make_input(boxes, classes, seed=i) for i in range(2)])
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if "bottom_up" not in name and "bbox" not in name:  # the latter where boxes are
            assert parameter.grad.abs().sum() > 0, name


def test_every_input_map_reaches_every_output():
    backbone = pan_model().backbone.eval()
    taken = []
    backbone.bottom_up.register_forward_hook(lambda module, inputs, maps: taken.append(maps))
    outputs = backbone(torch.rand(1, 3, 96, 96, requires_grad=True))
    for name in backbone.in_features:
        for output in outputs.values():
            (grad,) = torch.autograd.grad(output.sum(), taken[0][name], retain_graph=True)
            assert grad.abs().sum() > 0


def test_imagenet_weights_load_below_the_neck():
    model = pan_model()
    address = "torchvision://mobilenet_v2-b0353104.pth"
    SSDCheckpointer(model).load(address, purpose="start")
    file = torch.load(PathManager.get_local_path(address), weights_only=True)
    trunk = {k: v for k, v in model.state_dict().items() if ".bottom_up.features." in k}
    assert len(trunk) == 52 * 6 - 6  # all but the last convolution and its norm
    for name, value in trunk.items():
        assert torch.equal(value, file[name.removeprefix("backbone.bottom_up.")])
    prefix = f"backbone.{model.backbone.trunk_prefix}"
    assert {k for k in model.state_dict() if k.startswith(prefix)} == set(trunk)


@pytest.mark.parametrize("name", ["relu6", "relu", "leaky_relu", "hardswish"])
def test_activations_by_key(name):
    model = pan_model("MODEL.SSD.NECK.ACTIVATION", name, "MODEL.SSD.HEAD.ACTIVATION", name)
    wanted = name.replace("_", "")
    neck = [m for n, m in model.backbone.named_modules() if not n.startswith("bottom_up")]
    kinds = {type(m).__name__.lower() for m in [*neck, *model.head.modules()]}
    assert kinds & {"relu6", "relu", "leakyrelu", "hardswish"} == {wanted}


def test_wrong_options_are_named():
    cases = {
        ("MODEL.SSD.NECK.IN_FEATURES", "['c4', 'c6']"): "names c6; the backbone has c3, c4, c5",
        ("MODEL.SSD.NECK.IN_FEATURES", "['c3', 'c5']"): "c3, c5 have strides 8, 32; each must be",
        ("MODEL.SSD.NECK.ACTIVATION", "mish"): "NECK.ACTIVATION is 'mish'; it is one of relu6",
        ("MODEL.SSD.NECK.NAME", "fpn"): "NECK.NAME is 'fpn'; it is one of .*pan",
    }
    for opts, message in cases.items():
        with pytest.raises(InputError, match=message):
            pan_model(*opts)
