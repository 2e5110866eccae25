"""The program ``ssdlite``: the tools and train_net.py under one name."""

import importlib
import sys
from pathlib import Path
from typing import List, NamedTuple

from ..config_file import find_config, known_configs
from ..errors import InputError
from .program import one_line_errors, split_options

PLACES = """ssdlite COMMAND --help tells more. DATA is a folder or an annotation file. MODEL is the
output folder of a training, a .pth file beside its config.yaml, or a name. --config-file FILE may
be in the place of both."""


class Command(NamedTuple):
    """A subcommand.

    Attributes:
        module: of this folder; its ``main()`` reads ``sys.argv``.
        help: one line.
        before: arguments in front of those of the command line.
        takes: flag that takes further words after MODEL; "": none does.
        first: what the first word may be, MODEL or DATA, for a config; "": the module knows itself.
        strict: an annotation that cannot be read ends the command; one that names all goes on.
    """

    module: str
    help: str
    before: List[str] = []
    takes: str = ""
    first: str = "MODEL"
    strict: bool = True


COMMANDS = {
    "train": Command("train", "train on a folder of data, or by --config-file FILE", first=""),
    "eval": Command("train", "accuracy of a trained MODEL on its test data", ["--eval-only"]),
    "predict": Command("demo", "draw what a MODEL finds in images or a video", [], "--input"),
    "export": Command("export", "make a bundle of a MODEL that runs without PyTorch"),
    "report": Command("report.__main__", "what is good and bad about MODELs", first=""),
    "check": Command(
        "check_data", "what is wrong with images and boxes of DATA", first="DATA", strict=False
    ),
    "view": Command("visualize_data", "draw what a training on DATA sees", first="DATA"),
    "fit-anchors": Command("fit_anchors", "fit anchor sizes to DATA", first="DATA"),
    "benchmark": Command("benchmark.__main__", "measure speed", first=""),
    "convert": Command("convert_checkpoint", "convert public SSD weights", first=""),
    "models": Command("", "list the configs of the package"),
}


def usage() -> str:
    lines = [f"  {name:12}{command.help}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: ssdlite COMMAND ...", "", *lines, "", PLACES])


def list_configs() -> None:
    """Print the package's configs, each with the first line of its comment."""
    for name in known_configs():
        with open(find_config(name), encoding="utf-8") as file:
            comment = next((line[1:].strip() for line in file if line.startswith("#")), "")
        print(f"{name:42}{comment}")


def expand(command: Command, words: List[str]) -> List[str]:
    """Arguments of a command's module: a MODEL in front becomes its config and weights."""
    if not command.first or not words or words[0].startswith("-"):
        return [*command.before, *words]
    if command.first == "DATA" and not Path(words[0], "config.yaml").is_file():
        from .own_data import output_of, write_own_config

        flags, pairs = split_options(words[1:])
        output = output_of(words[0])
        config = write_own_config(words[0], output, opts=pairs, strict=command.strict)
        return ["--config-file", config, *flags, *pairs]
    from ..loading import find_model

    model = find_model(words[0])
    flags, pairs = split_options(words[1:])
    inputs = []
    while command.takes and flags and not flags[0].startswith("-"):
        inputs.append(flags.pop(0))
    front = ["--config-file", model.config, *([command.takes, *inputs] if inputs else [])]
    return [*command.before, *front, *flags, "MODEL.WEIGHTS", model.weights, *pairs]


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    with one_line_errors():
        if name in ("-h", "--help"):
            print(usage())
        elif name not in COMMANDS:
            raise InputError(f"ssdlite {name}: the commands are {', '.join(COMMANDS)}")
        elif name == "models":
            list_configs()
        else:
            command = COMMANDS[name]
            sys.argv = [f"ssdlite {name}", *expand(command, sys.argv[2:])]
            importlib.import_module(f"{__package__}.{command.module}").main()


if __name__ == "__main__":
    main()
