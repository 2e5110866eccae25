"""The package as an installed one, away from its checkout."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += ["--no-deps", "--no-build-isolation", "--target", str(target), str(ROOT)]
    done = subprocess.run(pip, capture_output=True, text=True, cwd=target)
    assert done.returncode == 0, done.stderr
    return target


def python(installed, *args):
    path = os.pathsep.join(filter(None, [str(installed), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [sys.executable, "-W", "ignore", *args],
        cwd=installed.parent,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )


def test_configs_come_along(installed):
    code = "import ssdlite_d2 as s; print(s.__file__, s.get_config_file('ssdlite_mnv2.yaml'))"
    done = python(
        installed, "-c", code + "; print(s.load_config('ssdlite_mnv2.yaml').SOLVER.BASE_LR)"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(str(installed)) == 2
    assert done.stdout.split()[-1] == "0.08"
    ours = {str(p.relative_to(ROOT / "configs")) for p in (ROOT / "configs").rglob("*.yaml")}
    folder = installed / "ssdlite_d2" / "configs"
    assert {str(p.relative_to(folder)) for p in folder.rglob("*.yaml")} == ours
    page = installed / "ssdlite_d2" / "export" / "bundled" / "web"
    assert {"index.html", "detect.js", "style.css", "serve.py"} <= {p.name for p in page.iterdir()}


def test_program_runs(installed):
    program = installed / "bin" / "ssdlite"
    done = python(installed, program, "models")
    assert done.returncode == 0 and "Base-Own.yaml" in done.stdout, done.stderr


def test_without_detectron2_a_line_says_so(installed, tmp_path):
    (tmp_path / "detectron2.py").write_text("raise ImportError('no Detectron2')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv[0] = 'ssdlite'; "
    done = python(installed, "-c", code + "import ssdlite_d2.tools.cli")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ssdlite_d2 needs Detectron2 (no Detectron2)")


def test_demo_runs(installed):
    done = python(installed, "-m", "ssdlite_d2.tools.demo", "--help")
    assert done.returncode == 0, done.stderr
    for flag in ("--config-file", "--input", "--output", "--video-input", "--webcam", "--opts"):
        assert flag in done.stdout
