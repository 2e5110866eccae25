import pytest
import yaml
from conftest import ROOT
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY

from ssdlite_d2 import InputError, add_ssd_config, get_config_file, load_config
from ssdlite_d2.config import num_classes_of
from ssdlite_d2.engine import finish_config

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


@pytest.mark.parametrize("name", [name for name in CONFIGS if "Base" not in name])
def test_every_config_tells_its_classes_without_data(name):
    assert num_classes_of(load_config(name)) in (1, 3, 20, 80)


def test_reference_recipe():
    solver = load_config("ssdlite_mnv2.yaml").SOLVER
    assert (solver.IMS_PER_BATCH, solver.REFERENCE_WORLD_SIZE) == (256, 8)
    assert (solver.BASE_LR, solver.MAX_ITER) == (0.08, 200_000)
    assert (solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM) == (4e-5, 4e-5)
    assert solver.LR_SCHEDULER_NAME == "WarmupCosineLR"


def test_names_are_found_in_the_package():
    assert load_config("configs/ssdlite_mnv2.yaml") == load_config("ssdlite_mnv2.yaml")
    with pytest.raises(InputError, match="no config 'mnv2.yaml'; of .*nearest are .*ssdlite_mnv2"):
        get_config_file("mnv2.yaml")


def test_of_two_units_the_one_set_last_holds(tmp_path):
    solver = load_config("Base-Own.yaml").SOLVER
    assert solver.EPOCHS > 0
    cfg = load_config("Base-Own.yaml", ["SOLVER.MAX_ITER", 40, "TEST.EVAL_PERIOD", 20])
    assert (cfg.SOLVER.EPOCHS, cfg.TEST.EVALUATIONS, cfg.TEST.EVAL_PERIOD) == (0.0, 0, 20)
    (tmp_path / "mine.yaml").write_text("_BASE_: Base-Own.yaml\nSOLVER: {MAX_ITER: 40}\n")
    cfg = load_config(str(tmp_path / "mine.yaml"), ["TEST.EVALUATIONS", 4])
    assert (cfg.SOLVER.EPOCHS, cfg.TEST.EVALUATIONS) == (0.0, 4)
    epochs = load_config(str(tmp_path / "mine.yaml"), ["SOLVER.EPOCHS", "2"]).SOLVER.EPOCHS
    assert epochs == 2 and isinstance(epochs, float)  # whole numbers are numbers


def test_overrides_come_last():
    assert load_config("ssdlite_mnv2.yaml", ["SOLVER.MAX_ITER", 3]).SOLVER.MAX_ITER == 3
    with pytest.raises(InputError, match="the command line: .*MODEL.SSD.X"):
        load_config("ssdlite_mnv2.yaml", ["MODEL.SSD.X", 3])
    with pytest.raises(InputError, match="the command line: .*SOLVER.MAX_ITER"):
        load_config("ssdlite_mnv2.yaml", ["SOLVER.MAX_ITER", "many"])


RUNS_CODE = "MODEL:\n  WEIGHTS: !!python/object/apply:os.mkdir ['{}']\n"


def test_configs_run_no_code(tmp_path):
    (tmp_path / "evil.yaml").write_text(RUNS_CODE.format(tmp_path / "made"))
    (tmp_path / "mine.yaml").write_text("_BASE_: evil.yaml\n")
    for name in ("evil.yaml", "mine.yaml"):
        with pytest.raises(InputError, match=r"evil.yaml, line 2: the tag !!python/.* is refused"):
            load_config(str(tmp_path / name))
    assert not (tmp_path / "made").exists()


def test_base_is_found_beside_the_config_and_in_the_package(tmp_path):
    (tmp_path / "mine.yaml").write_text("_BASE_: ssdlite_mnv2.yaml\nSEED: 7\n")
    (tmp_path / "leaf.yaml").write_text("_BASE_: [mine.yaml, configs/Base-VOC.yaml]\n")
    expected = load_config("ssdlite_mnv2.yaml", ["SEED", 7])
    assert load_config(str(tmp_path / "mine.yaml")) == expected
    assert load_config(str(tmp_path / "leaf.yaml")).SEED == 7


