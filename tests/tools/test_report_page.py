"""The report: its numbers, what is in the file, and how a browser shows it."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import ASSETS, bare_config
from models import ENTRY, as_inputs, lively_model, read_all

from ssdlite_d2 import InputError
from ssdlite_d2.checkpoint import SSDCheckpointer, identity_of
from ssdlite_d2.engine import SSDTrainer, finish_config
from ssdlite_d2.evaluation.operating import box_table, curve
from ssdlite_d2.evaluation.report import judge_fit
from ssdlite_d2.export.bundle import export_bundle
from ssdlite_d2.export.options import ExportOptions
from ssdlite_d2.tools import train
from ssdlite_d2.tools.report.__main__ import report
from ssdlite_d2.tools.report.charts import curve_charts
from ssdlite_d2.tools.report.runs import Evaluated, Run
from ssdlite_d2.tools.report.single import write_page

HOSTILE = ['<script>alert("1")</script>', "$W_{B}^$ & 'co'", "Platelets"]
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Output folders of two trainings whose models find something."""
    root = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(ASSETS))
        names = ["DATASETS.TRAIN", "('export_tiny',)", "DATASETS.TEST", "('export_tiny',)"]
        opts = ["DATASETS.REGISTER", str([ENTRY]), *names, "DATALOADER.NUM_WORKERS", 0]
        cfg, model = lively_model("ssdlite_mnv2_bccd.yaml", as_inputs(read_all()), *opts)
        finish_config(cfg)
        for name in ("first", "second"):
            cfg.OUTPUT_DIR = str(root / name)
            (root / name).mkdir()
            (root / name / "config.yaml").write_text(cfg.dump())
            if name == "second":
                for parameter in model.head.cls_score.parameters():
                    parameter.data.mul_(0.5)
            saver = SSDCheckpointer(model, cfg.OUTPUT_DIR, identity=identity_of(cfg, model))
            saver.save("model_final")
            row = {"iteration": 3, "total_loss": 1.5, "loss_cls": 1.0, "bbox/AP": 12.0}
            (root / name / "metrics.json").write_text(json.dumps(row))
        yield root, cfg, model


