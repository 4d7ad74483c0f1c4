"""`metajax train`: meta-train an experiment, or resume it, then evaluate it."""

import ast
import contextlib
import dataclasses
import functools
import itertools
import math
import signal
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from metajax import files
from metajax.cli import configs, rendezvous, report, tune
from metajax.cli.device import (
    any_process,
    check_devices,
    check_memory,
    choose_mesh,
    is_first,
    join,
    prepare_devices,
    use_precision,
    wait_for_others,
)
from metajax.cli.evaluate import describe_task, evaluate_run, load_state
from metajax.cli.parse import DescribedDefault, value_of
from metajax.cli.progress import Progress
from metajax.cli.signals import Stopped, stop_requests
from metajax.core.evaluator import make_evaluation
from metajax.core.parallel import replicate
from metajax.core.trainer import TrainState, as_partial, first_non_finite, init_train_state, make_train_step
from metajax.errors import UserError
from metajax.experiment import Experiment, Parts, TrainingSettings, build, checkpoints, config_code, metrics, workdir
from metajax.experiment.build import check_training, evaluation_batch_size, purpose_key
from metajax.tasks.host import HostTasks, feed

_FETCHED_CALLS = 10_000
"""Number of calls for each prefetch stream. The next stream starts without prefetched images."""

_USAGE = """usage: metajax train CONFIG [--workdir DIR] [--devices N] [--data-dir DIR] [--FIELD VALUE ...]

Meta-train CONFIG, a name from `metajax configs` or the path of a config file, and evaluate the result. If the work
directory exists, resume its run exactly. Every field of the config can be overridden: `metajax train CONFIG --help`
lists the fields. A config file is executed; code in a work directory is not."""


@dataclasses.dataclass
class Options:
    """Meta-train an experiment, or resume it, then evaluate it."""

    workdir: DescribedDefault[Path | None] = None
    """Work directory (default: runs/CONFIG)."""
    devices: DescribedDefault[int | None] = None
    """Devices to split tasks over (default: as many as increase the speed). On a CPU each core is a device."""
    distributed: str | None = None
    """Train in several processes: auto if a cluster manager knows the processes, else ADDRESS:PORT,INDEX,COUNT."""
    data_dir: DescribedDefault[Path | None] = None
    """Folder of prepared data sets (default: $METAJAX_DATA_DIR, else ~/.cache/metajax)."""


def run(args: Sequence[str]) -> None:
    """Run the command."""
    configs.check_first("train", _USAGE, args)
    join(value_of("--distributed", args))  # before the config file, which may use JAX
    source, options, experiment = configs.override("train", Options, args)
    directory = options.workdir or Path("runs") / source.stem
    prepare_devices(options.devices)
    if not rendezvous.joined():  # JAX looks for devices in all processes at once, after they have compared settings
        check_devices()
    tuned = tune.load(source)
    devices = options.devices or tuned.devices
    try:
        with report.out_of_memory("--execution.chunk-size 1, or --execution.remat"):
            train(directory, tuned.apply(experiment), source, devices, options.data_dir)
    except OSError as error:  # a write that fails names no file
        reason = error.strerror or str(error)
        raise OSError(error.errno or 0, reason, error.filename or str(directory)) from error
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        raise UserError(
            f"another process of the run has stopped ({report.first_line(error)}). Start all of them again with the "
            f"same command to resume {directory}"
        ) from error


def train(
    directory: Path,
    experiment: Experiment,
    source: Path,
    devices: int | None = None,
    data_dir: Path | None = None,
) -> None:
    """Train or resume in a work directory, then evaluate.

    Raises:
        UserError: If the directory has another experiment, or if training fails.
        Stopped: If a signal stopped training; the state is saved before.
    """
    rendezvous.agree("settings", _settings(directory, experiment, source, devices))
    check_devices()
    if is_first():
        workdir.check_writable(directory)
        workdir.check_alone(directory)
    _check_run(directory, experiment, source)  # before the data is read, and again when no other process writes
    use_precision(experiment.execution.precision)
    parts = build(experiment, data_dir)
    check_memory(parts.params)
    check_training(experiment, parts.tasks)
    mesh = choose_mesh(devices, parts.params, experiment.training.tasks_per_step)
    with workdir.alone(directory) if is_first() else contextlib.nullcontext():
        resumes = _check_run(directory, experiment, source)
        rendezvous.agree("data", {**parts.tasks.holds, **_progress(directory, resumes)})
        changed = resumes and workdir.data_differs(directory, parts.tasks.holds)
        if changed:
            raise UserError(
                f"{directory} was begun with other data: {changed}. Choose another --workdir, or the same data"
            )
        _run(directory, experiment, source, parts, mesh, resumes)


