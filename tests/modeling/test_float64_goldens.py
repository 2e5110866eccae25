"""Parity with the references' networks, whose numbers are of float64."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load_bare
from detectron2.modeling import build_model
from test_goldens import GOLDENS, verify

from ssdlite_d2.checkpoint.convert import convert

PREFIX = "float64__"
FILES = sorted(p.stem.removeprefix(PREFIX) for p in Path(verify.HERE).glob(f"{PREFIX}*.npz"))


@pytest.mark.parametrize("name", FILES)
def test_logits_and_box_codes(name):
    with np.load(Path(verify.HERE) / f"{PREFIX}{name}.npz", allow_pickle=False) as arrays:
        golden = {key: arrays[key] for key in arrays.files}
    entries = json.loads(str(golden["entries_json"]))
    filled = verify.fillmod.fill(entries, json.loads(str(golden["params_json"])))
    config, source = GOLDENS[name]
    model = build_model(load_bare(config, "MODEL.SSD.NORM", "BN"))
    weights = {key: torch.from_numpy(np.asarray(value)) for key, value in filled.items()}
    model.load_state_dict(convert(source, weights, model).state)
    model.eval()
    # VGG is slow in float64, and accurate without it: it has no norm that magnifies rounding
    tolerance = 1e-4 if "vgg" in name else 1e-6
    if "vgg" not in name:
        model.double()

    size = int(golden["size"])
    image = verify.fillmod.make_image(7, size, size).transpose(2, 0, 1).copy()
    with torch.no_grad():
        # mean and deviation are float32 in the model: up to 1e-7 off the config's numbers
        images = model.preprocess_image([{"image": torch.from_numpy(image)}])
        logits, deltas = model.raw_outputs(images.tensor)
    if model.criterion.num_scores > model.num_classes:
        logits = logits.roll(1, dims=-1)  # background first, as the references have it
    logits, deltas = logits[0, ::97].numpy(), deltas[0, ::97].numpy()
    expected = golden["cls"][:, : logits.shape[1]]  # without the column that is no class
    assert np.abs(logits - expected).max() <= tolerance * np.abs(expected).max()
    assert np.abs(deltas - golden["loc"]).max() <= tolerance * np.abs(golden["loc"]).max()
