"""Run an experiment in a work directory: build it, train or resume, evaluate, and write the results."""

import ast
import contextlib
import dataclasses
import logging
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from metajax.core.checks import describe
from metajax.core.evaluator import Report, evaluator
from metajax.core.trainer import Trainer, TrainState, init_state, trainer
from metajax.errors import UserError
from metajax.experiment import checkpoints, config_code, rendezvous, workdir
from metajax.experiment.build import Parts, build, check_training, evaluation_batch_size, purpose_key
from metajax.experiment.devices import (
    check_devices,
    check_memory,
    choose_mesh,
    describe_mesh,
    is_first,
    prepare_devices,
    use_precision,
)
from metajax.experiment.loop import NotFiniteError, Row, Stream, Validate, advance, resume
from metajax.experiment.settings import Experiment
from metajax.system import files
from metajax.tasks.config import Split, Tasks
from metajax.tasks.datasets import FolderConfig
from metajax.tasks.domains import DomainsConfig
from metajax.tasks.host import prefetch

_LOG = logging.getLogger("metajax")

_PREFETCHED_CALLS = 10_000
"""Largest number of calls of the training step for one prefetch stream. Longer runs use several streams in sequence,
and each stream starts without prefetched images."""


@contextlib.contextmanager
def _own_precision() -> Iterator[None]:
    """Restore JAX's precision of matrix products after a run."""
    before = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        jax.config.update("jax_default_matmul_precision", before)


@_own_precision()
def run(
    experiment: Experiment,
    directory: str | os.PathLike[str],
    *,
    callbacks: Sequence[Callable[[Row], None]] = (),
    source: str | os.PathLike[str] | None = None,
    devices: int | None = None,
    data_dir: str | os.PathLike[str] | None = None,
) -> Report:
    """Train an experiment in a work directory, or resume it, then evaluate it.

    `metajax train` calls this function. The work directory gets the settings, metrics, checkpoints and the report of
    the evaluation, which `metajax evaluate` and `metajax plot` read. Compiled programs are cached. Messages go to the
    logger `metajax`; `logging.basicConfig(level=logging.INFO)` shows them.

    Args:
        experiment: The settings.
        directory: The work directory. If the directory has a run with the same settings, this run is resumed.
        callbacks: Functions that are called after each call of the training step with a dict: `step` and the means of
            the metrics.
        source: The config file that defines the experiment. It is needed only if the config file defines types of
            settings, so that `metajax evaluate` can find these types.
        devices: Number of devices to split the tasks over. Default: as many devices as speed up training.
        data_dir: Folder of prepared data sets. Default: `$METAJAX_DATA_DIR`, or else `~/.cache/metajax`.

    Returns:
        The report of the evaluation on test tasks, which is also written to `evaluation.json`.

    Raises:
        UserError: If the settings or the data are wrong, if the directory has another experiment, or if a meta-step
            fails.
        Stopped: If a signal stopped the training. The state was saved before.
    """
    if not isinstance(experiment, Experiment):
        raise TypeError(f"run takes a metajax.experiment.Experiment, got {describe(experiment)}")
    directory = files.expand_home(Path(directory))
    source = None if source is None else Path(source)
    prepare_devices(devices)
    rendezvous.agree("settings", _settings(directory, experiment, source, devices))
    check_devices()
    if is_first():
        workdir.check_writable(directory)
        workdir.check_unlocked(directory)
    _check_run(directory, experiment, source)  # before reading the data; again below, under the lock
    use_precision(experiment.execution.precision)
    parts = build(experiment, None if data_dir is None else Path(data_dir))
    check_memory(parts.params)
    check_training(experiment, parts.tasks)
    mesh = choose_mesh(devices, parts.params, experiment.training.tasks_per_step)
    with workdir.lock(directory) if is_first() else contextlib.nullcontext():
        resumes = _check_run(directory, experiment, source)
        rendezvous.agree("data", {**parts.tasks.fingerprints, **_progress(directory, resumes)})
        changed = resumes and workdir.data_differs(directory, parts.tasks.fingerprints)
        if changed:
            raise UserError(
                f"{directory} was begun with other data: {changed}. Choose another --workdir, or the same data"
            )
        _train(directory, experiment, source, parts, mesh, resumes, callbacks)
        return _evaluate(directory, experiment, parts, mesh)


