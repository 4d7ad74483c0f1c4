"""Parse typed options with tyro, and print tyro's errors as one line."""

import contextlib
import dataclasses
import difflib
import io
import os
import re
import typing
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, TypeVar

import tyro

from metajax.errors import UserError

T = TypeVar("T")
_RULE = "─"
DescribedDefault = Annotated[T, tyro.conf.arg(help_behavior_hint="")]
"""Type of an option whose docstring states its default, so that its help has no second `(default: None)`."""

(_HIDDEN,) = typing.get_args(tyro.conf.Suppress[int])[1:]


def parse(kind: type[T], args: Sequence[str], *, prog: str, about: str | None = None, default: Any = None) -> T:
    """Parse the options of a command line into a dataclass.

    A `~` at the beginning of a value is replaced by the home folder. Shells expand only `--workdir ~/x`, not
    `--workdir=~/x`.

    Args:
        kind: The dataclass. Its fields define the options.
        args: Arguments of the command line.
        prog: The command, such as `metajax train`, for the help.
        about: Description of the command, for the help. Default: the docstring of `kind`.
        default: Values of the fields that the arguments do not set.

    Returns:
        An instance of `kind`.

    Raises:
        UserError: If an option is unknown, or if its value has the wrong type.
    """
    output = io.StringIO()
    options = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(output):
            return tyro.cli(kind, args=[_expand_home(arg) for arg in args], prog=prog, description=about, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        message = _condense(output.getvalue(), list(_flags(kind if default is None else default)))
        raise UserError(f"{message} ({prog} --help lists the options)") from None


def _expand_home(arg: str) -> str:
    option, equals, value = arg.partition("=")
    if arg.startswith("--") and equals:
        return f"{option}={os.path.expanduser(value)}"
    return os.path.expanduser(arg)


def value_of(option: str, args: Sequence[str]) -> str | None:
    """Return the last value of an option without parsing the other arguments; `None` if the option is missing."""
    following = [*args, ""][1:]
    pairs = [arg.split("=", 1) if "=" in arg else [arg, after] for arg, after in zip(args, following, strict=True)]
    return next((_expand_home(value) for name, value in reversed(pairs) if name.replace("_", "-") == option), None)


def _flags(settings: Any, prefix: str = "--") -> Iterator[str]:
    """Yield the option names of a dataclass, or of an instance with nested settings, without hidden options."""
    kind = settings if isinstance(settings, type) else type(settings)
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(settings):
        if _HIDDEN in getattr(hints[field.name], "__metadata__", ()):
            continue
        value = None if isinstance(settings, type) else getattr(settings, field.name)
        nameless = any(getattr(each, "name", None) == "" for each in getattr(field.type, "__metadata__", ()))
        name = prefix if nameless else f"{prefix}{field.name.replace('_', '-')}"
        parts = {f"{name}.{i}": part for i, part in enumerate(value)} if isinstance(value, tuple) else {name: value}
        if any(dataclasses.is_dataclass(part) for part in parts.values()):
            for path, part in parts.items():
                if dataclasses.is_dataclass(part):
                    yield from _flags(part, path if nameless else f"{path}.")
        else:
            yield name


def _nearest(flag: str, flags: list[str]) -> list[str]:
    """Return the options that the user may have meant by an unknown option `flag`.

    The result has up to three options with the same last part. If there are none, it has the most similar option.

    >>> _nearest("--training.seed", ["--seed", "--training.keep"])
    ['--seed']
    >>> _nearest("--task.shots", ["--task.train.shots", "--task.test.shots", "--model.shots"])
    ['--task.train.shots', '--task.test.shots']
    """

    def last(name: str) -> str:
        return name.removeprefix("--").rpartition(".")[2]

    same = [name for name in flags if last(name) == last(flag)]
    inside = [name for name in same if name.startswith(flag.rpartition(".")[0])] if "." in flag else []
    if same:
        return (inside or same)[:3]
    return difflib.get_close_matches(flag[:100], flags, n=1, cutoff=0.7)


def _condense(box: str, flags: list[str]) -> str:
    """Convert tyro's error box into a message of one line, with the options that the user may have meant.

    The box has a title, a message and a line below the message. On a terminal it has colours. In ASCII the box has no
    sides, and also a line below the title.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [re.sub("^[─-]+$|^╰─+╯$", _RULE, line.strip("│ ")) for line in plain.splitlines()[1:]]
    lines = lines[1:] if lines[:1] == [_RULE] else lines
    rule = lines.index(_RULE) if _RULE in lines else len(lines)
    message = " ".join(lines[:rule]).strip().rstrip(".")
    message = " ".join(message.split())
    message = re.sub(r"no type matching \{None\}\|(\S+) .* from \[(.*?)\]\. Got.*", r"\2 is no \1", message)
    message = re.sub(r"Error parsing (\S+): invalid literal for int\(\) with base 10: (.*)", _not_integer, message)
    message = re.sub(r"Error parsing (\S+): (.*) is no INT", _not_integer, message)
    message = re.sub(r"Error parsing (\S+): could not convert string to float: (.*)", _not_number, message)
    message = re.sub(r"Error parsing (\S+): (.*) is no FLOAT", _not_number, message)
    message = re.sub(r"Error parsing (\S+): Could not find valid parse for arguments: ", r"\1 does not take ", message)
    message = re.sub(r"\((?=[^)]*'None')[^)]*\)", _without_none, message)
    unknown = re.search(r"^Unrecognized options: (--[\w.-]+)", message)
    near = _nearest(unknown[1].replace("_", "-"), flags) if unknown else []
    if not near:
        return message
    return f"{message}; did you mean {' or '.join([', '.join(near[:-1]), near[-1]] if near[1:] else near)}?"


def _not_integer(found: re.Match) -> str:
    """Return the error message for a value that is not an integer. If the value is `1e5`, suggest `100000`.

    >>> _not_integer(re.match("(.*): (.*)", "--steps: '1e5'"))
    "--steps takes an integer, got '1e5': write 100000"
    """
    option, value = found.groups()
    try:
        number = float(value.strip("'"))
    except ValueError:
        number = float("nan")
    advice = f": write {number:.0f}" if number.is_integer() and abs(number) < 2**53 else ""
    return f"{option} takes an integer, got {value}{advice}"


def _not_number(found: re.Match) -> str:
    return f"{found[1]} takes a number, got {found[2]}"


def _without_none(choices: re.Match) -> str:
    """Return the choices of an option without `None`, sorted, because the order of tyro's choices varies."""
    names = sorted(name for name in re.findall(r"'(\w+)'", choices[0]) if name != "None")
    return f"({', '.join(map(repr, names))})"
