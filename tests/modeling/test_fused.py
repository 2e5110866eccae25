import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from models import as_inputs, read_all
from torch import nn

from ssdlite_d2.modeling.inference.fused import fold_norms, fuse_for_inference


def network(model, image):
    return model.raw_outputs(image)


def test_folding_leaves_no_norm_and_the_same_outputs(bccd_model):
    model = bccd_model[1]
    folded = fold_norms(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    image = torch.randn(1, 3, *model.input_size)
    with torch.no_grad():
        for a, b in zip(network(model, image), network(folded, image)):
            assert torch.allclose(a, b, atol=1e-4)


def test_frozen_norms_fold_and_group_norms_stay():
    frozen = FrozenBatchNorm2d(4)
    frozen.running_mean.uniform_()
    frozen.running_var.uniform_(0.5, 2)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), frozen, nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4)).eval()
    folded, image = fold_norms(model), torch.randn(2, 3, 9, 9)
    assert [type(m) for m in folded] == [nn.Conv2d, nn.Identity, nn.Conv2d, nn.GroupNorm]
    assert torch.allclose(model(image), folded(image), atol=1e-5)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_fused_models_detect_the_same(bccd_model, dtype, tolerance):
    model = bccd_model[1]
    inputs = as_inputs(read_all())
    with torch.no_grad():
        exact, fused = model(inputs), fuse_for_inference(model, dtype)(inputs)
    for a, b in zip(exact, fused):
        assert len(a["instances"]) == len(b["instances"]) > 10
        assert (a["instances"].scores - b["instances"].scores).abs().max() < tolerance