def _check_run(directory: Path, experiment: Experiment, source: Path | None) -> bool:
    """Return whether the work directory already has a run of the experiment, which training then resumes.

    Raises:
        UserError: If the run in the work directory had other settings or other code, or if the folder has files but no
            run.
    """
    if not workdir.is_workdir(directory):
        if is_first():
            workdir.check_empty(directory)
        return False
    _check_same(workdir.differences(directory, experiment), experiment, directory)
    if source is None:
        return True
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
    """Return whether the run has begun, and its last checkpoint. Both must be equal in all processes of the run."""
    saved = checkpoints.saved_steps(directory / workdir.CHECKPOINTS)
    return {
        f"the run in {directory}": "begun" if resumes else "not begun",
        f"the last checkpoint in {directory}": saved[-1] if saved else None,
    }


def _check_same(differing: Sequence[str], experiment: Experiment, directory: Path) -> None:
    """Raise a `UserError` if a run is resumed with other settings than before.

    Only the number of meta-steps may be larger than before, if the outer learning rate is constant.
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


def _settings(directory: Path, experiment: Experiment, source: Path | None, devices: int | None) -> dict[str, Any]:
    """Return the names and values of the settings that all processes of a run must share."""
    fields = jax.tree_util.tree_leaves_with_path(
        workdir.to_json(experiment), is_leaf=lambda value: not isinstance(value, dict)
    )
    settings = {
        **{jax.tree_util.keystr(path, simple=True, separator="."): value for path, value in fields},
        "--workdir": directory.resolve(),
        "--devices": devices,
        **{f"the version of {name}": version for name, version in workdir.versions().items()},
    }
    if source is not None:
        code = ast.dump(ast.parse(config_code.read_source(source)))
        settings["the code of the config"] = f"{zlib.crc32(code.encode()):08x}"
        modules = config_code.fingerprints(source, workdir.config_folder(source))
        settings |= {f"the code of {name}": checksums[-1] for name, checksums in modules.items()}
    return settings


def _train(
    directory: Path,
    experiment: Experiment,
    source: Path | None,
    parts: Parts,
    mesh: Mesh,
    resumes: bool,
    callbacks: Sequence[Callable[[Row], None]],
) -> None:
    settings = experiment.training
    train = _trainer(experiment, parts, mesh)
    fresh = train.init(parts.params, purpose_key(experiment.seed, "train"))
    validate, stream = _validation(experiment, parts, mesh), _stream(experiment, parts, mesh)
    if resumes:
        for change in workdir.changes_since(directory, experiment, mesh.size):
            _LOG.warning(change)
        state = resume(directory, fresh, keep=settings.keep)
        moved = workdir.moved(directory, experiment)
        for change in moved:
            _LOG.info(f"{change}, with the same images")
        if is_first() and (moved or workdir.training_steps(directory) < settings.steps):
            files.write_json(directory / workdir.CONFIG, workdir.to_json(experiment))
        _LOG.info(_resumed(directory, experiment, int(state.step)))
    else:
        state = fresh
        if is_first():  # last, so that refused settings leave no work directory
            workdir.create(
                directory, experiment, source, mesh.size, parts.tasks.fingerprints, describe_task(parts.tasks)
            )
        _LOG.info(f"training in {directory} on {describe_mesh(mesh)}")
    try:
        advance(
            train,
            state,
            directory,
            steps=settings.steps,
            checkpoint_every=settings.checkpoint_every,
            keep=settings.keep,
            validate=validate,
            stream=stream,
            callbacks=callbacks,
        )
    except NotFiniteError as error:
        raise UserError(_advice(error)) from error


def _trainer(experiment: Experiment, parts: Parts, mesh: Mesh | None) -> Trainer:
    split = parts.tasks.splits["train"]
    return trainer(
        parts.learner,
        parts.optimizer,
        split.streamed or split.sampler,
        tasks_per_step=experiment.training.tasks_per_step,
        steps_per_call=experiment.training.steps_per_call,
        chunk_size=experiment.execution.chunk_size,
        mesh=mesh,
    )


def _resumed(directory: Path, experiment: Experiment, step: int) -> str:
    if not step:
        return f"resuming {directory} from the start: it had saved no checkpoint yet"
    if step < experiment.training.steps:
        return f"resuming {directory} from step {step:,}"
    more = "; a larger --training.steps continues training" if experiment.outer.schedule == "constant" else ""
    return f"{directory} is trained, to step {step:,}: only evaluating it{more}"


def _stream(experiment: Experiment, parts: Parts, mesh: Mesh) -> Stream | None:
    """Return a function that prefetches the images of each call's tasks; `None` if the images are on the device."""
    sampler = parts.tasks.splits["train"].streamed
    if sampler is None:
        return None

    def examples(state: TrainState, calls: Iterator[int]) -> Iterator[Any]:
        step = int(state.step)
        while lengths := list(islice(calls, _PREFETCHED_CALLS)):  # a run may have too many calls for one Python list
            begin = state._replace(step=np.int32(step))
            sizes = {"tasks_per_step": experiment.training.tasks_per_step, "steps_per_call": lengths}
            yield from prefetch(sampler, begin, sum(lengths), **sizes, mesh=mesh)
            step += sum(lengths)

    return examples


