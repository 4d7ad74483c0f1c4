"""Typed options by tyro, with its errors on one line."""

import contextlib
import difflib
import io
import itertools
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import tyro

from metajax.errors import UserError

T = TypeVar("T")
_RULE = "─"


def parse(kind: type[T], args: Sequence[str], *, prog: str, about: str | None = None, default: Any = None) -> T:
    """Parse options into a dataclass.

    A `~` at the beginning of a value is the home folder: shells expand it in `--workdir ~/x` only, not behind `=`.

    Args:
        kind: The dataclass.
        args: Words of the command line.
        prog: The command, for the help.
        about: What it does, for the help; by default the docstring of `kind`.
        default: Values of the fields that are not named.

    Returns:
        An instance of `kind`.

    Raises:
        UserError: If an option is unknown, or its value does not fit.
    """
    said = io.StringIO()
    options = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, args=[_expand_home(arg) for arg in args], prog=prog, description=about, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(f"{_condense(said.getvalue())} ({prog} --help lists the options)") from None


def _expand_home(arg: str) -> str:
    option, equals, value = arg.partition("=")
    if arg.startswith("--") and equals:
        return f"{option}={os.path.expanduser(value)}"
    return os.path.expanduser(arg)


def value_of(option: str, args: Sequence[str]) -> str | None:
    """Return an option's value before the whole line can be parsed; `None` if the option is not there."""
    following = [*args, ""][1:]
    pairs = [arg.split("=", 1) if "=" in arg else [arg, after] for arg, after in zip(args, following, strict=True)]
    return next((_expand_home(value) for name, value in pairs if name.replace("_", "-") == option), None)


def suggestion(word: str, choices: Iterable[str]) -> str:
    """`: did you mean …?` where something is near, else the choices."""
    choices = list(choices)
    near = difflib.get_close_matches(word, choices, n=1)
    return f": did you mean {near[0]!r}?" if near else f": choose one of {', '.join(choices)}"


def _condense(box: str) -> str:
    """The message of tyro's box in one line, with the options that it proposes.

    The box has a title, a message and a rule below it. It is in colour on a terminal; in ASCII it has no sides, and
    a rule below the title too.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [re.sub("^[─-]+$|^╰─+╯$", _RULE, line.strip("│ ")) for line in plain.splitlines()[1:]]
    lines = lines[1:] if lines[:1] == [_RULE] else lines
    rule = lines.index(_RULE) if _RULE in lines else len(lines)
    message = " ".join(lines[:rule]).strip().rstrip(".")
    proposed = [
        re.findall(r"--[\w.-]+", line)  # a switch has two names, on and off
        for head, line in itertools.pairwise(lines)
        if head.startswith("Perhaps you meant") and line.startswith("--")
    ]
    if not proposed:
        return message
    given = re.search(r"--[\w.-]+", message)
    nearest = difflib.get_close_matches(given[0] if given else "", proposed[0], n=1, cutoff=0)
    return f"{message}; did you mean {nearest[0]}?"
