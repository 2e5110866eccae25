"""The error of everything the user can mend."""

from typing import Any, Iterable

LONGEST = 290  # characters of a message


class InputError(ValueError):
    """Something the user gave is wrong; the message is one line that names it and what to change.

    The command-line programs print the message without a traceback.
    """

    def __init__(self, message: str):
        # A data loader worker's error is raised again in the main process with the worker's whole
        # traceback as its message: the last line of that is the message itself.
        lines = message.strip().splitlines() or [""]
        line = lines[-1].split(f"{type(self).__name__}: ")[-1]
        if len(line) > LONGEST:  # a value out of a file, as a rule, between what and why
            line = f"{line[: LONGEST // 2]} ... {line[5 - LONGEST // 2 :]}"
        super().__init__(line)


def one_of(key: str, value: Any, known: Iterable[Any]) -> Any:
    """The value, when it is a known one.

    Args:
        key: config key or command-line flag that the value was given by.

    Raises:
        InputError: it is not.
    """
    known = list(known)
    if value not in known:
        raise InputError(f"{key} is {value!r}; it is one of {', '.join(map(str, known))}")
    return value


def first_line(error: BaseException) -> str:
    """The reason that an error gives, in one line; its type where it gives none."""
    text = getattr(error, "strerror", None) or str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0]
