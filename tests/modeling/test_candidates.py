"""ATSS and task-aligned assignment: hand-computed cases, and plain loops that say the same."""

import pytest
import torch
from conftest import make_instances, make_model
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from hypothesis import given, settings
from hypothesis import strategies as st

from ssdlite_d2.modeling.assigners import ATSSAssigner, TaskAlignedAssigner
from ssdlite_d2.modeling.assigners.atss import anchors_per_cell

K = 3


def grid(side, stride, sizes):
    """Anchors of a level: a square map of ``side`` cells, squares of the sizes in each."""
    return Boxes(
        torch.tensor(
            [
                [(x + 0.5) * stride - s / 2, (y + 0.5) * stride - s / 2]
                + [(x + 0.5) * stride + s / 2, (y + 0.5) * stride + s / 2]
                for y in range(side)
                for x in range(side)
                for s in sizes
            ]
        )
    )


def iou(a, b):
    wide = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    high = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - wide * high
    return wide * high / union if union else 0.0


def inside(box, anchor):
    x, y = (anchor[0] + anchor[2]) / 2, (anchor[1] + anchor[3]) / 2
    return box[0] < x < box[2] and box[1] < y < box[3]


def loop_assign(anchors, truths, choose):
    """Index of each anchor's truth or -1, one image: ``choose(truth) -> {anchor: IoU}``."""
    owner, value = [-1] * len(anchors), [-1.0] * len(anchors)
    for t in range(len(truths)):
        for anchor, overlap in choose(t).items():
            if overlap > value[anchor]:
                owner[anchor], value[anchor] = t, overlap
    overlaps = [[iou(truth, anchor) for anchor in anchors] for truth in truths]
    taken = set()  # the best anchor that each truth has
    for t, row in enumerate(overlaps):
        own = [r for r, o in enumerate(owner) if o == t]
        taken |= {r for r in own if row[r] == max(row[q] for q in own)}
    lost, bound = [t for t in range(len(truths)) if t not in owner], []
    while lost:
        wanted = {}
        for t in lost:
            row = [0 if r in taken else value for r, value in enumerate(overlaps[t])]
            if max(row) > 0:
                wanted.setdefault(row.index(max(row)), []).append(t)
        for anchor, those in wanted.items():
            owner[anchor] = max(those, key=lambda t: overlaps[t][anchor])
            taken.add(anchor)
            bound.append(anchor)
        lost = [t for those in wanted.values() for t in those if t not in owner]
    return owner, bound


def atss_choice(levels, truths, topk):
    def choose(t):
        x, y = (truths[t][0] + truths[t][2]) / 2, (truths[t][1] + truths[t][3]) / 2
        candidates, first = [], 0
        for level, count in levels:

            def distance(cell, level=level, count=count):
                a = level[cell * count]
                return ((a[0] + a[2]) / 2 - x) ** 2 + ((a[1] + a[3]) / 2 - y) ** 2

            for cell in sorted(range(len(level) // count), key=distance)[:topk]:
                candidates += [
                    (first + cell * count + i, level[cell * count + i]) for i in range(count)
                ]
            first += len(level)
        values = torch.tensor([iou(truths[t], a) for _, a in candidates], dtype=torch.float64)
        threshold = values.mean() + values.std()
        return {
            r: float(v)
            for (r, a), v in zip(candidates, values)
            if v >= threshold and inside(truths[t], a)
        }

    return choose


def random_case(seed, cells=((6, 10, (16.0, 9.0)), (3, 20, (31.0,)))):
    """Levels of anchors, and images with boxes of many sizes, none at all, and one too small."""
    generator = torch.Generator().manual_seed(seed)
    targets = []
    for count in (5, 0, 3):
        corner = torch.rand(count, 2, generator=generator) * 50
        size = 1 + torch.rand(count, 2, generator=generator) ** 2 * 40
        boxes = torch.cat((corner, corner + size), dim=1)
        classes = torch.randint(0, K, (count,), generator=generator)
        targets.append(make_instances(boxes.tolist(), classes.tolist()))
    return [grid(*level) for level in cells], targets, generator


def assert_same(assignment, owners, targets):
    for image, (owner, instances) in enumerate(zip(owners, targets)):
        labels = [int(instances.gt_classes[t]) if t >= 0 else K for t in owner]
        assert assignment.labels[image].tolist() == labels
        for r, t in enumerate(owner):
            if t >= 0:
                assert torch.equal(assignment.boxes[image, r], instances.gt_boxes.tensor[t])


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.sampled_from([1, 4, 9, 50]))
def test_atss_equals_a_plain_loop(seed, topk):
    levels, targets, _ = random_case(seed)
    anchors = Boxes.cat(levels).tensor.tolist()
    counted = [(level.tensor.tolist(), n) for level, n in zip(levels, (2, 1))]
    owners = []
    for instances in targets:
        truths = instances.gt_boxes.tensor.tolist()
        owners.append(loop_assign(anchors, truths, atss_choice(counted, truths, topk))[0])
    found = ATSSAssigner(num_classes=K, topk=topk)(levels, targets)
    assert_same(found, owners, targets)
    assert found.quality is None


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.sampled_from([1, 3, 13, 500]))
def test_task_aligned_equals_a_plain_loop(seed, topk):
    levels, targets, generator = random_case(seed)
    anchors = Boxes.cat(levels).tensor
    scores = torch.rand(3, len(anchors), K, generator=generator)
    boxes = anchors + torch.randn(3, len(anchors), 4, generator=generator)
    found = TaskAlignedAssigner(num_classes=K, topk=topk)(levels, targets, scores, boxes)
    owners = []
    for image, instances in enumerate(targets):
        truths, classes = instances.gt_boxes.tensor.tolist(), instances.gt_classes.tolist()
        predicted = boxes[image].tolist()

        def alignment(t, r, image=image, truths=truths, classes=classes, predicted=predicted):
            overlap = iou(truths[t], predicted[r])
            return float(scores[image, r, classes[t]]) * overlap**6, overlap

        def choose(t, truths=truths, alignment=alignment):
            own = {
                r: alignment(t, r) for r, a in enumerate(anchors.tolist()) if inside(truths[t], a)
            }
            own = {r: pair for r, pair in own.items() if pair[0] > 0}
            best = sorted(own, key=lambda r: -own[r][0])[:topk]
            return {r: own[r][1] for r in best}

        owner, bound = loop_assign(anchors.tolist(), truths, choose)
        owners.append(owner)
        for t in range(len(truths)):
            mine = [r for r, o in enumerate(owner) if o == t]
            values = {r: alignment(t, r) for r in mine}
            for r in mine:
                best, highest = (max(v[i] for v in values.values()) for i in (0, 1))
                quality = values[r][0] / best * highest if best else 0.0
                if r in bound:
                    quality = max(quality, iou(truths[t], anchors[r].tolist()))
                assert float(found.quality[image, r]) == pytest.approx(quality, rel=1e-3, abs=1e-6)
    assert_same(found, owners, targets)
    assert not found.quality[found.labels == K].any()


