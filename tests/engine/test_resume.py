"""A run that was stopped and resumed is the run that was not."""

import random
import signal

import torch
from runs import ITERATIONS, forked, options


def final_state(output):
    return torch.load(output / f"model_{ITERATIONS - 1:07d}.pth")


def assert_same(a, b):
    for key in ("model", "ema"):
        for name, value in a[key].items():
            assert torch.equal(value, b[key][name]), (key, name)
    assert a["trainer"]["stream"] == b["trainer"]["stream"]


def test_killed_and_resumed_runs_end_with_the_same_bits(tmp_path):
    """kill -9 at three moments, once amid the writing of a checkpoint, and one SIGTERM.

    With a second head, which rests from iteration 5 on.
    """
    guided = ["MODEL.META_ARCHITECTURE", "GuidedSSD", "MODEL.SSD.HEAD.NAME", "ssdlite"]
    guided += ["MODEL.SSD.AUXILIARY.CHANNELS", 8]
    draw = random.Random(5)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    whole = {"args": options(straight, *guided, "DATALOADER.NUM_WORKERS", "0")}
    kills = [
        {"send": signal.SIGKILL, "when": str(broken / name), "delay": draw.uniform(0, 0.3)}
        for name in ("model_0000001.pth", "model_0000003.pth")
    ]
    kills.append({"send": signal.SIGKILL, "when": str(broken / "model_0000005.pth.*.tmp")})
    kills.append({"send": signal.SIGTERM, "when": str(broken / "model_0000005.pth")})
    pieces = [{"args": options(broken, *guided), **kill} for kill in kills]
    lost = f"import os; os.remove('{broken / 'model_final.pth'}')"  # a kill just before it came
    end = [{"args": options(broken, *guided)}, {"args": options(broken, *guided), "before": lost}]
    results = forked(whole, *pieces, *end)
    codes = [code for code, _ in results]
    assert codes == [0, -9, -9, -9, 0, 0, 0], [output[-2000:] for _, output in results]
    finals = [torch.load(run / "model_final.pth")["model"] for run in (straight, broken)]
    assert all(torch.equal(value, finals[1][name]) for name, value in finals[0].items())
    state = final_state(straight)
    assert_same(state, final_state(broken))
    names = {name.split(".")[0] for name in state["model"]}
    final = torch.load(straight / "model_final.pth")["model"]
    assert names == {"backbone", "head", "auxiliary"}
    assert {name.split(".")[0] for name in final} == {"backbone", "head"}
