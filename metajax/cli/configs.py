"""`metajax configs`: list the experiments that come with metajax.

Other commands use the functions of this module that find, read and override a config.
"""

import ast
import copy
import dataclasses
import re
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import tyro

import metajax
from metajax.cli.parse import parse, value_of
from metajax.errors import UserError, suggestion
from metajax.experiment import DomainsConfig, Experiment, TaskConfig
from metajax.experiment.checks import types_are_right
from metajax.experiment.config_code import load_module
from metajax.experiment.devices import prepare_devices
from metajax.experiment.workdir import config_folder
from metajax.limits import shown
from metajax.system import files

T = TypeVar("T")


@dataclasses.dataclass
class Options:
    """List the experiments that come with metajax, or print the config file of one experiment."""

    name: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")] = None
    """Name of the experiment whose config file is printed. Without a name, all experiments are listed."""


def run(args: Sequence[str]) -> None:
    """Run `metajax configs` with the arguments `args`."""
    name = parse(Options, args, prog="metajax configs").name
    if name is not None:
        print(find(name).read_text(), end="")
        return
    width = max(len(name) for name in names())
    for name in names():
        docstring = ast.get_docstring(ast.parse(find(name).read_text())) or ""
        print(f"{name:<{width}}  {docstring.splitlines()[0] if docstring else ''}")


def directory() -> Path:
    """Return the folder of the config files that come with metajax.

    The folder is inside an installed package, and beside the package in a checkout of the repository.
    """
    package = Path(metajax.__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def names() -> list[str]:
    """Return the names of the config files that come with metajax."""
    return sorted(path.stem for path in directory().glob("*.py"))


def find(config: str) -> Path:
    """Return the path of a config file from the name or the path of the config.

    Raises:
        UserError: If there is no such config.
    """
    path = files.expand_home(config)
    if path.suffix == ".py":
        if not path.is_file():
            raise UserError(f"there is no config file {path}")
        return path
    if config not in names():
        hint = suggestion(config, names(), "`metajax configs` lists them")
        raise UserError(f"there is no config {shown(config)}{hint}")
    return directory() / f"{config}.py"


def load(config: str) -> Experiment:
    """Read an experiment from the name or path of its config.

    Raises:
        UserError: If there is no such config, or if the file does not define an experiment.
    """
    path = find(config)
    experiment = getattr(load_module(path, config_folder(path)), "config", None)
    if not isinstance(experiment, Experiment):
        raise UserError(f"{path} must set `config` to a metajax.experiment.Experiment")
    try:
        types_are_right(experiment)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return experiment


@dataclasses.dataclass
class _Line(Generic[T]):
    options: Annotated[T, tyro.conf.arg(name="")]
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


def override(command: str, kind: type[T], args: Sequence[str]) -> tuple[Path, T, Experiment]:
    """Read a command line: a CONFIG, then the command's own options and the settings that override the config.

    Devices are prepared before the config file is executed, because the file may use JAX.

    Args:
        command: Name of the command.
        kind: A dataclass of the command's own options. Its docstring is the first line of the help.
        args: Arguments of the command line, CONFIG first.

    Returns:
        The path of the config file, the command's options, and the experiment with the overrides.

    Raises:
        UserError: If there is no such config, if its file is wrong, or if an option is wrong.
    """
    prepare_devices(None)
    source, loaded = find(args[0]), load(args[0])
    args, options = _take_optimizer_options(args)
    for part in options:
        chosen = value_of(f"--{part}.optimizer", args)
        if chosen is not None and chosen != getattr(loaded, part).optimizer:  # the config's options are for another one
            loaded = dataclasses.replace(loaded, **{part: dataclasses.replace(getattr(loaded, part), options={})})
    _check_domains(loaded.task, args)
    default = _Line(kind(), dataclasses.replace(loaded, task=_hide_options(loaded.task)))
    prog = f"metajax {command} {args[0]}"
    line = _parse_settings(_Line[kind], args[1:], prog=prog, about=kind.__doc__, default=default)
    experiment = dataclasses.replace(line.experiment, task=_show_options(line.experiment.task))
    for part, changes in options.items():
        settings = getattr(experiment, part)
        changed = dataclasses.replace(settings, options={**settings.options, **changes})
        experiment = dataclasses.replace(experiment, **{part: changed})
    types_are_right(experiment)
    return source, line.options, experiment


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
        object.__setattr__(changed, "__class__", change(type(changed)))  # works for frozen settings, too
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
class _TaskLine(Generic[T, TaskT]):
    options: Annotated[T, tyro.conf.arg(name="")]
    task: TaskT


def override_task(default: T, config: str, args: Sequence[str], *, prog: str) -> tuple[T, TaskConfig]:
    """Read a command line whose `--task.FIELD` options override the task of a config.

    Args:
        default: Default values of the command's options; `tyro.MISSING` for an option without a default.
        config: Name or path of the config.
        args: Arguments of the command line.
        prog: The command, for the help.

    Returns:
        The command's options, and the task with the overrides.

    Raises:
        UserError: If there is no such config, if its file is wrong, or if an option is wrong.
    """
    experiment = load(config)
    _check_domains(experiment.task, args)
    kind, about = _TaskLine[type(default), type(experiment.task)], type(default).__doc__
    line = _parse_settings(
        kind, args, prog=prog, about=about, default=_TaskLine(default, _hide_options(experiment.task))
    )
    changed = dataclasses.replace(experiment, task=_show_options(line.task))
    types_are_right(changed)
    return line.options, changed.task


def _parse_settings(kind: Any, args: Sequence[str], *, prog: str, about: str | None, default: Any) -> Any:
    """Parse options into settings. An exception from a check in the user's own types becomes a `UserError`."""
    try:
        return parse(kind, args, prog=prog, about=about, default=default)
    except (AssertionError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        message = f": {error}" if str(error) else ""
        raise UserError(f"a setting does not take this value: {type(error).__name__}{message}") from error