def test_atss_by_hand():
    """3 x 3 anchors of 20 pixels, 10 apart: IoU 1, four times 1/3, four times 1/7."""
    level = grid(3, 10, (20.0,))
    targets = [make_instances([[5, 5, 25, 25]], [2])]
    # mean .3228 and standard deviation .2712
    assert ATSSAssigner(num_classes=K)([level], targets).labels.tolist() == [
        [K] * 4 + [2] + [K] * 4
    ]
    # the five nearest, 1 and 1/3: .4667 and .2981
    assert (ATSSAssigner(num_classes=K, topk=5)([level], targets).labels == 2).sum() == 1
    # wide box: the middle row, at .6667, .3333 outside of it; the centre of all three is inside
    wide = [make_instances([[-5, 5, 35, 25]], [1])]
    expected = [K] * 3 + [1] * 3 + [K] * 3
    # IoU 1/2 in the row, 1/5 above and below: .3 and .15
    assert ATSSAssigner(num_classes=K)([level], wide).labels.tolist() == [expected]


def test_task_aligned_by_hand():
    """Four anchors in the box; alignments .4 * .5 ** 2, .9 * .5 ** 2, .8 * 0 and .1 * 1."""
    level = grid(2, 10, (10.0,))
    targets = [make_instances([[0, 0, 20, 20]], [1])]
    boxes = torch.tensor([[[0.0, 0, 20, 10], [0, 0, 10, 20], [50, 50, 60, 60], [0, 0, 20, 20]]])
    scores = torch.zeros(1, 4, K)
    scores[0, :, 1] = torch.tensor([0.4, 0.9, 0.8, 0.1])
    assigner = TaskAlignedAssigner(num_classes=K, topk=3, beta=2.0)
    found = assigner([level], targets, scores, boxes)
    assert found.labels.tolist() == [[1, 1, K, 1]]
    # .225 is the greatest alignment, 1 the greatest IoU
    assert found.quality[0].tolist() == pytest.approx([0.1 / 0.225, 1.0, 0.0, 0.1 / 0.225])
    assigner = TaskAlignedAssigner(num_classes=K, topk=1, beta=2.0)
    found = assigner([level], targets, scores, boxes)
    assert found.labels.tolist() == [[K, 1, K, K]]
    assert found.quality[0].tolist() == pytest.approx([0.0, 0.5, 0.0, 0.0])


def assigners():
    return ATSSAssigner(num_classes=K), TaskAlignedAssigner(num_classes=K)


@pytest.mark.parametrize("assigner", assigners())
def test_an_anchor_of_two_truths_takes_the_higher_iou_and_then_the_first(assigner):
    level = grid(1, 20, (20.0,))
    scores, boxes = torch.full((1, 1, K), 0.5), level.tensor[None]
    for truths, winner in (
        ([[0, 0, 20, 15], [0, 0, 20, 18]], 1),
        ([[0, 0, 20, 18], [0, 0, 20, 15]], 0),
        ([[0, 0, 20, 15], [0, 5, 20, 20]], 0),
    ):
        found = assigner([level], [make_instances(truths, [0, 1])], scores, boxes)
        assert found.labels.tolist() == [[winner]]


