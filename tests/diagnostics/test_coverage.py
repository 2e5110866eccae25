import numpy as np
import pytest
from conftest import CLASSES, bare_config, data_opts, voc_entry

from ssdlite_d2.diagnostics.coverage import (
    TrainingBoxes,
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


def test_training_boxes_are_in_pixels_of_the_network_input(bccd):
    entry = voc_entry(CLASSES=CLASSES)
    cfg = bare_config(3, *data_opts(entry), "INPUT.SIZE", (240, 320))
    finish_config(cfg)
    boxes, classes = training_boxes(cfg)
    whole = training_boxes(bare_config(3, *data_opts(entry), "INPUT.SIZE", (480, 640)))
    assert len(boxes) == len(classes) > 40 and set(classes) == {0, 1, 2}
    assert boxes == pytest.approx(whole.boxes / 2)  # the images are 640 wide and 480 high
    assert whole.boxes == pytest.approx(whole.boxes.round())
    assert (boxes[:, 2:] > boxes[:, :2]).all() and boxes.max() <= 320


def test_a_sample_keeps_boxes_and_their_classes_together():
    data = TrainingBoxes(np.repeat(np.arange(50.0)[:, None], 4, axis=1), np.arange(50))
    few, all_of_them = data.sample(20), data.sample(100)
    assert (few.boxes[:, 0] == few.classes).all() and len(set(few.classes)) == 20
    assert sorted(all_of_them.classes) == list(range(50))
