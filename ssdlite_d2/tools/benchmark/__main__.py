"""Measure parts of the package beside others' on this machine.

python -m ssdlite_d2.tools.benchmark data
"""

import argparse
import sys

from ...errors import InputError
from . import data, inference, train

SUBJECTS = {"data": data, "inference": inference, "train": train}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ssdlite_d2.tools.benchmark")
    subjects = parser.add_subparsers(dest="subject", required=True)
    for name, module in SUBJECTS.items():
        subject = subjects.add_parser(
            name,
            help=module.__doc__.splitlines()[0],
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(subject)
        subject.add_argument("--json", metavar="FILE", help="write the figures there as well")
    args = parser.parse_args()
    try:
        SUBJECTS[args.subject].run(args)
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
