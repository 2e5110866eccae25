import torch
from hypothesis import given
from hypothesis import strategies as st

from ssdlite_d2.modeling import SSDMatcher


def match(rows):
    return SSDMatcher(0.5)(torch.tensor(rows, dtype=torch.float32))


def test_threshold_and_best_anchor():
    # rows: ground truths; columns: anchors
    matches, labels = match([[0.6, 0.5, 0.4, 0.0], [0.0, 0.0, 0.2, 0.3]])
    assert labels.tolist() == [1, 1, 0, 1]
    assert matches[labels == 1].tolist() == [0, 0, 1]


def test_best_anchor_is_bound_to_its_ground_truth():
    # anchor 0 overlaps truth 0 more, but it is the best that truth 1 has
    matches, labels = match([[0.8, 0.9], [0.6, 0.1]])
    assert matches.tolist() == [1, 0]
    assert labels.tolist() == [1, 1]


def test_later_ground_truth_has_a_shared_best_anchor():
    matches, labels = match([[0.7, 0.1], [0.7, 0.1], [0.6, 0.2]])
    assert matches[0] == 2
    assert labels.tolist() == [1, 0]


def test_ground_truth_outside_every_anchor_makes_nothing_positive():
    _, labels = match([[0.0, 0.0, 0.0]])
    assert labels.tolist() == [0, 0, 0]


def test_no_ground_truth_is_all_background():
    matches, labels = SSDMatcher(0.5)(torch.zeros(0, 4))
    assert matches.shape == labels.shape == (4,)
    assert not labels.any()


@given(st.integers(1, 6), st.integers(1, 12), st.integers(0, 2**31))
def test_every_overlapping_ground_truth_has_an_anchor(truths, anchors, seed):
    quality = torch.rand(truths, anchors, generator=torch.Generator().manual_seed(seed))
    matches, labels = SSDMatcher(0.5)(quality)
    best = quality.argmax(dim=1)
    assert labels[best].all()
    for truth in range(truths):  # unless a later one took its anchor
        assert matches[best[truth]] == max(t for t in range(truths) if best[t] == best[truth])
    others = torch.ones(anchors, dtype=torch.bool)
    others[best] = False
    assert torch.equal(labels[others] == 1, quality.max(dim=0).values[others] >= 0.5)
