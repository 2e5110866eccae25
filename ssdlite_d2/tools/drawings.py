"""Where tools write what they draw on images."""

import itertools
from pathlib import Path
from typing import Dict, List, Sequence, Union

from ..errors import InputError


def drawing_paths(
    sources: Sequence[Union[str, Path]], folder: Union[str, Path], suffix: str = ""
) -> List[Path]:
    """A file in a folder for each source, which is made: its name, numbered if another has it.

    Args:
        suffix: of the files; empty: that of the source.

    Raises:
        InputError: the folder cannot be made, or a source would be overwritten.
    """
    refuse_sources(sources, folder)
    make_folder(Path(folder))
    chosen: Dict[Path, str] = {}  # name by source
    taken = set()
    for source in map(Path, sources):
        if source.resolve() not in chosen:
            names = (f"{source.stem}{n}{suffix or source.suffix}" for n in _numbers())
            name = chosen[source.resolve()] = next(name for name in names if name not in taken)
            taken.add(name)
    paths = [Path(folder, chosen[Path(source).resolve()]) for source in sources]
    refuse_sources(sources, *paths)  # which may be links that stand there
    return paths


def refuse_sources(sources: Sequence[Union[str, Path]], *outputs: Union[str, Path]) -> None:
    """
    Raises:
        InputError: an output is a source, or the folder of one.
    """
    originals = {Path(source).resolve() for source in sources}
    places = originals | {p.parent for p in originals}
    places |= {Path(source).parent.resolve() for source in sources}
    for output in outputs:
        if Path(output).resolve() in places:
            raise InputError(
                f"--output: {output} is where the input is, which would be overwritten; name "
                "another folder"
            )


def make_folder(path: Path) -> None:
    """
    Raises:
        InputError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output: {path}: {error.strerror}") from error


def _numbers():
    return itertools.chain([""], map("_{}".format, itertools.count(2)))
