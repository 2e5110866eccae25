"""The training loader: what it leaves out, caches, skips, and how batches travel."""

import collections
import itertools
import pickle
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from conftest import data_opts, load_bare, make_model
from detectron2.data import DatasetFromList
from PIL import Image

from ssdlite_d2 import InputError
from ssdlite_d2.data import SSDDatasetMapper, build_train_loader, resolve_datasets
from ssdlite_d2.data.build import build_collator, build_train_mapper, load_train_records
from ssdlite_d2.data.cache import ImageCache
from ssdlite_d2.data.reader import read_image
from ssdlite_d2.data.skipped import report_skipped

DRAWN = ["INPUT.SIZE", (128, 128), "SOLVER.IMS_PER_BATCH", 4, "SOLVER.REFERENCE_WORLD_SIZE", 0]


def config(*opts, workers=0):
    cfg = load_bare("ssdlite_mnv2.yaml", *data_opts(), *DRAWN, "DATALOADER.NUM_WORKERS", workers)
    cfg.merge_from_list(list(opts))
    resolve_datasets(cfg)
    return cfg


def first(cfg, batches=1):
    stream = iter(build_train_loader(cfg))
    return [next(stream) for _ in range(batches)]


def same(a, b):
    assert a.keys() == b.keys()
    assert torch.equal(a["image"], b["image"])
    assert a["instances"].image_size == b["instances"].image_size
    assert torch.equal(a["instances"].gt_boxes.tensor, b["instances"].gt_boxes.tensor)
    assert torch.equal(a["instances"].gt_classes, b["instances"].gt_classes)
    rest = a.keys() - {"image", "instances"}
    assert {k: a[k] for k in rest} == {k: b[k] for k in rest}
    return True


def test_a_batch_that_crossed_processes_is_the_same(bccd):
    [batch] = first(config())
    travelled = pickle.loads(ForkingPickler.dumps(batch))
    assert type(travelled) is list and len(travelled) == 4
    assert all(same(a, b) for a, b in zip(batch, travelled))
    floats = [{**s, "image": s["image"].float() + 0.5} for s in batch]
    back = pickle.loads(ForkingPickler.dumps(build_collator(config())(floats)))
    assert all(same(a, b) for a, b in zip(floats, back))
    batch[0]["instances"].extra = torch.zeros(len(batch[0]["instances"]))  # fields of others
    assert "extra" in pickle.loads(ForkingPickler.dumps(batch))[0]["instances"].get_fields()


def test_workers_deliver_whole_batches(bccd):
    for batch in first(config(workers=2), batches=3):
        assert [s["image"].shape for s in batch] == [(3, 128, 128)] * 4
        assert all(len(s["instances"]) for s in batch)


def test_multi_scale_draws_one_size_per_batch(bccd):
    sizes = [[96, 128], [128, 96], [160, 160]]
    cfg = config("INPUT.MULTI_SCALE", sizes, "MODEL.ANCHOR_GENERATOR.STRIDES", [])
    np.random.seed(0)
    seen = set()
    for batch in first(cfg, batches=12):
        [size] = {s["instances"].image_size for s in batch}
        assert all(s["image"].shape[1:] == size for s in batch)
        assert all((s["instances"].gt_boxes.tensor[:, 2] <= size[1]).all() for s in batch)
        seen.add(size)
    assert seen == set(map(tuple, sizes))
    model = make_model(3, "INPUT.MULTI_SCALE", sizes, "MODEL.ANCHOR_GENERATOR.STRIDES", [])
    assert model.train().preprocess_image(batch).tensor.shape[2:] == batch[0]["image"].shape[1:]
    assert model.eval().preprocess_image(batch).tensor.shape[2:] == (320, 320)
    with pytest.raises(InputError, match="INPUT.MULTI_SCALE needs .*STRIDES"):
        make_model(3, "INPUT.MULTI_SCALE", sizes)


