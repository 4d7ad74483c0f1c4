"""`metajax tune`: time several execution settings for an experiment, and save the fastest for later runs."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from metajax.cli import configs, report
from metajax.cli.parse import DescribedDefault
from metajax.core.types import Params
from metajax.errors import UserError
from metajax.experiment import Experiment, build
from metajax.experiment.build import check_training
from metajax.experiment.devices import check_devices, choose_mesh, device_name, share_evenly, use_precision
from metajax.profiling import time_calls, training_calls
from metajax.system import files

_USAGE = """usage: metajax tune CONFIG [--seconds S] [--data-dir DIR] [--FIELD VALUE ...]

Time CONFIG on this device with several numbers of devices and chunk sizes, and with unrolled and compiled loops. The
fastest settings are written to CONFIG.tuned.json beside the config. `metajax train CONFIG` uses them on devices of
this kind."""


@dataclasses.dataclass(frozen=True)
class Tuned:
    """Execution settings for an experiment on a kind of device. A field is `None` if it has its default.

    Attributes:
        devices: Number of devices to split tasks over; `None` for the default of `choose_mesh`.
        chunk_size: Number of tasks that run together on a device.
        unroll: Whether the inner steps are unrolled.
    """

    devices: int | None = None
    chunk_size: int | None = None
    unroll: bool | None = None

    def apply(self, experiment: Experiment) -> Experiment:
        """Return the experiment with these execution settings, except where the experiment overrides them."""
        execution = experiment.execution
        changes = {name: getattr(self, name) for name in ("chunk_size", "unroll") if getattr(execution, name) is None}
        if execution.remat:
            changes.pop("unroll", None)
        return dataclasses.replace(experiment, execution=dataclasses.replace(execution, **changes))


@dataclasses.dataclass
class Options:
    """Time several execution settings for an experiment, and save the fastest."""

    seconds: float = 3.0
    """Duration of the measurement of each combination of settings, in seconds."""
    data_dir: DescribedDefault[Path | None] = None
    """Folder of prepared data sets (default: $METAJAX_DATA_DIR, else ~/.cache/metajax)."""


def run(args: Sequence[str]) -> None:
    """Run `metajax tune` with the arguments `args`."""
    configs.check_first("tune", _USAGE, args)
    source, name, options, experiment = configs.override("tune", Options, args)
    report.check_seconds(options.seconds)
    check_devices()
    use_precision(experiment.execution.precision)
    try:
        files.check_writable(_path(source, name))
    except UserError as error:
        raise UserError(f"{error}: copy {source.name} to a folder of your own, and tune the copy") from error
    parts = build(experiment, options.data_dir)
    check_training(experiment, parts.tasks)
    best, rate = Tuned(), 0.0
    for way in _ways(experiment, parts.params):
        try:
            measured = _tasks_per_second(experiment, way, options)
        except jax.errors.JaxRuntimeError as error:
            report.say(f"{_described(way)}: {report.first_line(error)}")
            continue
        report.say(f"{_described(way)}: {measured:,.1f} tasks/s")
        if measured > rate:
            best, rate = way, measured
    if not rate:
        raise UserError("no settings fit this device: try a smaller training.tasks_per_step, or execution.remat")
    path = store(source, name, best)
    report.say(f"fastest: {_described(best)}; saved in {path} for {device_name()}")


def load(source: Path, name: str) -> Tuned:
    """Return the fastest execution settings for a config on this kind of device.

    If `metajax tune` has no result for this kind of device, the fields of the returned settings are `None`.

    Args:
        source: Path of the config file.
        name: Name of the config with its arguments.

    Raises:
        UserError: If the file with the tuned settings is damaged.
    """
    path = _path(source, name)
    if not path.is_file():
        return Tuned()
    found = files.read_json(path)
    entry = found.get(device_name(), {}) if isinstance(found, dict) else None
    if not isinstance(entry, dict) or not all(_fits(name, value) for name, value in entry.items()):
        raise UserError(f"{path} is damaged; remove it, or run metajax tune again")
    return Tuned(**{str(name): value for name, value in entry.items()})


def _fits(name: str, value: Any) -> bool:
    if name == "unroll":
        return value is None or isinstance(value, bool)
    return name in ("devices", "chunk_size") and (value is None or (type(value) is int and value >= 1))


def store(source: Path, name: str, tuned: Tuned) -> Path:
    """Save the fastest settings beside a config. The entries of other devices do not change."""
    path = _path(source, name)
    try:
        entries = files.read_json(path)
    except UserError:  # the file is missing or damaged
        entries = {}
    kept = entries if isinstance(entries, dict) else {}
    files.write_json(path, {**kept, device_name(): dataclasses.asdict(tuned)})
    return path


def _path(source: Path, name: str) -> Path:
    return source.with_name(f"{name}.tuned.json")


def _ways(experiment: Experiment, params: Params) -> Iterator[Tuned]:
    """Yield the combinations of execution settings to time.

    The numbers of devices are 1, the default of `choose_mesh`, and the smallest number for which the busiest device has
    as few tasks as with all devices. The chunk sizes are 1, 4 and all tasks of a device. Inner loops of 2 to 10 steps
    are timed both unrolled and scanned.
    """
    tasks = experiment.training.tasks_per_step
    loops = 1 < experiment.inner.steps <= 10 and not experiment.execution.remat
    every = share_evenly(tasks, jax.local_device_count())
    for devices in sorted({1, choose_mesh(None, params, tasks).size, every}, reverse=True):
        share = -(-tasks // devices)
        for chunk_size in sorted({1, min(4, share), share}):
            for unroll in (True, False) if loops else (None,):
                yield Tuned(devices, chunk_size, unroll)


def _tasks_per_second(experiment: Experiment, way: Tuned, options: Options) -> float:
    execution = dataclasses.replace(experiment.execution, chunk_size=way.chunk_size, unroll=way.unroll)
    parts = build(dataclasses.replace(experiment, execution=execution), options.data_dir)
    tasks, steps = experiment.training.tasks_per_step, min(experiment.training.steps_per_call, 5)
    split = parts.tasks.splits["train"]
    call = training_calls(
        parts.learner,
        parts.optimizer,
        split.streamed or split.sampler,
        parts.params,
        tasks_per_step=tasks,
        steps_per_call=steps,
        chunk_size=way.chunk_size,
        mesh=choose_mesh(way.devices, parts.params, tasks),
    )
    return tasks * steps / time_calls(call, seconds=options.seconds, at_least=3).seconds


def _described(way: Tuned) -> str:
    loop = {None: "", True: ", unrolled", False: ", scanned"}[way.unroll]
    return f"{way.devices} device{'s' if way.devices != 1 else ''}, {way.chunk_size} at once{loop}"