def _check_run(directory: Path, experiment: Experiment, source: Path) -> bool:
    """Return whether an experiment resumes a run.

    Raises:
        UserError: If the run had other settings or other code, or the folder holds something else.
    """
    if not workdir.is_workdir(directory):
        if is_first():
            workdir.check_empty(directory)
        return False
    _check_same(workdir.differences(directory, experiment), experiment, directory)
    if workdir.code_differs(directory, experiment, source):
        raise UserError(
            f"{directory} was begun with other code than {source} has now; it is kept in "
            f"{directory / workdir.SOURCE}. Choose another --workdir, or the same code"
        )
    modules = workdir.changed_modules(directory, experiment, source)
    if modules:
        raise UserError(
            f"{directory} was begun with other code of {', '.join(modules)}, which {source} imports. "
            "Choose another --workdir, or the same code"
        )
    return True


def _progress(directory: Path, resumes: bool) -> dict[str, Any]:
    """What the processes of a run must all see in the work directory."""
    saved = checkpoints.saved_steps(directory / workdir.CHECKPOINTS)
    return {
        f"the run in {directory}": "begun" if resumes else "not begun",
        f"the last checkpoint in {directory}": saved[-1] if saved else None,
    }


def _check_same(differing: Sequence[str], experiment: Experiment, directory: Path) -> None:
    """Raise a `UserError` if a run is resumed with other settings.

    With a constant outer learning rate the number of meta-steps may be larger than before.
    """
    longer = experiment.training.steps > workdir.training_steps(directory) and all(
        field.startswith("training.steps is ") for field in differing
    )
    schedule = experiment.outer.schedule
    if not differing or (longer and schedule == "constant"):
        return
    advice = "Choose another --workdir, or the same settings"
    if longer:
        advice = (
            f"A run can continue to more meta-steps only if its outer.schedule is constant: the rates of a {schedule} "
            "schedule depend on the number of meta-steps. Choose another --workdir"
        )
    raise UserError(f"{directory} holds another experiment: {'; '.join(differing)}. {advice}")


def _settings(directory: Path, experiment: Experiment, source: Path, devices: int | None) -> dict[str, Any]:
    """Return the names and values of the settings that all processes of a run must share."""
    fields = jax.tree_util.tree_leaves_with_path(
        workdir.to_json(experiment), is_leaf=lambda value: not isinstance(value, dict)
    )
    return {
        **{jax.tree_util.keystr(path, simple=True, separator="."): value for path, value in fields},
        "the code of the config": f"{zlib.crc32(ast.dump(ast.parse(config_code.read_source(source))).encode()):08x}",
        **{
            f"the code of {name}": checksums[-1]
            for name, checksums in config_code.fingerprints(source, workdir.config_folder(source)).items()
        },
        "--workdir": directory.resolve(),
        "--devices": devices,
        **{f"the version of {name}": version for name, version in workdir.versions().items()},
    }


def _run(directory: Path, experiment: Experiment, source: Path, parts: Parts, mesh: Mesh, resumes: bool) -> None:
    state = init_train_state(parts.learner, parts.optimizer, parts.params, purpose_key(experiment.seed, "train"))
    validate = _validation(experiment, parts, mesh)
    if resumes:
        state = _resume(directory, experiment, state, mesh)
        if is_first():
            moved = workdir.moved(directory, experiment)
            for change in moved:
                report.say(f"{change}, with the same images")
            if moved or workdir.training_steps(directory) < experiment.training.steps:
                files.write_json(directory / workdir.CONFIG, workdir.to_json(experiment))
        _validate_late(directory, experiment.training, state, validate)
    else:
        if is_first():
            workdir.create(directory, experiment, source, mesh.size, parts.tasks.holds, describe_task(parts.tasks))
        report.say(f"training in {directory} on {report.devices(mesh)}")
    if int(state.step) < experiment.training.steps:
        _train(directory, experiment, parts, state, mesh, validate)
    state, step = load_state(directory, experiment, parts)
    best = ", which validated best," if experiment.evaluation.checkpoint == "best" else ""
    report.say(f"evaluating checkpoint {step:,}{best} on {experiment.evaluation.num_tasks:,} test tasks")
    result = evaluate_run(experiment, parts, state, mesh)
    if is_first():
        files.write_json(directory / workdir.EVALUATION, {**result, "checkpoint": step})
    report.table(result)
    report.say(f"the whole report is {directory / workdir.EVALUATION}")
    report.say(f"metajax plot {directory} draws it")