def test_mosaic_is_made_of_four_images_with_their_boxes(bccd):
    plain = ["INPUT.EXPAND.PROB", 0.0, "INPUT.IOU_CROP.ENABLED", False, "INPUT.RANDOM_FLIP", "none"]
    cfg = config("INPUT.MOSAIC.PROB", 1.0, "INPUT.PHOTOMETRIC.ENABLED", False, *plain)
    records = load_train_records(cfg)
    np.random.seed(0)
    mapper = build_train_mapper(cfg, records)
    for _ in range(5):
        boxes = mapper(records[0])["instances"].gt_boxes.tensor
        assert len(records[0]["annotations"]) < len(boxes) <= 4 * 20
        assert (boxes >= 0).all() and (boxes <= 128).all()
    without = SSDDatasetMapper(cfg, True)  # no data set to take images from: no mosaic
    assert len(without(records[0])["instances"]) == len(records[0]["annotations"])


def test_cache_gives_what_the_files_have_and_reads_each_once(bccd, monkeypatch):
    records = load_train_records(config())
    cache = ImageCache(records)
    for reduction in (1, 2, 8):
        for record in records:
            path = record["file_name"]
            difference = cache(path, "RGB", reduction).astype(int) - read_image(
                path, "RGB", reduction
            )
            assert np.abs(difference).mean() < 1 if reduction > 1 else not difference.any()
    monkeypatch.setattr("ssdlite_d2.data.cache.read_image", None)
    assert cache(records[0]["file_name"]).shape == (480, 640, 3)  # no file is read again


def test_cached_loader_gives_the_same_batches(bccd):
    batches = []
    for kind in ("none", "ram"):
        np.random.seed(0)
        torch.manual_seed(0)
        cfg = config("DATALOADER.CACHE", kind, "INPUT.EXPAND.PROB", 0.0, "INPUT.SIZE", (300, 300))
        mapper = build_train_mapper(cfg, load_train_records(cfg))
        batches.append([mapper(r) for r in load_train_records(cfg)])
    assert all(same(a, b) for a, b in zip(*batches))


def test_cache_that_does_not_fit_says_how_much_it_needs(bccd, monkeypatch):
    monkeypatch.setattr("ssdlite_d2.data.cache._free_memory", lambda: 3e6)
    with pytest.raises(InputError, match=r"CACHE ram needs 0.0 GB for 4 images.*CACHE none"):
        build_train_loader(config("DATALOADER.CACHE", "ram"))


def test_bad_images_are_skipped_and_listed(bccd_copy, tmp_path):
    folder = bccd_copy / "JPEGImages"
    (folder / "BloodImage_00000.jpg").write_bytes(b"no image")
    Image.new("RGB", (50, 50)).save(folder / "BloodImage_00007.jpg")
    (tmp_path / "out").mkdir()
    opts = ["INPUT.ON_BAD_IMAGE", "skip", "OUTPUT_DIR", str(tmp_path / "out")]
    cfg = config(*opts, workers=2)
    (tmp_path / "out" / "skipped_images.txt").write_text("of an earlier run\n")
    loader = build_train_loader(cfg)
    stream = iter(loader)
    names = {s["file_name"][-9:] for _ in range(6) for s in next(stream)}
    assert names == {"00338.jpg", "00343.jpg"}
    reasons = report_skipped(str(tmp_path / "out"))
    assert len(reasons) == 2
    assert "00000.jpg cannot be read" in reasons[0]
    assert "00007.jpg is 50 x 50, but annotated as 640 x 480" in reasons[1]
    with pytest.raises(InputError, match="BloodImage_0000[07].jpg"):
        first(config(), batches=3)


def test_resumed_runs_draw_the_same_substitutes(bccd_copy, tmp_path):
    (bccd_copy / "JPEGImages" / "BloodImage_00343.jpg").write_bytes(b"no image")
    cfg = config("INPUT.ON_BAD_IMAGE", "skip", "OUTPUT_DIR", str(tmp_path), "SEED", 4)

    def batches(position, count):
        loader = build_train_loader(cfg)
        loader.dataset.position = position
        return [sample for batch in itertools.islice(loader, count) for sample in batch]

    whole = batches(0, 10)
    later = batches(4 * cfg.SOLVER.IMS_PER_BATCH, 6)
    assert len(later) == 6 * cfg.SOLVER.IMS_PER_BATCH
    assert all(same(a, b) for a, b in zip(whole[-len(later) :], later))
    names = collections.Counter(sample["file_name"][-9:] for sample in whole)
    assert set(names) == {"00000.jpg", "00007.jpg", "00338.jpg"}


