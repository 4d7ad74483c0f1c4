"""`metajax configs`: list the experiments that come with metajax, or the arguments of one experiment.

Other commands use the functions of this module that read a config from the command line.
"""

import ast
import copy
import dataclasses
import math
import re
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Generic, NamedTuple, TypeVar

import tyro

from metajax.cli.parse import parse, value_of
from metajax.errors import UserError
from metajax.experiment import DomainsConfig, Experiment, TaskConfig
from metajax.experiment.checks import types_are_right
from metajax.experiment.devices import prepare_devices
from metajax.experiment.presets import Preset, descriptions, find, names, read

T = TypeVar("T")
ArgumentsT = TypeVar("ArgumentsT")


@dataclasses.dataclass
class Options:
    """List the experiments that come with metajax, or describe one experiment and its arguments."""

    name: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")] = None
    """Name of an experiment, or path of a config file. Without a name, all experiments are listed."""


def run(args: Sequence[str]) -> None:
    """Run `metajax configs` with the arguments `args`."""
    name = parse(Options, args, prog="metajax configs").name
    if name is not None:
        prepare_devices(None)  # before the config file is executed, because it may use JAX
        print(_about(name))
        return
    width = max(len(name) for name in names())
    for name in names():
        print(f"{name:<{width}}  {_docstring(find(name)).partition(chr(10))[0]}")


def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def _about(name: str) -> str:
    """Return the docstring of a config file, and a table of the arguments of its function."""
    preset = read(name)
    lines = [_docstring(preset.path), "", "Arguments:"] if vars(preset.arguments) else [_docstring(preset.path)]
    hints = typing.get_type_hints(type(preset.arguments))
    for argument, about in descriptions(preset.arguments).items():
        values = typing.get_args(hints[argument]) if typing.get_origin(hints[argument]) is typing.Literal else ()
        kind = "|".join(map(str, values)) or getattr(hints[argument], "__name__", str(hints[argument]))
        lines.append(f"  --{argument.replace('_', '-')} {kind} (default: {getattr(preset.arguments, argument)})")
        lines.append(f"      {about}")
    lines += ["", f"`metajax train {name} --help` lists all settings. The config file is {preset.path}"]
    return "\n".join(lines).strip()


class Line(NamedTuple, Generic[T]):
    """A command line that has been read.

    Attributes:
        path: Path of the config file.
        name: Name of the config with its arguments, for the work directory.
        options: The command's own options.
        experiment: The experiment with the overrides.
    """

    path: Path
    name: str
    options: T
    experiment: Experiment


@dataclasses.dataclass
class _Line(Generic[T, ArgumentsT]):
    options: Annotated[T, tyro.conf.arg(name="")]
    arguments: Annotated[ArgumentsT, tyro.conf.arg(name="")]
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]


def check_first(command: str, usage: str, args: Sequence[str]) -> None:
    """Check that a command's arguments begin with a CONFIG. Print the usage if there are no arguments, or for --help.

    Raises:
        UserError: If the first argument is not a CONFIG.
    """
    if args and not args[0].startswith("-"):
        return
    if not args or args[0] in ("-h", "--help"):
        print(usage)
        if args:
            raise SystemExit(0)
        raise UserError(f"{command} needs a CONFIG: `metajax configs` lists them")
    raise UserError(f"{command} needs a CONFIG before its options, got {args[0]!r}: `metajax configs` lists them")


