"""Create, check and read the work directory of a run, with its settings and the record of its start.

The modules `metrics` and `checkpoints` write the metrics and checkpoints in the work directory.
"""

import contextlib
import dataclasses
import importlib.metadata
import itertools
import json
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

import metajax
from metajax.core.precision import products_precision
from metajax.errors import UserError
from metajax.experiment import Experiment, FolderConfig, config_code
from metajax.experiment.checks import field_types_are_right
from metajax.system import files

CONFIG = "config.json"
SOURCE = "config.py"
ENVIRONMENT = "environment.json"
EVALUATION = "evaluation.json"
CHECKPOINTS = "checkpoints"
EVENTS = "tensorboard"
PLOTS = "plots"
_TYPE = "class"  # a keyword of Python, so no field has this name
_HEADER = """\
# A copy of {source}.
# This copy has the settings before overrides on the command line. config.json has the settings of this run.
"""


def is_workdir(workdir: Path) -> bool:
    """Return whether a folder is the work directory of a run."""
    return (workdir / CONFIG).is_file()


def create(
    workdir: Path,
    experiment: Experiment,
    source: Path | None,
    devices: int,
    data: dict[str, str] | None = None,
    task: dict[str, Any] | None = None,
) -> None:
    """Create the work directory of a new run.

    Write the settings, a copy of the config file, and a record of the run's start: versions, devices, data, and
    fingerprints of the modules that the config file imports. If the config file defines types of settings, also record
    in the user's state folder that this user began the run.

    Args:
        workdir: An empty folder, or a path that does not exist.
        experiment: The settings, after overrides on the command line.
        source: The config file that defines the settings, or `None`.
        devices: Number of devices.
        data: Fingerprints of the data set, by split.
        task: Shapes of the tasks, from `describe_task`.

    Raises:
        UserError: If the folder is not empty, or a setting cannot be written as JSON.
    """
    check_empty(workdir)
    settings, config = to_json(experiment), {}
    workdir.mkdir(parents=True, exist_ok=True)
    if source is not None:
        folder = config_folder(source)
        config = {"folder": str(folder.absolute()), "modules": config_code.fingerprints(source, folder)}
    record = {**environment(devices), "data": data or {}, "config": config, "task": task or {}}
    files.write_json(workdir / ENVIRONMENT, record)
    if source is not None:
        # `json.dumps` escapes a new line in the path, which would otherwise end the comment.
        header = _HEADER.format(source=json.dumps(str(source.absolute())))
        files.write_text(workdir / SOURCE, header + config_code.read_source(source))
        if config_code.own_types(experiment):
            config_code.remember(workdir / SOURCE, config_folder(source))
    files.write_json(workdir / CONFIG, settings)  # last, because `is_workdir` looks for this file


def check_empty(workdir: Path) -> None:
    """Check that a run can begin in a folder, which may not exist yet.

    Raises:
        UserError: If the folder is not empty. Files that `create` wrote before it was killed do not count.
    """
    names = {name for name in os.listdir(workdir) if not files.is_partial(name)} if workdir.is_dir() else set()
    only_own_files = {name.removesuffix(".partial") for name in names} <= {ENVIRONMENT, SOURCE, CONFIG}
    if names and not (only_own_files and any(name.startswith(ENVIRONMENT) for name in names)):
        raise UserError(f"{workdir} is not empty and not a work directory; choose another --workdir")