@pytest.mark.parametrize(
    "text, words",
    [
        ("_BASE_: ssdlite_mnv22.yaml", "_BASE_ ssdlite_mnv22.yaml is not found.*ssdlite_mnv2.yaml"),
        ("_BASE_: mine.yaml", "_BASE_ leads back to this file"),
        ("MODEL:\n\tWEIGHTS: a", "line 2: a tab: indent with spaces"),
        ("SEED: 1\nMODEL: [1, {", "line 2: expected the node content"),
        ("MODEL: {SSDD: {}}", "there is no key MODEL.SSDD; did you mean MODEL.SSD"),
        ("MODEL: {SSD: 3}", "MODEL.SSD is 3; it has keys of its own"),
        ("MODEL: {WEIGHTS: 2026-01-01}", "MODEL is .*WEIGHTS"),
        ("MODEL: {1: 2}", "there is no key MODEL.1"),
        ("words", "has 'words' in place of keys"),
        ("A: " + "[" * 20_000, "is no YAML: maximum recursion depth"),
        ("A: \0", "is no YAML"),
    ],
)
def test_mistakes_in_files_are_named(tmp_path, text, words):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(InputError, match=rf"^{tmp_path}/mine.yaml.*{words}") as error:
        load_config(str(tmp_path / "mine.yaml"))
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    "opts, words",
    [
        (["SOLVER.MAXITER", "3"], "no key SOLVER.MAXITER; did you mean SOLVER.MAX_ITER?"),
        (["solver.max_iter", "3"], "did you mean SOLVER.MAX_ITER?"),
        (["MAX_ITER", "3"], "did you mean SOLVER.MAX_ITER?"),
        (["MODEL.SSD.LOSS", "focal"], "is called MODEL.SSD.CRITERION.NAME now"),
        (["SOLVER.MAX_ITER=3"], "SOLVER.MAX_ITER=3: write SOLVER.MAX_ITER 3"),
        (["SOLVER.MAX_ITER"], "SOLVER.MAX_ITER has no value"),
        (["SEED", "1", "--resume"], "--resume is no key; options come before"),
        (["DATASETS.TRAIN", "mine"], "is 'mine'; it must be a tuple such as ('mine',)"),
        (["DATASETS.TRAIN", "(mine)"], "it must be a tuple such as ('mine',)"),
        (["DATASETS.TRAIN", "{[]: 1}"], "DATASETS.TRAIN is '{[]: 1}'"),
        (["SOLVER.BASE_LR", "fast"], "must be a number such as 0.08"),
        (["SOLVER.BASE_LR", "1" * 999], "int too large to convert to float"),
        (["SOLVER.MAX_ITER", "1.5"], "must be a whole number such as 200000"),
    ],
)
def test_mistakes_in_overrides_are_named(opts, words):
    with pytest.raises(InputError) as error:
        load_config("ssdlite_mnv2.yaml", opts)
    assert str(error.value).startswith("the command line: ") and words in str(error.value)


def test_a_config_without_base_is_told_so(tmp_path):
    (tmp_path / "mine.yaml").write_text("MODEL: {DEVICE: cpu}\n")
    cfg = load_config(str(tmp_path / "mine.yaml"))
    with pytest.raises(InputError, match="GeneralizedRCNN.*_BASE_: ssdlite_mnv2.yaml"):
        finish_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "SDD"
    with pytest.raises(InputError, match="META_ARCHITECTURE is 'SDD'; it is one of .*SSDLite"):
        finish_config(cfg)


def test_an_architecture_that_the_user_registers_is_taken():
    @META_ARCH_REGISTRY.register()
    class OnesOwn:
        pass

    cfg = load_config("ssdlite_mnv2.yaml", ["MODEL.META_ARCHITECTURE", "OnesOwn"])
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()
    cfg.MODEL.SSD.NUM_CLASSES = 2
    finish_config(cfg)
    assert cfg.MODEL.META_ARCHITECTURE == "OnesOwn"