@pytest.mark.parametrize("assigner", assigners())
def test_every_truth_that_overlaps_an_anchor_has_one(assigner):
    """Boxes smaller than a cell, several in one cell: as many as there are anchors at least."""
    level = grid(2, 40, (40.0, 36.0, 32.0))
    tiny = [[2 * i + 5.0, 5.0, 2 * i + 6.0, 7.0] for i in range(12)]
    scores, boxes = torch.zeros(1, 12, K), level.tensor[None]
    for count in (1, 3):
        targets = [make_instances(tiny[:count], [1] * count)]
        found = assigner([level], targets, scores, boxes)
        matched = found.boxes[found.labels == 1]
        assert len(matched.unique(dim=0)) == count
    # a box outside every anchor has none, and takes nothing from others
    targets = [make_instances([[200.0, 200.0, 210.0, 210.0], [0.0, 0.0, 40.0, 40.0]], [0, 1])]
    found = assigner([level], targets, scores, boxes)
    assert (found.labels == 1).any() and not (found.labels == 0).any()


def test_a_bound_truth_has_quality_though_its_prediction_misses():
    level = grid(2, 40, (40.0,))
    targets = [make_instances([[2.0, 2.0, 12.0, 12.0]], [1])]
    boxes = torch.full((1, 4, 4), 300.0) + torch.tensor([0.0, 0, 10, 10])
    found = TaskAlignedAssigner(num_classes=K)([level], targets, torch.ones(1, 4, K), boxes)
    assert found.labels.tolist() == [[1, K, K, K]]
    assert found.quality[0, 0] == pytest.approx(100 / 1600)


@pytest.mark.parametrize("assigner", assigners())
def test_regions_are_ignored_and_no_boxes_are_background(assigner):
    level = grid(3, 10, (10.0,))
    scores, boxes = torch.full((3, 9, K), 0.5), level.tensor.expand(3, -1, -1)
    targets = [
        make_instances([[0, 0, 10, 10], [0, 0, 30, 10]], [2, -1]),
        make_instances([[0, 20, 30, 30]], [-1]),
        make_instances([], []),
    ]
    found = assigner([level], targets, scores, boxes)
    assert found.labels.tolist() == [
        [2, -1, -1] + [K] * 6,
        [K] * 6 + [-1] * 3,
        [K] * 9,
    ]
    found = assigner([level], targets[2:] * 3, scores, boxes)
    assert (found.labels == K).all() and found.boxes.shape == (3, 9, 4)


def test_ties_go_to_the_first_anchors():
    level = grid(4, 10, (10.0,))
    scores, boxes = torch.full((1, 16, K), 0.5), torch.tensor([0.0, 0, 40, 40]).expand(1, 16, 4)
    targets = [make_instances([[0, 0, 40, 40]], [0])]
    assigner = TaskAlignedAssigner(num_classes=K, topk=5)
    found = assigner([level], targets, scores, boxes)
    assert found.labels.tolist() == [[0] * 5 + [K] * 11]
    # the centre is as far from four cells; one of them is the first
    chosen = ATSSAssigner(num_classes=K, topk=2)._nearest([level], _truths(targets))
    assert chosen[0].tolist() == [[5, 6]]


def _truths(targets):
    from ssdlite_d2.modeling.assigners.candidates import gather_truths

    return gather_truths(targets)


def test_atss_decides_until_the_warmup_is_over():
    model = make_model(K, "MODEL.SSD.ASSIGNER.NAME", "task_aligned", *WARMUP).eval()
    anchors = model.anchors()
    total = sum(map(len, anchors))
    targets = [make_instances([[20, 20, 150, 180]], [1])]
    predictions = torch.rand(1, total, K), Boxes.cat(anchors).tensor[None]
    static = ATSSAssigner(num_classes=K)(anchors, targets)
    for iteration in (0, 99, 100):
        with EventStorage(iteration):
            found = model.assigner(anchors, targets, *predictions)
        assert (found.quality is None) == (iteration < 100)
        assert torch.equal(found.labels, static.labels) == (iteration < 100)
    assert model.assigner(anchors, targets, *predictions).quality is not None  # nobody counts


WARMUP = ["MODEL.SSD.ASSIGNER.WARMUP_ITERS", "100"]


def test_anchors_per_cell_are_those_of_the_generator():
    for clip in ("none", "center", "corners", "size"):
        model = make_model(K, "MODEL.ANCHOR_GENERATOR.CLIP", clip).eval()
        found = [anchors_per_cell(x) for x in model.anchors()]
        if clip == "corners":  # no cell of the fourth and fifth map keeps its centres
            assert found == [6, 6, 6, 1, 1, 4]
        else:
            assert found == model.anchor_generator.num_anchors == [6, 6, 6, 6, 6, 4]
    assert anchors_per_cell(Boxes(torch.zeros(1, 4))) == 1
