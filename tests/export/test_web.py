"""The page of ``--format web``: what is written, and what it does in a real browser."""

import base64
import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from chromium import Chromium, find_chromium
from detectron2.modeling import build_model
from matplotlib import get_data_path
from models import read_all

from ssdlite_d2 import InputError, load_config
from ssdlite_d2.checkpoint import SSDCheckpointer
from ssdlite_d2.engine import finish_config
from ssdlite_d2.evaluation.drawing import colour_of
from ssdlite_d2.export import ExportOptions, export_bundle, web
from ssdlite_d2.export.bundled.detector import Detector, fit, resize, select
from ssdlite_d2.export.parity import match

RUNTIME = os.environ.get("SSDLITE_WEB_RUNTIME")  # set by make test-web
PERSON = "tf/ssdlite_mobilenet_v2_person.yaml"  # trained, and TensorFlow's resize
PHOTO = Path(get_data_path(), "sample_data", "grace_hopper.jpg")
METHODS = ("half_pixel", "opencv", "asymmetric")
HOSTILE = '<img src=x onerror="document.title=1">'


@pytest.fixture
def fake_runtime(tmp_path, monkeypatch):
    """A folder that passes for the runtime."""
    folder = tmp_path / "fake"
    folder.mkdir()
    for name in web.INTEGRITY:
        (folder / name).write_text(name)
    digests = {name: web.digest_of(name.encode()) for name in web.INTEGRITY}
    monkeypatch.setattr(web, "INTEGRITY", digests)
    return folder


def test_a_page_is_light_and_has_its_runtime_from_elsewhere(bccd_model, tmp_path, fake_runtime):
    options = ExportOptions(format="web", parity_images=1)
    report = export_bundle(*bccd_model, str(tmp_path / "cdn"), options)
    assert report["violations"] == [] and report["matched"] == report["detections"] > 20
    assert Detector(tmp_path / "cdn", device="cpu").spec["format"] == "web"
    page = tmp_path / "cdn"
    assert sum((page / p.name).stat().st_size for p in web.PAGE.iterdir()) <= 60_000
    spec = json.loads((page / "model.json").read_text())
    assert spec["runtime"]["address"].startswith("https://cdn.jsdelivr.net/npm/onnxruntime-web@")
    assert {name for names in web.DEVICES.values() for name in names} == set(web.INTEGRITY)
    assert web.CDN in (page / "index.html").read_text()

    options = ExportOptions(format="web", parity_images=0, runtime=str(fake_runtime))
    export_bundle(*bccd_model, str(tmp_path / "own"), options)
    page = tmp_path / "own"
    spec = json.loads((page / "model.json").read_text())
    assert spec["runtime"]["address"] == "runtime/"
    assert {p.name for p in (page / "runtime").iterdir()} == set(web.INTEGRITY)
    assert "http" not in (page / "index.html").read_text().replace("http-equiv", "")
    assert {f"runtime/{name}" for name in web.INTEGRITY} < set(spec["files"])


def test_a_page_names_what_cannot_be(tmp_path, fake_runtime):
    name = next(iter(web.INTEGRITY))
    cases = {
        "--batch 1": {"batch": "2"},
        "--resize is not for --format web": {"resize": True},
        "--layout nms is not for --format web": {"layout": "nms"},
        f"nowhere/{name} cannot be read; .*npm's onnxruntime-web@": {"runtime": "nowhere"},
        "--runtime is for --format web": {"format": "onnx", "runtime": str(fake_runtime)},
    }
    for words, values in cases.items():
        with pytest.raises(InputError, match=words):
            ExportOptions(**{"format": "web", **values}).check()
    (fake_runtime / name).write_text("another version")
    with pytest.raises(InputError, match=f"{name} is not the file of npm's onnxruntime-web@"):
        ExportOptions(format="web", runtime=str(fake_runtime)).check()


# ---- In a browser ----


