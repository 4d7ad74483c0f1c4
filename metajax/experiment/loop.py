"""The training loop: calls of the training step, validation, checkpoints, metrics, signals and resuming."""

import contextlib
import functools
import itertools
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from metajax.core.checks import check_count
from metajax.core.trainer import Trainer, TrainState, first_non_finite
from metajax.core.types import Params
from metajax.errors import UserError
from metajax.experiment import checkpoints, metrics, rendezvous, workdir
from metajax.experiment.devices import any_process, is_first, wait_for_others
from metajax.system import files
from metajax.system.signals import Stopped, stop_requests

_LOG = logging.getLogger("metajax")

_SILENT_SECONDS = 10.0
"""Seconds until a message explains that the first call of the training step is still compiling."""

Row = dict[str, Any]
"""The metrics of one call of the training step: a dict with `step` and one scalar for each metric."""

Validate = Callable[[TrainState], Mapping[str, Any]]
"""A function `state -> validation metrics`. The best checkpoint is the one with the lowest `validation_loss`."""

Stream = Callable[[TrainState, Iterator[int]], Iterator[Any]]
"""A function `(state, steps) -> iterator` that streams examples from the host. `steps` yields the number of meta-steps
of each call of the training step after `state`. The iterator yields the examples for each of these calls."""


class NotFiniteError(FloatingPointError):
    """A meta-step failed: a metric is NaN or infinite. The state before this meta-step is saved.

    Attributes:
        step: The meta-step that failed.
        metric: The name of a metric that is NaN or infinite.
        folder: The folder of the run, in which the last checkpoint is saved.
    """

    def __init__(self, step: int, metric: str, folder: Path):
        super().__init__(
            f"training stopped at step {step:,}: {metric} is not finite. The last good state is checkpoint {step} of "
            f"{folder}. Try a smaller inner or outer rate, or clip gradients; if the first step fails, look for NaN, "
            "infinity or labels out of range in the data"
        )
        self.step, self.metric, self.folder = step, metric, folder


def train(
    trainer: Trainer,
    params: Params,
    directory: str | os.PathLike[str],
    *,
    steps: int,
    seed: int | jax.Array = 0,
    checkpoint_every: int | None = None,
    keep: int = 3,
    validate: Validate | None = None,
    stream: Stream | None = None,
    callbacks: Sequence[Callable[[Row], None]] = (),
) -> TrainState:
    """Meta-train, and write metrics and checkpoints to a folder. Resume if the folder has checkpoints.

    The folder gets checkpoints, and one row of metrics for each call of the training step, in `metrics.jsonl` and in
    TensorBoard events. A resumed training continues from the last checkpoint, with the same results as without the
    interruption. SIGINT or SIGTERM stops the training after its state is saved. Messages go to the logger `metajax`.

    Args:
        trainer: A trainer from `metajax.trainer`.
        params: The model's initial parameters.
        directory: The folder, created if it is missing.
        steps: Total number of meta-steps, including those before a resume. A larger number than before continues a
            finished training.
        seed: The seed of the training, an integer or a JAX key.
        checkpoint_every: Meta-steps between checkpoints. Default: one checkpoint at the end.
        keep: Number of most recent checkpoints to keep. The best checkpoint is always kept.
        validate: `TrainState -> metrics`, called at every checkpoint. Its metric `validation_loss` determines the best
            checkpoint.
        stream: `(state, steps) -> iterator`, for a `StreamedSampler`; see `Stream`. The iterator yields the second
            argument of `trainer.step` for each call.
        callbacks: Functions that are called with the row of each call: `step` and the means of the metrics.

    Returns:
        The state after `steps` meta-steps.

    Raises:
        NotFiniteError: If a meta-step fails.
        Stopped: If a signal stopped the training. The state was saved before.
        UserError: If the folder cannot be written, if another process trains in the folder, if a checkpoint does not
            fit the model or the optimiser, or if the last checkpoint is later than `steps`. With several processes,
            also if their arguments differ; every process raises this error.

    >>> import tempfile, jax.numpy as jnp, optax, metajax as mj
    >>> learner = mj.maml(lambda p, target, rng: ((p - target) ** 2, {}), mj.inner_loop(optax.sgd(0.1), steps=1))
    >>> sampler = mj.constant_task(mj.Task(support=3.0, query=3.0))
    >>> trainer = mj.trainer(learner, optax.sgd(0.5), sampler, tasks_per_step=4, steps_per_call=10)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     first = mj.train(trainer, jnp.float32(0), folder, steps=20)
    ...     second = mj.train(trainer, jnp.float32(0), folder, steps=30)  # continues at step 20
    >>> int(first.step), int(second.step), round(float(second.meta_params), 3)
    (20, 30, 3.0)
    """
    checkpoint_every = steps if checkpoint_every is None else checkpoint_every
    counts = {"steps": steps, "keep": keep, "checkpoint_every": checkpoint_every}
    with rendezvous.mistakes_told():
        for name, value in counts.items():
            check_count(name, value)
        directory = files.expand_home(Path(directory))
        if is_first():
            workdir.check_writable(directory)
        fresh = trainer.init(params, seed)
    if rendezvous.joined():
        functions = {"validate": validate is not None, "stream": stream is not None}
        rendezvous.agree("settings", {**counts, **functions, **_settings(trainer, fresh, directory)})
    with workdir.lock(directory) if is_first() else contextlib.nullcontext():
        state = resume(directory, fresh, keep=keep)
        return advance(
            trainer,
            state,
            directory,
            steps=steps,
            checkpoint_every=checkpoint_every,
            keep=keep,
            validate=validate,
            stream=stream,
            callbacks=callbacks,
        )


