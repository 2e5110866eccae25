"""Config files and overrides: plain values only, and mistakes named by file, line and key."""

import difflib
import os
import reprlib
from itertools import zip_longest
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Tuple

import yaml
from detectron2.config import CfgNode as CN
from detectron2.utils.file_io import PathManager

from .errors import InputError
from .files import read_regular

BASE = "_BASE_"
FOLDERS = [Path(__file__).resolve().parents[i] / "configs" for i in (0, 1)]  # installed, checkout
# Keys that mean the same in two units: where a file or a command line sets the first alone, the
# second, of what it stands on, is set to 0.
INSTEAD_OF = {"SOLVER.MAX_ITER": "SOLVER.EPOCHS", "TEST.EVAL_PERIOD": "TEST.EVALUATIONS"}
KINDS = {
    tuple: "a tuple",
    list: "a list",
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    type(None): "None",
}


def get_config_file(name: str) -> str:
    """Path of a config that comes with the package, such as ``"ssdlite_mnv2.yaml"``.

    Raises:
        InputError: there is none of that name.
    """
    for path in (folder / name for folder in FOLDERS):
        if path.is_file():
            return str(path)
    known = known_configs()
    near = ", ".join(difflib.get_close_matches(name, known, n=5, cutoff=0))
    raise InputError(f"no config '{name}'; of {len(known)} in the package the nearest are {near}")


def known_configs() -> List[str]:
    """Names of the package's configs."""
    return sorted({str(path.relative_to(f)) for f in FOLDERS for path in f.rglob("*.yaml")})


def find_config(config_file: str) -> str:
    """A config file's path: itself, or that of the package's config of this name.

    Raises:
        InputError: there is neither.
    """
    if Path(config_file).is_file():
        return config_file
    if Path(config_file).is_dir():
        raise InputError(f"{config_file} is a folder; --config-file is a YAML file")
    return get_config_file(config_file.removeprefix("configs/"))


def merge_file(cfg: CN, path: str) -> None:
    """Set a config file's keys, those of its ``_BASE_`` first.

    Raises:
        InputError: a file is missing or no YAML of plain values, or a key or value does not fit.
    """
    for file, content in _read_chain(path):
        for key, value in content.items():
            _merge(cfg, file, str(key), value)
        _settle_units(cfg, _keys(content))


def merge_options(cfg: CN, opts: Iterable[Any]) -> None:
    """Set alternating keys and values.

    Raises:
        InputError: a key or value does not fit.
    """
    source, missing = "the command line", object()
    opts = list(opts)
    words = iter(opts)
    for key, value in zip_longest(words, words, fillvalue=missing):
        if str(key).startswith("-"):
            raise InputError(f"{source}: {key} is no key; options come before KEY VALUE pairs")
        if "=" in str(key):
            raise InputError(f"{source}: {key}: write {str(key).replace('=', ' ', 1)}")
        if value is missing:
            raise InputError(f"{source}: {key} has no value; keys and values come in pairs")
        _merge(cfg, source, str(key), value)
    _settle_units(cfg, list(map(str, opts[::2])))


def _settle_units(cfg: CN, keys: List[str]) -> None:
    """Let a key that was just set hold against the one that means the same."""
    for key, other in INSTEAD_OF.items():
        if key in keys and other not in keys:
            _merge(cfg, "", other, 0 if other.startswith("TEST") else 0.0)


def _read_chain(path: str, above: Tuple[str, ...] = ()) -> Iterator[Tuple[str, Dict[str, Any]]]:
    """(file, content) of a config and of all that it stands on, the lowest first."""
    real = os.path.realpath(path)
    if real in above:
        raise InputError(f"{path}: {BASE} leads back to this file")
    content = _read_yaml(path)
    bases = content.pop(BASE, [])
    for base in bases if isinstance(bases, list) else [bases]:
        yield from _read_chain(_find_base(str(base), path), (*above, real))
    yield path, content