@contextlib.contextmanager
def served(*command):
    """The address at which a server, that prints it, is."""
    server = subprocess.Popen(
        [sys.executable, "-u", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield next(word for word in server.stdout.readline().split() if "://" in word).rstrip("/")
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def wait(browser, code, seconds=60):
    """The value of JavaScript once it is true."""
    end = time.monotonic() + seconds
    while not (value := browser.run(f"return {code}")):
        assert time.monotonic() < end, (code, browser.complaints(), said(browser))
        time.sleep(0.05)
    return value


def said(browser):
    return browser.run(
        "return Object.fromEntries(['status', 'error', 'speed', 'found', 'about', 'hint'].map("
        "id => [id, document.getElementById(id).textContent]))"
    )


READY = "/Ready|Error/.test(document.body.textContent)"
GET_PAGE = "const { page } = await import(document.querySelector('script').src);"


def choose(browser, path):
    """Choose a file as a user does, and what the page shows of it: (boxes, scores, classes)."""
    browser.run(f"{GET_PAGE} page.shown = null; page.error.textContent = ''")
    root = browser("DOM.getDocument")["root"]["nodeId"]
    node = browser("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    browser("DOM.setFileInputFiles", nodeId=node, files=[str(path)])
    done = f"(await (async () => {{ {GET_PAGE} return page.shown || page.error.textContent }})())"
    wait(browser, f"Boolean({done})")
    found = browser.run(f"{GET_PAGE} return page.shown.detections")
    columns = ([one[key] for one in found] for key in ("box", "score", "id"))
    return tuple(map(np.array, columns))


@pytest.fixture(scope="module")
def bundles(bccd_model, tmp_path_factory):
    """Bundles with a page: half_pixel and asymmetric resize; the runtime is in the second."""
    if not RUNTIME:
        pytest.skip("needs Chromium and npm: make test-web")
    folder = tmp_path_factory.mktemp("web")
    cfg, model = bccd_model
    export_bundle(cfg, model, str(folder / "bccd"), ExportOptions(format="web", parity_images=1))
    cfg = load_config(PERSON, ["MODEL.DEVICE", "cpu"])
    finish_config(cfg)
    model = build_model(cfg)
    SSDCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    options = ExportOptions(format="web", parity_images=0, runtime=RUNTIME)
    export_bundle(cfg, model, str(folder / "person"), options)
    return folder


@pytest.fixture(scope="module")
def browser():
    assert find_chromium(), "no Chromium is found"
    with Chromium() as browser:
        browser("DOM.enable")
        yield browser


@pytest.fixture(scope="module")
def person_page(bundles):
    with served(bundles / "person" / "serve.py", "--port", 0) as address:
        yield address + "/?device=wasm&threads=2"


@pytest.fixture
def person(person_page, browser):
    """The browser with the page of the trained model."""
    if browser.run("return location.href") != person_page:
        browser.open(person_page)
        wait(browser, READY)
    browser.seen.clear()
    return browser


@pytest.fixture(scope="module")
def ten_images(tmp_path_factory):
    """Image files of many kinds and sizes."""
    folder = tmp_path_factory.mktemp("images")
    photo = cv2.imread(str(PHOTO))
    grey = cv2.cvtColor(photo, cv2.COLOR_BGR2GRAY)
    cells = read_all()
    images = {
        "cells0.jpg": cells[0],
        "cells1.png": cells[1],
        "cells2.webp": cells[2][:333, :501],
        "cells3.jpg": cells[3][:, :200],
        "photo.png": photo,
        "grey.jpg": grey,
        "wide.jpg": np.hstack((photo, photo[:, ::-1], photo)),
        "large.jpg": cv2.resize(photo, None, fx=5, fy=4),
        "small.png": cv2.resize(photo, (77, 99)),
    }
    for name, image in images.items():
        cv2.imwrite(str(folder / name), image)
    # on its side, as phones write it
    turned = cv2.imencode(".jpg", cv2.rotate(photo, cv2.ROTATE_90_COUNTERCLOCKWISE))[1].tobytes()
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    head = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    (folder / "turned.jpg").write_bytes(turned[:2] + head + turned[2:])
    files = sorted(folder.iterdir())
    assert len(files) == 10
    return files


@pytest.mark.parametrize("name", ["bccd", "person"])
def test_the_page_finds_what_the_program_finds(name, bundles, browser, ten_images):
    detector = Detector(bundles / name)
    total = 0
    with cdn(browser), served(bundles / name / "serve.py", "--port", 0) as address:
        browser.open(address)
        wait(browser, READY)
        for path in ten_images:
            ours = detector([cv2.imread(str(path))])[0]
            theirs = choose(browser, path)
            assert len(ours[1]) == len(theirs[1]), path.name
            pairs = match(ours, theirs, 0.5)
            worst = max((abs(ours[1][i] - theirs[1][j]) for i, j in pairs), default=0)
            assert len(pairs) == len(ours[1]) and worst < 1e-3, path.name
            total += len(pairs)
        assert total > 10 and not browser.complaints()


@contextlib.contextmanager
def cdn(browser, change=lambda content: content):
    """The public CDN, played by the runtime's folder."""

    def answer(browser, values):
        address = values["request"]["url"]
        assert address.startswith(web.ADDRESS), address
        content = change(Path(RUNTIME, address.rsplit("/", 1)[1]).read_bytes())
        headers = {"Access-Control-Allow-Origin": "*", "Content-Type": "application/octet-stream"}
        browser.send(
            "Fetch.fulfillRequest",
            requestId=values["requestId"],
            responseCode=200,
            responseHeaders=[{"name": k, "value": v} for k, v in headers.items()],
            body=base64.b64encode(content).decode(),
        )

    browser.on_request = answer
    browser("Fetch.enable", patterns=[{"urlPattern": web.CDN + "/*"}])
    yield
    browser("Fetch.disable")


def test_another_runtime_or_model_does_not_run(bundles, browser):
    with served(bundles / "bccd" / "serve.py", "--port", 0) as address:
        with cdn(browser, lambda content: content + b" "):
            browser.open(address)
            wait(browser, READY)
            assert "is not the file that belongs here" in said(browser)["error"]
        model = bundles / "bccd" / "model.onnx"
        content = model.read_bytes()
        model.write_bytes(content[:-1] + b"!")
        browser.open(address)
        wait(browser, READY)
        model.write_bytes(content)
        assert "model.onnx cannot be loaded, or is not" in said(browser)["error"]


def as_array(kind, array):
    """A typed array of JavaScript."""
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return f"new {kind}(Uint8Array.from(atob('{data}'), c => c.charCodeAt(0)).buffer)"


def test_pixels_are_those_of_opencv(person):
    rng = np.random.default_rng(0)
    sizes = [(48, 64), (43, 64), (20, 15), (64, 64), (10, 64), (300, 400), (32, 64), (1, 7), (2, 2)]
    for (height, width), method in itertools.product(sizes, METHODS):
        image = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
        result = person.run(
            f"{GET_PAGE.replace('page', 'resize, rowsOf')} const w = {width}, h = {height};"
            f"const image = {{data: {as_array('Uint8Array', image)}}};"
            f"return [...resize(rowsOf(image, w, h), w, h, [32, 30], '{method}')]"
        )
        ours = resize(np.ascontiguousarray(image[..., :3]), (32, 30), method)
        difference = np.abs(ours.ravel().astype(int) - result)
        assert (difference != 0).mean() <= (1e-3 if method == "asymmetric" else 0), (height, width)
        assert difference.max() <= 1
    with pytest.raises(RuntimeError, match="there is no resampling area"):
        person.run(
            f"{GET_PAGE.replace('page', 'resize')} resize(() => 0, 1, 1, [32, 30], 'area')",
        )


def test_colours_are_those_of_the_program(person):
    code = f"{GET_PAGE.replace('page', 'colourOf')} return [...Array(100).keys()].map(colourOf)"
    ours = [[round(255 * part) for part in colour_of(i)] for i in range(100)]
    assert person.run(code) == ours


def test_large_images_are_read_in_parts(person):
    """A canvas is read a few rows at a time; the pixels are those of the whole."""
    assert person.run(
        f"{GET_PAGE.replace('page', 'rowsOf')}"
        "const w = 3000, h = 2900; const canvas = new OffscreenCanvas(w, h);"
        "const context = canvas.getContext('2d', {willReadFrequently: true});"
        "for (let i = 0; i < 300; i++) { context.fillStyle = `rgb(${i * 7 % 256} ${i * 13 % 256}"
        " ${i % 256})`; context.fillRect(i * 31 % w, i * 97 % h, 200, 150); }"
        "const all = context.getImageData(0, 0, w, h).data; const rows = rowsOf(canvas, w, h);"
        "return [0, 1, 1397, 1398, 1399, 2899, 2800, 3].every(y => { const [data, at] = rows(y);"
        "for (let i = 0; i < 4 * w; i++) if (data[at + i] !== all[4 * w * y + i]) return false;"
        "return data.length < all.length; })"
    )


def test_suppression_is_that_of_the_program(person):
    """On boxes that overlap or lie outside, with every limit in and out of force."""
    rng = np.random.default_rng(0)
    anchors, classes, size, image_size = 300, 4, (200, 300), (411, 333)
    corners = rng.uniform(-60, 280, (anchors, 2))
    boxes = np.hstack((corners, corners + rng.uniform(1, 90, (anchors, 2)))).astype(np.float32)
    scores = rng.uniform(0, 1, (anchors, classes)).astype(np.float32) ** 3
    scores[::7] = scores[0]  # ties
    limits = {
        "score_threshold": (0.05, 0.5),
        "candidates": (2000, 90),
        "candidates_per_class": (0, 25),
        "clip_before_nms": (False, True),
        "across_classes": (False, True),
        "max_detections": (100, 10),
    }
    values = itertools.product(*limits.values())
    cases = [dict(zip(limits, some), nms_threshold=0.5) for some in values]
    results = person.run(
        f"{GET_PAGE.replace('page', 'select, fit')}"
        f"const boxes = {as_array('Float32Array', boxes)};"
        f"const scores = {as_array('Float32Array', scores)};"
        f"const [size, other] = [{list(size)}, {list(image_size)}];"
        f"return {json.dumps(cases)}.map("
        "options => fit(select(boxes, scores, size, options), size, other))"
    )
    for options, theirs in zip(cases, results):
        ours = fit(*select(boxes, scores, size=size, **options), size, image_size)
        assert len(ours[1]) == len(theirs) >= 5
        assert ours[2].tolist() == [one["id"] for one in theirs]
        assert np.allclose(ours[1], [one["score"] for one in theirs], atol=1e-7)
        assert np.allclose(ours[0], [one["box"] for one in theirs], atol=1e-3)


def test_a_user_chooses_images_and_a_threshold(person, ten_images, tmp_path):
    assert "Finds: person. The network sees 300 × 300 pixels." in said(person)["about"]
    wide = next(path for path in ten_images if path.name == "wide.jpg")
    scores = choose(person, wide)[1]
    shown = said(person)
    assert shown["status"] == f"Found {(scores > 0.3).sum()} person." and shown["hint"]
    assert "ms (image " in shown["speed"] and "WASM, 2 threads" in shown["speed"]
    listed = "return document.querySelectorAll('#found li').length"
    assert person.run(listed) == (scores > 0.3).sum() >= 1
    for least in (0.99, 0.01, 0.3):
        person.run(
            f"const t = document.getElementById('threshold'); t.value = {least};"
            "t.dispatchEvent(new Event('input'))"
        )
        assert person.run(listed) == (scores > least).sum()
    assert person.run("const c = document.getElementById('view'); return c.ariaLabel[0]") == "F"
    broken = tmp_path / f"{HOSTILE.replace('/', '')}.jpg"
    broken.write_bytes(b"no image")
    with pytest.raises(RuntimeError, match="null"):  # nothing new is shown
        choose(person, broken)
    shown = said(person)
    assert shown["error"] == f"Error: {broken.name} cannot be read as an image"
    assert choose(person, wide)[1].tolist() == scores.tolist()  # and the page goes on
    assert said(person)["error"] == "" and not person.complaints()


def test_names_are_text_and_one_thread_needs_no_headers(bundles, browser, tmp_path, ten_images):
    """On a server that knows nothing of the page; classes with the names of HTML elements."""
    spec = json.loads((bundles / "person" / "model.json").read_text())
    for path in (bundles / "person").iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "model.json").unlink()
    spec["classes"], spec["operating"] = [HOSTILE], {"threshold": 0.4321}
    (tmp_path / "model.json").write_text(json.dumps(spec))
    server = ("-m", "http.server", "--bind", "127.0.0.1", "--directory", tmp_path, 0)
    with served(*server) as address:
        browser.open(address.strip("()"))
        wait(browser, READY)
        choose(browser, next(path for path in ten_images if path.name == "photo.png"))
        shown = said(browser)
        start = "return [page.limit, page.threshold.value, page.least.textContent]"
        assert browser.run(f"{GET_PAGE} {start}") == [0.4321, "0.43", "0.43"]
        assert shown["status"] == f"Found 1 {HOSTILE}." and HOSTILE in shown["found"]
        assert HOSTILE in shown["about"] and "WASM, 1 thread)" in shown["speed"] + ")"
        assert browser.run("return [document.images.length, document.title]") == [
            0,
            "Object detector",
        ]
        assert not browser.complaints()


def test_the_camera_is_watched_until_it_is_stopped(person):
    press = "document.getElementById('camera').click()"
    person.run(press)
    wait(person, "document.getElementById('speed').textContent")
    shown = f"(await (async () => {{ {GET_PAGE} return page.shown }})())"
    person.run(f"{GET_PAGE} window.first = page.shown")
    wait(person, f"{shown} !== window.first")  # frame after frame
    width, height = person.run(f"const s = {shown}; return [s.width, s.height]")
    assert width >= 320 and height >= 240
    state = "const c = document.getElementById('camera'); return [c.textContent, c.ariaPressed]"
    assert person.run(state) == ["Stop camera", "true"]
    person.run(f"{GET_PAGE} window.track = page.stream.getTracks()[0]; {press}")
    assert person.run(state) == ["Camera", "false"]
    assert person.run("return window.track.readyState") == "ended"
    assert said(person)["error"] == "" and not person.complaints()


def contrast(browser, selector, behind):
    """Of the text of an element against the background of another, as WCAG has it."""

    def luminance(element, key):
        code = f"return getComputedStyle(document.querySelector('{element}')).{key}"
        numbers = browser.run(code).partition("(")[2].rstrip(")").split(",")[:3]
        parts = np.array(numbers, dtype=float) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return linear @ (0.2126, 0.7152, 0.0722)

    light = sorted((luminance(selector, "color"), luminance(behind, "backgroundColor")))
    return (light[1] + 0.05) / (light[0] + 0.05)


def test_the_page_suits_everyone(person, ten_images):
    """Phones, keyboards, screen readers, and light and dark screens."""
    choose(person, next(path for path in ten_images if path.name == "wide.jpg"))
    for width in (320, 360, 1280):
        person(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=640,
            deviceScaleFactor=2,
            mobile=width < 1000,
        )
        wait(person, "document.getElementById('view').clientWidth <= innerWidth")
        assert person.run("return document.documentElement.scrollWidth") <= width
    person("Emulation.clearDeviceMetricsOverride")
    nodes = person("Accessibility.getFullAXTree")["nodes"]
    named = {
        (node["role"]["value"], node["name"]["value"]): node
        for node in nodes
        if "role" in node and node.get("name", {}).get("value")
    }
    for role, name in (
        ("heading", "Object detector"),
        ("button", "Choose image"),
        ("button", "Camera"),
        ("slider", "Threshold"),
    ):
        assert any(r == role and name in n for r, n in named), (role, name, sorted(named))
    assert any(r in ("image", "img") and n.startswith("Found") for r, n in named)
    reached = []
    for _ in range(3):
        for kind in ("rawKeyDown", "keyUp"):
            person("Input.dispatchKeyEvent", type=kind, key="Tab", windowsVirtualKeyCode=9)
        reached.append(person.run("return document.activeElement.id"))
    assert reached == ["file", "camera", "threshold"]
    for scheme in ("light", "dark"):
        feature = [{"name": "prefers-color-scheme", "value": scheme}]
        person("Emulation.setEmulatedMedia", features=feature)
        for text, behind in (
            ("h1", "body"),
            ("#about", "body"),
            ("#error", "body"),
            ("#found li", "#found li"),
            (".main", ".main"),
            ("#camera", "#camera"),
        ):
            assert contrast(person, text, behind) >= 4.5, (scheme, text)
    person("Emulation.setEmulatedMedia", features=[])