def _settings(trainer: Trainer, fresh: TrainState, directory: Path) -> dict[str, Any]:
    """Return the names and values of settings that all processes of a training must share.

    `fresh` is the state before the first meta-step. Its checksums differ if the parameters, the seeds, or the kinds of
    the optimisers or learners differ.
    """
    saved = checkpoints.saved_steps(directory / workdir.CHECKPOINTS)
    return {
        "the folder": str(directory.resolve()),
        f"the last checkpoint in {directory}": saved[-1] if saved else None,
        "tasks_per_step": trainer.tasks_per_step,
        "steps_per_call": trainer.steps_per_call,
        "skip_non_finite": trainer.skip_non_finite,
        **{f"the checksum of {name} at the start": value for name, value in checkpoints.checksums(fresh).items()},
        **{f"the version of {name}": version for name, version in workdir.versions().items()},
    }


def resume(directory: Path, fresh: TrainState, *, keep: int) -> TrainState:
    """Restore the latest readable checkpoint of a folder, and discard all metrics and checkpoints of later steps.

    Args:
        directory: The folder.
        fresh: The state before the first meta-step. It is returned if there is no checkpoint.
        keep: Number of most recent checkpoints to keep.

    Raises:
        UserError: If there are checkpoints, but none of them can be read, or if they do not fit `fresh`.
    """
    folder = directory / workdir.CHECKPOINTS
    if not checkpoints.saved_steps(folder):
        if is_first():
            metrics.truncate(directory, 0)
        return fresh
    state, problems = checkpoints.restore(folder, fresh)
    step = int(state.step)
    for problem in problems:
        _LOG.warning("%s; falling back to the previous one", problem)
    wait_for_others("restored")
    if is_first():
        checkpoints.discard_after(folder, step)
        checkpoints.prune(folder, keep)
        metrics.truncate(directory, step)
        files.remove_stale_partials(directory)
    wait_for_others("truncated")
    return state


def advance(
    trainer: Trainer,
    state: TrainState,
    directory: Path,
    *,
    steps: int,
    checkpoint_every: int,
    keep: int,
    validate: Validate | None = None,
    stream: Stream | None = None,
    callbacks: Sequence[Callable[[Row], None]] = (),
) -> TrainState:
    """Train from a state until `steps` meta-steps are complete. `train` describes the arguments.

    The caller must hold the lock file of the folder.
    """
    step = int(state.step)
    if validate is not None and (step == steps or (step and step % checkpoint_every == 0)):
        _validate_late(directory, state, validate, keep)
    if step > steps:
        raise UserError(
            f"{directory} is trained to step {step:,}, more than {steps:,}: choose more steps or another folder"
        )
    if step == steps:
        return state
    lengths = functools.partial(_calls, step, steps, trainer.steps_per_call, checkpoint_every)
    # Training donates its state, so the stream gets a copy.
    data = itertools.repeat(None) if stream is None else stream(jax.tree.map(jax.numpy.copy, state), lengths())
    with (
        _record(directory, step, keep) if is_first() else contextlib.nullcontext(_Record()) as record,
        stop_requests() as stop,
        contextlib.ExitStack() as stack,
    ):
        patience = threading.Timer(_SILENT_SECONDS, _LOG.info, ["compiling (a minute or more on a CPU the first time)"])
        patience.daemon = True
        patience.start()
        stack.callback(patience.cancel)
        for length in lengths():
            began = time.perf_counter()
            stop.saving = False
            state, stacked = trainer.step(state, _next(data, step), steps=length)
            stacked = jax.device_get(stacked)
            patience.cancel()
            stop.saves = stop.saving = True
            if int(state.step) < step + length:
                record.save(state)
                last = {
                    name: values[-1:] for name, values in stacked.items()
                }  # after a failed step, the remaining steps of a call repeat it
                _, name = first_non_finite(last) or (0, "loss")
                raise NotFiniteError(int(state.step), name, directory / workdir.CHECKPOINTS)
            if trainer.skip_non_finite:
                stacked = {name: _without_failures(values) for name, values in stacked.items()}
            step += length
            row = _row(step, stacked)
            rate = length * trainer.tasks_per_step / (time.perf_counter() - began)
            row["tasks_per_second"] = float(f"{rate:.4g}")
            checkpoint_due = step % checkpoint_every == 0 or step == steps
            if checkpoint_due and validate is not None and not any_process(bool(stop.received)):
                save_now = functools.partial(_save_during_validation, directory, record, dict(row), state)
                with stop.saved_at_once(save_now) if is_first() else contextlib.nullcontext():
                    row |= validate(state)
            record.add(row, flush=checkpoint_due)
            if checkpoint_due:
                record.save(state, _validation_loss(row))
            for callback in callbacks:
                callback(row)
            if any_process(bool(stop.received)):
                record.save(state, wait=True)
                _LOG.info(_stopped(directory, step))
                raise Stopped((*stop.received, signal.SIGTERM)[0])
    wait_for_others("written")
    return state


