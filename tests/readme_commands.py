"""Runs the commands of README.md and of docs/*.md as they are printed, on four images.

python tests/readme_commands.py [PAGE ...]

Each page has a new folder. Trainings take two iterations. What LEFT_OUT matches is listed with the
reason and not run. Too long for the test suite: some minutes.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import cv2  # noqa: E402
from detectron2.data import DatasetCatalog  # noqa: E402

from ssdlite_d2 import load_config  # noqa: E402
from ssdlite_d2.data import register_datasets  # noqa: E402

LEFT_OUT = {
    r"make |pip |python3 -m venv|env/bin/": "sets up the machine",
    r".*neon_trees\.py --wheel": "needs a download",
    r".*--num-(gpus|machines)|torchrun|srun": "needs GPUs",
    r".*(voc0712|ssd300|mb1-ssd|mb1)\.pth": "needs weights of other projects",
}
NEEDS = {  # what a page takes from other commands than its own
    "docs/export.md": ["python train_net.py --config-file configs/ssdlite_mnv2_bccd.yaml"],
    "docs/getting-started.md": ["python train_net.py --config-file configs/neon_trees.yaml"],
    "docs/report.md": [
        "ssdlite train my_folder",
        "cp -r output/my_folder output/other",
        "ssdlite export output/my_folder --format onnx --output bundle",
    ],
}
CLASSES = ["RBC", "WBC", "Platelets"]
ENTRY = {"NAME": "all", "FORMAT": "voc", "ROOT": "tests/assets/bccd", "SPLIT": "all"}
ENTRY["CLASSES"] = CLASSES


def make_folder(folder: Path) -> None:
    """What the commands expect: a checkout, and images and annotations in each format."""
    for name in ("train_net.py", "configs", "ssdlite_d2", "docs"):
        (folder / name).symlink_to(ROOT / name)
    assets, records = ROOT / "tests" / "assets" / "bccd", read_records()
    images = assets / "JPEGImages"
    for place in ("images", "datasets/mine/images", "my_folder"):
        shutil.copytree(images, folder / place)
    shutil.copytree(assets / "Annotations", folder / "my_folder", dirs_exist_ok=True)
    shutil.copytree(assets, folder / "datasets" / "bccd")
    for split, chosen in (("train", records[:3]), ("val", records[3:])):
        shutil.copytree(images, folder / "datasets" / "neon_trees" / split)
        write_coco(folder / "datasets" / "mine" / f"{split}.json", chosen, CLASSES)
        trees = folder / "datasets" / "neon_trees" / f"{split}.json"
        write_coco(trees, chosen, ["tree"], f"{split}/")
        names = "".join(f"{Path(record['file_name']).stem}\n" for record in chosen)
        lists = folder / "datasets" / "bccd" / "ImageSets" / "Main"
        (lists / {"train": "trainval.txt", "val": "test.txt"}[split]).write_text(names)
    shutil.copy(next(images.iterdir()), folder / "image.jpg")
    film = cv2.VideoWriter(str(folder / "film.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 5, (640, 480))
    for image in sorted(images.iterdir()):
        film.write(cv2.imread(str(image)))
    film.release()


def read_records():
    """Dataset dicts of the test images."""
    os.environ["DETECTRON2_DATASETS"] = str(ROOT)
    if "all" not in DatasetCatalog:
        register_datasets(load_config("ssdlite_mnv2.yaml", ["DATASETS.REGISTER", str([ENTRY])]))
    return DatasetCatalog.get("all")


def write_coco(file: Path, records, classes, folder: str = "") -> None:
    """Write a COCO file.

    Args:
        classes: names; boxes of later classes than these get the last one.
        folder: stands before the names of the images.
    """
    images, annotations = [], []
    for number, record in enumerate(records):
        name = folder + Path(record["file_name"]).name
        size = {"height": record["height"], "width": record["width"]}
        images.append({"id": number, "file_name": name, **size})
        for box in record["annotations"]:
            left, top, right, bottom = map(float, box["bbox"])
            bbox = [left, top, right - left, bottom - top]
            kind = {"image_id": number, "category_id": min(box["category_id"], len(classes) - 1)}
            annotations.append({"id": len(annotations) + 1, "bbox": bbox, **kind})
    categories = [{"id": i, "name": name} for i, name in enumerate(classes)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    file.write_text(json.dumps(content))


def main(pages) -> None:
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for page in pages or ["README.md", *sorted(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))]:
        print(f"== {page}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            run_page(page, Path(folder))


def run_page(page: str, folder: Path) -> None:
    """Run what a page prints: YAML is mine.yaml, blocks without a language are commands."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / page).read_text(), re.M | re.S)
    if any(kind in ("", "python") for kind, _ in blocks):
        make_folder(folder)
    for line in NEEDS.get(page, ()):
        run_line(line, folder)
    for kind, block in blocks:
        if kind == "yaml":
            text, count = re.subn("MAX_ITER: .*", "MAX_ITER: 2", block)
            if count:  # or it is a part of a config
                (folder / "mine.yaml").write_text(text)
        elif kind == "python":
            bundle = "from detector import" in block  # which runs in the bundle's folder
            if bundle:
                shutil.copy(folder / "image.jpg", folder / "exported")
            run([sys.executable, "-c", block], folder / "exported" if bundle else folder)
        elif not kind:
            for line in block.replace("\\\n", " ").splitlines():
                run_line(re.sub(r"\s+# .*", "", line), folder)


def run_line(line: str, folder: Path) -> None:
    reason = next((why for pattern, why in LEFT_OUT.items() if re.match(pattern, line)), "")
    if reason:
        print(f"- {line}: left out, {reason}", flush=True)
        return
    if re.search(r"ssdlite train |train_net\.py (?!.*--eval-only)", line):
        line = re.sub(r"SOLVER\.EPOCHS \d+", "", line) + " SOLVER.MAX_ITER 2"
    if line.endswith("serve.py"):
        run_server(line, folder)
    else:
        run(["bash", "-c", line], folder)


def run_server(command, folder: Path) -> None:
    """Start a server, get the page whose address it prints, and stop it as Ctrl-C does."""
    print("$", command, flush=True)
    server = subprocess.Popen(command.split(), cwd=folder, stdout=subprocess.PIPE, text=True)
    try:
        with urllib.request.urlopen(server.stdout.readline().strip(), timeout=20) as answer:
            assert b"<html" in answer.read()
    finally:
        server.send_signal(signal.SIGINT)
    if server.wait(20):
        sys.exit(f"error: status {server.returncode}")


def run(command, folder: Path) -> None:
    print("$", command[-1].strip().splitlines()[0], flush=True)
    environment = {k: v for k, v in os.environ.items() if k != "DETECTRON2_DATASETS"}
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        sys.exit(f"{done.stdout.decode()[-3000:]}\nerror: status {done.returncode}")


if __name__ == "__main__":
    main(sys.argv[1:])
