"""PASCAL VOC folders of any classes. (Detectron2's own loader knows the 20 classes only.)"""

import contextlib
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from detectron2.structures import BoxMode

from ...errors import InputError, one_of
from ...files import read_regular
from .annotations import BAD_ANNOTATION, MISSING_IMAGE, ClassIds, Problems, box_problem
from .entry import Entry
from .image_files import SUFFIXES, image_size


class VocEntry(Entry):
    """ROOT: the folder with Annotations, ImageSets/Main and JPEGImages; SPLIT: the list to use.

    Without SPLIT all images that have an XML file are used. ANNOTATIONS and IMAGES name other
    folders than Annotations and JPEGImages; they may be one, as labelling programs write it.
    YEAR 2007 evaluates sets of VOC's own classes with 11 points, any other with the area.
    """

    format = "voc"
    required = ("ROOT",)
    optional = ("SPLIT", "ANNOTATIONS", "IMAGES", "YEAR")

    @property
    def annotations(self) -> Path:
        """The folder of XML files."""
        return self.root / str(self.keys.get("ANNOTATIONS", "Annotations"))

    def check(self) -> None:
        where = f"DATASETS.REGISTER, data set '{self.name}'"
        if not self.keys.get("SPLIT", "all"):
            raise InputError(
                f"{where}: FORMAT voc needs SPLIT, the name of a list in ImageSets/Main"
            )
        one_of(f"{where}: YEAR", str(self.keys.get("YEAR", 2012)), ("2007", "2012"))

    def metadata(self) -> Dict[str, Any]:
        year = int(self.keys.get("YEAR", 2012))
        return {"dirname": str(self.root), "split": str(self.keys.get("SPLIT")), "year": year}

    def file_classes(self) -> Tuple[str, ...]:
        """Sorted names of all objects annotated in the folder, whatever the split."""
        names = set()
        for path in self.annotations.glob("*.xml"):
            with contextlib.suppress(ValueError):  # reading the split tells what is broken in it
                names.update(_text(obj, "name") for obj in _read_xml(path).iterfind("object"))
        if not names:
            raise InputError(
                f"data set '{self.name}': no annotated object under {self.annotations}; "
                "ROOT is relative to the environment variable DETECTRON2_DATASETS"
            )
        return tuple(sorted(names))

    def read(self, problems: Problems) -> List[Dict]:
        """
        Coordinates are 1-based and inclusive in the files. As in Detectron2, the box of the whole
        image becomes (0, 0, W, H). *Difficult* objects are also ``iscrowd``: in the evaluation
        they are neither demanded nor counted as wrong.
        """
        ids = self.class_ids(problems)
        folder = self.root / str(self.keys.get("IMAGES", "JPEGImages"))
        images = defaultdict(list)
        for path in sorted(folder.glob("*")):
            if path.suffix.lower() in SUFFIXES:
                images[path.stem].append(path)
        dicts = []
        names, lister = self._names()
        for line in names:
            # such lists may have a second column
            image_id = line if line in images else line.split()[0]
            if image_id not in images:
                reason = f"no such image ({', '.join(SUFFIXES)}), though {lister} lists it"
                problems.add(MISSING_IMAGE, folder / image_id, reason)
                continue
            record = self._record(image_id, images[image_id], ids, problems)
            if record is not None:
                dicts.append(record)
        return dicts

    def _names(self) -> Tuple[List[str], str]:
        """The images to use, and which file says so."""
        if "SPLIT" not in self.keys:
            return sorted(path.stem for path in self.annotations.glob("*.xml")), "an XML file"
        path = self.root / "ImageSets" / "Main" / f"{self.keys['SPLIT']}.txt"
        return self._read_split(path), path.name

    def _read_split(self, path: Path) -> List[str]:
        try:
            return [
                line.strip()
                for line in path.read_text(encoding="utf-8").splitlines()
                if line.strip()
            ]
        except (OSError, ValueError) as error:
            raise InputError(
                f"data set '{self.name}': {path}: {getattr(error, 'strerror', error)} (ROOT is "
                "relative to the environment variable DETECTRON2_DATASETS, SPLIT names the file)"
            ) from error

    def _record(
        self, image_id: str, images: List[Path], ids: ClassIds, problems: Problems
    ) -> Optional[Dict]:
        """
        Args:
            images: files of this name, which differ in their suffix.
        """
        xml = self.annotations / f"{image_id}.xml"
        try:
            tree = _read_xml(xml)
        except ValueError as error:
            problems.add(BAD_ANNOTATION, xml, str(error))
            return None
        named = (tree.findtext("filename") or "").strip()
        image = next((p for p in images if p.name == named), images[0])
        size = _size(tree) or image_size(image, problems)
        if size is None:
            return None
        objects = [_annotation(xml, obj, ids, problems) for obj in tree.iterfind("object")]
        return {
            "file_name": str(image),
            "image_id": image_id,
            "height": size[0],
            "width": size[1],
            "annotations": [a for a in objects if a is not None],
        }


def _annotation(
    xml: Path, obj: ElementTree.Element, ids: ClassIds, problems: Problems
) -> Optional[Dict]:
    """An object in Detectron2's format; None when it is left out."""
    tags = [f"bndbox/{side}" for side in ("xmin", "ymin", "xmax", "ymax")]
    try:
        name = _text(obj, "name")
        x0, y0, x1, y1 = (float(_text(obj, tag)) for tag in tags)
    except ValueError as error:
        problems.add(BAD_ANNOTATION, xml, str(error))
        return None
    class_id = ids.find(name, xml)
    if class_id is None:
        return None
    if kind := box_problem(x0, y0, x1, y1):
        problems.add(kind, xml, f"box of a {name}: {x0:g}, {y0:g} to {x1:g}, {y1:g}")
        return None
    difficult = int(obj.findtext("difficult", "0").strip() == "1")
    return {
        "category_id": class_id,
        "bbox": [x0 - 1, y0 - 1, x1, y1],
        "bbox_mode": BoxMode.XYXY_ABS,
        "iscrowd": difficult,
        "difficult": difficult,
    }


def _read_xml(path: Path) -> ElementTree.Element:
    """
    Raises:
        ValueError: with the reason.
    """
    try:
        data = read_regular(path)
        if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
            raise ValueError(
                "has a document type, which annotations have not; entities may explode"
            )
        return ElementTree.fromstring(data)
    except OSError as error:
        raise ValueError(error.strerror) from error
    except ElementTree.ParseError as error:
        raise ValueError(f"broken XML: {error}") from error


def _text(element: ElementTree.Element, tag: str) -> str:
    text: Optional[str] = element.findtext(tag)
    if text is None or not text.strip():
        raise ValueError(f"an object has no <{tag.replace('/', '><')}>")
    return text.strip()


def _size(tree: ElementTree.Element) -> Optional[Tuple[int, int]]:
    """(height, width) as annotated; None where the file does not say."""
    try:
        height, width = int(tree.findtext("size/height")), int(tree.findtext("size/width"))
    except (TypeError, ValueError):
        return None
    return (height, width) if height > 0 and width > 0 else None