def _next(data: Iterator[Any], step: int) -> Any:
    try:
        return next(data)
    except StopIteration:
        raise ValueError(f"the stream ended at step {step}, before the last meta-step") from None


def _validate_late(directory: Path, state: TrainState, validate: Validate, keep: int) -> None:
    """Validate a restored checkpoint that has no validation loss, because the run stopped during its validation."""
    folder, step = directory / workdir.CHECKPOINTS, int(state.step)
    if not any_process(checkpoints.loss(folder, step) is None):
        return
    row = {"step": step, **validate(state)}
    loss = _validation_loss(row)
    if loss is not None and is_first():
        metrics.amend(directory, row)
        with contextlib.closing(metrics.Events(directory, step)) as events:
            events.add(row)
        checkpoints.set_loss(folder, step, loss)
        checkpoints.prune(folder, keep)
    wait_for_others("validated")


def _validation_loss(row: Row) -> float | None:
    """Return the loss that determines the best checkpoint: infinity if not finite, `None` without validation."""
    if "validation_loss" not in row:
        return None
    loss = row["validation_loss"]
    return math.inf if loss is None or not math.isfinite(loss) else float(loss)


def _row(step: int, stacked: Mapping[str, Any]) -> Row:
    return {"step": step, **{name: float(values.mean()) for name, values in stacked.items()}}


def _without_failures(values: Any) -> np.ndarray:
    """Return the values of the meta-steps that did not fail; all values if all failed."""
    finite = np.isfinite(values)
    return values[finite] if finite.any() else values


def _save_during_validation(directory: Path, record: "_Record", row: Row, state: TrainState) -> None:
    """Save the metrics and the state at once after a signal, because validation may outlast the signal's time limit."""
    record.add(row, flush=True)
    record.save(state, wait=True)
    _LOG.info(_stopped(directory, row["step"]))


def _stopped(directory: Path, step: int) -> str:
    return f"stopped at step {step:,}, saved in {directory}; the same command resumes"


def _calls(step: int, steps: int, steps_per_call: int, checkpoint_every: int) -> Iterator[int]:
    """Yield the number of meta-steps of each remaining call. A call ends at the latest at the next checkpoint."""
    while step < steps:
        next_checkpoint = step - step % checkpoint_every + checkpoint_every
        length = min(steps_per_call, next_checkpoint - step, steps - step)
        yield length
        step += length


class _Record(NamedTuple):
    """Functions that save metrics and states. The defaults save nothing, because only process 0 of a run saves."""

    add: Callable[..., None] = lambda row, *, flush: None
    save: Callable[..., None] = lambda state, validation_loss=None, *, wait=False: None


@contextlib.contextmanager
def _record(directory: Path, step: int, keep: int) -> Iterator[_Record]:
    with (
        checkpoints.open_checkpoints(directory / workdir.CHECKPOINTS, keep=keep) as manager,
        contextlib.closing(metrics.Events(directory, step)) as events,
    ):

        def add(row: Row, *, flush: bool) -> None:
            metrics.append(directory, row)
            events.add(row)
            if flush:
                events.flush()

        yield _Record(add, functools.partial(checkpoints.save, manager))
