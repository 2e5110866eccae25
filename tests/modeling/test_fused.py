import pytest
import torch
from models import as_inputs, read_all

from ssdlite_d2.modeling.inference.fused import fuse_for_inference


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_fused_models_detect_the_same(bccd_model, dtype, tolerance):
    model = bccd_model[1]
    inputs = as_inputs(read_all())
    with torch.no_grad():
        exact, fused = model(inputs), fuse_for_inference(model, dtype)(inputs)
    for a, b in zip(exact, fused):
        assert len(a["instances"]) == len(b["instances"]) > 10
        assert (a["instances"].scores - b["instances"].scores).abs().max() < tolerance
