"""`metajax bench`: the throughput of an experiment, or of the standard workloads, on this device."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh

import metajax
from metajax import workdir
from metajax.benchmark import (
    WORKLOADS,
    matrix_rate,
    peak_bytes,
    standard,
    task_flops,
    time_calls,
    training_calls,
)
from metajax.cli import configs, report, tune
from metajax.cli.device import choose_mesh, device_name, prepare_devices, use_precision
from metajax.cli.parse import parse
from metajax.errors import UserError
from metajax.experiment import Execution, build
from metajax.learners import MetaLearner
from metajax.types import Params, TaskSampler


@dataclasses.dataclass
class Options:
    """Measure the throughput of the standard workloads on this device; with a CONFIG first, of that experiment."""

    seconds: float = 5.0
    """Of timed calls for each measurement."""
    only: str = ""
    """Workloads whose name contains this."""
    devices: int | None = None
    """Devices to split tasks over; by default all that help."""
    output: Path | None = None
    """A JSON file for the figures."""
    data_dir: Path | None = None
    """Where data sets are prepared."""


def run(args: Sequence[str]) -> None:
    """Carry out the command."""
    if args and not args[0].startswith("-"):
        _experiment(args)
        return
    prepare_devices(None)
    options = parse(Options, args, prog="metajax bench")
    chosen = {name: w for name, w in WORKLOADS.items() if options.only in name and (options.only or not w.slow)}
    if not chosen:
        raise UserError(f"no workload's name contains {options.only!r}: choose from {'; '.join(WORKLOADS)}")
    if options.only in chosen:  # a whole name, which may be the beginning of others
        chosen = {options.only: chosen[options.only]}
    rows = {}
    for name, workload in chosen.items():
        parts, plain = standard(workload), standard(workload, mixed_mode=False)
        steps = 100 if workload.model == "mlp" else 2
        flops = task_flops(plain.learner, plain.sampler, plain.params)
        mesh = choose_mesh(options.devices, parts.params, workload.tasks)
        rows[name] = _measure(
            parts.learner,
            optax.adam(1e-3),
            parts.sampler,
            parts.params,
            workload.tasks,
            steps,
            None,
            mesh,
            flops,
            options,
        )
        report.say(f"{name}: {_line(rows[name])}")
    _write(options, rows)


def _experiment(args: Sequence[str]) -> None:
    source, options, experiment = configs.override("bench", Options, args)
    tuned = tune.load(source)
    experiment = tuned.apply(experiment)
    use_precision(experiment.execution.precision)
    parts = build(experiment, options.data_dir)
    plain = build(dataclasses.replace(experiment, execution=Execution(mixed_mode=False)), options.data_dir)
    training, sampler = experiment.training, parts.tasks.samplers["train"]
    row = _measure(
        parts.learner,
        parts.optimizer,
        sampler,
        parts.params,
        training.tasks_per_step,
        training.steps_per_call,
        experiment.execution.chunk_size,
        choose_mesh(options.devices or tuned.devices, parts.params, training.tasks_per_step),
        task_flops(plain.learner, sampler, plain.params),
        options,
    )
    report.say(f"{source.stem}: {_line(row)}")
    _write(options, {source.stem: row})


def _measure(
    learner: MetaLearner,
    optimizer: optax.GradientTransformation,
    sampler: TaskSampler,
    params: Params,
    tasks: int,
    steps: int,
    chunk_size: int | None,
    mesh: Mesh,
    flops: int,
    options: Options,
) -> dict[str, Any]:
    call: Callable[[], None] = training_calls(
        learner,
        optimizer,
        sampler,
        params,
        tasks_per_step=tasks,
        steps_per_call=steps,
        chunk_size=chunk_size,
        mesh=mesh,
    )
    try:
        timing = time_calls(call, seconds=options.seconds)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"it does not run on this device: {report.first_line(error)}") from error
    devices, done = list(mesh.devices.flat), tasks * steps
    return {
        "tasks_per_second": done / timing.seconds,
        "quartiles": [done / timing.high, done / timing.low],
        "compile_seconds": max(timing.first_seconds - timing.seconds, 0.0),
        "gflop_per_task": flops / 1e9,
        "gflops": flops * done / timing.seconds / 1e9,
        "matrix_gflops": matrix_rate(devices) / 1e9,
        "peak_bytes": peak_bytes(devices),
        "devices": mesh.size,
        "repeats": timing.repeats,
    }


def _line(row: dict[str, Any]) -> str:
    low, high = row["quartiles"]
    return (
        f"{row['tasks_per_second']:,.1f} tasks/s (quartiles {low:,.1f} to {high:,.1f}), {row['gflops']:,.1f} GFLOP/s, "
        f"{row['gflops'] / row['matrix_gflops']:.0%} of the rate of matrix products, compiled or loaded in "
        f"{row['compile_seconds']:.1f} s, at most {row['peak_bytes'] / 2**20:,.0f} MiB"
    )


def _write(options: Options, rows: dict[str, Any]) -> None:
    if options.output is not None:
        versions = {"metajax": metajax.__version__, "jax": jax.__version__}
        workdir.write_json(options.output, {"device": device_name(), "versions": versions, "results": rows})
