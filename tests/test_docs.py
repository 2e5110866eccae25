"""The documentation is true: links, commands, keys, configs, messages and the drawing of floors."""

import ast
import json
import re
import runpy
import shlex
import subprocess
import sys
import warnings
from functools import cache

import pytest
import torch
import yaml
from conftest import ROOT, make_input, make_model, run
from detectron2.config import get_cfg

from ssdlite_d2 import add_ssd_config, load_config
from ssdlite_d2.config import RENAMED_KEYS
from ssdlite_d2.modeling import SSD_ASSIGNER_REGISTRY
from ssdlite_d2.tools.analyze import main
from ssdlite_d2.tools.cli import COMMANDS

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob(".github/*.md")])
TODAY = [page for page in PAGES if page.name not in ("CHANGELOG.md", "config-keys.md")]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def prose(page):
    return FENCE.sub("", page.read_text())


@cache
def anchors(page):
    """Names of the headings of a page, as GitHub and mkdocs make them."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in LINK.findall(prose(page)):
        if re.match(r"https?:", link):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 180


def test_every_page_is_on_the_site():
    pages = {name for name in re.findall(r"[\w-]+\.md", (ROOT / "mkdocs.yml").read_text())}
    ours = {page.name for page in PAGES if page.parent.name != ".github"}
    assert pages == {"index.md" if name == "README.md" else name for name in ours}


def test_page_of_keys_is_up_to_date():
    done = run("docs/make_keys.py", "--check")
    assert done.returncode == 0, done.stderr
    keys = set(re.findall(r"^\| `([A-Z][\w.]+\.\w+)` \|", page_of_keys(), re.M))
    assert keys == set(leaves(config())) - set(leaves(get_cfg()))


def test_tables_of_results_are_those_of_the_files(tmp_path, monkeypatch):
    module = runpy.run_path(str(ROOT / "docs" / "make_results.py"))
    module["main"](check=True)
    page = tmp_path / "page.md"
    page.write_text((ROOT / "README.md").read_text().replace("| bccd_test |", "| other |"))
    monkeypatch.setitem(module["main"].__globals__, "PAGES", [page])
    with pytest.raises(SystemExit, match="not up to date"):
        module["main"](check=True)
    runs = module["read_results"](ROOT / "docs" / "results")["ssdlite_mnv2_bccd"]
    other = {**runs[0], "bccd_test": {"bbox": {"AP": 0, "AP50": 0}, "operating": {"F1": 0}}}
    figures = module["row"]("x", [runs[0], other]).split(" | ")[2:5]
    ap = runs[0]["bccd_test"]["bbox"]["AP"]
    assert figures[0] == f"{ap / 2:.1f} ± {ap / 2**0.5:.1f}"


def test_notebook_has_code_that_compiles_and_no_output():
    cells = json.loads((ROOT / "docs" / "your_data.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code and not any(cell["outputs"] for cell in code)
    for cell in code:
        for line in "".join(cell["source"]).splitlines():
            assert not line.startswith("!ssdlite") or line.split()[1] in COMMANDS
        ast.parse(re.sub(r"(?m)^!.*$", "pass", "".join(cell["source"])))


def page_of_keys():
    return (ROOT / "docs" / "config-keys.md").read_text().split("## Renamed keys")[0]


@cache
def config():
    cfg = get_cfg()
    add_ssd_config(cfg)
    return cfg


def leaves(node, prefix=""):
    for name, value in node.items():
        if isinstance(value, type(node)):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


@pytest.mark.parametrize("page", TODAY, ids=lambda page: page.name)
def test_keys_and_configs_exist(page):
    text, nodes = page.read_text(), "|".join(config())
    for key in re.findall(rf"\b(?:{nodes})(?:\.[A-Z][A-Z0-9_]*)+\b(?!\.)", text):
        node = config()
        for name in key.split("."):
            assert name in node, key
            node = node[name]
    for name in re.findall(r"configs/([\w/-]+\.yaml)", text):
        assert (ROOT / "configs" / name).is_file(), name
    for name in re.findall(r"`((?:modern/|tf/|torchvision/)?ssd[\w-]+\.yaml)`", text):
        places = [ROOT / "configs" / name, ROOT / "configs" / "modern" / name]
        assert any(place.is_file() for place in places), name


def commands():
    """(page, program, flags) of every Python command, in blocks and in the text."""
    for page in TODAY:
        text = page.read_text()
        blocks = "\n".join(block for _, block in FENCE.findall(text)).replace("\\\n", " ")
        spans = [" ".join(span.split()) for span in re.findall(r"`(python [^`]+)`", prose(page))]
        for line in [*blocks.splitlines(), *spans]:
            found = re.search(r"\bpython (?:-m )?([\w./]+)(.*)", line)
            if found and not line.startswith(("import", "from", "#")):
                yield page.name, found[1], shlex.split(found[2], comments=True)


def tell_help(program, *command):
    """Run a program's main file or module with ``--help``, in this process."""
    sys.argv = [program, *command, "--help"]
    with pytest.raises(SystemExit), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # runpy's, of modules that are imported already
        if program.endswith(".py"):
            runpy.run_path(str(ROOT / program), run_name="__main__")
        else:
            runpy.run_module(program, run_name="__main__", alter_sys=True)


