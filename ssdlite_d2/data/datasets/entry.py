"""An entry of DATASETS.REGISTER: a data set that the YAML describes."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Dict, List, Optional, Tuple, Type

from ...errors import InputError, first_line, one_of
from .annotations import MISSING_IMAGE, ClassIds, Problems, log_loaded

COMMON = ("NAME", "FORMAT", "ROOT", "CLASSES", "OTHER_CLASSES", "LIST")
OTHER_CLASSES = ("error", "drop")


@dataclass(frozen=True)
class Entry:
    """A checked entry. Subclasses read one format; they are found by their ``format``."""

    name: str
    root: Path  # joined to the folder of data sets
    keys: Dict[str, Any]
    classes: Optional[Tuple[str, ...]]  # names by id, if the entry tells
    other_classes: str
    image_list: Optional[Path] = None  # file of the images to use; None: all

    format: ClassVar[str]
    required: ClassVar[Tuple[str, ...]] = ()
    optional: ClassVar[Tuple[str, ...]] = ()
    formats: ClassVar[Dict[str, Type["Entry"]]] = {}

    def __init_subclass__(cls) -> None:
        Entry.formats[cls.format] = cls

    @staticmethod
    def parse(mapping: Dict[str, Any]) -> "Entry":
        """
        Raises:
            InputError: a key is missing, unknown or of a wrong value.
        """
        if not isinstance(mapping, dict) or "NAME" not in mapping:
            raise InputError(f"DATASETS.REGISTER: an entry needs a NAME, got {mapping}")
        where = f"DATASETS.REGISTER, data set '{mapping['NAME']}'"
        for key, value in mapping.items():
            if key != "CLASSES" and value is not None and not isinstance(value, (str, int)):
                raise InputError(f"{where}: {key} is {value!r}; it is a text")
        kind = Entry.formats[
            one_of(f"{where}: FORMAT", mapping.get("FORMAT"), sorted(Entry.formats))
        ]
        known = {*COMMON, *kind.required, *kind.optional}
        for key in mapping:
            if key not in known:
                raise InputError(
                    f"{where}: unknown key {key}; known are {', '.join(sorted(known))}"
                )
        for key in kind.required:
            if not mapping.get(key):
                raise InputError(f"{where}: FORMAT {kind.format} needs {key}")
        classes, other = mapping.get("CLASSES"), mapping.get("OTHER_CLASSES", "error")
        if classes is not None and (not classes or not isinstance(classes, (list, tuple))):
            raise InputError(f"{where}: CLASSES is {classes!r}; it is a list of names")
        one_of(f"{where}: OTHER_CLASSES", other, OTHER_CLASSES)
        entry = kind(
            name=str(mapping["NAME"]),
            root=Path(os.getenv("DETECTRON2_DATASETS", "datasets"), str(mapping.get("ROOT") or "")),
            keys={k: v for k, v in mapping.items() if k not in COMMON},
            classes=tuple(str(name) for name in classes) if classes else None,
            other_classes=other,
            image_list=Path(str(mapping["LIST"])) if mapping.get("LIST") else None,
        )
        entry.check()
        return entry

    def check(self) -> None:
        """Raises InputError when keys contradict each other."""

    def path(self, key: str) -> Path:
        """A key's path, below the root."""
        return self.root / str(self.keys[key])

    def find_classes(self) -> Tuple[str, ...]:
        """Names by id: those of the entry, or as its files have them.

        Raises:
            InputError: the files are missing, or have other classes than the entry says.
        """
        if self.classes is None:
            return self.file_classes()
        if self.other_classes == "error" and self.has_class_list():
            others = [name for name in self.file_classes() if name not in self.classes]
            if others:
                raise InputError(
                    f"data set '{self.name}': CLASSES is {list(self.classes)}, but its files have "
                    f"also {others} (OTHER_CLASSES: drop leaves such objects out)"
                )
        return self.classes

    def has_class_list(self) -> bool:
        """Whether ``file_classes`` is known without reading all annotations."""
        return False

    def file_classes(self) -> Tuple[str, ...]:
        """Names as the files have them.

        Raises:
            InputError: the files are missing or tell none.
        """
        raise NotImplementedError

    def class_ids(self, problems: Problems) -> ClassIds:
        """Names to ids: of the entry's classes, or else of the files'."""
        return ClassIds(self.classes or self.file_classes(), self.other_classes, problems)

    def load(self, problems: Optional[Problems] = None) -> List[Dict]:
        """The data set in Detectron2's format.

        Raises:
            InputError: something is wrong, unless ``problems`` is not strict.
        """
        problems = problems or Problems(self.name)
        dicts = self.records(problems)
        problems.log_dropped()
        log_loaded(self.name, dicts)
        return dicts

    def path_in_root(self, record: Dict) -> str:
        """How LIST names an image: its path below ROOT."""
        return os.path.relpath(record["file_name"], self.root)

    def records(self, problems: Problems) -> List[Dict]:
        """What ``load`` returns, of which nothing is logged."""
        try:
            dicts = self.read(problems)
        except (OSError, UnicodeError) as error:
            where = f"data set '{self.name}': {getattr(error, 'filename', None) or self.root}"
            raise InputError(f"{where}: {first_line(error)}") from error
        if self.image_list is None:
            return dicts
        try:
            names = set(filter(None, self.image_list.read_text("utf-8").split("\n")))
        except (OSError, ValueError) as error:
            raise InputError(f"data set '{self.name}': LIST {self.image_list}: {error}") from error
        kept = [record for record in dicts if self.path_in_root(record) in names]
        for name in sorted(names - set(map(self.path_in_root, kept))):
            problems.add(
                MISSING_IMAGE, self.root / name, f"no such image, though {self.image_list} lists it"
            )
        return kept

    def read(self, problems: Problems) -> List[Dict]:
        """All images of the data set; ``records`` leaves out those that LIST does not name."""
        raise NotImplementedError

    def metadata(self) -> Dict[str, Any]:
        """What the evaluators need to know, for the catalog, besides the classes."""
        return {}
