"""Values out of range are named before anything is built."""

import numpy as np
import pytest
from conftest import bare_config
from test_config import CONFIGS

from ssdlite_d2 import InputError, load_config
from ssdlite_d2.engine import build_predictor, finish_config
from ssdlite_d2.engine.config_checks import (
    CHECKS,
    NAMES,
    check_batch,
    check_config,
    holds,
    value_of,
)

BAD = {
    "MODEL.DEVICE": ["gpu", "cuda:x", ""],
    "MODEL.PIXEL_STD": [[1.0, 0.0, 1.0], [1.0]],
    "MODEL.SSD.ASSIGNER.IOU_THRESHOLD": [-0.1, 1.5],
    "MODEL.SSD.CRITERION.FOCAL_GAMMA": [-2.0, float("nan")],
    "MODEL.SSD.POSTPROCESS.NMS_THRESH": [-0.5, 1.01],
    "MODEL.SSD.POSTPROCESS.SCORE_THRESH": [2.0, float("inf")],
    "MODEL.SSD.POSTPROCESS.TOPK_CANDIDATES": [0],
    "MODEL.SSD.NORM": ["batch"],
    "MODEL.BACKBONE.NAME": ["build_ssd_mobilenet"],
    "MODEL.ANCHOR_GENERATOR.NAME": ["SSDAnchors"],
    "INPUT.SIZE": [[], [320, 320, 3], [320], [0, 320], [-1, 320], [320.5, 320]],
    "INPUT.MULTI_SCALE": [[320, 320], [[320]]],
    "INPUT.EXPAND.RATIO": [[4.0, 1.0], [0.0, 2.0]],
    "INPUT.IOU_CROP.TRIALS": [0],
    "DATALOADER.NUM_WORKERS": [-1],
    "DATALOADER.SAMPLER_TRAIN": ["random"],
    "SOLVER.GAMMA": [-0.1],
    "SOLVER.IMS_PER_BATCH": [0, -4],
    "SOLVER.MAX_ITER": [0],
    "SOLVER.BASE_LR": [0.0, -1.0, float("nan")],
    "SOLVER.LR_SCHEDULER_NAME": ["cosine"],
    "TEST.IMS_PER_BATCH": [0],
}


@pytest.mark.parametrize("key", BAD)
def test_bad_values_are_named(key):
    for value in BAD[key]:
        cfg = bare_config()
        node = value_of(cfg, key.rpartition(".")[0])
        node[key.rpartition(".")[2]] = value
        with pytest.raises(InputError) as error:
            finish_config(cfg)
        assert str(error.value).startswith(f"{key} is {value!r}; it is ")
        assert len(str(error.value)) < 600 and "\n" not in str(error.value)


def test_table_names_keys_of_the_config_and_every_config_passes():
    cfg = bare_config()
    for key in (*CHECKS, *NAMES):
        value_of(cfg, key)
    for name in CONFIGS:
        cfg = load_config(name)
        check_config(cfg)
        check_batch(cfg, 1)


@pytest.mark.parametrize("value", [None, "x", "", [], [None], {}, -1, float("nan")])
def test_values_of_any_type_end_in_a_line(value):
    for key in (*CHECKS, *NAMES):
        cfg = bare_config()
        node = value_of(cfg, key.rpartition(".")[0]) if "." in key else cfg
        node[key.rpartition(".")[2]] = value
        try:
            check_config(cfg)
        except InputError as error:
            assert str(error).startswith((f"{key} is", "SOLVER.BASE_LR_END is above"))
        else:  # then what the table says holds
            assert key in NAMES or holds(CHECKS[key][0], value)


def test_batches_are_shared_among_processes():
    cfg = bare_config(3, "SOLVER.IMS_PER_BATCH", 6, "SOLVER.REFERENCE_WORLD_SIZE", 0)
    check_batch(cfg, 3)
    with pytest.raises(InputError, match="SOLVER.IMS_PER_BATCH is 6; it is a multiple of 4"):
        check_batch(cfg, 4)
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 4
    with pytest.raises(InputError, match="a multiple of 4 .SOLVER.REFERENCE_WORLD_SIZE"):
        check_batch(cfg, 1)


@pytest.fixture(scope="module")
def predictor():
    return build_predictor(bare_config(3, "MODEL.WEIGHTS", ""))


IMAGE = np.zeros((40, 50, 3), np.uint8)


@pytest.mark.parametrize(
    "image, words",
    [
        (IMAGE.astype(np.float64) / 255, "float64 (40, 50, 3)"),
        (np.full((40, 50, 3), np.nan, np.float32), "float32 (40, 50, 3)"),
        (IMAGE.astype(np.uint16), "uint16"),
        (np.zeros((40, 50, 4), np.uint8), "(40, 50, 4)"),
        (IMAGE[..., 0], "(40, 50)"),
        (IMAGE[:0], "(0, 50, 3)"),
        (IMAGE[:, :0], "(40, 0, 3)"),
        ([IMAGE], "a list"),
        (None, "a NoneType"),
    ],
)
def test_images_of_other_kinds_are_named(predictor, image, words):
    for call in (predictor, lambda image: predictor.predict([IMAGE, image])):
        with pytest.raises(InputError) as error:
            call(image)
        assert words in str(error.value) and "\n" not in str(error.value)
    assert len(predictor.predict([IMAGE, IMAGE[:, ::-1]])) == 2