def test_commands_are_as_the_programs_have_them(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setenv("OPENCV_IO_MAX_IMAGE_PIXELS", "100000000")  # predict.py would set it
    monkeypatch.syspath_prepend(ROOT / "ssdlite_d2" / "export" / "bundled")
    known = {}
    for page, program, words in commands():
        bundled = {"predict.py": "predict.py", "serve.py": "web/serve.py"}
        if (name := program.rpartition("/")[2]) in bundled:
            program = f"ssdlite_d2/export/bundled/{bundled[name]}"
        if program.startswith(("docs/", "tests/")):
            assert (ROOT / program).is_file(), program
        if program.startswith(("docs/", "tests/", "pytest", "detectron2.")):
            continue
        command = (program, *words[:1] * program.endswith(("benchmark", "benchmarks")))
        if command not in known:
            tell_help(*command)
            known[command] = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
        flags = {word for word in words if word.startswith("--")}
        assert flags <= known[command], (page, command, flags)
    assert len(known) >= 12


def test_messages_are_those_of_the_code():
    texts = []
    for file in (ROOT / "ssdlite_d2").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                values = (v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
                texts.append("".join(map(str, values)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    messages = re.findall(r"`([^`]+)`", "".join(re.findall(r"^(\| .*?\|) ", page, re.M)))
    assert len(messages) > 40
    for message in messages:
        parts = [part for part in re.split("…", message) if part.strip()]
        found = [t for t in texts if all(part.strip() in t for part in parts)]
        assert found, message


def test_example_of_a_part_trains():
    (example,) = (
        code
        for kind, code in FENCE.findall((ROOT / "README.md").read_text())
        if kind == "python" and "REGISTRY" in code
    )
    exec(example, {})
    name = re.search(r'name="(\w+)"', example)[1]
    try:
        model = make_model(3, "MODEL.SSD.ASSIGNER.NAME", name)
        inputs = [make_input([[20, 20, 150, 150]], [1]), make_input()]
        losses = model(inputs)
        assert all(torch.isfinite(loss) for loss in losses.values())
        anchors = model.eval().anchors()
        targets = [x["instances"] for x in inputs]
        labels = model.assigner(anchors, targets).labels
        assert (labels[0] == -1).any() and (labels[0] == 1).any() and (labels[1] == 3).all()
    finally:
        SSD_ASSIGNER_REGISTRY._obj_map.pop(name)


def rows(page):
    """Cells of the table rows of a page that begin with a config."""
    found = re.findall(r"^\| `([\w/]+\.yaml)` \| (.*) \|$", (ROOT / page).read_text(), re.M)
    return {name: rest.split(" | ") for name, rest in found if len(rest.split(" | ")) in (4, 5)}


def test_tables_of_the_zoo_agree_and_analyze_prints_them(monkeypatch, capsys):
    short, long = rows("README.md"), rows("docs/model-zoo.md")
    assert len(long) == 18
    for name, (published, parameters, madds, _, source) in long.items():
        assert short.pop(name, None) in (None, [published, parameters, madds, source])
    assert not short
    name = "ssdlite_mnv2.yaml"
    monkeypatch.setattr(sys, "argv", ["analyze", "--config-file", f"configs/{name}"])
    main()
    told = dict(re.findall(r"^(\S+) +(.*)$", capsys.readouterr().out, re.M))
    _, parameters, madds, size, _ = long[name]
    assert f"{int(told['parameters'].replace(',', '')) / 1e6:.2f} M" == parameters
    assert f"{int(told['multiply-adds'].split()[0].replace(',', '')) / 1e9:.2f} G" == madds
    assert told["size"] == f"{size} as float32"


def test_configs_in_the_text_are_read(tmp_path):
    texts = [page.read_text() for page in TODAY]
    configs = [code for text in texts for kind, code in FENCE.findall(text) if kind == "yaml"]
    assert len(configs) == 2
    for number, code in enumerate(configs):
        (tmp_path / f"{number}.yaml").write_text(code)
        cfg = load_config(str(tmp_path / f"{number}.yaml"))
        assert [entry["NAME"] for entry in cfg.DATASETS.REGISTER] == ["mine_train", "mine_val"]
        assert cfg.SOLVER.MAX_ITER == 600


def test_changelog_has_every_renamed_key():
    text = (ROOT / "CHANGELOG.md").read_text()
    for old, new in RENAMED_KEYS.items():
        assert f"| `MODEL.SSD.{old}` | `MODEL.SSD.{new}` |" in text


FLOORS = [
    {"tools"},
    {"loading"},
    {"engine", "export", "diagnostics"},
    {"checkpoint", "evaluation"},
    {"modeling", "data"},
    {"config", "config_file", "files", "errors", "provenance"},
]


def test_imports_go_down():
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    for file in (ROOT / "ssdlite_d2").rglob("*.py"):
        own = file.relative_to(ROOT / "ssdlite_d2").parts
        if own[0] in ("__init__.py", "__main__.py") or "bundled" in own:
            continue
        here = own[0].removesuffix(".py")
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == len(own):
                names = [node.module] if node.module else [alias.name for alias in node.names]
                for there in (name.split(".")[0] for name in names if name != "__version__"):
                    assert there == here or floor[there] > floor[here] or here in FLOORS[-1], file
    drawing = (ROOT / "docs" / "architecture.md").read_text().split("```")[1]
    named = [set(re.findall(r"(\w+)(?:/|\.py)", line)) for line in drawing.split("-----\n")]
    assert len(named) == len(FLOORS)
    for drawn, names in zip(named, FLOORS):
        assert names <= drawn


def test_ci_calls_what_the_makefile_has():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    runs = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    called = {line.split()[1] for line in runs if line.startswith("make ")}
    assert called and called <= targets
    for file in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(file.read_text())
        assert {"name", "description", "body"} <= set(form)


def test_the_demo_evaluates_and_draws_what_it_trained():
    """The dry run prints the recipe; that of a part would take minutes."""
    lines = subprocess.run(
        ["make", "--dry-run", "demo"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.replace("\\\n", " ")
    weights = re.findall(r"--eval-only MODEL.WEIGHTS (\S+)|--opts MODEL.WEIGHTS (\S+)", lines)
    trained = "output/neon_trees/model_final.pth"
    assert [a or b for a, b in weights] == [trained, trained]
    assert lines.index("ssdlite_mobilenet_v2_person.yaml") < lines.index("--eval-only")