def test_nothing_but_bad_images_is_an_error(bccd_copy, tmp_path):
    for image in (bccd_copy / "JPEGImages").iterdir():
        image.write_bytes(b"no image")
    cfg = config("INPUT.ON_BAD_IMAGE", "skip", "OUTPUT_DIR", str(tmp_path))
    with pytest.raises(InputError, match="100 images in a row are bad"):
        first(cfg)


def test_images_without_a_box_to_train_on_are_left_out(bccd_copy):
    xml = bccd_copy / "Annotations" / "BloodImage_00000.xml"
    xml.write_text(xml.read_text().replace("<difficult>0<", "<difficult>1<"))
    assert len(load_train_records(config())) == 3
    assert len(load_train_records(config("DATASETS.DIFFICULT", "keep"))) == 4
    assert len(load_train_records(config("DATALOADER.FILTER_EMPTY_ANNOTATIONS", False))) == 4


def test_no_annotation_at_all_is_one_line(bccd_copy):
    for xml in (bccd_copy / "Annotations").iterdir():
        xml.write_text("<annotation></annotation>")
    with pytest.raises(InputError, match="DATASETS.TRAIN, tiny: none of 4 images has a box"):
        build_train_loader(config())
    (bccd_copy / "ImageSets" / "Main" / "all.txt").write_text("")
    with pytest.raises(InputError, match="DATASETS.TRAIN, tiny: Dataset 'tiny' is empty"):
        build_train_loader(config())


@pytest.mark.parametrize(
    "key, value",
    [
        ("DATALOADER.CACHE", "disk"),
        ("INPUT.ON_BAD_IMAGE", "ignore"),
        ("DATASETS.CROWD", "maybe"),
        ("DATASETS.DIFFICULT", "maybe"),
    ],
)
def test_unknown_choices_are_named(bccd, key, value):
    with pytest.raises(InputError, match=f"{key} is '{value}'; it is one of"):
        build_train_loader(config(key, value))


def test_loader_holds_the_data_set_once_and_serialised(bccd):
    """Its memory grows as Detectron2's serialised list does."""
    loader = build_train_loader(config())
    mapped = loader.dataset.dataset
    assert isinstance(mapped._dataset, DatasetFromList)
    mapper = mapped._map_func._obj
    assert mapper.records is mapped._dataset
    assert len(pickle.dumps({**vars(mapper), "records": None})) < 10_000


@pytest.mark.parametrize(
    "treatment, classes", [("keep", [0, 1]), ("drop", [0]), ("ignore", [0, -1])]
)
@pytest.mark.parametrize("key, flag", [("CROWD", "iscrowd"), ("DIFFICULT", "difficult")])
def test_crowds_and_difficult_objects(bccd, treatment, classes, key, flag):
    cfg = config(f"DATASETS.{key}", treatment, "INPUT.IOU_CROP.ENABLED", False)
    record = load_train_records(cfg)[0]
    record["annotations"] = [
        {"bbox": [9, 9, 99, 99], "bbox_mode": 0, "category_id": 0},
        {"bbox": [99, 99, 299, 299], "bbox_mode": 0, "category_id": 1, flag: 1, "iscrowd": 1},
    ]
    truth = SSDDatasetMapper(cfg, True)(record)["instances"]
    assert truth.gt_classes.tolist() == classes


def test_collator_of_the_default_config_is_a_plain_list(bccd):
    assert build_collator(config())([1, 2]) == [1, 2]


def test_voc_configs_leave_difficult_objects_out():
    cfg = load_bare("ssdlite_mnv2_voc.yaml")
    assert cfg.DATASETS.DIFFICULT == "drop"
    assert [e["FORMAT"] for e in cfg.DATASETS.REGISTER] == ["voc", "voc"]
    assert {e["NAME"] for e in cfg.DATASETS.REGISTER} == set(cfg.DATASETS.TRAIN)
