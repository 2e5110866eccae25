import math

import onnxruntime
import pytest
import torch
from conftest import bare_config
from hypothesis import given
from hypothesis import strategies as st

from ssdlite_d2.errors import InputError
from ssdlite_d2.modeling.box_coders import DistanceCoder
from ssdlite_d2.modeling.criteria import BoxLoss

CODERS = [DistanceCoder(), DistanceCoder(bins=7), DistanceCoder(bins=16, reach=2.0)]


def random_pairs(seed, count=20):
    """Anchors, and boxes around their centres, none farther than 1.3 sides."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 200
    sides = 5 + torch.rand(count, 2, generator=generator) * 100
    distances = (0.02 + torch.rand(2, count, 2, generator=generator) * 1.28) * sides
    center = corner + sides / 2
    boxes = torch.cat((center - distances[0], center + distances[1]), dim=1)
    return torch.cat((corner, corner + sides), dim=1), boxes


def bin_logits(places, bins):
    """Logits (C, 4 * (B + 1)) whose softmax has its mean at the places: shares of two bins."""
    left = places.floor().clamp(max=bins - 1)
    share = torch.zeros(*places.shape, bins + 1)
    share.scatter_(2, left.long()[..., None], (1 - (places - left))[..., None])
    share.scatter_(2, left.long()[..., None] + 1, (places - left)[..., None])
    return share.clamp(min=1e-12).log().flatten(1)


@given(st.integers(0, 2**31))
def test_distances_round_trip_with_and_without_bins(seed):
    anchors, boxes = random_pairs(seed)
    for coder in CODERS:
        codes = coder.get_deltas(anchors, boxes)
        assert codes.shape == (20, 4)
        if coder.bins:
            codes = bin_logits(codes, coder.bins)
        assert codes.shape == (20, coder.code_size)
        assert (coder.apply_deltas(codes, anchors) - boxes).abs().max() <= 1e-3


def test_distances_by_hand():
    """A 20 x 10 anchor around (30, 40); a box 5, 10, 25 and 4 pixels from its centre."""
    anchors = torch.tensor([[20.0, 35.0, 40.0, 45.0]])
    boxes = torch.tensor([[25.0, 30.0, 55.0, 44.0]])
    codes = DistanceCoder().get_deltas(anchors, boxes)
    assert codes.exp().tolist()[0] == pytest.approx([0.5, 2.0, 2.5, 0.8])
    places = DistanceCoder(bins=7, reach=1.4).get_deltas(anchors, boxes)
    assert places.tolist()[0] == pytest.approx([1.25, 5.0, 6.25, 2.0])  # bins of 4 and 2 pixels
    # the centre lies left of the box, which is wider than the bins reach
    far = torch.tensor([[31.0, 38.0, 90.0, 42.0]])
    assert DistanceCoder(bins=7).get_deltas(anchors, far).tolist()[0] == pytest.approx([0, 1, 7, 1])
    assert DistanceCoder().get_deltas(anchors, far)[0, 0] == pytest.approx(-math.log(1000 / 16))
    # codes of zero: the anchor itself, and the middle of the bins
    assert DistanceCoder().apply_deltas(torch.zeros(1, 4), anchors).tolist() == anchors.tolist()
    middle = DistanceCoder(bins=7).apply_deltas(torch.zeros(1, 32), anchors)
    assert middle.tolist()[0] == pytest.approx([16.0, 33.0, 44.0, 47.0])


@pytest.mark.parametrize("coder", CODERS)
def test_chosen_and_all_are_decoded_alike_and_never_inverted(coder):
    anchors, _ = random_pairs(0, 50)
    codes = torch.randn(3, 50, coder.code_size) * 40
    boxes = coder.decode_all(codes, anchors)
    assert boxes.shape == (3, 50, 4) and boxes.isfinite().all()
    for image in range(3):
        chosen = torch.tensor([7, 7, 0, 49])
        found = coder.apply_deltas(codes[image, chosen], anchors[chosen])
        assert torch.equal(found, boxes[image, chosen])
    assert (boxes[..., 2:] > boxes[..., :2]).all() or coder.bins
    assert (boxes[..., 2:] >= boxes[..., :2]).all()
    assert coder.apply_deltas(codes[0, :0], anchors[:0]).shape == (0, 4)


@pytest.mark.parametrize("coder", CODERS[:2])
def test_distances_in_a_graph(coder, tmp_path):
    anchors, _ = random_pairs(0, 50)

    class Decoder(torch.nn.Module):
        def forward(self, codes):
            return coder.decode_all(codes, anchors)

    codes = torch.randn(2, 50, coder.code_size)
    path = str(tmp_path / "decoder.onnx")
    torch.onnx.export(Decoder(), (codes,), path, dynamo=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: codes.numpy()})
    assert (torch.from_numpy(found) - coder.decode_all(codes, anchors)).abs().max() <= 1e-3


def test_bins_need_a_loss_of_boxes():
    opts = ["MODEL.SSD.BOX_CODER.NAME", "distances", "MODEL.SSD.BOX_CODER.BINS", 7]
    with pytest.raises(InputError, match="BOX_LOSS smooth_l1 .* giou"):
        BoxLoss(bare_config(3, *opts))
    BoxLoss(bare_config(3, *opts), default="giou")