class Tags(HTMLParser):
    """All tags with their attributes, and the text of cells."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)


def check_file(page):
    """It loads nothing, runs its own script only, and can be used by keyboard."""
    tags = Tags(page).tags
    for _, attributes in tags:
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/jpeg;base64,"))
        assert not any(name.startswith("on") for name in attributes)
    assert [tag for tag, _ in tags].count("script") == 1
    assert not {"link", "iframe", "object"} & {tag for tag, _ in tags} and "@import" not in page
    policy = next(a["content"] for t, a in tags if a.get("http-equiv"))
    script = re.search("<script>(.*?)</script>", page, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'") and f"script-src 'sha256-{digest}'" in policy
    links = {a["href"][1:] for t, a in tags if t == "a"}
    assert links <= {a.get("id") for _, a in tags}
    assert all(a.get("tabindex") == "0" for _, a in tags if a.get("class") == "scroll")
    assert len(page) < 2e6


def test_numbers_are_those_of_the_evaluation(runs, capsys):
    root, cfg, _ = runs
    (run,) = report([root / "first"])
    cfg = cfg.clone()
    cfg.OUTPUT_DIR = str(root / "evaluated")
    cfg.MODEL.WEIGHTS = str(root / "first" / "model_final.pth")
    results = SSDTrainer.evaluate_only(cfg)
    assert results["bbox"]["AP50"] > 0.1
    for task, metrics in results.items():
        assert run.test.results[task] == pytest.approx(metrics, abs=1e-6, nan_ok=True), task
    page = (root / "first" / "report.html").read_text()
    check_file(page)
    words = Tags(page).words
    for name in ("AP", "AP50", "AP-RBC", "AP50-WBC"):
        assert f"{results['bbox'][name]:.1f}" in words
    assert {"RBC", "localisation", "not found", "parameters", "whole config"} <= {
        word for text in words for word in (text, text.strip(), text.removeprefix("The "))
    }
    assert len(re.findall("<figure>", page)) == 4
    assert f"AP50 {results['bbox']['AP50']:.1f}" in capsys.readouterr().out


def test_trainings_are_compared(runs, tmp_path):
    root, *_ = runs
    file = tmp_path / "both.html"
    first, second = report([root / "first", root / "second"], str(file), images=2)
    page = file.read_text()
    check_file(page)
    change = second.test.mistakes() - first.test.mistakes()
    assert (change != 0).any()
    words = " ".join(Tags(page).words)
    assert f"the last model {(change < 0).sum()} images have fewer mistakes" in words
    assert len(re.findall("<figure>", page)) == 2 * min(2, (change != 0).sum())
    assert f"{root}/first total_loss" in words and f"{root}/second total_loss" in words


def test_bundle_on_other_data(runs, tmp_path, monkeypatch):
    root, cfg, model = runs
    bundle = tmp_path / "bundle"
    export_bundle(cfg, model, str(bundle), ExportOptions("onnx", parity_images=0))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))  # as on another machine
    (run,) = report([bundle], data=str(ASSETS / "bccd"), on_train=True)
    assert run.test.dataset == "bccd" and len(run.test.records) == 4 and run.on_train is None
    assert run.size["file"] == json.loads((bundle / "model.json").read_text())["bytes"]
    (same,) = report([root / "second"], str(tmp_path / "x.html"), data=str(ASSETS / "bccd"))
    assert run.test.results["bbox"]["AP50"] == (
        pytest.approx(same.test.results["bbox"]["AP50"], abs=0.5)
    )


def test_errors(runs, tmp_path):
    root, *_ = runs
    part = shutil.copytree(ASSETS / "bccd", tmp_path / "bccd")
    for file in list((part / "Annotations").iterdir())[:2]:
        file.write_text(file.read_text().replace("RBC", "WBC"))
    shutil.copytree(root / "first", tmp_path / "other")
    config = tmp_path / "other" / "config.yaml"
    config.write_text(config.read_text().replace("ROOT: bccd", f"ROOT: {part}"))
    cases = [
        (dict(models=[tmp_path / "no"]), "no model"),
        (dict(models=["tf_person"]), "--output"),
        (dict(models=[root / "first"], output=str(tmp_path / "no" / "x.html")), "--output"),
        (dict(models=[root / "first"], data=str(tmp_path / "none")), "does not exist"),
        (dict(models=[root / "first"], opts=["DATASETS.TEST", "()"]), "--data"),
        (dict(models=[root / "first", tmp_path / "other"], output=str(tmp_path / "x")), "--data"),
    ]
    for arguments, words in cases:
        with pytest.raises(InputError, match=words):
            report(**arguments)


def test_eval_on_the_training_set(runs, tmp_path, monkeypatch, capsys):
    root, *_ = runs
    entries = [{**ENTRY, "NAME": name} for name in ("there", "here")]
    words = ["--eval-only", "--on-train", "--config-file", root / "first" / "config.yaml"]
    words += ["MODEL.WEIGHTS", root / "first" / "model_final.pth", "OUTPUT_DIR", tmp_path]
    words += ["DATASETS.REGISTER", entries, "DATASETS.TRAIN", "('there',)"]
    for test, outcome in (("here", None), ("there", "error: --on-train")):
        tail = ["DATASETS.TEST", (test,)]
        monkeypatch.setattr(sys, "argv", ["ssdlite eval", *map(str, [*words, *tail])])
        if outcome:
            with pytest.raises(SystemExit, match=outcome):
                train.main()
        else:
            train.main()
    results = json.loads((tmp_path / "inference" / "results.json").read_text())
    assert results["here"] == results["there"]
    value = results["here"]["bbox"]["AP50"]
    printed, log = capsys.readouterr().out, (tmp_path / "log.txt").read_text()
    for words in (judge_fit(value, value), "| RBC ", "At scores above"):
        assert words in printed and words in log
    assert len(printed.splitlines()) < 60 and "BatchNorm2d" not in printed and "BatchNorm2d" in log


def test_overfitting_is_said():
    assert "overfitting" in judge_fit(90, 60)
    assert "underfitting" in judge_fit(30, 28) and "no sign" in judge_fit(80, 75)


@pytest.fixture
def made_up(bccd):
    """A run of many classes, some with hostile names, that is not of a model."""

    def make(classes):
        rng = np.random.default_rng(0)
        files = sorted((bccd / "JPEGImages").iterdir())
        records = [
            {"file_name": str(f), "image_id": i, "annotations": []} for i, f in enumerate(files)
        ]
        entries = [
            {"image_id": i % 4, "category_id": int(rng.integers(len(classes)))}
            | {"bbox": rng.uniform(20, 200, 4), "score": float(rng.random())}
            for i in range(60 + len(classes))
        ]
        true = [{**e, "score": 1.0} for e in entries]
        for e in entries[::3]:
            e["category_id"] = 0
        tables = [box_table(some, range(4), range(len(classes))) for some in (entries, true)]
        box = {"AP": 10.0, "AP50": 20.0, "AP75": 5.0, **{f"AP-{n}": 1.0 for n in classes}}
        rates = {f"{r}{e}": 50.0 for r in ("precision", "recall", "F1") for e in ("", *SIZES)}
        results = {"bbox": box, "operating": {"threshold": 0.3, **rates}}
        test = Evaluated("<b>set", classes, records, results, *tables, 5.0)
        size = {"parameters": 1, "madds": 1, "anchors": 1, "bytes": 1}
        return Run("</title>", bare_config(), test, [], size, {}, {"measured on": "x"})

    return make


SIZES = ("_small", "_medium", "_large")


def test_hostile_names_are_text(made_up):
    page = write_page(made_up(HOSTILE), 12)
    check_file(page)
    words = "".join(Tags(page).words)
    assert all(name in words for name in HOSTILE)
    assert "</title>" in words and "<b>set" in words


def test_many_classes_stay_usable(made_up):
    page = write_page(made_up([f"class {i}" for i in range(25)]), 1)
    check_file(page)
    assert page.count("<details id=") == 25 and page.count("<details open") == 0
    assert page.count('class="chart fractions"') == 52
    assert page.count("<figure>") == 1
    assert 'class="matrix"' not in page and "found as" in page


def test_charts_have_the_points_of_the_curve():
    of = curve(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]), 2)
    page = curve_charts(of, 0.75, "RBC")
    drawn = [
        np.array([pair.split(",") for pair in points.split()], dtype=float)
        for points in re.findall('<polyline points="(.*?)"', page)
    ]
    corners = re.search('d="M([0-9.]+) ([0-9.]+)V([0-9.]+)H([0-9.]+)"', page).groups()
    left, top, bottom, right = map(float, corners)
    drawn = [(d - [left, bottom]) / [right - left, top - bottom] for d in drawn]
    recall, precision, f1 = [0.5, 0.5, 1], [1, 0.5, 2 / 3], [2 / 3, 0.5, 0.8]
    assert drawn[0] == pytest.approx(np.transpose([recall, precision]), abs=1e-3)
    for line, rate in zip(drawn[1:4], (precision, recall, f1)):
        assert line == pytest.approx(np.transpose([of.scores, rate]), abs=1e-3)
    assert drawn[4] == pytest.approx(np.array([[0.75, 0], [0.75, 1]]), abs=1e-3)
    many = curve(np.linspace(1, 0, 5000), np.ones(5000, dtype=bool), 5000)
    assert len(curve_charts(many, None, "RBC")) < 20_000
    assert "<circle" not in curve_charts(many, None, "") and page.count("<circle") == 2


@pytest.mark.skipif(BROWSER is None, reason="no Chromium: how the page looks is not checked")
def test_a_browser_shows_and_sorts_it(runs, tmp_path):
    """Charts and images have a size, nothing is wider than a phone, and a click sorts."""
    root, *_ = runs
    file = tmp_path / "page.html"
    report([root / "first"], str(file))
    page = file.read_text()
    check = """
      const table = document.querySelector("table.sortable");
      const button = table.querySelectorAll("button")[1];
      const column = () => [...table.tBodies[0].rows].map((row) => row.cells[1].textContent);
      button.click(); const falling = column(); button.click();
      const wide = document.documentElement.scrollWidth - innerWidth;
      const flat = [...document.querySelectorAll(".chart, figure svg")].filter(
        (x) => !x.closest("details:not([open])") && x.getBoundingClientRect().height < 50);
      document.title = JSON.stringify([falling, column(), wide, flat.length]);
    """
    script = re.search("<script>(.*?)</script>", page, re.S)[1]
    digests = [
        base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()
        for s in (script, script + check)
    ]
    page = page.replace(script, script + check).replace(*digests)
    file.write_text(page)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    shot = tmp_path / "page.png"
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=500,4000"]
    flags += [f"--screenshot={shot}", "--dump-dom", file.as_uri()]
    done = subprocess.run([BROWSER, *flags], capture_output=True, text=True, timeout=120)
    title = re.search("<title>(.*?)</title>", done.stdout, re.S)
    assert title, done.stderr[-2000:]
    falling, rising, wide, flat = json.loads(title[1])
    assert falling == ["56", "4", "2"] and rising == falling[::-1]
    assert wide <= 0 and flat == 0
    assert shot.stat().st_size > 20_000
