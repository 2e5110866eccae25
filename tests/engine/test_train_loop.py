"""One training iteration."""

import copy
import itertools
import json

import pytest
import torch
from conftest import CLASSES, bare_config, data_opts, load_bare, make_input, voc_entry
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.utils.events import EventStorage

from ssdlite_d2 import InputError
from ssdlite_d2.data import resolve_datasets
from ssdlite_d2.engine import SSDTrainer
from ssdlite_d2.engine.guards import NonFiniteGuard, WorkerDied
from ssdlite_d2.engine.solver import build_optimizer
from ssdlite_d2.engine.train_loop import TrainLoop


class Loader:
    """Batches of 16 small images, of which some have no box."""

    class dataset:
        seed = 0

    def __iter__(self):
        for batch in itertools.count():
            yield [
                make_input([[4, 4, 40, 50]] * (i % 3), [1] * (i % 3), (64, 64), 16 * batch + i)
                for i in range(16)
            ]


def trained(folder, *, accumulate=1, amp_dtype=None, steps=3, opts=(), skips=0):
    cfg = bare_config(
        3, "INPUT.SIZE", "(64, 64)", "MODEL.SSD.NORM", "FrozenBN", "SOLVER.BASE_LR", 0.01, *opts
    )
    torch.manual_seed(0)
    model = build_model(cfg)
    loop = TrainLoop(
        model,
        Loader(),
        build_optimizer(cfg, model),
        guard=NonFiniteGuard(str(folder), skips),
        accumulate=accumulate,
        amp_dtype=amp_dtype,
    )
    losses = []
    with EventStorage() as storage:
        for loop.iter in range(steps):
            loop.run_step()
            if "total_loss" in storage.latest():  # the batch was not left out
                losses.append(storage.latest()["total_loss"][0])
    return model, losses


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("parts", [4, 5])
def test_accumulated_parts_equal_the_whole_batch(whole, tmp_path, parts):
    """16 images at once, as 4 x 4, and in parts of unequal size."""
    model, losses = trained(tmp_path, accumulate=parts)
    assert losses == pytest.approx(whole[1], rel=1e-5)
    for (name, a), b in zip(whole[0].named_parameters(), model.parameters()):
        assert (a - b).abs().max() <= 1e-5 * a.abs().max().clamp(min=1e-3), name


RETINANET = [
    *("MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.RETINANET.NUM_CLASSES", 3),
    *("MODEL.RETINANET.IN_FEATURES", ["extra1", "extra2"], "SOLVER.MAX_ITER", 2),
    *("MODEL.ANCHOR_GENERATOR.NAME", "DefaultAnchorGenerator", "MODEL.RETINANET.NUM_CONVS", 1),
    *("MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32]]),
    *("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[0.5, 1, 2]], "INPUT.SIZE", (64, 64)),
]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_another_meta_architecture_trains(bccd, clean_catalog, tmp_path, accumulate):
    opts = data_opts(voc_entry("other", CLASSES=CLASSES))
    opts += ["SOLVER.IMS_PER_BATCH", 4, "SOLVER.REFERENCE_WORLD_SIZE", 0]
    opts += ["SOLVER.ACCUMULATE_STEPS", accumulate, "TEST.EVAL_PERIOD", 0, "DATASETS.TEST", ()]
    opts += ["OUTPUT_DIR", str(tmp_path), "DATALOADER.NUM_WORKERS", 0]
    cfg = load_bare("ssdlite_mnv2.yaml", *opts, *RETINANET)
    resolve_datasets(cfg)
    trainer = SSDTrainer(cfg)
    assert isinstance(trainer.model, RetinaNet)
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.resume_or_load(resume=False)
    trainer.train()
    moved = [k for k, v in trainer.model.named_parameters() if not torch.equal(v, before[k])]
    assert "backbone.features.0.0.weight" in moved and "head.bbox_pred.weight" in moved
    assert (tmp_path / "model_final.pth").is_file()


def test_losses_of_others_are_means_over_images(tmp_path):
    """16 images as 6, 6 and 4 of which each counts as much, whatever it is divided by inside."""
    cfg = bare_config(3, "MODEL.SSD.NORM", "FrozenBN", *RETINANET)
    model = build_model(cfg).train()
    other, batch = copy.deepcopy(model), next(iter(Loader()))
    guard = NonFiniteGuard(str(tmp_path))
    loop = TrainLoop(model, Loader(), build_optimizer(cfg, model), guard=guard, accumulate=3)
    with EventStorage() as storage:
        loop.iter = 0
        loop.run_step()
        total = 0.0
        for part in (batch[:6], batch[6:12], batch[12:]):
            loss = sum(other(part).values()) * len(part) / 16
            loss.backward()
            total += loss.item()
        assert storage.latest()["total_loss"][0] == pytest.approx(total)
    for (name, a), b in zip(model.named_parameters(), other.parameters()):
        if b.grad is not None:
            assert torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-6), name


def test_bfloat16_on_the_cpu_follows_float32(whole, tmp_path):
    model, losses = trained(tmp_path, amp_dtype=torch.bfloat16)
    assert losses == pytest.approx(whole[1], rel=0.03)
    assert losses != whole[1]
    assert next(model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset"), EOFError()])
def test_worker_that_dies_amid_handing_a_batch_over_is_named(tmp_path, monkeypatch, error):
    def broken(self):
        raise error
        yield

    monkeypatch.setattr(Loader, "__iter__", broken)
    with pytest.raises(WorkerDied, match="DataLoader worker has ended .*DATALOADER.NUM_WORKERS"):
        trained(tmp_path, steps=1)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_gradient_that_is_not_finite_is_treated_as_such_a_loss(tmp_path, monkeypatch, number):
    backward = TrainLoop._backward

    def spoilt(self, loss):
        backward(self, loss)
        if self.iter == 0:
            self._parameters[-1].grad.view(-1)[0] = number

    monkeypatch.setattr(TrainLoop, "_backward", spoilt)
    with pytest.raises(InputError, match="the gradient is not finite at iteration 0 .loss_cls"):
        trained(tmp_path, steps=1)
    rows = (tmp_path / "nonfinite_losses.jsonl").read_text().splitlines()
    assert len(rows) == 1 and json.loads(rows[0])["iteration"] == 0
    model, losses = trained(tmp_path, steps=2, skips=1)
    assert len(losses) == 1
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_one_image_with_batch_norm_is_named(tmp_path):
    with pytest.raises(InputError, match="batch norm gets 1 image.*SOLVER.IMS_PER_BATCH"):
        trained(tmp_path, accumulate=16, steps=1, opts=("MODEL.SSD.NORM", "BN"))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mixed_precision_on_cuda_follows_float32(tmp_path, dtype):
    opts = ("MODEL.DEVICE", "cuda")
    losses = trained(tmp_path, opts=opts)[1]
    assert trained(tmp_path, amp_dtype=dtype, opts=opts)[1] == pytest.approx(losses, rel=0.03)
