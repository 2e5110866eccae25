"""Data sets named in the YAML, and the classes of a config's data sets."""

import contextlib
import os
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.pascal_voc import CLASS_NAMES as VOC_CLASSES

from ...errors import InputError
from .coco import coco_classes, load_coco
from .voc import load_voc, voc_classes

# Keys of a DATASETS.REGISTER entry by FORMAT, besides NAME, FORMAT, ROOT and CLASSES.
REQUIRED = {"coco": ("JSON", "IMAGES"), "voc": ("ROOT", "SPLIT")}
OPTIONAL = {"coco": (), "voc": ("YEAR",)}


class Entry(NamedTuple):
    """A checked entry of DATASETS.REGISTER, its paths resolved."""

    name: str
    format: str
    root: Path
    classes: Optional[Tuple[str, ...]]
    json: Optional[Path] = None
    images: Optional[Path] = None
    split: Optional[str] = None
    year: int = 2012  # which VOC metric: 2007 is the 11-point one

    @classmethod
    def parse(cls, entry: Dict) -> "Entry":
        """
        Raises:
            InputError: a key is missing, unknown or of a wrong value.
        """
        if not isinstance(entry, dict) or "NAME" not in entry:
            raise InputError(f"DATASETS.REGISTER: an entry needs a NAME, got {entry}")
        where = f"DATASETS.REGISTER, data set '{entry['NAME']}'"
        kind = entry.get("FORMAT")
        if kind not in REQUIRED:
            raise InputError(f"{where}: FORMAT is {kind!r}; it is one of {', '.join(REQUIRED)}")
        known = {"NAME", "FORMAT", "ROOT", "CLASSES", *REQUIRED[kind], *OPTIONAL[kind]}
        for key in entry:
            if key not in known:
                raise InputError(
                    f"{where}: unknown key {key}; known are {', '.join(sorted(known))}"
                )
        for key in REQUIRED[kind]:
            if not entry.get(key):
                raise InputError(f"{where}: FORMAT {kind} needs {key}")
        root = Path(os.getenv("DETECTRON2_DATASETS", "datasets"), entry.get("ROOT", ""))
        classes = entry.get("CLASSES")
        if classes is not None and (not classes or not isinstance(classes, (list, tuple))):
            raise InputError(f"{where}: CLASSES is {classes!r}; it is a list of names")
        return cls(
            name=entry["NAME"],
            format=kind,
            root=root,
            classes=tuple(str(name) for name in classes) if classes else None,
            json=root / entry["JSON"] if kind == "coco" else None,
            images=root / entry["IMAGES"] if kind == "coco" else None,
            split=str(entry["SPLIT"]) if kind == "voc" else None,
            year=int(entry.get("YEAR", 2012)),
        )

    def load(self) -> List[Dict]:
        """The data set in Detectron2's format."""
        if self.format == "coco":
            return load_coco(self.name, self.json, self.images)
        return load_voc(self.name, self.root, self.split, self.find_classes())

    def find_classes(self) -> Tuple[str, ...]:
        """Class names: those of the entry, or as the annotation files have them.

        Raises:
            InputError: the files are missing, or have other classes than the entry says.
        """
        if self.format == "voc":
            return self.classes or voc_classes(self.name, self.root)
        if self.classes and not self.json.is_file():
            return self.classes  # enough to run a trained model
        found = coco_classes(self.name, self.json)
        if self.classes and self.classes != found:
            raise InputError(
                f"data set '{self.name}': CLASSES is {list(self.classes)}, "
                f"but {self.json} has {list(found)}"
            )
        return found


