"""Checkpoints by Orbax: asynchronous, atomic, the last few and the best kept, exact on restore."""

import contextlib
import errno
import json
import logging
import os
import shutil
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from metajax.errors import UserError
from metajax.training import TrainState

logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs every step of a save, and what it raises too

_LOSS = "loss"
_METRICS = "metrics"
_CHECKSUM = "checksum"


@contextlib.contextmanager
def open_checkpoints(directory: Path, *, keep: int = 3) -> Iterator[ocp.CheckpointManager]:
    """Open a folder of checkpoints; at the end, wait for what is being written.

    In a run of several processes one of them does.

    Args:
        directory: Where they are.
        keep: The last so many are kept, and the one with the lowest validation loss.

    Yields:
        Orbax's manager, for `save`.

    Raises:
        UserError: If a checkpoint cannot be written.
    """
    for step in saved_steps(directory):
        if _loss(directory / str(step)) is None:  # Orbax would stop at a damaged one
            shutil.rmtree(directory / str(step) / _METRICS, ignore_errors=True)
    policy = checkpoint_managers.AnyPreservationPolicy(
        [
            checkpoint_managers.LatestN(keep),
            checkpoint_managers.BestN(
                get_metric_fn=lambda metrics: metrics[_LOSS],
                reverse=True,
                n=1,
                keep_checkpoints_without_metrics=False,
            ),
        ]
    )
    directory.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(
        create=False,
        preservation_policy=policy,
        best_fn=lambda metrics: metrics[_LOSS],  # without it metrics are not written
        best_mode="min",
        cleanup_tmp_directories=True,
        multiprocessing_options=_by_myself(),
    )
    with _quiet():
        manager = ocp.CheckpointManager(directory.resolve(), options=options)
        try:
            yield manager
        finally:
            with _writing(directory):
                manager.close()


def save(
    manager: ocp.CheckpointManager, state: TrainState, validation_loss: float | None = None, *, wait: bool = False
) -> None:
    """Save a state under its step, in the background; nothing if that step is saved already.

    Args:
        manager: From `open_checkpoints`.
        state: What to save.
        validation_loss: Chooses the best checkpoint.
        wait: Come back when it is written.

    Raises:
        UserError: If it, or the one before, cannot be written.
    """
    step = int(state.step)
    metrics = None if validation_loss is None else {_LOSS: validation_loss}
    arrays = _to_arrays(state)
    saved = {**arrays, _CHECKSUM: _checksum(arrays)}
    with _writing(Path(manager.directory)):
        if step not in manager.all_steps():
            manager.save(step, args=ocp.args.StandardSave(saved), metrics=metrics, force=True)
        if wait:
            manager.wait_until_finished()


def restore(directory: Path, like: TrainState, step: int | None = None) -> tuple[TrainState, list[str]]:
    """Restore the latest state that can be read.

    Args:
        directory: The folder of checkpoints.
        like: A state of the same structure, shapes and dtypes.
        step: A step to restore, and no other.

    Returns:
        The state, its arrays in numpy (the compiled step places them), and a line for each later checkpoint that
        could not be read.

    Raises:
        UserError: If there is no checkpoint, or none that can be read.
    """
    steps = sorted(saved_steps(directory), reverse=True) if step is None else [step]
    if not steps:
        raise UserError(f"{directory} holds no checkpoint")
    problems = []
    for candidate in steps:
        try:
            with _quiet():
                return _read(directory / str(candidate), like), problems
        except Exception as error:  # whatever a damaged file makes Orbax raise
            problems.append(f"checkpoint {directory / str(candidate)} cannot be read ({_reason(error)})")
    raise UserError("; ".join(problems))


def saved_steps(directory: Path) -> list[int]:
    """Steps of the checkpoints in a folder that were written to the end, ascending."""
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit() and path.is_dir())


def best_step(directory: Path) -> int | None:
    """Step of the checkpoint with the lowest validation loss; `None` if none was validated."""
    losses = {step: _loss(directory / str(step)) for step in saved_steps(directory)}
    measured = {step: loss for step, loss in losses.items() if loss is not None}
    return min(measured, key=lambda step: (measured[step], -step)) if measured else None


def discard_after(directory: Path, step: int) -> None:
    """Remove checkpoints later than `step`, which a resumed run is about to write again."""
    for later in saved_steps(directory):
        if later > step:
            shutil.rmtree(directory / str(later))


def _loss(checkpoint: Path) -> float | None:
    """The validation loss saved with a checkpoint, if there is one that can be read."""
    try:
        return float(json.loads((checkpoint / _METRICS / _METRICS).read_text())[_LOSS])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _to_arrays(state: TrainState) -> dict[str, Any]:
    """The state as a dict of numpy arrays, a key as its data.

    Copies: the next training step reuses the state's buffers while a save is still under way.
    """
    plain = state._replace(key=jax.random.key_data(state.key))._asdict()
    return jax.tree.map(lambda leaf: np.array(leaf, copy=True), plain)


def _checksum(arrays: dict[str, Any]) -> np.ndarray:
    """A number that changes with any bit of the arrays: the files below Orbax do not notice every one."""
    checksum = 0
    for leaf in jax.tree.leaves(arrays):
        checksum = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), checksum)
    return np.array(checksum, np.uint32)


def _read(path: Path, like: TrainState) -> TrainState:
    wanted = _to_arrays(like)
    with ocp.StandardCheckpointer(multiprocessing_options=_by_myself()) as checkpointer:
        found = checkpointer.restore(path.resolve() / "default", {**wanted, _CHECKSUM: np.array(0, np.uint32)})
    checksum = found.pop(_CHECKSUM)
    for a, b in zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            raise ValueError(f"it holds {b.dtype}{list(b.shape)} where {a.dtype}{list(a.shape)} is expected")
    if checksum != _checksum(found):
        raise ValueError("its checksum is wrong")
    return TrainState(**{**found, "key": jax.random.wrap_key_data(found["key"])})


def _by_myself() -> ocp.options.MultiprocessingOptions:
    """Of the processes of a run one writes and each reads alone: none waits for one that may be gone."""
    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process_{index}"
    )


@contextlib.contextmanager
def _writing(directory: Path) -> Iterator[None]:
    """Turn whatever Orbax raises, now or for a save before, into one line."""
    try:
        yield
    except Exception as error:
        raise UserError(f"{directory}: a checkpoint cannot be written ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    full = os.strerror(errno.ENOSPC)
    if full in str(error):
        return full.lower()
    return str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what Orbax's other reads and writes print when one of them fails; after a failure, go on with that."""
    logger, previous = logging.getLogger("asyncio"), sys.unraisablehook

    def report(unraisable) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            previous(unraisable)

    def retrieved(record: logging.LogRecord) -> bool:
        return "exception was never retrieved" not in record.getMessage()

    sys.unraisablehook = report
    logger.addFilter(retrieved)
    yield
    logger.removeFilter(retrieved)
    sys.unraisablehook = previous
