"""`metajax bench`: the throughput of an experiment, or of the standard workloads, on this device."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

import metajax
from metajax.cli import configs, report, tune
from metajax.cli.parse import DescribedDefault, parse
from metajax.core.precision import products_precision
from metajax.core.types import Params, TaskSampler
from metajax.errors import UserError
from metajax.experiment import Execution, build
from metajax.experiment.build import check_training
from metajax.experiment.devices import check_devices, choose_mesh, device_name, prepare_devices, use_precision
from metajax.learners import MetaLearner
from metajax.profiling import (
    WORKLOADS,
    choose,
    matrix_rate,
    peak_bytes,
    standard,
    task_flops,
    time_calls,
    training_calls,
)
from metajax.system import files
from metajax.tasks.host import HostTasks


@dataclasses.dataclass
class Options:
    """Measure the throughput of the standard workloads on this device, or of an experiment if a CONFIG comes first."""

    seconds: float = 5.0
    """Duration of the timed calls of each measurement."""
    only: str = ""
    """Measure only workloads whose name contains this text."""
    devices: DescribedDefault[int | None] = None
    """Devices to split tasks over (default: as many as increase the speed)."""
    output: Path | None = None
    """A JSON file for the results."""
    data_dir: DescribedDefault[Path | None] = None
    """Folder of prepared data sets (default: $METAJAX_DATA_DIR, else ~/.cache/metajax)."""


class _Training(NamedTuple):
    """The training that a benchmark measures.

    Attributes:
        learner: The meta-learner that is timed.
        plain: The meta-learner in plain reverse mode, to count the necessary operations without rematerialisation.
        optimizer: The outer optimiser.
        sampler: The task sampler.
        params: Initial parameters.
        tasks: Tasks in a meta-step.
        steps: Meta-steps in a call.
        chunk_size: Tasks that run together on a device.
        on_host: The tasks with images on the host; `None` if the images are on the device.
    """

    learner: MetaLearner
    plain: MetaLearner
    optimizer: optax.GradientTransformation
    sampler: TaskSampler
    params: Params
    tasks: int
    steps: int
    chunk_size: int | None = None
    on_host: HostTasks | None = None


def run(args: Sequence[str]) -> None:
    """Run the command."""
    if args and not args[0].startswith("-"):
        _bench_experiment(args)
    else:
        _bench_standard(args)


def _bench_standard(args: Sequence[str]) -> None:
    prepare_devices(None)
    check_devices()
    use_precision("default")
    options = parse(Options, args, prog="metajax bench")
    report.check_output(options.output)
    report.check_seconds(options.seconds)
    if options.data_dir is not None:
        raise UserError("--data-dir is for a CONFIG, which comes first: the standard workloads need no data")
    chosen = choose(*filter(None, [options.only]))
    if not chosen:
        raise UserError(f"no workload's name contains {options.only!r}: choose from {'; '.join(WORKLOADS)}")
    rows = {}
    for name, workload in chosen.items():
        parts, plain = standard(workload), standard(workload, mixed_mode=False).learner
        steps = 100 if workload.model == "mlp" else 2
        what = _Training(parts.learner, plain, optax.adam(1e-3), parts.sampler, parts.params, workload.tasks, steps)
        rows[name] = _measure(what, choose_mesh(options.devices, parts.params, workload.tasks), options.seconds)
        report.say(f"{name}: {_line(rows[name])}")
    _write(options, rows)


def _bench_experiment(args: Sequence[str]) -> None:
    source, options, experiment = configs.override("bench", Options, args)
    report.check_output(options.output)
    report.check_seconds(options.seconds)
    if options.only:
        raise UserError(f"--only selects among the standard workloads: remove --only, or remove {args[0]}")
    check_devices()
    tuned = tune.load(source)
    experiment = tuned.apply(experiment)
    use_precision(experiment.execution.precision)
    parts = build(experiment, options.data_dir)
    check_training(experiment, parts.tasks)
    what = _Training(
        learner=parts.learner,
        plain=build(dataclasses.replace(experiment, execution=Execution(mixed_mode=False)), options.data_dir).learner,
        optimizer=parts.optimizer,
        sampler=parts.tasks.samplers["train"],
        params=parts.params,
        tasks=experiment.training.tasks_per_step,
        steps=experiment.training.steps_per_call,
        chunk_size=experiment.execution.chunk_size,
        on_host=parts.tasks.on_host.get("train"),
    )
    row = _measure(what, choose_mesh(options.devices or tuned.devices, what.params, what.tasks), options.seconds)
    report.say(f"{source.stem}: {_line(row)}")
    _write(options, {source.stem: row})


def _measure(what: _Training, mesh: Mesh, seconds: float) -> dict[str, Any]:
    flops = task_flops(what.plain, what.sampler, what.params)
    call = training_calls(
        what.learner,
        what.optimizer,
        what.sampler,
        what.params,
        tasks_per_step=what.tasks,
        steps_per_call=what.steps,
        chunk_size=what.chunk_size,
        mesh=mesh,
        on_host=what.on_host,
    )
    try:
        timing = time_calls(call, seconds=seconds)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"the training does not run on this device: {report.first_line(error)}") from error
    devices, done = list(mesh.devices.flat), what.tasks * what.steps
    peak = peak_bytes(devices)  # read it before the benchmark of large matrix products
    return {
        "tasks_per_second": done / timing.seconds,
        "quartiles": [done / timing.high, done / timing.low],
        "compile_seconds": max(timing.first_seconds - timing.seconds, 0.0),
        "gflop_per_task": flops / 1e9,
        "gflops": flops * done / timing.seconds / 1e9,
        "matrix_gflops": matrix_rate(devices) / 1e9,
        "peak_bytes": peak,
        "devices": mesh.size,
        "repeats": timing.repeats,
    }


def _line(row: dict[str, Any]) -> str:
    low, high = row["quartiles"]
    spread = "one call" if row["repeats"] == 1 else f"quartiles {low:,.1f} to {high:,.1f}"
    return (
        f"{row['tasks_per_second']:,.1f} tasks/s ({spread}), {row['gflops']:,.1f} GFLOP/s, "
        f"{row['gflops'] / row['matrix_gflops']:.0%} of the rate of large matrix products, compiled or loaded in "
        f"{row['compile_seconds']:.1f} s, at most {row['peak_bytes'] / 2**20:,.0f} MiB"
    )


def _write(options: Options, rows: dict[str, Any]) -> None:
    if options.output is not None:
        about = {
            "device": device_name(),
            "versions": {"metajax": metajax.__version__, "jax": jax.__version__},
            "precision": products_precision(),
        }
        files.write_json(options.output, {**about, "results": rows})
