"""PASCAL VOC folders of any classes. (Detectron2's own loader knows the 20 classes only.)"""

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

from detectron2.structures import BoxMode
from PIL import Image

from ...errors import InputError
from .annotations import has_area, log_dropped, log_loaded

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")


def voc_classes(name: str, root: Path) -> Tuple[str, ...]:
    """Sorted names of all objects annotated under ``root``, whatever the split.

    Raises:
        InputError: there is no annotation, or one cannot be read.
    """
    names = set()
    for path in (root / "Annotations").glob("*.xml"):
        names.update(_text(path, obj, "name") for obj in _read_xml(path).iterfind("object"))
    if not names:
        raise InputError(
            f"data set '{name}': no annotated object under {root / 'Annotations'}; ROOT is "
            "relative to the environment variable DETECTRON2_DATASETS"
        )
    return tuple(sorted(names))


def load_voc(name: str, root: Path, split: str, classes: Sequence[str]) -> List[Dict]:
    """A split of a VOC folder in Detectron2's format.

    Coordinates are 1-based and inclusive in the files. As in Detectron2, the box of the whole
    picture becomes (0, 0, W, H). Boxes without area are dropped and counted in the log. *Difficult*
    objects are marked ``iscrowd``: not trained on, as in the references, and neither demanded nor
    counted as wrong in the evaluation.

    Raises:
        InputError: a file is missing or broken, or an object has a class that is not listed.
    """
    folder = root / "JPEGImages"
    pictures = {p.stem: p for p in folder.glob("*") if p.suffix.lower() in SUFFIXES}
    dicts, dropped = [], []
    for image_id in _read_split(name, root / "ImageSets" / "Main" / f"{split}.txt"):
        if image_id not in pictures:
            raise InputError(
                f"data set '{name}': no picture {folder / image_id} ({', '.join(SUFFIXES)}), "
                f"though {split}.txt lists it"
            )
        xml = root / "Annotations" / f"{image_id}.xml"
        tree = _read_xml(xml)
        annotations = [_annotation(name, xml, obj, classes) for obj in tree.iterfind("object")]
        dropped += [xml.name] * annotations.count(None)
        height, width = _size(tree, pictures[image_id])
        dicts.append(
            {
                "file_name": str(pictures[image_id]),
                "image_id": image_id,
                "height": height,
                "width": width,
                "annotations": [a for a in annotations if a is not None],
            }
        )
    log_dropped(name, dropped)
    log_loaded(name, dicts)
    return dicts


def _read_split(name: str, path: Path) -> List[str]:
    try:
        return [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise InputError(
            f"data set '{name}': {path}: {error.strerror} (ROOT is relative to the environment "
            "variable DETECTRON2_DATASETS, SPLIT names the file)"
        ) from error


def _annotation(
    name: str, xml: Path, obj: ElementTree.Element, classes: Sequence[str]
) -> Optional[Dict]:
    """An object in Detectron2's format; None when its box has no area."""
    class_name = _text(xml, obj, "name")
    if class_name not in classes:
        raise InputError(
            f"data set '{name}': {xml}: class '{class_name}' is not in CLASSES {list(classes)}"
        )
    tags = [f"bndbox/{side}" for side in ("xmin", "ymin", "xmax", "ymax")]
    texts = [_text(xml, obj, tag) for tag in tags]
    try:
        x0, y0, x1, y1 = map(float, texts)
    except ValueError as error:
        raise InputError(f"{xml}: a box is {texts}, no numbers") from error
    if not has_area(x0, y0, x1, y1):
        return None
    return {
        "category_id": list(classes).index(class_name),
        "bbox": [x0 - 1, y0 - 1, x1, y1],
        "bbox_mode": BoxMode.XYXY_ABS,
        "iscrowd": int(obj.findtext("difficult", "0").strip() == "1"),
    }


def _read_xml(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(path).getroot()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except ElementTree.ParseError as error:
        raise InputError(f"{path}: broken XML: {error}") from error


def _text(path: Path, element: ElementTree.Element, tag: str) -> str:
    text: Optional[str] = element.findtext(tag)
    if text is None or not text.strip():
        raise InputError(f"{path}: an object has no <{tag.replace('/', '><')}>")
    return text.strip()


def _size(tree: ElementTree.Element, picture: Path) -> Tuple[int, int]:
    """(height, width) as annotated, or of the picture where the file does not say."""
    try:
        height, width = int(tree.findtext("size/height")), int(tree.findtext("size/width"))
    except (TypeError, ValueError):
        height = width = 0
    if height > 0 and width > 0:
        return height, width
    with Image.open(picture) as image:
        return image.height, image.width
