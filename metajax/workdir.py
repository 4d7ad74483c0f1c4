"""A work directory: the resolved config, versions, metrics, checkpoints and results of one run."""

import contextlib
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
from tensorboardX import SummaryWriter

from metajax.errors import UserError
from metajax.experiment import Experiment

CONFIG = "config.json"
SOURCE = "config.py"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
EVALUATION = "evaluation.json"
CHECKPOINTS = "checkpoints"
EVENTS = "tensorboard"
PLOTS = "plots"
_TYPE = "type"


def is_workdir(workdir: Path) -> bool:
    """Whether a run was begun there."""
    return (workdir / CONFIG).is_file()


def create(workdir: Path, experiment: Experiment, source: Path, devices: int) -> None:
    """Begin a run: write its config, the file it came from, and the versions it runs with."""
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir} is a file; choose another --workdir")
    if workdir.is_dir() and any(workdir.iterdir()):
        raise UserError(f"{workdir} is not empty and not a work directory; choose another --workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    _write(workdir / SOURCE, source.read_text())
    write_json(workdir / ENVIRONMENT, environment(devices))
    write_json(workdir / CONFIG, to_json(experiment, workdir))  # last: it makes this a work directory


def load_experiment(workdir: Path) -> Experiment:
    """Read the resolved config of a run.

    Raises:
        UserError: If `workdir` is not a work directory, or its config cannot be read.
    """
    if not is_workdir(workdir):
        known = "it has no config.json" if workdir.is_dir() else "there is no such folder"
        raise UserError(f"{workdir} is not a work directory of metajax: {known}")
    return from_json(read_json(workdir / CONFIG), workdir)


def differences(stored: Any, wanted: Any, workdir: Path) -> list[str]:
    """Fields in which two experiments differ, each as `field is X in the run and Y now`."""
    old, new = (dict(_leaves(to_json(each, workdir))) for each in (stored, wanted))
    absent = "absent"
    return [
        f"{field} is {old.get(field, absent)} in the run and {new.get(field, absent)} now"
        for field in sorted({*old, *new})
        if old.get(field, absent) != new.get(field, absent)
    ]


def environment(devices: int) -> dict[str, Any]:
    """Versions, device and command, for the record."""
    packages = ["metajax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"]
    return {
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": f"{jax.devices()[0].platform}: {jax.devices()[0].device_kind}",
        "devices": devices,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


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
    if isinstance(value, list):
        return tuple(from_json(each, workdir) for each in value)
    if not (isinstance(value, dict) and _TYPE in value):
        return value
    module, _, name = value[_TYPE].partition(":")
    try:
        owner = load_module(workdir / SOURCE) if module == CONFIG_MODULE else importlib.import_module(module)
        kind = getattr(owner, name)
        fields = {key: from_json(each, workdir) for key, each in value.items() if key != _TYPE}
        paths = [
            f.name for f in dataclasses.fields(kind) if "Path" in str(f.type) and isinstance(fields.get(f.name), str)
        ]
        return kind(**{**fields, **{name: Path(fields[name]) for name in paths}})
    except (ImportError, AttributeError, TypeError) as error:
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
    except Exception as error:
        line = _line_of(error, path)
        raise UserError(f"{path}{line}: {type(error).__name__}: {error}") from error
    return module


def _line_of(error: Exception, path: Path) -> str:
    if isinstance(error, SyntaxError):
        return f":{error.lineno}" if error.lineno else ""
    lines, trace = [], error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == os.path.abspath(path):
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f":{lines[-1]}" if lines else ""


def append_metrics(workdir: Path, row: dict[str, Any]) -> None:
    """Add a line to the metrics."""
    with (workdir / METRICS).open("a") as file:
        file.write(json.dumps(row) + "\n")


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The metrics, a dict per line; a last line that was cut short is left out."""
    path = workdir / METRICS
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def truncate_metrics(workdir: Path, step: int) -> None:
    """Drop the lines after `step`, which a resumed run is about to write again."""
    kept = [json.dumps(row) + "\n" for row in read_metrics(workdir) if row["step"] <= step]
    _write(workdir / METRICS, "".join(kept))


@contextlib.contextmanager
def events(workdir: Path, step: int) -> Iterator[SummaryWriter]:
    """TensorBoard event files; what an interrupted run wrote after `step` is dropped by the reader."""
    writer = SummaryWriter(str(workdir / EVENTS), purge_step=step + 1 if step else None)
    try:
        yield writer
    finally:
        writer.close()


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
    _write(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield prefix, value
        return
    for key, child in value.items():
        name = prefix if key == _TYPE else f"{prefix}.{key}" if prefix else key
        yield from _leaves(child, name or _TYPE)
