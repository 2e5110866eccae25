"""Measure speed.

python -m ssdlite_d2.tools.benchmark inference
"""

import argparse
from types import ModuleType
from typing import Dict, Optional

from ..program import one_line_errors
from . import inference


def main(program: str = "", subjects: Optional[Dict[str, ModuleType]] = None) -> None:
    """Run the subject that the command line names.

    Args:
        program: its name; "": that of the command line.
        subjects: modules with ``add_arguments(parser)`` and ``run(args)``, by their names.
    """
    subjects = subjects or {"inference": inference}
    parser = argparse.ArgumentParser(prog=program or None)
    choices = parser.add_subparsers(dest="subject", required=True)
    for name, module in subjects.items():
        subject = choices.add_parser(
            name,
            help=module.__doc__.splitlines()[0],
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(subject)
        subject.add_argument("--json", metavar="FILE", help="write the figures there as well")
    args = parser.parse_args()
    with one_line_errors():
        subjects[args.subject].run(args)


if __name__ == "__main__":
    main("python -m ssdlite_d2.tools.benchmark")
