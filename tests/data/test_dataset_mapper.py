import cv2
import numpy as np
import pytest
import torch
from conftest import bare_config, data_opts
from detectron2.structures import BoxMode

from ssdlite_d2 import InputError, load_config
from ssdlite_d2.data import SSDDatasetMapper, resolve_datasets
from ssdlite_d2.data.dataset_mapper import make_instances

PLAIN = ["INPUT.PHOTOMETRIC.ENABLED", False, "INPUT.EXPAND.PROB", 0.0]
PLAIN += ["INPUT.IOU_CROP.ENABLED", False, "INPUT.RANDOM_FLIP", "none"]


@pytest.fixture
def record(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), image)

    def annotation(x, y, w, h, **keys):
        return {"bbox": [x, y, w, h], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 2, **keys}

    return {
        "file_name": str(tmp_path / "a.png"),
        "image_id": 7,
        "height": 60,
        "width": 80,
        "annotations": [annotation(8, 6, 40, 30), annotation(0, 0, 9, 9, iscrowd=1)],
        "pixels": image[:, :, ::-1],
    }


def test_training_record(record):
    mapped = SSDDatasetMapper(bare_config(3, *PLAIN), True)(record)
    assert mapped["image"].dtype == torch.uint8 and mapped["image"].shape == (3, 320, 320)
    expected = cv2.resize(record["pixels"], (320, 320)).transpose(2, 0, 1)
    assert np.array_equal(mapped["image"].numpy(), expected)
    assert mapped["instances"].gt_boxes.tensor.tolist() == [[32, 32, 192, 192]]
    assert mapped["instances"].gt_classes.tolist() == [2]
    assert mapped["image_id"] == 7 and "annotations" not in mapped
    assert len(record["annotations"]) == 2  # the data set is left as it was


def test_inference_record_is_the_image_as_it_is(record):
    mapped = SSDDatasetMapper(bare_config(), False)(record)
    assert np.array_equal(mapped["image"].numpy(), record["pixels"].transpose(2, 0, 1))
    assert "instances" not in mapped
    assert (mapped["height"], mapped["width"]) == (60, 80)


def test_boxes_reach_the_augmentations(record):
    """With crops on, boxes are cropped with the image: Detectron2's mapper leaves them out."""
    np.random.seed(0)
    mapper = SSDDatasetMapper(bare_config(3, "INPUT.EXPAND.PROB", 0.0), True)
    boxes = [mapper(record)["instances"].gt_boxes.tensor for _ in range(20)]
    assert all(len(b) == 1 for b in boxes)
    assert len({tuple(b[0].tolist()) for b in boxes}) > 5


@pytest.mark.parametrize(
    "box, kept",
    [
        ([10, 10, 20, 20], [10, 10, 20, 20]),
        ([-6, 10, 20, 20], [0, 10, 20, 20]),
        ([-21, 10, 20, 20], None),  # centre outside
        ([90, 90, 110, 112], None),  # centre on the edge or beyond
        ([20, 20, 20, 30], None),  # no width
        ([30, 20, 20, 30], None),  # inverted
        ([float("nan"), 0, 9, 9], None),
        ([-1e9, -1e9, 1e9 + 100, 1e9 + 100], [0, 0, 100, 100]),
    ],
)
def test_which_boxes_stay(box, kept):
    instances = make_instances(np.array([box], dtype=np.float64), np.array([1]), (100, 100))
    assert instances.gt_boxes.tensor.tolist() == ([kept] if kept else [])
    assert instances.gt_classes.tolist() == ([1] if kept else [])


def test_bad_images_are_named(record, tmp_path):
    mapper = SSDDatasetMapper(bare_config(), True)
    with pytest.raises(InputError, match="gone.jpg cannot be read: No such file.*BAD_IMAGE skip"):
        mapper({**record, "file_name": str(tmp_path / "gone.jpg")})
    for name, content in (("text.jpg", b"hello"), ("empty.jpg", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name} cannot be read: cannot identify"):
            mapper({**record, "file_name": str(tmp_path / name)})
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="half.png cannot be read"):
        mapper({**record, "file_name": str(tmp_path / "half.png")})
    with pytest.raises(InputError, match="a.png is 80 x 60, but annotated as 99 x 60"):
        mapper({**record, "width": 99})


def test_error_of_a_loader_worker_is_one_line(bccd_copy):
    from ssdlite_d2.engine import SSDTrainer

    cfg = load_config("ssdlite_mnv2.yaml", data_opts())
    resolve_datasets(cfg)
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.DATALOADER.NUM_WORKERS = 1
    loader = SSDTrainer.build_train_loader(cfg)
    for path in (bccd_copy / "JPEGImages").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError) as error:
        next(iter(loader))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"image {bccd_copy}")
