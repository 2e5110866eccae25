"""From a folder of images and annotations to the config that trains on it."""

import ast
import math
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

import yaml

from ..config import find_config, load_config
from ..config_file import INSTEAD_OF
from ..data.datasets.annotations import Problem, Problems
from ..data.datasets.entry import Entry
from ..data.layouts import Layout, Mapping, find_layout
from ..diagnostics.defects import check_boxes
from ..engine.config_checks import check_config
from ..errors import InputError
from ..files import write_atomically

RECIPE = "Base-Own.yaml"
# what models have for small data, by the optimizer that their learning rate is for
SMALL = {"SGD": "Base-Small.yaml", "AdamW": "modern/Base-PAN-Small.yaml"}
LEAST_SEEN = 16000  # images in a training, however few there are: heads and necks are new
CONFIG = "train.yaml"  # in the output folder
SET_ASIDE = 0.2  # share of the images to evaluate on, where the data has no such part


class Plain(yaml.SafeDumper):
    """Writes a value out each time that it is used."""

    def ignore_aliases(self, data) -> bool:
        return True


def output_of(data: str) -> str:
    """The output folder of a training on a folder or annotation file, where none is given."""
    path = Path(data).resolve()
    return str(Path("output", path.name if path.is_dir() else path.stem))


class Part(NamedTuple):
    """A loaded data set.

    Attributes:
        mapping: its entry for DATASETS.REGISTER.
        records: its dataset dicts.
        boxes: their number by class name.
        problems: what is wrong, without being an error.
    """

    mapping: Mapping
    records: List[Dict]
    boxes: Counter
    problems: List[Problem]


def write_own_config(
    data: str,
    output: str,
    model: Optional[str] = None,
    opts: Sequence[str] = (),
    strict: bool = True,
) -> str:
    """Find out what a folder has, say it, and write the config that trains on it.

    Args:
        data: a folder, or an annotation file.
        output: OUTPUT_DIR of the training; gets ``train.yaml`` and, where images are set aside to
            evaluate on, ``train.txt`` and ``val.txt``, which name them. A val.txt that is there
            already is kept.
        model: a config of the package; None: the recipe's own model.
        opts: overrides, alternating keys and values.
        strict: an annotation that cannot be read is an error; otherwise it is left out.

    Returns:
        str: the config's path.

    Raises:
        InputError: the data, the model or an override is wrong.
    """
    content = _base(model)
    keys = [*_pairs({k: v for k, v in content.items() if k != "_BASE_"}), *opts]
    check_config(load_config(content["_BASE_"], keys))  # errors of the command line
    folder = Path(output).resolve()
    layout = find_layout(Path(data).expanduser())
    train = load_part({"NAME": "own_train", **layout.train}, strict)
    lists, aside = [], ""
    if layout.val is None:
        lists = [folder / "train.txt", folder / "val.txt"]
        train, val = _set_aside(train, *lists)
        aside = f", set aside: {lists[1]}"
    else:
        val = load_part({"NAME": "own_val", **layout.val}, strict)
    train, val, notes = _settle_classes(train, val)
    content["DATASETS"] = {
        "REGISTER": [train.mapping, val.mapping],
        "TRAIN": [train.mapping["NAME"]],
        "TEST": [val.mapping["NAME"]],
    }
    content["OUTPUT_DIR"] = str(folder)
    if not {"SOLVER.EPOCHS", "SOLVER.MAX_ITER"} & {*opts}:
        epochs = max(load_config(RECIPE).SOLVER.EPOCHS, LEAST_SEEN / len(train.records))
        content.setdefault("SOLVER", {})["EPOCHS"] = float(math.ceil(epochs))
    for key, value in zip(opts[::2], opts[1::2]):
        _set(content, key, value)
        node, _, other = INSTEAD_OF.get(key, "").partition(".")
        if node and f"{node}.{other}" not in opts:
            content[node].pop(other, None)
    for file, part in zip(lists, (train, val)):  # now that nothing is wrong
        _write(file, "".join(f"{name}\n" for name in _names(part)))
    text = yaml.dump(content, Dumper=Plain, allow_unicode=True, sort_keys=False)
    _write(folder / CONFIG, f"# Written by: ssdlite train {data!r}\n{text}")
    _describe(data, layout, train, val, aside, notes, folder / CONFIG)
    return str(folder / CONFIG)


def load_part(mapping: Mapping, strict: bool = True) -> Part:
    """
    Raises:
        InputError: something in the data set is wrong that a training would end at.
    """
    entry = Entry.parse(mapping)
    problems = Problems(entry.name, strict)
    records = entry.records(problems)
    found = [problem for record in records for problem in check_boxes(record)]
    return Part(mapping, records, _count(entry, records), problems.found + found)


def _count(entry: Entry, records: List[Dict]) -> Counter:
    names = entry.find_classes()
    return Counter(names[a["category_id"]] for r in records for a in r["annotations"])


def _names(part: Part) -> List[str]:
    """What LIST calls the images of a part."""
    return sorted(map(Entry.parse(part.mapping).path_in_root, part.records))