def _validation(experiment: Experiment, parts: Parts, mesh: Mesh) -> Validate | None:
    """Return the function that computes a checkpoint's validation metrics, or `None` if there is no validation.

    The metrics are measured after the last inner step.
    """
    if "validation" not in parts.tasks.splits or not experiment.validation.num_tasks:
        return None
    sampler = parts.tasks.splits["validation"].sampler
    support = jax.eval_shape(sampler, jax.random.key(0)).support
    evaluate = evaluator(
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
        scores = evaluate(state.meta_params, key, state.learner_state).transductive
        return {f"validation_{name}": each.mean[-1] for name, each in scores.metrics.items()}

    return validate


def _advice(error: NotFiniteError) -> str:
    advice = "Try a smaller outer.learning_rate or inner.learning_rate, or an outer.clip_norm"
    if error.step == 0:
        advice = (
            "At the first step the data may be the cause: inputs or targets with NaN or Inf, or labels that are not in "
            "[0, ways). If the data is right, try a smaller inner.learning_rate or inner.steps (outer.learning_rate "
            "has had no effect yet)"
        )
    return (
        f"training stopped at step {error.step:,}: {error.metric} is not finite. The last good state is checkpoint "
        f"{error.step} of {error.folder}. {advice}"
    )


def _evaluate(directory: Path, experiment: Experiment, parts: Parts, mesh: Mesh) -> Report:
    """Evaluate the checkpoint that the settings select (last or best) on test tasks, and write the report."""
    state, step = load_state(directory, experiment, parts)
    best = ", which validated best," if experiment.evaluation.checkpoint == "best" else ""
    _LOG.info(f"evaluating checkpoint {step:,}{best} on {experiment.evaluation.num_tasks:,} test tasks")
    report = evaluate_run(experiment, parts, state, mesh)
    if is_first():
        files.write_json(directory / workdir.EVALUATION, {**report.to_json(), "checkpoint": step})
    return report


def load_state(
    directory: Path, experiment: Experiment, parts: Parts, checkpoint: str | None = None
) -> tuple[TrainState, int]:
    """Return the training state of a run at a checkpoint, and the step of the checkpoint.

    If `checkpoint` is `last` and the last checkpoint cannot be read, use the previous one, with a warning.

    Args:
        directory: The work directory.
        experiment: The settings.
        parts: The parts of the run, from `build`.
        checkpoint: `last`, `best` or a step. Default: `evaluation.checkpoint` of the settings.

    Raises:
        UserError: If there is no such checkpoint, or if it does not fit the experiment.
    """
    folder = directory / workdir.CHECKPOINTS
    steps = checkpoints.saved_steps(folder)
    if not steps:
        raise UserError(f"{directory} has no checkpoint yet: run the same `metajax train` command again to resume")
    available = ", ".join(map(str, steps))
    checkpoint = checkpoint or experiment.evaluation.checkpoint
    if checkpoint == "last":
        step = None
    elif checkpoint == "best":
        step = checkpoints.best_step(folder)
        if step is None:
            raise UserError(f"no checkpoint of {directory} was validated: choose last, or one of {available}")
    elif checkpoint in map(str, steps):
        step = int(checkpoint)
    else:
        raise UserError(f"{directory} has no checkpoint {checkpoint!r}: choose last, best, or one of {available}")
    like = init_state(parts.learner, parts.optimizer, parts.params)
    state, problems = checkpoints.restore(folder, like, step)
    for problem in problems:
        _LOG.warning("%s; falling back to the previous one", problem)
    return state, int(state.step)


def evaluate_run(
    experiment: Experiment,
    parts: Parts,
    state: TrainState,
    mesh: Mesh,
    *,
    split: str = "test",
    seed: int | None = None,
) -> Report:
    """Evaluate a training state with the evaluation settings of its experiment.

    The report also contains the split and the seed of the tasks. For tasks from several domains, `report.domains` has
    one report for each domain, each on `num_tasks` tasks.

    Raises:
        UserError: If the tasks do not have the split.
    """
    tasks = split_of(parts.tasks, split)
    seed = experiment.seed if seed is None else seed
    settings = experiment.evaluation
    support = jax.eval_shape(tasks.sampler, jax.random.key(0)).support
    evaluate = evaluator(
        parts.learner,
        parts.loss_fn,
        tasks.sampler,
        steps=settings.steps,
        num_tasks=settings.num_tasks,
        batch_size=evaluation_batch_size(experiment, support.x.shape[0]),
        non_transductive=settings.non_transductive,
        chunk_size=experiment.execution.chunk_size,
        mesh=mesh,
    )
    measure = partial(evaluate, state.meta_params, purpose_key(seed, "test"), state.learner_state)
    domains = {name: measure(sampler=each) for name, each in tasks.domains.items()}
    return dataclasses.replace(measure(), split=split, seed=seed, domains=domains)


def split_of(tasks: Tasks, split: str) -> Split:
    """Return a split of the tasks.

    Raises:
        UserError: If the tasks do not have the split, or if the split has too few classes or images.
    """
    if split in tasks.problems:
        raise UserError(tasks.problems[split])
    if split not in tasks.splits:
        raise UserError(f"there is no split {split!r} of these tasks: choose one of {', '.join(tasks.splits)}")
    return tasks.splits[split]


def tasks_of_run(directory: Path, experiment: Experiment, data_dir: Path | None) -> Tasks:
    """Make the task samplers of a run from its settings.

    Raises:
        UserError: If the data is missing or damaged. If a folder of images is missing, the message explains how to
            record the new path of the folder.
    """
    try:
        return experiment.task.tasks(data_dir)
    except UserError as error:
        task = experiment.task
        folders = {"--task.source": task}
        if isinstance(task, DomainsConfig):
            folders = {f"--task.sources.{i}.task.source": each.task for i, each in enumerate(task.sources)}
        for option, each in folders.items():
            if isinstance(each, FolderConfig) and each.source is not None and not each.source.exists():
                raise UserError(
                    f"{error}. If the images were moved, the `metajax train` command of {directory} with {option} "
                    "FOLDER records their new place"
                ) from error
        raise


def describe_task(tasks: Tasks) -> dict[str, Any]:
    """Return a dict with the shape of an input, and the shape of a target, or `classes` for integer labels."""
    support = jax.eval_shape(next(iter(tasks.splits.values())).sampler, jax.random.key(0)).support
    classes = jnp.issubdtype(support.y.dtype, jnp.integer)
    return {"inputs": list(support.x.shape[1:]), "targets": "classes" if classes else list(support.y.shape[1:])}
