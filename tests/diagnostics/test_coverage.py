import numpy as np
import pytest
from conftest import CLASSES, bare_config, data_opts, voc_entry

from ssdlite_d2.data.build import build_train_mapper, load_train_records
from ssdlite_d2.diagnostics.coverage import (
    PASSES,
    anchor_coverage,
    anchors_of,
    training_boxes,
)
from ssdlite_d2.engine import finish_config


def test_coverage_is_the_best_iou_of_each_box():
    anchors = np.array([[0, 0, 10, 10], [20, 20, 40, 40]])
    boxes = np.array([[0, 0, 10, 20], [20, 20, 40, 40], [5, 0, 15, 10], [100, 100, 110, 110]])
    assert anchor_coverage(anchors, boxes) == pytest.approx([0.5, 1, 1 / 3, 0])


def test_no_anchors_cover_nothing_and_no_boxes_have_no_coverage():
    boxes = np.array([[0, 0, 10, 10]])
    assert anchor_coverage(np.zeros((0, 4)), boxes) == [0]
    assert anchor_coverage(boxes, np.zeros((0, 4))).shape == (0,)


def test_coverage_in_chunks_equals_one_box_at_a_time():
    corners = np.random.default_rng(0).uniform(0, 200, (2100, 2))
    boxes = np.concatenate((corners, corners + 50), axis=1)
    anchors = boxes[::7] + 3
    every_100th = [anchor_coverage(anchors, box[None])[0] for box in boxes[::100]]
    assert anchor_coverage(anchors, boxes)[::100] == pytest.approx(every_100th)


def test_anchors_of_a_config_have_its_sizes_on_its_maps():
    anchors = anchors_of(bare_config())
    assert anchors.shape == (3232, 4)  # 6 on maps of 20, 10, 5, 3 and 2 cells a side, 4 on the last
    assert anchors[0] == pytest.approx([8 - 22.5, 8 - 22.5, 8 + 22.5, 8 + 22.5])


def bccd_config(*opts):
    cfg = bare_config(3, *data_opts(voc_entry(CLASSES=CLASSES)), *opts)
    finish_config(cfg)
    return cfg


PLAIN = ["INPUT.EXPAND.PROB", 0.0, "INPUT.IOU_CROP.ENABLED", False, "INPUT.FLIP_PROB", 0.0]


def test_training_boxes_are_in_pixels_of_the_network_input(bccd):
    half, whole = (
        training_boxes(bccd_config(*PLAIN, "INPUT.SIZE", size), least=1)
        for size in ((240, 320), (480, 640))
    )
    assert len(half.boxes) == len(half.classes) > 3 and set(half.classes) <= {0, 1, 2}
    assert half.boxes == pytest.approx(whole.boxes / 2)  # the images are 640 wide and 480 high
    assert whole.boxes == pytest.approx(whole.boxes.round())
    every = training_boxes(bccd_config(*PLAIN))
    assert len(every.boxes) == PASSES * len(np.unique(every.boxes, axis=0))


@pytest.mark.parametrize("keys", [["INPUT.FAST", False], ["INPUT.MOSAIC.PROB", 1.0], []])
def test_training_boxes_are_those_of_the_mapper(bccd, keys):
    cfg = bccd_config(*keys)
    found = training_boxes(cfg, least=60, seed=3)
    records = load_train_records(cfg)
    mapper = build_train_mapper(cfg, records)  # which reads the files
    np.random.seed(3)
    first = [mapper(records[i])["instances"] for i in np.random.permutation(len(records))]
    boxes = np.concatenate([truth.gt_boxes.tensor.numpy() for truth in first])[: len(found.boxes)]
    assert len(boxes) > 20 and boxes == pytest.approx(found.boxes[: len(boxes)])
    before = np.random.get_state()[1].tolist()
    training_boxes(cfg, least=1)
    assert np.random.get_state()[1].tolist() == before