def check_writable(workdir: Path) -> None:
    """Check that a run can write its files to a folder, before the run starts. The folder may not exist yet.

    Raises:
        UserError: If the folder cannot be written, or if one of its subfolders is a symbolic link to another place.
    """
    try:
        os.fspath(workdir).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{str(workdir)!a} is not a name in UTF-8; choose another --workdir") from error
    if os.path.lexists(workdir) and not workdir.is_dir():
        raise UserError(f"{workdir} is a file; choose another --workdir")
    files.check_writable(workdir / EVALUATION)
    for name in (CHECKPOINTS, EVENTS):
        files.check_inside(workdir, name)


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Prevent other processes from training in a work directory, by a lock file beside it.

    Raises:
        UserError: If another process is training in the work directory.
    """
    path = _lock_file(workdir)
    with contextlib.suppress(OSError):  # if this fails, training continues without a lock
        path.parent.mkdir(parents=True, exist_ok=True)
    with files.lock(path) as locked:
        if not locked:
            raise UserError(f"another process is training in {workdir}; choose another --workdir")
        yield


def check_unlocked(workdir: Path) -> None:
    """Check that no other process trains in a work directory now, without creating a lock file.

    Raises:
        UserError: If another process is training in the work directory.
    """
    if os.path.lexists(_lock_file(workdir)):
        with lock(workdir):
            pass


def _lock_file(workdir: Path) -> Path:
    path = workdir.resolve()
    return path.with_name(f".{path.name}.lock")  # not in the folder, because a new work directory must be empty


def load_experiment(workdir: Path, *, trust: bool = False) -> Experiment:
    """Read the settings of a run from its work directory.

    The copy of the config file in the work directory is executed only if two conditions hold: the config file defines
    types of settings, and this user began the run.

    Args:
        workdir: A work directory.
        trust: Whether to execute the copy of the config file even if another user began the run. Python then searches
            the imported modules in the work directory, not in the folder that the work directory records.

    Raises:
        UserError: If `workdir` is not a work directory, if its config cannot be read, or if its code is needed but not
            trusted.
    """
    value = _read_config(workdir)
    own = sorted(itertools.filterfalse(_is_shipped, _type_names(value)))
    module = _load_code(workdir, own[0], trust) if own else None
    return from_json(value, workdir, module)


def _read_config(workdir: Path) -> dict[str, Any]:
    if not is_workdir(workdir):
        if workdir.is_dir():
            reason = "it has no config.json"
        else:
            reason = "it is a file" if workdir.exists() else "there is no such folder"
        raise UserError(f"{workdir} is not a work directory of metajax: {reason}")
    value = files.read_json(workdir / CONFIG)
    if not (isinstance(value, dict) and value.get(_TYPE) == config_code.type_name(Experiment)):
        raise UserError(f"{workdir / CONFIG} is damaged: it does not contain an experiment")
    for name in sorted(filter(_is_shipped, _type_names(value))):
        try:
            config_code.find_type(name, None)
        except (ImportError, AttributeError) as error:
            raise UserError(
                f"{workdir / CONFIG} is from another version of metajax: this version has no settings of type {name}. "
                f"Use the version that began the run{_version(workdir)}, or begin it again in another --workdir"
            ) from error
        except (TypeError, ValueError):  # not a type of settings; `from_json` raises an error that names the field
            continue
    return value


def _version(workdir: Path) -> str:
    """Return the version of metajax that began a run, in brackets; empty if there is no record of it."""
    versions = _began(workdir).get("versions")
    version = versions.get("metajax") if isinstance(versions, dict) else None
    return f" ({version})" if isinstance(version, str) else ""


def _type_names(value: Any) -> set[str]:
    """Return the names of the types in the JSON values of a config."""
    if isinstance(value, list):
        return set().union(*map(_type_names, value))
    if not isinstance(value, dict):
        return set()
    name = value.get(_TYPE)
    return ({name} if isinstance(name, str) else set()).union(*map(_type_names, value.values()))


def _is_shipped(name: str) -> bool:
    return config_code.is_shipped(name.partition(":")[0])


def _load_code(workdir: Path, needed: str, trust: bool) -> ModuleType:
    path, recorded = workdir / SOURCE, _recorded_folder(workdir)
    if not path.is_file():
        raise UserError(f"{workdir / CONFIG} has settings of type {needed}, but {path}, which defines it, is missing")
    folder = config_code.trusted_folder(path, recorded)
    if folder is None and not trust:
        raise UserError(
            f"the settings of {workdir} need the code in {path}, and there is no record that you began a run with it. "
            f"Read that file and the modules that it imports from {workdir}; pass --trust to execute it"
        )
    return config_code.load_module(path, folder or workdir)  # another user may have chosen the recorded folder


def config_folder(source: Path) -> Path:
    """Return the folder in which Python searches the modules that a config file imports.

    The result is the folder of the file. For the copy of a config file in a work directory, the result is the folder of
    the original file.
    """
    recorded = _recorded_folder(source.parent) if source.name == SOURCE and is_workdir(source.parent) else None
    return recorded or source.parent


def _recorded_folder(workdir: Path) -> Path | None:
    config = _began(workdir).get("config")
    folder = config.get("folder") if isinstance(config, dict) else None
    return Path(folder) if isinstance(folder, str) and folder and "\0" not in folder else None


def differences(workdir: Path, experiment: Experiment) -> list[str]:
    """Return the fields in which a run and an experiment differ, each as `field is X in the run and Y now`.

    Execution settings are ignored: `changes_since` compares them. The paths of a folder of images are ignored if the
    run has a record of its data, because `data_differs` compares the data. No code of the work directory is executed.

    Raises:
        UserError: If the config of the run cannot be read.
    """
    types = config_code.own_types(experiment)
    stored, new = _with_defaults(_read_config(workdir), types), to_json(experiment)
    new.pop("execution")
    stored.pop("execution", None)
    if _began(workdir).get("data"):
        stored, new = _without_places(stored), _without_places(new)
    return _differing(stored, new)


def moved(workdir: Path, experiment: Experiment) -> list[str]:
    """Return the fields in which only the path of an image folder has changed, in the format of `differences`.

    If the settings of the tasks differ in other fields, too, the result is empty.

    Raises:
        UserError: If the config of the run cannot be read.
    """
    stored, new = _read_config(workdir).get("task"), to_json(experiment.task)
    if _without_places(stored) == stored:
        return []
    return [] if _without_places(stored) != _without_places(new) else _differing({"task": stored}, {"task": new})


def _without_places(value: Any) -> Any:
    """Remove the paths of folders of images from settings."""
    if isinstance(value, list):
        return [_without_places(each) for each in value]
    if not isinstance(value, dict):
        return value
    places = ("source", "split_lists") if value.get(_TYPE) == config_code.type_name(FolderConfig) else ()
    return {key: _without_places(each) for key, each in value.items() if key not in places}


def training_steps(workdir: Path) -> int:
    """Return `training.steps` in the settings of a run. A resumed run may have increased this number.

    Raises:
        UserError: If the config of the run cannot be read.
    """
    training = _read_config(workdir).get("training")
    steps = training.get("steps") if isinstance(training, dict) else None
    if not isinstance(steps, int):
        raise UserError(f"{workdir / CONFIG} is damaged: it has no whole number training.steps")
    return steps


def _with_defaults(value: Any, types: dict[str, type]) -> Any:
    """Add default values for missing fields, because a config of an older version may lack newer fields."""
    if isinstance(value, list):
        return [_with_defaults(each, types) for each in value]
    if not (isinstance(value, dict) and isinstance(value.get(_TYPE), str)):
        return value
    stored = {key: _with_defaults(each, types) for key, each in value.items()}
    try:
        kind = types.get(value[_TYPE]) or config_code.find_type(value[_TYPE], None)
    except (ImportError, AttributeError, TypeError, ValueError):  # the type belongs to another config file
        return stored
    absent = [f for f in dataclasses.fields(kind) if f.name not in stored and f.default is not dataclasses.MISSING]
    return {**stored, **{f.name: to_json(f.default) for f in absent}}


def code_differs(workdir: Path, experiment: Experiment, source: Path) -> bool:
    """Return whether the code of a config file that defines types of settings has changed since the run began.

    The function compares the file with its copy in the work directory. It ignores the value of `config`, which
    `differences` compares. If metajax defines all types, the result is `False`.
    """
    return bool(config_code.own_types(experiment)) and not config_code.same_code(workdir / SOURCE, source)


def changed_modules(workdir: Path, experiment: Experiment, source: Path) -> list[str]:
    """Return the names of the modules that a config file imports and whose code has changed since the run began.

    Modules of installed packages are ignored. If metajax defines the types of all settings, the result is empty.
    """
    config = _began(workdir).get("config")
    if not isinstance(config, dict) or not config_code.own_types(experiment):
        return []
    return config_code.changed_modules(config.get("modules"), config_code.fingerprints(source, config_folder(source)))


def _differing(stored: Any, settings: Any) -> list[str]:
    old, new = dict(_leaves(stored)), dict(_leaves(settings))
    absent = "absent"
    return [
        f"{field} is {old.get(field, absent)} in the run and {new.get(field, absent)} now"
        for field in sorted({*old, *new})
        if old.get(field, absent) != new.get(field, absent)
    ]


def versions() -> dict[str, str]:
    """Return the versions of metajax and of the numerical packages that it uses."""
    packages = ["jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"]
    return {
        "metajax": metajax.__version__,  # works also if metajax is on the path without being installed
        **{name: importlib.metadata.version(name) for name in packages},
    }


def environment(devices: int) -> dict[str, Any]:
    """Return the versions, the device, the precision and the command, for the record of a run's start."""
    return {
        "versions": versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": f"{jax.devices()[0].platform}: {jax.devices()[0].device_kind}",
        "devices": devices,
        "precision": products_precision(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def _began(workdir: Path) -> dict[str, Any]:
    """Return the record of a run's start (versions, devices, data); an empty dict if there is no valid record."""
    try:
        began = files.read_json(workdir / ENVIRONMENT)
    except UserError:
        return {}
    return began if isinstance(began, dict) else {}


def unknown_beginning(workdir: Path) -> str:
    """Return a message if the record of a run's start cannot be read, else an empty string."""
    path = workdir / ENVIRONMENT
    unknown = "the versions, devices and data that the run began with are unknown"
    try:
        began = files.read_json(path)
    except UserError as error:
        return f"{error}: {unknown}"
    kinds = {"versions": dict, "device": str, "devices": int, "data": dict}
    if isinstance(began, dict) and all(isinstance(began.get(name), kind) for name, kind in kinds.items()):
        return ""
    return f"{path} is damaged: {unknown}"


def changes_since(workdir: Path, experiment: Experiment, devices: int) -> list[str]:
    """Return messages about changes since a run began that may change rounding.

    The changes are those of versions, devices, precision and execution settings.
    """
    unknown = unknown_beginning(workdir)
    stored = _with_defaults(_read_config(workdir), {}).get("execution")
    changes = [] if unknown else _changes(_began(workdir), environment(devices))
    changes += _differing({"execution": stored}, {"execution": to_json(experiment.execution)})
    return [*filter(None, [unknown]), *(f"{change}: results are the same up to rounding" for change in changes)]


def _changes(began: dict[str, Any], now: dict[str, Any]) -> list[str]:
    old, new = began["versions"], now["versions"]
    changes = [
        f"{name} {old.get(name, 'of unknown version')} is now {new[name]}"
        for name in ("metajax", "jax", "jaxlib", "flax", "optax")
        if old.get(name) != new[name]
    ]
    changes += [f"{began['device']} is now {now['device']}"] if began["device"] != now["device"] else []
    if began["devices"] != now["devices"]:
        changes.append(f"the run began on {began['devices']} devices and continues on {now['devices']}")
    precision = began.get("precision", "default")
    if precision != now["precision"]:
        changes.append(f"the run began with matrix products in {precision} and continues in {now['precision']}")
    return changes


def data_differs(workdir: Path, data: dict[str, str]) -> str:
    """Return a message if the data has changed since a run began; empty if not, or if the data was not recorded."""
    began = _began(workdir).get("data")
    stored = began if isinstance(began, dict) and began else data
    absent = "nothing"
    return "; ".join(
        f"{split} had {stored.get(split, absent)} and has {data.get(split, absent)} now"
        for split in sorted({*stored, *data})
        if stored.get(split) != data.get(split)
    )


def trained_on(workdir: Path) -> dict[str, Any]:
    """Return the shapes of a run's training tasks in the format of `describe_task`; empty if they were not recorded."""
    task = _began(workdir).get("task")
    return task if isinstance(task, dict) else {}


def to_json(value: Any, name: str = "config") -> Any:
    """Convert settings to JSON values. Each dataclass becomes a dict with the name of its type.

    Args:
        value: A dataclass, or a value of one of its fields.
        name: Name of the field, for the error message.

    Raises:
        UserError: If a value is not a number, a string, a path, `None`, a dataclass, or a list, tuple or dict of these.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_json(getattr(value, f.name), f"{name}.{f.name}") for f in dataclasses.fields(value)}
        return {_TYPE: config_code.type_name(type(value)), **fields}
    if isinstance(value, list | tuple):
        return [to_json(each, f"{name}[{i}]") for i, each in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(key, str) and key != _TYPE for key in value):
        return {key: to_json(each, f"{name}[{key!r}]") for key, each in value.items()}
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UserError(
        f"{name} is {value!r}: settings are numbers, text, paths, None, dataclasses, and lists or dicts of these"
    )


def from_json(value: Any, workdir: Path, module: ModuleType | None = None) -> Any:
    """Convert the JSON values of `to_json` back to settings.

    Args:
        value: JSON values.
        workdir: The work directory, for error messages.
        module: The run's config file as a module, if it defines types of settings.

    Raises:
        UserError: If a type is unknown, or if the fields of a type differ from the JSON values.
    """
    return _from_json(value, workdir / CONFIG, module, "")


def _from_json(value: Any, path: Path, module: ModuleType | None, owner: str) -> Any:
    if isinstance(value, list):
        return tuple(_from_json(each, path, module, owner) for each in value)
    if not isinstance(value, dict):
        return value
    fields = {k: _from_json(each, path, module, f"{owner}{k}.") for k, each in value.items() if k != _TYPE}
    if _TYPE not in value:
        return fields
    misfit = f"{path} does not fit this version of metajax"
    try:
        kind = config_code.find_type(value[_TYPE], module)
        settings = {**fields, **_as_declared(kind, fields)}
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{misfit}: {error}") from error
    try:
        settings = kind(**settings)
        if config_code.is_shipped(kind.__module__):
            field_types_are_right(settings, owner)
        return settings
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except TypeError as error:
        raise UserError(f"{misfit}: {error}") from error
    except Exception as error:  # the user's `__post_init__` may raise anything
        raise UserError(f"{path}: {kind.__name__} does not take these settings: {error!r}") from error


def _as_declared(kind: type, fields: dict[str, Any]) -> dict[str, Any]:
    """Convert fields back to their declared types: strings to paths, and tuples to lists."""
    declared = {f.name: getattr(f.type, "__name__", "") + str(f.type) for f in dataclasses.fields(kind)}
    converted = {}
    for name, value in fields.items():
        if "Path" in declared.get(name, ""):
            converted[name] = tuple(map(_path, value)) if isinstance(value, tuple) else _path(value)
        elif declared.get(name, "").startswith("list"):
            converted[name] = list(value) if isinstance(value, tuple) else value
    return converted


def _path(value: Any) -> Any:
    return Path(value) if isinstance(value, str) else value


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield prefix, value
        return
    for key, child in value.items():
        name = prefix if key == _TYPE else f"{prefix}.{key}" if prefix else key
        yield from _leaves(child, name or _TYPE)