def _resume(directory: Path, experiment: Experiment, fresh: TrainState, mesh: Mesh) -> TrainState:
    for change in workdir.changes_since(directory, experiment, mesh.size):
        report.warn(change)
    folder = directory / workdir.CHECKPOINTS
    if not checkpoints.saved_steps(folder):
        if is_first():
            metrics.truncate(directory, 0)
        report.say(f"resuming {directory} from the start: it had saved no checkpoint yet")
        return fresh
    state, problems = checkpoints.restore(folder, fresh)
    step = int(state.step)
    for problem in problems:
        report.warn(f"{problem}; falling back to the previous one")
    wait_for_others("restored")
    if is_first():
        checkpoints.discard_after(folder, step)
        checkpoints.prune(folder, experiment.training.keep)
        metrics.truncate(directory, step)
        files.remove_stale_partials(directory)
    wait_for_others("truncated")
    if step < experiment.training.steps:
        report.say(f"resuming {directory} from step {step:,}")
    else:
        more = "; a larger --training.steps continues training" if experiment.outer.schedule == "constant" else ""
        report.say(f"{directory} is trained, to step {step:,}: only evaluating it{more}")
    return state


def _validate_late(
    directory: Path, settings: TrainingSettings, state: TrainState, validate: Callable[[TrainState], dict[str, Any]]
) -> None:
    """Validate a restored checkpoint if the run stopped before the end of the checkpoint's validation."""
    folder, step = directory / workdir.CHECKPOINTS, int(state.step)
    missing = step > 0 and _checkpoint_due(settings, step) and checkpoints.loss(folder, step) is None
    if not any_process(missing):
        return
    row = {"step": step, **validate(state)}
    loss = _loss_of_checkpoint(row)
    if loss is not None and is_first():
        metrics.amend(directory, row)
        with contextlib.closing(metrics.Events(directory, step)) as events:
            events.add(row)
        checkpoints.set_loss(folder, step, loss)
        checkpoints.prune(folder, settings.keep)
    wait_for_others("validated")


def _checkpoint_due(settings: TrainingSettings, step: int) -> bool:
    return step % settings.checkpoint_every == 0 or step == settings.steps


def _loss_of_checkpoint(row: dict[str, Any]) -> float | None:
    """Return the loss that determines the best checkpoint: infinity for a diverged validation, `None` without one."""
    return math.inf if row.get("validation_loss", 0) is None else row.get("validation_loss")


def _train(
    directory: Path,
    experiment: Experiment,
    parts: Parts,
    state: TrainState,
    mesh: Mesh,
    validate: Callable[[TrainState], dict[str, Any]],
) -> None:
    settings, step = experiment.training, int(state.step)
    sampler = replicate(as_partial(parts.tasks.samplers["train"]), mesh)  # shared by calls of all lengths
    compiled: dict[int, Callable[[TrainState, Any], Any]] = {}

    def advance(state: TrainState, steps: int, fed: Any):
        if steps not in compiled:
            compiled[steps] = make_train_step(
                parts.learner,
                parts.optimizer,
                sampler,
                tasks_per_step=settings.tasks_per_step,
                steps_per_call=steps,
                chunk_size=experiment.execution.chunk_size,
                mesh=mesh,
            )
        return compiled[steps](state, fed)

    fetched = _fetched_ahead(experiment, parts, state, mesh)
    with (
        _record(directory, step, settings.keep) if is_first() else contextlib.nullcontext(_Record()) as record,
        Progress(step, settings.steps) as progress,
        stop_requests() as stop,
    ):
        for steps in _calls(settings, step):
            began = time.perf_counter()
            stop.saving, new = False, steps not in compiled
            state, stacked = advance(state, steps, next(fetched))
            stacked = jax.device_get(stacked)
            stop.saves = stop.saving = True
            failure = first_non_finite(stacked)
            if failure is not None:
                record.save(state)
                raise UserError(_not_finite(directory, step + failure[0], failure[1]))
            step += steps
            seconds = time.perf_counter() - began
            row = {"step": step, **{name: float(values.mean()) for name, values in stacked.items()}}
            row["tasks_per_second"] = float(f"{steps * settings.tasks_per_step / seconds:.4g}")
            checkpoint_due = _checkpoint_due(settings, step)
            if checkpoint_due and not any_process(bool(stop.received)):
                keep = functools.partial(_stop, directory, record, dict(row), state)
                with stop.saved_at_once(keep) if is_first() else contextlib.nullcontext():
                    row |= validate(state)
            record.add(row, flush=checkpoint_due)
            if checkpoint_due:
                record.save(state, _loss_of_checkpoint(row))
            progress.update(row, compiled=new)
            if any_process(bool(stop.received)):
                record.save(state, wait=True)
                report.say(_stopped(directory, step))
                raise Stopped((*stop.received, signal.SIGTERM)[0])
    wait_for_others("written")


