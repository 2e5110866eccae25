"""A bundle's program in C++ finds what predict.py finds."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ssdlite_d2.export import ExportOptions, export_bundle

HEADER = Path("/usr/include/opencv4/opencv2/imgcodecs.hpp")
pytestmark = pytest.mark.skipif(
    not (shutil.which("g++") and HEADER.is_file()),
    reason="needs g++ and libopencv-imgcodecs-dev",
)


def near(a, b, pixels, score):
    return (
        a["class"] == b["class"]
        and abs(a["score"] - b["score"]) < score
        and all(abs(x - y) < pixels for x, y in zip(a["box"], b["box"]))
    )


def test_the_compiled_program_finds_the_example(bccd_model, tmp_path):
    cfg, model = bccd_model
    folder = tmp_path / "b"
    export_bundle(cfg, model, str(folder), ExportOptions(format="openvino", parity_images=4))
    source = (folder / "detect.cpp").read_text()
    (commands,) = re.findall(r"^ *(P=.*?)^ *\./detect", source, re.M | re.S)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        ["bash", "-ec", commands], cwd=folder, env={**os.environ, "PATH": path}, check=True
    )
    example = json.loads((folder / "example.json").read_text())
    least = json.loads((folder / "model.json").read_text())["detections"]["score_threshold"]

    def detect(*words):
        return subprocess.run(["./detect", *words], cwd=folder, capture_output=True, text=True)

    done = detect(".", example["file"], str(least))
    assert done.returncode == 0, done.stderr
    found = []
    for line in done.stdout.splitlines():
        score, *box, name = line.split(" ", 5)
        found.append({"class": name, "score": float(score), "box": list(map(float, box))})
    expected = example["detections"]
    assert len(found) == len(expected) > 50
    for some, others in ((found, expected), (expected, found)):
        for one in some:
            assert any(near(one, other, **example["tolerance"]) for other in others), one
    for words, message in (
        ((".", "no.jpg", "0.3"), "error: no.jpg cannot be read"),
        (("no", example["file"], "0.3"), "error: no/model.json cannot be read"),
        ((), "error: give FOLDER IMAGE THRESHOLD"),
    ):
        done = detect(*words)
        assert done.returncode == 1 and done.stderr.splitlines()[-1] == message
