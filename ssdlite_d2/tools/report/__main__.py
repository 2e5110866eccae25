"""Report on a trained model as one HTML file, or compare several on the same data.

ssdlite report MODEL [MODEL ...] [--data DATA] [--output FILE] [KEY VALUE ...]
"""

import argparse
import sys
import time
from pathlib import Path
from typing import List, Optional, Sequence

from ...errors import InputError
from ...files import write_atomically
from ...loading import find_model
from ..program import program, split_options
from .comparison import write_comparison
from .html import text
from .runs import Run, quiet, read_run
from .single import advice, headline, write_page


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog=__doc__.split("\n\n")[1]
    )
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="the output folder of a training, a .pth file beside its config.yaml, a name of "
        "weights, or a bundle; several are compared",
    )
    parser.add_argument(
        "--data",
        metavar="DATA",
        default="",
        help="a folder or annotation file to evaluate on (default: the model's test set)",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="default: report.html in MODEL; comparison.html here for several",
    )
    parser.add_argument(
        "--images", type=int, default=12, help="images that are shown (default: 12)"
    )
    parser.add_argument(
        "--on-train", action="store_true", help="evaluate on the training set as well"
    )
    return parser


def report(
    models: Sequence[str],
    output: Optional[str] = None,
    data: str = "",
    images: int = 12,
    on_train: bool = False,
    opts: Sequence[str] = (),
) -> List[Run]:
    """Write a report, print what it says first, and return what it is about.

    Args:
        models: one, or several to compare.
        output: the file; None: see ``--output``.
        data, on_train, opts: as ``read_run`` has them.

    Raises:
        InputError: a model or the data is missing or wrong, or the file cannot be written.
    """
    begin = time.perf_counter()
    path = Path(output or _default_output(models))
    if not path.resolve().parent.is_dir():
        raise InputError(f"--output: {path.parent} is no folder")
    runs = [read_run(str(model), data, opts, on_train) for model in models]
    page = write_page(runs[0], images) if len(runs) == 1 else write_comparison(runs, images)
    write_atomically(str(path), lambda out: out.write(page.encode("utf-8", "replace")))
    for run in runs:
        values = (f"{name} {text(value)}" for name, value in headline(run.test).items())
        print(f"{run.place}: {', '.join(values)}")
    for line in advice(runs[0]) if len(runs) == 1 else ():
        print(f"  {line}")
    print(f"{path}: {len(page) / 1e6:.1f} MB, {time.perf_counter() - begin:.0f} s")
    return runs


def _default_output(models: Sequence[str]) -> Path:
    folder = Path(models[0])
    if len(models) > 1:
        return Path("comparison.html")
    if not folder.exists():
        find_model(str(folder))
        raise InputError(f"--output FILE is needed for {folder}, which is no folder")
    return (folder if folder.is_dir() else folder.parent) / "report.html"


def main() -> None:
    flags, pairs = split_options(sys.argv[1:])
    args = get_parser().parse_args(flags)
    with program():
        quiet()
        report(args.models, args.output, args.data, args.images, args.on_train, pairs)


if __name__ == "__main__":
    main()
