"""A work directory: the resolved config, versions and results of one run; metrics and checkpoints have their own."""

import ast
import contextlib
import dataclasses
import functools
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

import metajax
from metajax.errors import UserError
from metajax.experiment import Experiment
from metajax.precision import products_precision

CONFIG = "config.json"
SOURCE = "config.py"
ENVIRONMENT = "environment.json"
EVALUATION = "evaluation.json"
CHECKPOINTS = "checkpoints"
PLOTS = "plots"
_TYPE = "class"  # no field can be called that
_PARTIAL = ".partial"


def is_workdir(workdir: Path) -> bool:
    """Whether a run was begun there."""
    return (workdir / CONFIG).is_file()


def create(
    workdir: Path, experiment: Experiment, source: Path, devices: int, data: dict[str, str] | None = None
) -> None:
    """Begin a run: write its config, the file it came from, the versions it runs with and what its data holds."""
    found = {path.name.removesuffix(_PARTIAL) for path in workdir.iterdir()} if workdir.is_dir() else set()
    stopped_here = ENVIRONMENT in found and found <= {ENVIRONMENT, SOURCE, CONFIG}  # by a kill
    if found and not stopped_here:
        raise UserError(f"{workdir} is not empty and not a work directory; choose another --workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / ENVIRONMENT, {**environment(devices), "data": data or {}})
    write_whole(workdir / SOURCE, source.read_text())
    write_json(workdir / CONFIG, to_json(experiment, workdir))  # last: it makes this a work directory


@contextlib.contextmanager
def alone(workdir: Path) -> Iterator[None]:
    """Keep other processes from training in a work directory; the system lets go of it however this one ends.

    Raises:
        UserError: If another one does, or it is a file.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir} is a file; choose another --workdir")
    try:
        import fcntl
    except ImportError:  # Windows has no such lock
        yield
        return
    path = workdir.resolve()
    path = path.with_name(f".{path.name}.lock")  # beside it: a new work directory must be empty
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError:  # nothing can be written beside it: do without
        yield
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is training in {workdir}; choose another --workdir") from error
        except OSError:  # a file system without locks: do without
            pass
        yield


def load_experiment(workdir: Path) -> Experiment:
    """Read the resolved config of a run.

    Raises:
        UserError: If `workdir` is not a work directory, or its config cannot be read.
    """
    if not is_workdir(workdir):
        if workdir.is_dir():
            known = "it has no config.json"
        else:
            known = "it is a file" if workdir.exists() else "there is no such folder"
        raise UserError(f"{workdir} is not a work directory of metajax: {known}")
    experiment = from_json(read_json(workdir / CONFIG), workdir)
    if not isinstance(experiment, Experiment):
        raise UserError(f"{workdir / CONFIG} is damaged: it holds no experiment")
    return experiment


def differences(stored: Experiment, wanted: Experiment, workdir: Path) -> list[str]:
    """Fields in which two experiments differ, each as `field is X in the run and Y now`.

    How they are carried out does not count: `changes_since` tells that.
    """
    return _differing(stored, dataclasses.replace(wanted, execution=stored.execution), workdir)


def code_differs(workdir: Path, experiment: Experiment, source: Path) -> bool:
    """Whether an experiment has types of its own, and the file that defines them is not as it was in the run.

    What the file sets `config` to does not count: `differences` tells that.
    """
    if f'"{CONFIG_MODULE}:' not in json.dumps(to_json(experiment, workdir)):
        return False
    return _code(workdir / SOURCE) != _code(source)


def _code(path: Path) -> list[str]:
    """A config file without its comments, its form, its docstring and its `config`."""
    nodes = ast.parse(path.read_text()).body
    return [ast.dump(node) for node in nodes if not (isinstance(node, ast.Expr) or _sets(node, "config"))]


def _sets(node: ast.stmt, name: str) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return any(isinstance(target, ast.Name) and target.id == name for target in targets)


def _differing(stored: Any, wanted: Any, workdir: Path) -> list[str]:
    old, new = (dict(_leaves(to_json(each, workdir))) for each in (stored, wanted))
    absent = "absent"
    return [
        f"{field} is {old.get(field, absent)} in the run and {new.get(field, absent)} now"
        for field in sorted({*old, *new})
        if old.get(field, absent) != new.get(field, absent)
    ]


def versions() -> dict[str, str]:
    """Return the versions of metajax and of the packages that it computes with."""
    packages = ["jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"]
    return {
        "metajax": metajax.__version__,  # also where it is not installed, but on the path
        **{name: importlib.metadata.version(name) for name in packages},
    }


def environment(devices: int) -> dict[str, Any]:
    """Versions, device and command, for the record."""
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


def changes_since(workdir: Path, experiment: Experiment, devices: int) -> list[str]:
    """What is not as it was when the run began, and may change rounding: versions, devices, how it is carried out.

    Raises:
        UserError: If the record of it is missing or damaged.
    """
    path = workdir / ENVIRONMENT
    began, now = read_json(path), environment(devices)
    try:
        changes = [
            f"{name} {began['versions'][name]} is now {now['versions'][name]}"
            for name in ("metajax", "jax", "jaxlib", "flax", "optax")
            if began["versions"][name] != now["versions"][name]
        ]
        changes += [f"{began['device']} is now {now['device']}"] if began["device"] != now["device"] else []
        if int(began["devices"]) != devices:
            changes.append(f"the run began on {began['devices']} devices and goes on on {devices}")
        precision = began.get("precision", "default")
        if precision != now["precision"]:
            changes.append(f"the run began with products in {precision} and goes on in {now['precision']}")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: it does not say with which versions and devices the run began") from error
    stored = load_experiment(workdir)
    return changes + _differing(stored, dataclasses.replace(stored, execution=experiment.execution), workdir)


def data_differs(workdir: Path, data: dict[str, str]) -> str:
    """How the data is not what it was when the run began; empty if it is, or if that was not written down.

    Raises:
        UserError: If the record of it is missing or damaged.
    """
    began = read_json(workdir / ENVIRONMENT)
    held = (isinstance(began, dict) and began.get("data")) or data
    absent = "nothing"
    return "; ".join(
        f"{split} had {held.get(split, absent)} and has {data.get(split, absent)} now"
        for split in sorted({*held, *data})
        if held.get(split) != data.get(split)
    )


def to_json(value: Any, workdir: Path) -> Any:
    """Settings as JSON, each dataclass with its type, so that they can be read back without a list of types."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        module = type(value).__module__
        fields = {f.name: to_json(getattr(value, f.name), workdir) for f in dataclasses.fields(value)}
        return {_TYPE: f"{module}:{type(value).__qualname__}", **fields}
    if isinstance(value, list | tuple):
        return [to_json(each, workdir) for each in value]
    return str(value) if isinstance(value, Path) else value


def from_json(value: Any, workdir: Path) -> Any:
    """The inverse of `to_json`; types from the run's own config file are taken from the copy beside it."""
    return _from_json(value, workdir, functools.cache(lambda: load_module(workdir / SOURCE)))


def _from_json(value: Any, workdir: Path, source: Callable[[], ModuleType]) -> Any:
    if isinstance(value, list):
        return tuple(_from_json(each, workdir, source) for each in value)
    if not (isinstance(value, dict) and _TYPE in value):
        return value
    fields = {key: _from_json(each, workdir, source) for key, each in value.items() if key != _TYPE}
    try:
        module, _, name = value[_TYPE].partition(":")
        kind = getattr(source() if module == CONFIG_MODULE else importlib.import_module(module), name)
        paths = [
            f.name for f in dataclasses.fields(kind) if "Path" in str(f.type) and isinstance(fields.get(f.name), str)
        ]
        settings = {**fields, **{name: Path(fields[name]) for name in paths}}
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{workdir / CONFIG} does not fit this version of metajax: {error}") from error
    try:
        return kind(**settings)
    except UserError as error:
        raise UserError(f"{workdir / CONFIG}: {error}") from error
    except TypeError as error:
        raise UserError(f"{workdir / CONFIG} does not fit this version of metajax: {error}") from error


CONFIG_MODULE = "metajax_config"
"""Name that a config file has as a module."""


def load_module(path: Path) -> ModuleType:
    """Execute a config file as a module.

    Raises:
        UserError: If the file raises anything, with the line in which it does.
    """
    spec = importlib.util.spec_from_file_location(CONFIG_MODULE, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[CONFIG_MODULE] = module  # dataclasses look their module up by name
    try:
        spec.loader.exec_module(module)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        try:
            message = str(error)
        except Exception:  # the file's own class of error
            message = ""
        raise UserError(f"{path}{_line_of(error, path)}: {type(error).__name__}: {message}") from error
    return module


def _line_of(error: BaseException, path: Path) -> str:
    if isinstance(error, SyntaxError):
        return f":{error.lineno}" if error.lineno else ""
    lines, trace = [], error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == os.path.abspath(path):
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f":{lines[-1]}" if lines else ""


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: If it is missing or damaged.
    """
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from error


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file; what was there stays until the new one is whole."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(path.name + _PARTIAL)
    partial.write_text(text)
    partial.replace(path)


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield prefix, value
        return
    for key, child in value.items():
        name = prefix if key == _TYPE else f"{prefix}.{key}" if prefix else key
        yield from _leaves(child, name or _TYPE)
