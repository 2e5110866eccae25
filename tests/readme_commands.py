"""Runs the commands of README.md as they are printed, on the four test images, in a new folder.

python tests/readme_commands.py

Left out are pip and make. Trainings take two iterations. Too long for the test suite: some minutes.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import cv2  # noqa: E402
from detectron2.data import DatasetCatalog  # noqa: E402

from ssdlite_d2 import load_config  # noqa: E402
from ssdlite_d2.data import register_datasets  # noqa: E402

CLASSES = ["RBC", "WBC", "Platelets"]
ENTRY = {"NAME": "all", "FORMAT": "voc", "ROOT": "tests/assets/bccd", "SPLIT": "all"}
ENTRY["CLASSES"] = CLASSES


def make_folder(folder: Path) -> None:
    """What the commands expect: a checkout and data in COCO's format."""
    for name in ("train_net.py", "configs", "ssdlite_d2", "docs"):
        (folder / name).symlink_to(ROOT / name)
    images = ROOT / "tests" / "assets" / "bccd" / "JPEGImages"
    for place in ("images", "datasets/mine/images"):
        shutil.copytree(images, folder / place)
    records = read_records()
    for split, chosen in (("train", records[:3]), ("val", records[3:])):
        (folder / "datasets" / "mine" / f"{split}.json").write_text(json.dumps(as_coco(chosen)))
    shutil.copytree(images, folder / "my_folder")
    for file in (images.parent / "Annotations").iterdir():
        shutil.copy(file, folder / "my_folder")
    shutil.copy(next(images.iterdir()), folder / "image.jpg")
    film = cv2.VideoWriter(str(folder / "film.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 5, (640, 480))
    for image in sorted(images.iterdir()):
        film.write(cv2.imread(str(image)))
    film.release()


def read_records():
    """Dataset dicts of the test images."""
    os.environ["DETECTRON2_DATASETS"] = str(ROOT)
    register_datasets(load_config("ssdlite_mnv2.yaml", ["DATASETS.REGISTER", str([ENTRY])]))
    return DatasetCatalog.get("all")


def as_coco(records):
    """The content of a COCO file."""
    images, annotations = [], []
    for record in records:
        name, number = Path(record["file_name"]).name, len(images)
        size = {"height": record["height"], "width": record["width"]}
        images.append({"id": number, "file_name": name, **size})
        for box in record["annotations"]:
            left, top, right, bottom = map(float, box["bbox"])
            bbox = [left, top, right - left, bottom - top]
            kind = {"image_id": number, "category_id": box["category_id"]}
            annotations.append({"id": len(annotations) + 1, "bbox": bbox, **kind})
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES)]
    return {"images": images, "annotations": annotations, "categories": categories}


def main() -> None:
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    with tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder))
        os.environ.pop("DETECTRON2_DATASETS")
        for kind, block in blocks:
            if kind == "yaml":
                text, count = re.subn("MAX_ITER: .*", "MAX_ITER: 2", block)
                assert count == 1
                Path(folder, "mine.yaml").write_text(text)
            elif kind == "python":
                run([sys.executable, "-c", block], folder)
            else:
                for line in block.replace("\\\n", " ").splitlines():
                    if line.startswith("ssdlite train "):
                        line += " SOLVER.MAX_ITER 2"
                    if not line.startswith(("make ", "pip ")):
                        run(["bash", "-c", line], folder)


def run(command, folder: str) -> None:
    print("$", command[-1].strip().splitlines()[0], flush=True)
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(f"{done.stdout.decode()[-3000:]}\nerror: status {done.returncode}")


if __name__ == "__main__":
    main()