def override(command: str, kind: type[T], args: Sequence[str]) -> Line[T]:
    """Read a command line: a CONFIG, then its arguments, the command's own options and settings that override fields.

    Devices are prepared before the config file is executed, because the file may use JAX.

    Args:
        command: Name of the command.
        kind: A dataclass of the command's own options. Its docstring is the first line of the help.
        args: Arguments of the command line, CONFIG first.

    Raises:
        UserError: If there is no such config, if its file is wrong, or if an option is wrong.
    """
    prepare_devices(None)
    prog = f"metajax {command} {args[0]}"
    preset, arguments = _read(args[0], args, prog=prog)
    loaded = preset.experiment(arguments)
    args, options = _take_optimizer_options(args)
    for part in options:
        chosen = value_of(f"--{part}.optimizer", args)
        if chosen is not None and chosen != getattr(loaded, part).optimizer:  # the config's options are for another one
            loaded = dataclasses.replace(loaded, **{part: dataclasses.replace(getattr(loaded, part), options={})})
    _check_domains(loaded.task, args)
    default = _Line(kind(), arguments, dataclasses.replace(loaded, task=_hide_options(loaded.task)))
    line = _parse_settings(_Line[kind, type(arguments)], args[1:], prog=prog, about=kind.__doc__, default=default)
    experiment = dataclasses.replace(line.experiment, task=_show_options(line.experiment.task))
    for part, changes in options.items():
        settings = getattr(experiment, part)
        changed = dataclasses.replace(settings, options={**settings.options, **changes})
        experiment = dataclasses.replace(experiment, **{part: changed})
    types_are_right(experiment)
    _check_same(arguments, line.arguments)
    return Line(preset.path, preset.name(arguments), line.options, experiment)


def _read(config: str, args: Sequence[str], *, prog: str) -> tuple[Preset, Any]:
    """Read a config file and the arguments of its function, which a command line mixes with other options.

    Args:
        config: Name or path of the config.
        args: Arguments of the command line.
        prog: The command, for error messages.

    Returns:
        The config file, and the arguments: an instance of the type of `preset.arguments`.
    """
    preset = read(config)
    most: dict[str, float] = {}  # the largest number of words that follow each option
    for field in dataclasses.fields(preset.arguments):
        name = field.name.replace("_", "-")
        if field.type is bool:
            most |= {f"--{name}": 0, f"--no-{name}": 0}
        else:
            most[f"--{name}"] = math.inf if typing.get_origin(field.type) is tuple else 1
    words, left = [], 0.0
    for word in args:
        option, equals, _ = word.partition("=")
        if word.startswith("--"):
            name = option.replace("_", "-")
            left = -1 if name not in most else 0 if equals else most[name]
            words += [word] if left >= 0 else []
        elif left > 0:
            words.append(word)
            left -= 1
    return preset, _parse_settings(type(preset.arguments), words, prog=prog, about=None, default=preset.arguments)


def _check_same(arguments: Any, parsed: Any) -> None:
    """Check that the arguments read by `_read` are those that tyro finds in the whole command line.

    Raises:
        UserError: If they differ, so that a value would be ignored silently.
    """
    for field in dataclasses.fields(arguments):
        used, value = getattr(arguments, field.name), getattr(parsed, field.name)
        if used != value:
            name = field.name.replace("_", "-")
            raise UserError(f"--{name} is ambiguous, {used!r} or {value!r}: write it directly behind the config")


def _take_optimizer_options(args: Sequence[str]) -> tuple[list[str], dict[str, dict[str, bool | int | float]]]:
    """Separate `--inner.options.NAME VALUE` and `--outer.options.NAME VALUE` from the other arguments.

    >>> _take_optimizer_options(["x", "--inner.options.decay", "0.9", "--seed=1", "--outer.options.nesterov=true"])
    (['x', '--seed=1'], {'inner': {'decay': 0.9}, 'outer': {'nesterov': True}})
    """
    rest, options, words = [], {"inner": {}, "outer": {}}, iter(args)
    for word in words:
        name, equals, value = word.partition("=")
        match = re.fullmatch(r"--(inner|outer)\.options\.([\w-]+)", name)
        if match is None:
            rest.append(word)
            continue
        value = value if equals else next(words, "")
        options[match[1]][match[2].replace("-", "_")] = _number(name, value)
    return rest, options


def _number(option: str, value: str) -> bool | int | float:
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    try:
        number = float(value)
    except ValueError:
        raise UserError(f"{option} takes a number, True or False, got {value!r}") from None
    return int(number) if number.is_integer() and "." not in value and "e" not in value.lower() else number


_NOT_OF_DOMAINS = ("ways", "train", "test", "images")
"""Fields of a data set's task that cannot be set if the data set is one of several domains."""


def _hide_options(task: TaskConfig) -> TaskConfig:
    """Return a task whose help does not list the options that `_check_domains` refuses."""
    return _with_kinds(task, _hiding_options)


