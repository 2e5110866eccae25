"""What happens between iterations."""

import json
import os
from types import SimpleNamespace

import pytest
import torch
from conftest import make_input, make_model
from detectron2.utils.events import EventStorage

from ssdlite_d2.checkpoint import SSDCheckpointer
from ssdlite_d2.engine.hooks import (
    BestCheckpointer,
    EarlyStop,
    PatienceHook,
    PeriodicCheckpointer,
    PreciseBN,
)
from ssdlite_d2.engine.visuals import plot_training, read_metrics


@pytest.fixture(scope="module")
def model():
    return make_model(3)


def best_after(folder, model, values, start=0):
    """Iteration of model_best.pth after a run whose evaluations give these values."""
    hook = BestCheckpointer(1, SSDCheckpointer(model, str(folder)), {"bbox/AP": model})
    with EventStorage(start) as storage:
        hook.trainer = SimpleNamespace(start_iter=start, max_iter=100, storage=storage)
        hook.before_train()
        for hook.trainer.iter, value in enumerate(values, start):
            storage.iter = hook.trainer.iter
            storage.put_scalar("bbox/AP", value)
            hook.after_step()
    return torch.load(folder / "model_best.pth")["iteration"]


def test_best_checkpoint_is_remembered_by_a_resumed_run(model, tmp_path):
    assert best_after(tmp_path, model, [1.0, 3.0, float("nan"), 2.0]) == 1
    assert best_after(tmp_path, model, [2.5, 2.9], start=4) == 1
    assert best_after(tmp_path, model, [2.5, 3.1], start=6) == 7
    assert best_after(tmp_path, model, [0.5]) == 0  # a new run in the same folder


def test_best_checkpoint_tells_its_metric(model, tmp_path):
    best_after(tmp_path, model, [1.5])
    saved = torch.load(tmp_path / "model_best.pth")
    assert saved["best"] == {"metric": "bbox/AP", "value": 1.5}
    assert "trainer" not in saved


def test_best_of_weights_and_average_is_kept_with_its_threshold(model, tmp_path):
    average = make_model(3, seed=1)
    models = {"bbox/AP": model, "bbox_EMA/AP": average}
    hook = BestCheckpointer(2, SSDCheckpointer(model, str(tmp_path)), models)
    rows = [(20.0, 10.0), (21.0, 23.0), (22.0, 22.9), (float("nan"), 24.0)]
    kept = []
    with EventStorage(0) as storage:
        hook.trainer = SimpleNamespace(start_iter=0, max_iter=100, storage=storage)
        for storage.iter, (raw, averaged) in zip((1, 3, 5, 7), rows):
            hook.trainer.iter = storage.iter
            for task, ap, threshold in (("", raw, 0.1), ("_EMA", averaged, 0.2)):
                point = {"threshold": threshold + storage.iter / 100, "F1": ap}
                values = {f"operating{task}/{key}": value for key, value in point.items()}
                storage.put_scalars(**{f"bbox{task}/AP": ap}, **values)
            hook.after_step()
            kept.append(torch.load(tmp_path / "model_best.pth"))
    assert [saved["iteration"] for saved in kept] == [1, 3, 3, 7]
    assert [saved["operating"]["threshold"] for saved in kept] == pytest.approx(
        [0.11, 0.23, 0.23, 0.27]
    )
    for saved, owner in zip(kept, (model, average, average, average)):
        name, value = next(iter(owner.state_dict().items()))
        assert torch.equal(saved["model"][name], value)
    told = json.loads((tmp_path / "best.json").read_text())
    assert told["metric"] == "bbox_EMA/AP" and told["value"] == told["operating"]["F1"] == 24.0
    assert told["weights"] == "the average of the weights"


