import pytest
import yaml
from conftest import ROOT
from detectron2.config import get_cfg

from ssdlite_d2 import InputError, add_ssd_config, get_config_file, load_config

CONFIGS = sorted(str(p.relative_to(ROOT / "configs")) for p in (ROOT / "configs").rglob("*.yaml"))


def test_stock_detectron2_reads_the_configs():
    cfg = get_cfg()
    add_ssd_config(cfg)
    cfg.merge_from_file(get_config_file("ssdlite_mnv2.yaml"))
    assert cfg.MODEL.META_ARCHITECTURE == "SSDLite"


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_survives_saving(name, tmp_path):
    cfg = load_config(name)
    (tmp_path / "saved.yaml").write_text(cfg.dump())
    again = load_config(str(tmp_path / "saved.yaml"))
    assert yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump())


def test_reference_recipe():
    solver = load_config("ssdlite_mnv2.yaml").SOLVER
    assert (solver.IMS_PER_BATCH, solver.REFERENCE_WORLD_SIZE) == (256, 8)
    assert (solver.BASE_LR, solver.MAX_ITER) == (0.08, 200_000)
    assert (solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM) == (4e-5, 4e-5)
    assert solver.LR_SCHEDULER_NAME == "WarmupCosineLR"


def test_names_are_found_in_the_package():
    assert load_config("configs/ssdlite_mnv2.yaml") == load_config("ssdlite_mnv2.yaml")
    with pytest.raises(InputError, match="no config 'x.yaml'; the package has .*ssdlite_mnv2.yaml"):
        get_config_file("x.yaml")


def test_overrides_come_last():
    assert load_config("ssdlite_mnv2.yaml", ["SOLVER.MAX_ITER", 3]).SOLVER.MAX_ITER == 3
    with pytest.raises(InputError, match="the command line: .*MODEL.SSD.X"):
        load_config("ssdlite_mnv2.yaml", ["MODEL.SSD.X", 3])
    with pytest.raises(InputError, match="the command line: .*SOLVER.MAX_ITER"):
        load_config("ssdlite_mnv2.yaml", ["SOLVER.MAX_ITER", "many"])
