"""`metajax configs`: the experiments that come with metajax; and how a config is found, read and overridden."""

import ast
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import tyro

import metajax
from metajax import files
from metajax.cli.device import prepare_devices
from metajax.cli.parse import parse, suggestion
from metajax.config_code import load_module
from metajax.errors import UserError
from metajax.experiment import Domains, Experiment, TaskSpec
from metajax.experiment.checks import shown, types_are_right
from metajax.workdir import config_folder

T = TypeVar("T")


@dataclasses.dataclass
class Options:
    """List the experiments that come with metajax, or show one."""

    name: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")] = None
    """An experiment to show whole."""


def run(args: Sequence[str]) -> None:
    """Carry out the command."""
    name = parse(Options, args, prog="metajax configs").name
    if name is not None:
        print(find(name).read_text(), end="")
        return
    width = max(len(name) for name in names())
    for name in names():
        docstring = ast.get_docstring(ast.parse(find(name).read_text())) or ""
        print(f"{name:<{width}}  {docstring.splitlines()[0] if docstring else ''}")


def directory() -> Path:
    """The folder of configs: beside the package in a checkout, inside it when installed."""
    package = Path(metajax.__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def names() -> list[str]:
    """Names of the configs."""
    return sorted(path.stem for path in directory().glob("*.py"))


def find(config: str) -> Path:
    """The file of a config that is given by name or by path.

    Raises:
        UserError: If there is none.
    """
    path = files.expand_home(config)
    if path.suffix == ".py":
        if not path.is_file():
            raise UserError(f"there is no config file {config}")
        return path
    if config not in names():
        hint = suggestion(config, names(), "`metajax configs` lists them")
        raise UserError(f"there is no config {shown(config)}{hint}")
    return directory() / f"{config}.py"


def load(config: str) -> Experiment:
    """Read an experiment by name or by path.

    Raises:
        UserError: If there is none, or the file is wrong.
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
    """Check that a command's words begin with a CONFIG; show the usage where there are none, or for --help.

    Raises:
        UserError: If they do not.
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
    """Read the CONFIG that comes first, and a command's options and the fields to override after it.

    Devices are prepared before, since the file may use JAX.

    Args:
        command: Its name.
        kind: A dataclass of the command's own options; its docstring heads the help.
        args: Words of the command line, CONFIG first.

    Returns:
        The file of the config, the options, and the experiment.

    Raises:
        UserError: If there is no such config, the file is wrong, or an option is.
    """
    prepare_devices(None)
    source = find(args[0])
    default = _Line(kind(), load(args[0]))
    prog = f"metajax {command} {args[0]}"
    line = _parse_settings(_Line[kind], args[1:], prog=prog, about=kind.__doc__, default=default)
    types_are_right(line.experiment)
    _check_domains(default.experiment, line.experiment)
    return source, line.options, line.experiment


def _check_domains(before: Experiment, after: Experiment) -> None:
    """Refuse ways and shots of one domain: tasks of several domains have those of the whole."""
    if not (isinstance(before.task, Domains) and isinstance(after.task, Domains)):
        return
    for i, (old, new) in enumerate(zip(before.task.sources, after.task.sources, strict=True)):
        for name in ("ways", "train", "test"):
            if getattr(old.task, name, None) != getattr(new.task, name, None):
                raise UserError(
                    f"--task.sources.{i}.task.{name} has no effect: the sizes of tasks are those of --task.min-ways, "
                    "--task.max-ways, --task.max-support, --task.max-support-per-class and --task.max-queries"
                )


TaskT = TypeVar("TaskT")


@dataclasses.dataclass
class _TaskLine(Generic[T, TaskT]):
    options: Annotated[T, tyro.conf.arg(name="")]
    task: TaskT


def override_task(default: T, config: str, args: Sequence[str], *, prog: str) -> tuple[T, TaskSpec]:
    """Read a command's options, and fields that override the task of another config.

    Args:
        default: The command's own options, `tyro.MISSING` where they have no default.
        config: Name or path of the other config.
        args: Words of the command line.
        prog: The command, for the help.

    Returns:
        The options, and the task.

    Raises:
        UserError: If there is no such config, the file is wrong, or an option is.
    """
    experiment = load(config)
    kind, about = _TaskLine[type(default), type(experiment.task)], type(default).__doc__
    line = _parse_settings(kind, args, prog=prog, about=about, default=_TaskLine(default, experiment.task))
    changed = dataclasses.replace(experiment, task=line.task)
    types_are_right(changed)
    _check_domains(experiment, changed)
    return line.options, line.task


def _parse_settings(kind: Any, args: Sequence[str], *, prog: str, about: str | None, default: Any) -> Any:
    """Parse options that fill settings, whose own checks may raise anything where they are the user's."""
    try:
        return parse(kind, args, prog=prog, about=about, default=default)
    except (AssertionError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        said = f": {error}" if str(error) else ""
        raise UserError(f"a setting does not take this value: {type(error).__name__}{said}") from error