def register_datasets(cfg: CfgNode) -> None:
    """Register the data sets of DATASETS.REGISTER; nothing is read yet.

    An entry replaces one of the same name that was registered from another config.

    Raises:
        InputError: an entry is wrong, or has the name of one of Detectron2's own data sets.
    """
    for mapping in cfg.DATASETS.REGISTER:
        entry = Entry.parse(mapping)
        if entry.name in DatasetCatalog.list():
            previous = getattr(MetadataCatalog.get(entry.name), "ssd_entry", None)
            if previous == entry:
                continue
            if previous is None:
                raise InputError(
                    f"DATASETS.REGISTER: '{entry.name}' is registered already, by other code; "
                    "choose another NAME"
                )
            DatasetCatalog.remove(entry.name)
            MetadataCatalog.remove(entry.name)
        DatasetCatalog.register(entry.name, entry.load)
        metadata = MetadataCatalog.get(entry.name)
        metadata.set(ssd_entry=entry)
        if entry.format == "coco":
            metadata.set(json_file=str(entry.json), image_root=str(entry.images))
        else:
            metadata.set(dirname=str(entry.root), split=entry.split, year=entry.year)


def classes_of(name: str) -> Optional[Tuple[str, ...]]:
    """Class names of a registered data set; None when its metadata has none.

    Raises:
        InputError: there is no such data set, or its files are needed and missing.
    """
    if name not in DatasetCatalog.list():
        raise InputError(
            f"data set '{name}' is unknown: list it in DATASETS.REGISTER, or correct "
            "DATASETS.TRAIN or DATASETS.TEST"
        )
    metadata = MetadataCatalog.get(name)
    entry = getattr(metadata, "ssd_entry", None)
    if entry is not None and not hasattr(metadata, "thing_classes"):
        names = entry.find_classes()
        is_voc = entry.format == "voc" and set(names) == set(VOC_CLASSES)
        metadata.set(thing_classes=list(names), evaluator_type="pascal_voc" if is_voc else "coco")
    classes = metadata.get("thing_classes", None)
    return None if classes is None else tuple(classes)


def resolve_num_classes(cfg: CfgNode) -> int:
    """K of a config: MODEL.SSD.NUM_CLASSES, or that of its data sets when the key is 0.

    Registers the data sets of DATASETS.REGISTER.

    Raises:
        InputError: the data sets and the key contradict each other, or no class is known.
    """
    register_datasets(cfg)
    declared = cfg.MODEL.SSD.NUM_CLASSES
    first = None  # name and classes
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        classes = classes_of(name)
        if classes is None:
            continue
        if declared and declared != len(classes):
            raise InputError(
                f"MODEL.SSD.NUM_CLASSES is {declared}, but data set '{name}' has "
                f"{len(classes)} classes ({_some(classes)}); 0 takes the number from the data set"
            )
        if first and first[1] != classes:
            raise InputError(
                f"data sets '{first[0]}' and '{name}' differ in classes: {len(first[1])} "
                f"({_some(first[1])}) and {len(classes)} ({_some(classes)}); give both the same "
                "CLASSES in DATASETS.REGISTER"
            )
        first = first or (name, classes)
    if not declared and first is None:
        raise InputError(
            "MODEL.SSD.NUM_CLASSES is 0 and no data set of the config tells its classes"
        )
    return declared or len(first[1])


def resolve_datasets(cfg: CfgNode) -> None:
    """Write the number of classes, and the classes of registered data sets, into the config.

    A config saved with a model then needs no data set to run the model.
    """
    num_classes = resolve_num_classes(cfg)
    cfg.MODEL.SSD.NUM_CLASSES = num_classes
    used = {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST}
    cfg.DATASETS.REGISTER = [
        {**entry, "CLASSES": list(classes_of(entry["NAME"]))} if entry["NAME"] in used else entry
        for entry in cfg.DATASETS.REGISTER
    ]
    register_datasets(cfg)  # the entries with classes take the place of those without
    for name in used:
        classes_of(name)


def _some(names: Tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


@contextlib.contextmanager
def dataset_errors(names: Tuple[str, ...]) -> Iterator[None]:
    """Turn a missing file of Detectron2's own data sets into an error that names the data set."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        root = os.getenv("DETECTRON2_DATASETS", "datasets")
        raise InputError(
            f"data set '{', '.join(names)}': {error.filename} does not exist; the environment "
            f"variable DETECTRON2_DATASETS (now '{root}') names the folder of the data sets"
        ) from error
