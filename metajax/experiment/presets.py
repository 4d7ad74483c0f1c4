"""Find config files, and read experiments from them.

A config file sets `config` either to an `Experiment`, or to a function that returns an `Experiment`. The function's
arguments are options on the command line: `metajax train omniglot --learner anil --ways 20` calls
`config(learner="anil", ways=20)` of `omniglot.py`.
"""

import dataclasses
import inspect
import re
import types
import typing
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import metajax
from metajax.errors import UserError, needs, suggestion
from metajax.experiment.checks import field_types_are_right, types_are_right
from metajax.experiment.config_code import line_of, load_module
from metajax.experiment.settings import Experiment
from metajax.experiment.workdir import config_folder
from metajax.limits import shown
from metajax.system import files

with needs("cli"):
    import docstring_parser


_LONGEST_NAME = 100
RESERVED = frozenset(
    {"help", "h", "workdir", "devices", "distributed", "data_dir", "seconds", "only", "output", "checkpoint", "split"}
    | {"num_tasks", "steps", "seed", "protocol", "on", "chunk_size", "trust", "outer", "training", "validation"}
    | {"evaluation", "execution"}
)
"""Names that the arguments of a config must not have, because they are options or settings of the commands."""


class Preset(NamedTuple):
    """A config file that has been read.

    Attributes:
        path: Path of the file.
        config: The experiment, or the function that makes it from arguments.
        arguments: The default arguments of the function: an instance of a dataclass with a field for each argument. The
            dataclass has no fields if `config` is an experiment.
    """

    path: Path
    config: Experiment | Callable[..., Experiment]
    arguments: Any

    def experiment(self, arguments: Any = None) -> Experiment:
        """Return the experiment for some arguments; an instance of the dataclass of `self.arguments`.

        Raises:
            UserError: If an argument or a setting is wrong.
        """
        arguments = self.arguments if arguments is None else arguments
        try:
            field_types_are_right(arguments)
            experiment = self.config if isinstance(self.config, Experiment) else self.config(**vars(arguments))
            if not isinstance(experiment, Experiment):
                raise UserError(f"config() must return an Experiment, got {shown(experiment)}")
            types_are_right(experiment)
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from error
        except Exception as error:
            raise UserError(f"{self.path}{line_of(error, self.path)}: {type(error).__name__}: {error}") from error
        return experiment

    def name(self, arguments: Any) -> str:
        """Return a name for a run: the name of the file and the arguments that differ from their defaults.

        Words stand for themselves, and numbers precede the name of their argument: `omniglot_anil_20ways`. A name of
        more than 100 characters is shortened and ends in a checksum, because file systems limit the length of names.
        """
        words = [self.path.stem]
        for name, default in vars(self.arguments).items():
            value = getattr(arguments, name)
            if value == default:
                continue
            if isinstance(value, bool):
                words.append(name if value else f"no_{name}")
            else:
                word = re.sub(r"[^\w.-]+", "_", str(value)).strip("_")
                words.append(word if isinstance(value, str) else f"{word}{name}")
        name = "_".join(words)
        return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}_{zlib.crc32(name.encode()):08x}"


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


def read(config: str) -> Preset:
    """Read a config file, given by its name or path.

    Raises:
        UserError: If there is no such config, if the file raises an exception, or if it does not define `config`.
    """
    path = find(config)
    content = getattr(load_module(path, config_folder(path)), "config", None)
    if isinstance(content, Experiment):
        return Preset(path, content, _dataclass({}, {})())
    if not callable(content) or isinstance(content, type):
        raise UserError(f"{path} must set `config` to an Experiment, or define a function `config` that returns one")
    function: Any = content
    try:
        return Preset(path, function, _arguments(function))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def load(config: str, **arguments: Any) -> Experiment:
    """Return the experiment of a config, given by its name or path, for the arguments of its function.

    Raises:
        UserError: If there is no such config, if its file does not define an experiment, or if it has no such argument.

    >>> load("omniglot", learner="anil", ways=20).task.ways
    20
    """
    preset = read(config)
    known = vars(preset.arguments)
    for name in arguments:
        if name not in known:
            raise UserError(f"{preset.path} has no argument {name!r}{suggestion(name, known)}")
    return preset.experiment(dataclasses.replace(preset.arguments, **arguments))


def _arguments(config: Callable[..., Experiment]) -> Any:
    """Return the default arguments of a config's function, as an instance of a dataclass made for this function."""
    try:
        hints = typing.get_type_hints(inspect.unwrap(config))
    except Exception as error:
        raise UserError(f"the types of the arguments of config() cannot be read: {error}") from error
    kinds, defaults = {}, {}
    for name, parameter in inspect.signature(config).parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise UserError(f"config() must not have the argument {parameter}: give each argument a name and a default")
        if name not in hints or parameter.default is parameter.empty:
            raise UserError(f"the argument {name} of config() needs a type and a default, as in `ways: int = 5`")
        if name in RESERVED:
            raise UserError(f"the argument {name} of config() has the name of an option; choose another name")
        if not _is_simple(hints[name]):
            raise UserError(
                f"the argument {name} of config() must be a number, text, path, truth value, choice (Literal) or tuple "
                f"of these, got {hints[name]}"
            )
        kinds[name], defaults[name] = hints[name], parameter.default
    return _dataclass(kinds, defaults, config.__doc__ or "")()


def _is_simple(kind: Any) -> bool:
    """Return whether values of a type can be written on the command line and in the name of a run."""
    if typing.get_origin(kind) is typing.Literal:
        return True
    if typing.get_origin(kind) in (typing.Union, types.UnionType, tuple):
        return all(each is ... or _is_simple(each) for each in typing.get_args(kind))
    return kind in (bool, int, float, str, Path, types.NoneType)


def _dataclass(kinds: Mapping[str, Any], defaults: Mapping[str, Any], docstring: str = "") -> type:
    fields = [(name, kind, dataclasses.field(default=defaults[name])) for name, kind in kinds.items()]
    kind = dataclasses.make_dataclass("Arguments", fields, frozen=True)
    kind.__doc__ = docstring
    return kind


def descriptions(arguments: Any) -> dict[str, str]:
    """Return the description of each argument of a config's function, from the section Args of its docstring."""
    documented = docstring_parser.parse(type(arguments).__doc__ or "").params
    described = {each.arg_name: " ".join((each.description or "").split()) for each in documented}
    return {field.name: described.get(field.name, "") for field in dataclasses.fields(arguments)}
