"""`metajax configs`: the experiments that come with metajax; and how a config is found and read."""

import ast
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

import metajax
from metajax.cli.parse import parse, suggestion
from metajax.errors import UserError


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
    path = Path(config)
    if path.suffix == ".py":
        if not path.is_file():
            raise UserError(f"there is no config file {config}")
        return path
    if config not in names():
        raise UserError(f"there is no config {config!r}{suggestion(config, names())}")
    return directory() / f"{config}.py"


def load(config: str):
    """Read an experiment by name or by path.

    Raises:
        UserError: If there is none, or the file is wrong.
    """
    from metajax.experiment import Experiment
    from metajax.workdir import load_module

    path = find(config)
    experiment = getattr(load_module(path), "config", None)
    if not isinstance(experiment, Experiment):
        raise UserError(f"{path} must set `config` to a metajax.experiment.Experiment")
    return experiment