def _find_base(base: str, path: str) -> str:
    """The file that ``_BASE_`` of a config names: beside it, or of the package."""
    try:
        if "://" in base:
            return PathManager.get_local_path(base)
        beside = Path(path).parent / Path(base).expanduser()
        return str(beside) if beside.is_file() else get_config_file(base.removeprefix("configs/"))
    except (InputError, OSError, RuntimeError) as error:
        names = difflib.get_close_matches(Path(base).name, known_configs(), 3)
        hint = f"; the package has {', '.join(names)}" if names else ""
        raise InputError(f"{path}: {BASE} {base} is not found{hint}") from error


def _read_yaml(path: str) -> Dict[str, Any]:
    try:
        content = yaml.safe_load(read_regular(path))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        mark, reason = error.problem_mark or error.context_mark, error.problem or error.context
        if "constructor for the tag" in reason:  # of Python's objects, which would run code
            tag = reason.split("'")[1].replace("tag:yaml.org,2002:", "!!")
            reason = f"the tag {tag} is refused: a config has plain values only"
        if "'\\t'" in reason:
            reason = "a tab: indent with spaces"
        raise InputError(f"{path}, line {mark.line + 1 if mark else '?'}: {reason}") from error
    except Exception as error:  # yaml raises nearly every kind
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} is no YAML: {reason}") from error
    if not isinstance(content or {}, dict):
        raise InputError(f"{path} is no config: it has {reprlib.repr(content)} in place of keys")
    return content or {}


def _merge(cfg: CN, source: str, key: str, value: Any) -> None:
    """Set one key, or those of a node, by its full name."""
    parent, current, name = None, cfg, ""
    for name in key.split("."):
        if not isinstance(current, CN) or name not in current:
            raise InputError(f"{source}: {_unknown(key, cfg)}")
        parent, current = current, current[name]
    try:
        value = CN._decode_cfg_value(value)  # texts that are literals, such as "(1, 2)"
        value = float(value) if type(value) is int and type(current) is float else value
    except Exception as error:  # literals raise some kinds more than expected there
        raise InputError(f"{source}: {key} is {reprlib.repr(value)}: {error}") from error
    kinds = {type(value), type(current)}
    if isinstance(current, CN) and isinstance(value, CN):
        for inner, content in value.items():
            _merge(cfg, source, f"{key}.{inner}", content)
    elif kinds == {tuple, list}:
        parent[name] = type(current)(value)
    elif kinds <= set(KINDS) and (len(kinds) == 1 or type(None) in kinds):
        parent[name] = value
    else:
        raise InputError(f"{source}: {key} is {reprlib.repr(value)}; {_expected(value, current)}")


def _expected(value: Any, current: Any) -> str:
    """What a key that now has ``current`` takes instead of a value."""
    if isinstance(current, CN):
        return "it has keys of its own"
    example = reprlib.repr(current)
    if isinstance(current, (tuple, list)) and isinstance(value, (str, int, float)):
        value = value.strip("()[] ") if isinstance(value, str) else value
        alike = len({type(item) for item in (value, *current)}) == 1
        example = reprlib.repr(type(current)([value] * (len(current) if alike and current else 1)))
    return f"it must be {KINDS[type(current)]} such as {example}"


def _unknown(key: str, cfg: CN) -> str:
    """What to say of a key that there is none of: its new name, or names that may be meant."""
    if cfg.key_is_renamed(key):
        return f"{key} is called {cfg.__dict__[CN.RENAMED_KEYS][key]} now"
    keys = list(_keys(cfg))
    last = key.rsplit(".", 1)[-1].upper()
    found = difflib.get_close_matches(key.upper(), keys, 2, 0.8)
    found = found or [k for k in keys if k.rsplit(".", 1)[-1] == last][:3]
    return f"there is no key {key}" + (f"; did you mean {' or '.join(found)}?" if found else "")


def _keys(node: Dict[str, Any], prefix: str = "") -> List[str]:
    """Full names of all keys."""
    names = []
    for name, value in node.items():
        names.append(f"{prefix}{name}")
        names += _keys(value, f"{prefix}{name}.") if isinstance(value, dict) else []
    return names
