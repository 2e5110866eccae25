import pytest
import torch
from detectron2.layers import batched_nms

from ssdlite_d2.modeling.postprocessing import best_candidates, suppress


def rows(candidates):
    return list(zip(*(x.tolist() for x in candidates)))


def test_candidates_are_those_above_the_threshold_best_first():
    scores = torch.tensor([[[0.5, 0.1], [0.9, 0.6]], [[0.7, 0.3], [0.2, 0.8]]])
    found = rows(best_candidates(scores, 0.25, 100))
    expected = [(0, 1, 0, 0.9), (0, 1, 1, 0.6), (0, 0, 0, 0.5)]
    expected += [(1, 1, 1, 0.8), (1, 0, 0, 0.7), (1, 0, 1, 0.3)]
    assert found == [pytest.approx(row) for row in expected]
    assert rows(best_candidates(scores, 1.0, 100)) == []


def test_candidates_are_limited_per_image_and_per_class():
    scores = torch.rand(3, 50, 4, generator=torch.Generator().manual_seed(0))
    found = best_candidates(scores, 0.0, 20)
    for i, image in enumerate(scores):
        best = image.flatten().topk(20)
        assert torch.equal(found.value[found.image == i], best.values)
        assert torch.equal((found.anchor * 4 + found.label)[found.image == i], best.indices)
    found = best_candidates(scores, 0.0, 1000, per_class=3)
    for i, image in enumerate(scores):
        for label in range(4):
            mine = found.value[(found.image == i) & (found.label == label)]
            assert torch.equal(mine, image[:, label].topk(3).values)


@pytest.mark.parametrize("spread", [30, 2000])
def test_suppression_in_blocks_equals_suppression_at_once(spread):
    """Crowded boxes, of which few are kept, and scattered ones, of which most are."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(1700, 2, generator=generator) * spread
    boxes = torch.cat((corners, corners + 10 + 20 * torch.rand(1700, 2, generator=generator)), 1)
    scores = torch.rand(1700, generator=generator).sort(descending=True).values
    labels = torch.randint(0, 3, (1700,), generator=generator)
    expected = batched_nms(boxes, scores, labels, 0.5)
    assert torch.equal(suppress(boxes, scores, labels, 0.5, 10_000), expected)
    assert torch.equal(suppress(boxes, scores, labels, 0.5, 100), expected[:100])