def _stop(directory: Path, record: "_Record", row: dict[str, Any], state: TrainState) -> None:
    """Save what a run has while it validates: validation may outlast the time that the process is given to stop."""
    record.add(row, flush=True)
    record.save(state, wait=True)
    report.say(_stopped(directory, row["step"]))


def _stopped(directory: Path, step: int) -> str:
    return f"stopped at step {step:,}, saved in {directory}; the same command resumes"


def _calls(settings: TrainingSettings, step: int) -> Iterator[int]:
    """Yield the number of meta-steps of each remaining call. A call never crosses a checkpoint."""
    while step < settings.steps:
        next_checkpoint = step - step % settings.checkpoint_every + settings.checkpoint_every
        steps = min(settings.steps_per_call, next_checkpoint - step, settings.steps - step)
        yield steps
        step += steps


def _fetched_ahead(experiment: Experiment, parts: Parts, state: TrainState, mesh: Mesh) -> Iterator[Any]:
    """Return an iterator over the images of each call's tasks, if the images are on the host."""
    if "train" not in parts.tasks.on_host:
        return itertools.repeat(None)
    # Training donates its state, so the key is copied.
    return _images(experiment.training, parts.tasks.on_host["train"], jax.tree.map(jnp.copy, state), mesh)


def _images(settings: TrainingSettings, tasks: HostTasks, state: TrainState, mesh: Mesh) -> Iterator[Any]:
    """Yield the images of each call, in several streams, because the calls of a run may be too many for one list."""
    step = int(state.step)
    calls = _calls(settings, step)
    while lengths := list(itertools.islice(calls, _FETCHED_CALLS)):
        begin = state._replace(step=np.int32(step))
        yield from feed(
            tasks,
            begin,
            sum(lengths),
            tasks_per_step=settings.tasks_per_step,
            steps_per_call=lengths,
            mesh=mesh,
        )
        step += sum(lengths)


class _Record(NamedTuple):
    """Functions that save metrics and states. In a run of several processes only process 0 saves anything."""

    add: Callable[..., None] = lambda row, *, flush: None
    save: Callable[..., None] = lambda state, validation_loss=None, *, wait=False: None


@contextlib.contextmanager
def _record(directory: Path, step: int, keep: int) -> Iterator[_Record]:
    with (
        checkpoints.open_checkpoints(directory / workdir.CHECKPOINTS, keep=keep) as manager,
        contextlib.closing(metrics.Events(directory, step)) as events,
    ):

        def add(row: dict[str, Any], *, flush: bool) -> None:
            metrics.append(directory, row)
            events.add(row)
            if flush:
                events.flush()

        yield _Record(add, functools.partial(checkpoints.save, manager))


def _validation(experiment: Experiment, parts: Parts, mesh: Mesh) -> Callable[[TrainState], dict[str, Any]]:
    """Return the function that computes a checkpoint's validation metrics, after the last inner step."""
    sampler = parts.tasks.samplers.get("validation")
    if sampler is None or not experiment.validation.num_tasks:
        return lambda state: {}
    support = jax.eval_shape(sampler, jax.random.key(0)).support
    evaluate = make_evaluation(
        parts.learner,
        parts.loss_fn,
        sampler,
        steps=experiment.evaluation.steps,
        num_tasks=experiment.validation.num_tasks,
        batch_size=evaluation_batch_size(experiment, support.x.shape[0]),
        non_transductive=False,
        chunk_size=experiment.execution.chunk_size,
        mesh=mesh,
    )
    key = purpose_key(experiment.seed, "validation")

    def validate(state: TrainState) -> dict[str, Any]:
        measured = evaluate(state.meta_params, key, state.learner_state)["transductive"]
        return {f"validation_{name}": measured[name]["mean"][-1] for name in measured if name != "diverged"}

    return validate


def _not_finite(directory: Path, step: int, metric: str) -> str:
    advice = "Try a smaller outer.learning_rate or inner.learning_rate, or an outer.clip_norm"
    if step == 0:
        advice = (
            "At the first step the data may be the cause: inputs or targets with NaN or Inf, or labels that are not in "
            "[0, ways). If the data is right, try a smaller inner.learning_rate or inner.steps (outer.learning_rate "
            "has had no effect yet)"
        )
    return (
        f"training stopped at step {step:,}: {metric} is not finite. The last good state is checkpoint {step} of "
        f"{directory / workdir.CHECKPOINTS}. {advice}"
    )
