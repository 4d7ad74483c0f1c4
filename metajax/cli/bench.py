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
from metajax.core.types import Params, StreamedSampler, TaskSampler
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


@dataclasses.dataclass
class Options:
    """Measure the throughput of the standard workloads on this device, or of an experiment if a CONFIG comes first."""

    seconds: float = 5.0
    """Duration of each measurement, in seconds."""
    only: str = ""
    """Measure only workloads whose name contains this text."""
    devices: DescribedDefault[int | None] = None
    """Number of devices to split tasks over (default: as many as speed up training)."""
    output: Path | None = None
    """Path of a JSON file to which the results are written."""
    data_dir: DescribedDefault[Path | None] = None
    """Folder of prepared data sets (default: $METAJAX_DATA_DIR, else ~/.cache/metajax)."""


class _Training(NamedTuple):
    """The training configuration that a benchmark measures.

    Attributes:
        learner: The meta-learner whose training is timed.
        plain: The same meta-learner in plain reverse mode, to count the necessary operations without rematerialisation.
        optimizer: The outer optimiser.
        sampler: The task sampler.
        params: Initial parameters.
        tasks: Number of tasks in a meta-step.
        steps: Number of meta-steps in a call.
        chunk_size: Number of tasks that run together on a device.
        streamed: The sampler of the same tasks with images on the host; `None` if the images are on the device.
    """

    learner: MetaLearner
    plain: MetaLearner
    optimizer: optax.GradientTransformation
    sampler: TaskSampler
    params: Params
    tasks: int
    steps: int
    chunk_size: int | None = None
    streamed: StreamedSampler | None = None


def run(args: Sequence[str]) -> None:
    """Run `metajax bench` with the arguments `args`."""
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
    workloads = choose(*filter(None, [options.only]))
    if not workloads:
        raise UserError(f"no workload's name contains {options.only!r}: choose from {'; '.join(WORKLOADS)}")
    rows = {}
    for name, workload in workloads.items():
        parts, plain = standard(workload), standard(workload, mixed_mode=False).learner
        steps = 100 if workload.model == "mlp" else 2
        training = _Training(parts.learner, plain, optax.adam(1e-3), parts.sampler, parts.params, workload.tasks, steps)
        rows[name] = _measure(training, choose_mesh(options.devices, parts.params, workload.tasks), options.seconds)
        report.say(f"{name}: {_line(rows[name])}")
    _write(options, rows)


def _bench_experiment(args: Sequence[str]) -> None:
    source, name, options, experiment = configs.override("bench", Options, args)
    report.check_output(options.output)
    report.check_seconds(options.seconds)
    if options.only:
        raise UserError(f"--only selects among the standard workloads: remove --only, or remove {args[0]}")
    check_devices()
    tuned = tune.load(source, name)
    experiment = tuned.apply(experiment)
    use_precision(experiment.execution.precision)
    parts = build(experiment, options.data_dir)
    check_training(experiment, parts.tasks)
    split = parts.tasks.splits["train"]
    training = _Training(
        learner=parts.learner,
        plain=build(dataclasses.replace(experiment, execution=Execution(mixed_mode=False)), options.data_dir).learner,
        optimizer=parts.optimizer,
        sampler=split.sampler,
        params=parts.params,
        tasks=experiment.training.tasks_per_step,
        steps=experiment.training.steps_per_call,
        chunk_size=experiment.execution.chunk_size,
        streamed=split.streamed,
    )
    mesh = choose_mesh(options.devices or tuned.devices, training.params, training.tasks)
    row = _measure(training, mesh, options.seconds)
    report.say(f"{name}: {_line(row)}")
    _write(options, {name: row})


def _measure(training: _Training, mesh: Mesh, seconds: float) -> dict[str, Any]:
    """Return the throughput, floating-point rate, compilation time and peak memory of a training configuration."""
    flops = task_flops(training.plain, training.sampler, training.params)
    call = training_calls(
        training.learner,
        training.optimizer,
        training.streamed or training.sampler,
        training.params,
        tasks_per_step=training.tasks,
        steps_per_call=training.steps,
        chunk_size=training.chunk_size,
        mesh=mesh,
    )
    try:
        timing = time_calls(call, seconds=seconds)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"the training does not run on this device: {report.first_line(error)}") from error
    devices, tasks = list(mesh.devices.flat), training.tasks * training.steps
    peak = peak_bytes(devices)  # before `matrix_rate`, which allocates large matrices
    return {
        "tasks_per_second": tasks / timing.seconds,
        "quartiles": [tasks / timing.high, tasks / timing.low],
        "compile_seconds": max(timing.first_seconds - timing.seconds, 0.0),
        "gflop_per_task": flops / 1e9,
        "gflops": flops * tasks / timing.seconds / 1e9,
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