def _show_options(task: TaskConfig) -> TaskConfig:
    """Return a task from `_hide_options` with its original types, which have all options."""
    return _with_kinds(task, lambda kind: kind.__base__ if kind.__dict__.get("_hides_options") else kind)


def _hiding_options(kind: Any) -> Any:
    """Return a subclass of a settings dataclass, with annotations that make tyro omit some options."""
    hints = typing.get_type_hints(kind, include_extras=True)
    hidden = {name: tyro.conf.Suppress[hints[name]] for name in _NOT_OF_DOMAINS if name in hints}
    body = {"__doc__": kind.__doc__, "__module__": kind.__module__, "__annotations__": hidden, "_hides_options": True}
    # Without new slots the subclass has the memory layout of `kind`, so instances of `kind` can get this type.
    return type(kind.__name__, (kind,), {**body, "__slots__": ()})


def _with_kinds(task: TaskConfig, change: Callable[[Any], Any]) -> TaskConfig:
    """Return a task with several domains after changing the type of each domain's task by `change(type)`.

    Tasks that are not from several domains are returned unchanged.
    """
    if not isinstance(task, DomainsConfig):
        return task
    sources = []
    for source in task.sources:
        changed = copy.copy(source.task)
        object.__setattr__(
            changed, "__class__", change(type(changed))
        )  # a normal assignment fails for a frozen dataclass
        sources.append(dataclasses.replace(source, task=changed))
    return dataclasses.replace(task, sources=tuple(sources))


def _check_domains(task: TaskConfig, args: Sequence[str]) -> None:
    """Raise a `UserError` if an option sets a field that a domain's task does not use.

    If tasks come from several domains, `DomainsConfig` sets the sizes of tasks, and all images are on the device.
    """
    if not isinstance(task, DomainsConfig):
        return
    for arg in args:
        option = re.match(rf"--task\.sources\.\d+\.task\.({'|'.join(_NOT_OF_DOMAINS)})(?=[.=]|$)", arg)
        if option and option[1] == "images":
            raise UserError(f"{option[0]} cannot be set: the images of several domains are always on the device")
        if option:
            raise UserError(
                f"{option[0]} has no effect: the sizes of tasks are set by --task.min-ways, --task.max-ways, "
                "--task.max-support, --task.max-support-per-class and --task.max-queries"
            )


TaskT = TypeVar("TaskT")


@dataclasses.dataclass
class _TaskLine(Generic[T, ArgumentsT, TaskT]):
    options: Annotated[T, tyro.conf.arg(name="")]
    arguments: Annotated[ArgumentsT, tyro.conf.arg(name="")]
    task: TaskT


def override_task(default: T, config: str, args: Sequence[str], *, prog: str) -> tuple[T, TaskConfig, str]:
    """Read a command line with the arguments of a config and with `--task.FIELD` options that override its task.

    Args:
        default: Default values of the command's options; `tyro.MISSING` for an option without a default.
        config: Name or path of the config.
        args: Arguments of the command line.
        prog: The command, for the help.

    Returns:
        The command's options, the task with the overrides, and the name of the config with its arguments.

    Raises:
        UserError: If there is no such config, if its file is wrong, or if an option is wrong.
    """
    preset, arguments = _read(config, args, prog=prog)
    experiment = preset.experiment(arguments)
    _check_domains(experiment.task, args)
    kind, about = _TaskLine[type(default), type(arguments), type(experiment.task)], type(default).__doc__
    options = _TaskLine(default, arguments, _hide_options(experiment.task))
    line = _parse_settings(kind, args, prog=prog, about=about, default=options)
    changed = dataclasses.replace(experiment, task=_show_options(line.task))
    types_are_right(changed)
    _check_same(arguments, line.arguments)
    return line.options, changed.task, preset.name(arguments)


def _parse_settings(kind: Any, args: Sequence[str], *, prog: str, about: str | None, default: Any) -> Any:
    """Parse options into settings. An exception from a check in the user's own types becomes a `UserError`."""
    try:
        return parse(kind, args, prog=prog, about=about, default=default)
    except (AssertionError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        message = f": {error}" if str(error) else ""
        raise UserError(f"a setting does not take this value: {type(error).__name__}{message}") from error
