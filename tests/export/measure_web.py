"""What the page of a bundle takes in headless Chromium, by device and threads.

python tests/export/measure_web.py BUNDLE IMAGE [--screenshot FILE]

The bundle comes from ``ssdlite export --format web --runtime DIR``.
"""

import argparse
import base64
import sys
from pathlib import Path

import cv2
import numpy as np
from tabulate import tabulate

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

from chromium import Chromium  # noqa: E402
from export.test_web import READY, choose, said, served, wait  # noqa: E402

TIMES = """
const { page } = await import(document.querySelector('script').src);
const { source } = page.shown, rows = [];
for (let i = 0; i < %d; i++) rows.push((await page.detector.detect(source)).milliseconds);
const median = (get) => rows.map(get).sort((a, b) => a - b)[rows.length >> 1];
return [median(t => t.prepare), median(t => t.network), median(t => t.select),
        median(t => t.prepare + t.network + t.select)];
"""
GPU = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("image")
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--webgpu", action="store_true", help="too, computed by the processor")
    parser.add_argument("--screenshot", metavar="FILE")
    args = parser.parse_args()
    queries = ["device=wasm&threads=1", "device=wasm&threads=2"]
    queries += ["device=webgpu"] if args.webgpu else []
    rows = []
    with served(Path(args.bundle, "serve.py"), "--port", 0) as address:
        for query in queries:
            with Chromium(*(GPU if "gpu" in query else ())) as browser:
                browser("DOM.enable")
                browser.open(f"{address}/?{query}")
                wait(browser, READY)
                choose(browser, Path(args.image).resolve())
                rows.append(
                    [said(browser)["speed"].split("· ")[1], *browser.run(TIMES % args.runs)]
                )
        print(tabulate(rows, ["ms, median", "image", "network", "boxes", "all"], floatfmt=".1f"))
        if args.screenshot:
            shoot(address, args)


def shoot(address, args) -> None:
    """The page on a desk and on a phone, side by side."""
    shots = []
    for width, height, ratio, scheme in ((1000, 1050, 1, "light"), (390, 844, 2, "dark")):
        with Chromium() as browser:
            browser("DOM.enable")
            view = {"width": width, "height": height, "deviceScaleFactor": ratio}
            browser("Emulation.setDeviceMetricsOverride", **view, mobile=ratio > 1)
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            browser("Emulation.setEmulatedMedia", features=features)
            browser.open(address)
            wait(browser, READY)
            choose(browser, Path(args.image).resolve())
            png = base64.b64decode(browser("Page.captureScreenshot")["data"])
            shot = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
            size = (round(shot.shape[1] * 1050 / shot.shape[0]), 1050)
            shots.append(cv2.resize(shot, size, interpolation=cv2.INTER_AREA))
    gap = np.full((1050, 20, 3), 255, np.uint8)
    cv2.imwrite(
        args.screenshot, np.hstack((shots[0], gap, shots[1])), [cv2.IMWRITE_JPEG_QUALITY, 80]
    )


if __name__ == "__main__":
    main()
