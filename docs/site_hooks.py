"""Hooks of mkdocs: the repository's own texts are pages of the site, and links lead to them.

In the repository README.md links to ``docs/training.md`` and a page of docs/ to ``../SECURITY.md``;
on the site all of them lie in one folder, and README.md is its first page.
"""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
LINK = re.compile(r"(?<=\]\()(?:docs/|\.\./)")


def on_files(files, config):
    """Add TEXTS to the pages."""
    for name in TEXTS:
        place = "index.md" if name == "README.md" else name
        files.append(File.generated(config, place, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links of the repository to links of the site."""
    return LINK.sub("", markdown).replace("](README.md", "](index.md")