@pytest.mark.parametrize(
    "values, end", [([1, 2, 3, 4], None), ([3, 2, 4, 1, 4, 9], 9), ([5] * 4, 5)]
)
def test_patience_counts_evaluations_since_the_best(model, tmp_path, values, end):
    best = BestCheckpointer(2, SSDCheckpointer(model, str(tmp_path)), {"bbox/AP": model})
    saved = []
    patience = PatienceHook(2, 2, best, saved.append)
    with EventStorage(0) as storage:
        trainer = SimpleNamespace(start_iter=0, max_iter=12, storage=storage)
        best.trainer = patience.trainer = trainer
        try:
            for trainer.iter in range(12):
                storage.iter = trainer.iter
                if trainer.iter // 2 < len(values):
                    storage.put_scalar("bbox/AP", float(values[trainer.iter // 2]))
                    best.after_step()
                    patience.after_step()
        except EarlyStop:
            assert saved == [trainer.iter] == [end]
        else:
            assert end is None and not saved


@pytest.mark.parametrize("keep, left", [(0, [1, 3, 5, 7]), (2, [5, 7])])
def test_newest_checkpoints_are_kept(model, tmp_path, keep, left):
    saver = SSDCheckpointer(model, str(tmp_path))
    hook = PeriodicCheckpointer(saver, 2, keep, final=model)
    hook.max_iter = 8
    for iteration in range(8):
        hook.step(iteration)
    names = sorted(file.name for file in tmp_path.glob("model_0*.pth"))
    assert names == [f"model_{iteration:07d}.pth" for iteration in left]
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000007.pth"
    assert set(torch.load(tmp_path / "model_final.pth")) == {"model", "iteration"}


def test_only_checkpoints_are_deleted_and_by_their_iteration(model, tmp_path):
    """Whatever the clock says, and whatever else is called model_."""
    for name in ("model_2026_paper.pth", "model_00000001.pth", "model_0000001.pth.bak"):
        (tmp_path / name).touch()
    hook = PeriodicCheckpointer(SSDCheckpointer(model, str(tmp_path)), 1, 2)
    for iteration in (5, 7, 8, 6):
        hook.save_state(iteration)
        written = tmp_path / f"model_{iteration:07d}.pth"
        assert written.is_file()
        os.utime(written, (10**9 - iteration, 10**9 - iteration))  # the clock runs backwards
    names = {file.name for file in tmp_path.glob("model*")}
    assert names - {"model_0000006.pth", "model_0000008.pth"} == {
        "model_2026_paper.pth",
        "model_00000001.pth",
        "model_0000001.pth.bak",
    }
    hook = PeriodicCheckpointer(SSDCheckpointer(model, str(tmp_path)), 1, 5)
    hook.save_state(9)
    assert len(list(tmp_path.glob("model_000000?.pth"))) == 3


def test_metrics_of_a_killed_run_are_read(tmp_path):
    file = tmp_path / "metrics.json"
    file.write_text(
        '{"iteration": 19, "total_loss": 3.0}\n{"iteration": 39, "total_loss": 2.0}\n{"iterat'
        '{"iteration": 39, "total_loss": 9.0}\n'
        '{"iteration": 39, "total_loss": 2.5}\n{"iteration": 39, "bbox/AP": 1.0}\n'
    )
    assert read_metrics(str(file)) == [
        {"iteration": 19, "total_loss": 3.0},
        {"iteration": 39, "total_loss": 2.5, "bbox/AP": 1.0},
    ]


def test_curves_are_drawn_from_any_metrics(tmp_path):
    rows = [{"iteration": 1, "total_loss": 3.0, "lr": 0.1}, {"iteration": 2, "bbox/AP": 4.0}]
    for name, metrics in (("empty", []), ("full", rows)):
        plot_training(metrics, str(tmp_path / f"{name}.png"))
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_precise_statistics_are_the_mean_over_the_same_batches_every_time():
    model = make_model(3).train()
    inputs = [make_input([[20, 20, 90, 90]], [1], seed=i) for i in range(4)]
    batches = [inputs[:2], inputs[2:]]
    convolution, norm, _ = model.backbone.features[0]
    hook = PreciseBN(1, model, IterAgain(batches), 2)
    hook.trainer = SimpleNamespace(storage=None)
    statistics = []
    for _ in range(2):
        norm.running_mean.fill_(7.0)  # as if trained on
        with EventStorage():
            hook.update_stats()
        statistics.append((norm.running_mean.clone(), norm.running_var.clone()))
    assert all(torch.equal(a, b) for a, b in zip(*statistics))
    with torch.no_grad():
        seen = [convolution(model.preprocess_image(batch).tensor) for batch in batches]
    means = torch.stack([x.mean(dim=(0, 2, 3)) for x in seen])
    assert torch.allclose(statistics[0][0], means.mean(dim=0), atol=1e-4)


class IterAgain:
    """A loader whose iterations start anew, as that of a seeded stream."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)
