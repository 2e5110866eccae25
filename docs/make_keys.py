"""Write config-keys.md from the comments of ssdlite_d2/config.py.

python docs/make_keys.py
python docs/make_keys.py --check    an error, when the page is not what it would write
"""

import ast
import sys
from pathlib import Path
from typing import Dict, List, Tuple

DOCS = Path(__file__).resolve().parent
SOURCE = DOCS.parent / "ssdlite_d2" / "config.py"
PAGE = DOCS / "config-keys.md"

INTRODUCTION = """# Config keys

Made from `ssdlite_d2/config.py` by `python docs/make_keys.py`; do not edit it here. These keys
come on top of Detectron2's own ([config references][1]). A key is set in a YAML file, or as
`KEY VALUE` at the end of a command. Where a meaning is empty, the text above the table or the row
above tells it.

[1]: https://detectron2.readthedocs.io/modules/config.html#yaml-config-references
"""


class Node:
    """A config node: what is said of it and around it, and its keys with default and meaning."""

    def __init__(self) -> None:
        self.texts: List[str] = []
        self.keys: List[Tuple[str, str, str]] = []


def read_nodes(source: str) -> Dict[str, Node]:
    """The nodes that ``add_ssd_config`` sets, by their full names, in the order of the file.

    A comment above an assignment, or behind it, tells the key; one with an empty line below it
    belongs to the node.
    """
    lines = source.splitlines()
    (function,) = (
        item
        for item in ast.parse(source).body
        if isinstance(item, ast.FunctionDef) and item.name == "add_ssd_config"
    )
    nodes: Dict[str, Node] = {}
    at = ""  # the node that the last key belongs to
    end = function.body[0].end_lineno  # of the docstring
    for item in function.body[1:]:
        notes, comment = _comments(lines[end : item.lineno - 1])
        end = item.end_lineno
        for note in notes:
            nodes[at].texts.append(note)
        if not isinstance(item, ast.Assign) or not isinstance(item.targets[0], ast.Attribute):
            continue
        key = ast.unparse(item.targets[0]).removeprefix("_C.")
        value = ast.unparse(item.value)
        _, _, behind = lines[item.end_lineno - 1].partition("  # ")
        if value == "CN()":
            at = key
            nodes.setdefault(at, Node()).texts += [comment] if comment else []
        else:
            at = key.rpartition(".")[0]
            nodes.setdefault(at, Node()).keys.append((key, value, comment or behind))
    return nodes


def read_renamed(source: str) -> Dict[str, str]:
    """RENAMED_KEYS: new names of MODEL.SSD's keys by their old ones."""
    (value,) = (
        item.value
        for item in ast.parse(source).body
        if isinstance(item, ast.Assign) and ast.unparse(item.targets[0]) == "RENAMED_KEYS"
    )
    return ast.literal_eval(value)


def make_page(source: str) -> str:
    """The page for the text of config.py."""
    parts = [INTRODUCTION]
    for name, node in read_nodes(source).items():
        if not node.keys:
            continue
        parts.append(f"## {name}\n")
        parts += [f"{_escape(text)}\n" for text in node.texts]
        rows = [f"| `{key}` | `{value}` | {_escape(text)} |" for key, value, text in node.keys]
        parts.append("\n".join(["| key | default | meaning |", "|---|---|---|", *rows]) + "\n")
    rows = [f"| `{old}` | `{new}` |" for old, new in read_renamed(source).items()]
    parts.append("## Renamed keys of MODEL.SSD\n")
    parts.append("An old name is an error that tells the new one.\n")
    parts.append("\n".join(["| old | new |", "|---|---|", *rows]) + "\n")
    return "\n".join(parts)


def _comments(lines: List[str]) -> Tuple[List[str], str]:
    """Blocks of comments with an empty line below them, and the last one if it has none."""
    blocks, words = [], []
    for line in (line.strip() for line in lines):
        if line.startswith("# "):
            words.append(line[2:])
        elif words:
            blocks.append(" ".join(words))
            words = []
    return blocks, " ".join(words)


def _escape(text: str) -> str:
    for mark, escaped in (("<", "&lt;"), ("*", r"\*"), ("|", r"\|")):
        text = text.replace(mark, escaped)
    return text


def main() -> None:
    """Write the page, or check it."""
    page = make_page(SOURCE.read_text())
    if sys.argv[1:] == ["--check"]:
        if page != PAGE.read_text():
            sys.exit(f"error: {PAGE} is not up to date: run python docs/make_keys.py")
    elif sys.argv[1:]:
        sys.exit("error: the only flag is --check")
    else:
        PAGE.write_text(page)


if __name__ == "__main__":
    main()