def _base(model: Optional[str]) -> Dict[str, Any]:
    """What the config stands on: the recipe; for another model, that and the recipe's keys."""
    if model is None:
        return {"_BASE_": RECIPE}
    name = model if model.endswith((".yaml", ".yml")) else f"{model}.yaml"
    path = find_config(name)
    content: Dict[str, Any] = {}
    for part in (SMALL[load_config(path).SOLVER.OPTIMIZER], RECIPE):
        keys = yaml.safe_load(Path(find_config(part)).read_text("utf-8"))
        _merge(content, {k: v for k, v in keys.items() if k != "_BASE_"})
    return {"_BASE_": os.path.abspath(path) if os.path.isfile(name) else name, **content}


def _merge(content: Dict, more: Dict) -> None:
    for key, value in more.items():
        if isinstance(value, dict):
            _merge(content.setdefault(key, {}), value)
        else:
            content[key] = value


def _pairs(content: Dict, prefix: str = "") -> List[Any]:
    """Nested mappings as full keys and their values, alternating."""
    pairs = []
    for key, value in content.items():
        more = isinstance(value, dict)
        pairs += _pairs(value, f"{prefix}{key}.") if more else [f"{prefix}{key}", value]
    return pairs


def _set(content: Dict, key: str, value: Any) -> None:
    """Set a key such as SOLVER.BASE_LR in nested mappings."""
    *nodes, last = key.split(".")
    for node in nodes:
        content = content.setdefault(node, {})
    try:
        value = ast.literal_eval(value)
    except (ValueError, SyntaxError):  # a text
        pass
    content[last] = list(value) if isinstance(value, tuple) else value


def _set_aside(whole: Part, train: Path, kept: Path) -> List[Part]:
    """A training and an evaluation part of a set.

    Args:
        train, kept: files that are to list them. What the second one lists already stays there.
    """
    entry, names = Entry.parse(whole.mapping), _names(whole)
    if len(names) < 2:
        raise InputError(
            f"{entry.root} has {len(names)} image; some to train on and one to test on are needed"
        )
    val = set(kept.read_text("utf-8").split("\n")) & set(names) if kept.is_file() else set()
    if not 0 < len(val) < len(names):
        val = set(random.Random(0).sample(names, max(1, round(SET_ASIDE * len(names)))))
    parts = []
    for file, is_val in ((train, False), (kept, True)):
        records = [r for r in whole.records if (entry.path_in_root(r) in val) == is_val]
        mapping = {**whole.mapping, "NAME": f"own_{file.stem}", "LIST": str(file)}
        parts.append(Part(mapping, records, _count(entry, records), whole.problems))
    return parts


def _settle_classes(train: Part, val: Part):
    """Both parts with the classes that there are boxes of to train on, and what to say of it."""
    if not train.boxes:
        raise InputError(f"{train.mapping['ROOT']}: no image to train on has a box")
    known = list(Entry.parse(train.mapping).find_classes())
    unused = [name for name in known if not train.boxes[name]]
    if train.mapping.get("CLASSES"):  # whose places are the numbers in the files
        classes, keys, unused = known, {}, []
    else:
        classes = [name for name in known if train.boxes[name]]
        keys = {"CLASSES": classes, "OTHER_CLASSES": "drop"}
    others = [name for name in val.boxes if name not in classes]
    notes = ["no classes.txt: classes are called by their numbers"] if _numbered(known) else []
    notes += [f"left out: class {name}, without a box to train on" for name in unused]
    notes += [
        f"left out: class {name} of the images to evaluate on"
        for name in others
        if name not in unused
    ]
    train, val = (part._replace(mapping={**part.mapping, **keys}) for part in (train, val))
    return train, val, notes


def _numbered(names: List[str]) -> bool:
    return names == [str(number) for number in range(len(names))]


def _describe(
    data: str, layout: Layout, train: Part, val: Part, aside: str, notes: List[str], config: Path
) -> None:
    """Print what was understood."""
    classes = ", ".join(f"{name} {n}" for name, n in train.boxes.most_common(8))
    more = len(train.boxes) - 8
    print(
        f"data      {data}: {layout.kind}"
        + (f" ({', '.join(sorted(layout.parts))})" if len(layout.parts) > 1 else "")
    )
    print(f"train     {_counts(train)}")
    print(f"evaluate  {_counts(val)}{aside}")
    print(f"classes   {len(train.boxes)}: {classes}" + (f" and {more} more" if more > 0 else ""))
    for note in notes[:3]:
        print(f"          {note}")
    problems = list(dict.fromkeys(train.problems + val.problems))
    for kind, count in Counter(problem.kind for problem in problems).items():
        first = next(problem for problem in problems if problem.kind == kind)
        print(f"check     {count} {kind}, first {Path(first.file).name}: {first.reason}"[:160])
    print(f"config    {config}", flush=True)


def _counts(part: Part) -> str:
    empty = sum(not record["annotations"] for record in part.records)
    name = part.mapping.get("SPLIT") or Path(part.mapping.get("JSON") or part.mapping["ROOT"]).name
    text = f"{len(part.records)} images, {sum(part.boxes.values())} boxes"
    return f"{text} ({name})" + (f", {empty} images without boxes" if empty else "")


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(str(path), lambda out: out.write(text.encode()))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
