"""What happens between iterations."""

import os
from types import SimpleNamespace

import pytest
import torch
from conftest import make_input, make_model
from detectron2.utils.events import EventStorage

from ssdlite_d2.checkpoint import SSDCheckpointer
from ssdlite_d2.engine.hooks import BestCheckpointer, PeriodicCheckpointer, PreciseBN
from ssdlite_d2.engine.visuals import plot_training, read_metrics


@pytest.fixture(scope="module")
def model():
    return make_model(3)


def best_after(folder, model, values, start=0):
    """Iteration of model_best.pth after a run whose evaluations give these values."""
    hook = BestCheckpointer(1, SSDCheckpointer(model, str(folder)), "bbox/AP", model)
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
