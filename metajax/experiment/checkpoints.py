"""Save and restore checkpoints with Orbax.

Saves are asynchronous and atomic. A restored state equals the saved state exactly. The folder keeps the most recent
checkpoints and the best one; older checkpoints are removed.
"""

import contextlib
import errno
import itertools
import logging
import math
import os
import re
import shutil
import stat
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from metajax.core.tracing import is_key
from metajax.core.trainer import TrainState
from metajax.errors import UserError, needs
from metajax.system import files

with needs("cli"):
    import orbax.checkpoint as ocp
    from orbax.checkpoint import checkpoint_managers

logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs every stage of a save, and all exceptions

_LOSS = "loss"
_METRICS = "metrics"
_CHECKSUM = "checksum"
_MOST_METADATA_BYTES = 2**25
"""Largest size in bytes of a metadata file of a checkpoint. The metadata of 50,000 arrays needs half of this size."""


@contextlib.contextmanager
def open_checkpoints(directory: str | os.PathLike[str], *, keep: int = 3) -> Iterator[ocp.CheckpointManager]:
    """Open a folder of checkpoints. On exit, wait until all checkpoints are written.

    If a run has several processes, only one process may open the folder.

    Args:
        directory: The folder, created if it is missing.
        keep: Number of most recent checkpoints to keep. The checkpoint with the lowest validation loss is always kept.

    Yields:
        Orbax's `CheckpointManager`, for `save`.

    Raises:
        UserError: If a checkpoint cannot be written, if the folder contains a symbolic link, or if a file of a
            checkpoint is too large or not a regular file.
    """
    directory = Path(directory)
    _check_encodable(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.iterdir():
        if path.is_symlink():
            raise UserError(f"{path} is a symbolic link: remove it, metajax does not write through links")
    for step in saved_steps(directory):
        metrics = _metrics(directory, step)
        if os.path.lexists(metrics) and loss(directory, step) is None:  # Orbax would fail on damaged metrics
            _remove(metrics)
        path = directory / str(step)
        try:
            _check_files(path)
        except (_DamagedError, OSError) as error:  # Orbax would read the metadata of all checkpoints
            raise UserError(f"checkpoint {path} cannot be read ({_damage(path, error)}): remove it") from error
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
    options = ocp.CheckpointManagerOptions(
        create=False,
        preservation_policy=policy,
        best_fn=lambda metrics: metrics[_LOSS],  # without `best_fn` Orbax does not write metrics
        best_mode="min",
        cleanup_tmp_directories=True,
        multiprocessing_options=_single_process_options(),
    )
    with _quiet():
        with _writing(directory):
            manager = ocp.CheckpointManager(directory.resolve(), options=options)
        try:
            yield manager
        finally:
            with _writing(directory):
                _with_retry(manager.close)


def save(
    manager: ocp.CheckpointManager, state: TrainState, validation_loss: float | None = None, *, wait: bool = False
) -> None:
    """Save a training state in the background, as the checkpoint of step `state.step`.

    Do nothing if the folder already has a checkpoint of this step.

    Args:
        manager: The checkpoint manager from `open_checkpoints`.
        state: The training state.
        validation_loss: The loss that determines the best checkpoint: a number, or a JAX or NumPy scalar.
        wait: Whether to wait until the checkpoint is written.

    Raises:
        UserError: If this checkpoint, or the previous one that is still being written, cannot be written.
    """
    step = int(state.step)
    metrics = None if validation_loss is None else {_LOSS: float(validation_loss)}
    arrays = _to_arrays(state)
    saved = {**arrays, _CHECKSUM: _checksum(arrays)}

    def write() -> None:
        if step not in manager.all_steps():
            manager.save(step, args=ocp.args.StandardSave(saved), metrics=metrics, force=True)
        if wait:
            manager.wait_until_finished()

    with _writing(Path(manager.directory)):
        _with_retry(write)


def restore(
    directory: str | os.PathLike[str], like: TrainState, step: int | None = None
) -> tuple[TrainState, list[str]]:
    """Restore the training state of the latest checkpoint that can be read.

    Args:
        directory: The folder of checkpoints.
        like: A training state with the structure, shapes and dtypes of the saved state.
        step: The step of the checkpoint. Default: the latest step that can be read.

    Returns:
        The state, and a message for each later checkpoint that could not be read. The arrays of the state are NumPy
        arrays; the compiled training step puts them on devices.

    Raises:
        UserError: If there is no checkpoint, if none can be read, or if the parameters of a checkpoint differ from
            those of `like`.
    """
    directory = Path(directory)
    _check_encodable(directory)
    steps = sorted(saved_steps(directory), reverse=True) if step is None else [step]
    if not steps:
        raise UserError(f"{directory} has no checkpoint")
    problems, mismatch = [], None
    for candidate in steps:
        path = directory / str(candidate)
        try:
            with _quiet():
                return _read(path, like), problems
        except OtherParametersError as error:  # damaged metadata also has this effect, so try the previous one
            problems.append(f"checkpoint {path} cannot be read ({error})")
            mismatch = mismatch or OtherParametersError(f"checkpoint {path}: {error}")
        except Exception as error:  # a damaged file can make Orbax raise anything
            problems.append(f"checkpoint {path} cannot be read ({_damage(path, error)})")
    raise mismatch or UserError("; ".join(problems))


class OtherParametersError(UserError):
    """A checkpoint is readable, but has the parameters of another model or optimiser."""


def saved_steps(directory: str | os.PathLike[str]) -> list[int]:
    """Return the steps of the complete checkpoints in a folder, in ascending order."""
    directory = Path(directory)
    if not directory.is_dir():
        return []
    folders = [path for path in directory.iterdir() if path.is_dir() and not path.is_symlink()]
    return sorted(int(path.name) for path in folders if _is_step(path.name))


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdecimal() and len(name) < 20 and str(int(name)) == name


def best_step(directory: str | os.PathLike[str]) -> int | None:
    """Return the step of the checkpoint with the lowest validation loss; `None` if no checkpoint has a loss."""
    losses = {step: loss(directory, step) for step in saved_steps(directory)}
    measured = {step: value for step, value in losses.items() if value is not None}
    return min(measured, key=lambda step: (measured[step], -step)) if measured else None


def discard_after(directory: str | os.PathLike[str], step: int) -> None:
    """Rename every checkpoint later than `step` to `STEP.damaged`, so that a resumed run can write its step again.

    These checkpoints could not be read. They are not deleted at once, because the cause may be temporary, such as an
    unreachable file system. `prune` later removes all renamed checkpoints except the last one.
    """
    for later in saved_steps(directory):
        if later > step:
            _mark_damaged(Path(directory) / str(later))


def _mark_damaged(path: Path) -> None:
    """Rename a checkpoint to the first unused name among `STEP.damaged`, `STEP.damaged_2` and so on."""
    for number in itertools.count(1):
        target = path.with_name(f"{path.name}.damaged{'' if number == 1 else f'_{number}'}")
        if not os.path.lexists(target):
            path.rename(target)
            return


def prune(directory: str | os.PathLike[str], keep: int) -> None:
    """Remove old checkpoints.

    The `keep` most recent checkpoints, the best checkpoint, and the last checkpoint that `discard_after` renamed
    remain. `save` removes old checkpoints, too. But if the process is killed between the save and the removal, an old
    checkpoint remains, and `prune` removes it.
    """
    best = best_step(directory)
    for step in saved_steps(directory)[:-keep]:
        if step != best:
            _remove(Path(directory) / str(step))
    for path in _renamed_checkpoints(Path(directory))[:-1]:
        _remove(path)


def _renamed_checkpoints(directory: Path) -> list[Path]:
    """Return the checkpoints that `discard_after` renamed, sorted by step, then by the number after `damaged_`."""
    if not directory.is_dir():
        return []
    names = {path: re.fullmatch(r"(\d+)\.damaged(?:_(\d+))?", path.name, re.ASCII) for path in directory.iterdir()}
    order = {path: (int(name[1]), int(name[2] or 1)) for path, name in names.items() if name and len(path.name) < 50}
    return sorted((path for path in order if path.is_dir() and not path.is_symlink()), key=order.__getitem__)


def _remove(path: Path) -> None:
    """Remove a folder, a file or a symbolic link; the target of a symbolic link is not removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def loss(directory: str | os.PathLike[str], step: int) -> float | None:
    """Return the validation loss saved with a checkpoint; `None` if the checkpoint has no readable loss."""
    try:
        value = float(files.read_json(_metrics(directory, step) / _METRICS)[_LOSS])
        return None if math.isnan(value) else value
    except (UserError, ValueError, KeyError, TypeError, OverflowError):
        return None


def set_loss(directory: str | os.PathLike[str], step: int, validation_loss: float) -> None:
    """Save the validation loss of a checkpoint that was saved without a loss.

    Args:
        directory: The folder of checkpoints. No process may have it open.
        step: The step of the checkpoint.
        validation_loss: The loss that determines the best checkpoint.

    Raises:
        OSError: If the loss cannot be written.
    """
    folder = _metrics(directory, step)
    if os.path.lexists(folder):
        _remove(folder)
    folder.mkdir()
    files.write_json(folder / _METRICS, {_LOSS: float(validation_loss)})


def _metrics(directory: str | os.PathLike[str], step: int) -> Path:
    return Path(directory) / str(step) / _METRICS


def _to_arrays(state: TrainState) -> dict[str, Any]:
    """Return the state as a dict of NumPy arrays. The random key becomes an array of integers.

    A key in another field, such as the key of an optimiser that adds noise, becomes a dict with one entry: the name of
    the key's implementation, and the array of integers. So a key of another implementation is found by its name.

    The arrays are copies, because the next training step reuses the state's buffers before the save is complete.
    """
    plain = state._replace(key=jax.random.key_data(state.key))._asdict()

    def to_array(leaf: Any) -> Any:
        if is_key(leaf):
            return {str(jax.random.key_impl(leaf)): np.array(jax.random.key_data(leaf), copy=True)}
        return np.array(leaf, copy=True)

    return jax.tree.map(to_array, plain)


def _from_arrays(arrays: dict[str, Any], like: TrainState) -> TrainState:
    """Return the state that `_to_arrays` converted to arrays. `like` has the implementations of the keys."""

    def from_array(leaf: Any, array: Any) -> Any:
        if is_key(leaf):
            (array,) = array.values()
            return jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf))
        return array

    key = jax.random.wrap_key_data(arrays["key"], impl=jax.random.key_impl(like.key))
    others = [field for field in TrainState._fields if field != "key"]
    return TrainState(key=key, **{each: jax.tree.map(from_array, getattr(like, each), arrays[each]) for each in others})


def checksums(state: TrainState) -> dict[str, str]:
    """Return a checksum of each field of a training state: of the paths, shapes, dtypes and values of its arrays."""
    found = {}
    for name, field in _to_arrays(state).items():
        described = repr(sorted(_described(field).items()))
        found[name] = f"{zlib.crc32(described.encode(), int(_checksum(field))):08x}"
    return found


def _checksum(arrays: Any) -> np.ndarray:
    """Return a checksum of the arrays, because Orbax's file formats do not detect every changed bit."""
    checksum = 0
    for leaf in jax.tree.leaves(arrays):
        checksum = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), checksum)
    return np.array(checksum, np.uint32)


def _read(path: Path, like: TrainState) -> TrainState:
    """Read a checkpoint.

    Raises:
        OtherParametersError: If the checkpoint has the parameters of another model or optimiser.
        Exception: If the checkpoint is damaged.
    """
    wanted = {**_to_arrays(like), _CHECKSUM: np.array(0, np.uint32)}
    # Check before reading: a checkpoint that this run did not write may have files and arrays of any size.
    found_bytes = _check_files(path)
    most_bytes = 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(wanted)) + _MOST_METADATA_BYTES
    if found_bytes > most_bytes:
        raise OtherParametersError(
            f"the model's parameters differ from the checkpoint: it has {found_bytes / 2**20:,.0f} MB where at most "
            f"{most_bytes / 2**20:,.0f} MB are expected"
        )
    with ocp.StandardCheckpointer(multiprocessing_options=_single_process_options()) as checkpointer:
        place = path.resolve() / "default"
        description = checkpointer.metadata(place).item_metadata.tree
        _check_same_leaves(_described(description), _described(wanted))
        _check_chunks(description)
        found = checkpointer.restore(place, wanted)
    _check_same_leaves(_described(found), _described(wanted))
    checksum = found.pop(_CHECKSUM)
    if checksum != _checksum(found):
        raise _DamagedError("its checksum is wrong")
    return _from_arrays(found, like)


class _DamagedError(Exception):
    """A checkpoint did not pass a check of this module, so it is damaged."""


def _check_files(checkpoint: Path) -> int:
    """Return the total size of a checkpoint's files in bytes.

    Raises:
        _DamagedError: If an entry is neither a regular file nor a folder, because reading a FIFO would block for ever.
            Also if a file outside the folders called `d` is too large; only the files in these folders have arrays.
    """
    total = 0
    for path in [checkpoint, *checkpoint.rglob("*")]:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            continue
        if not stat.S_ISREG(status.st_mode):
            raise _DamagedError(f"{path.name} is not a regular file")
        if path.parent.name != "d" and status.st_size > _MOST_METADATA_BYTES:
            raise _DamagedError(f"{path.name} is larger than {_MOST_METADATA_BYTES // 2**20} MB")
        total += status.st_size
    return total


def _check_chunks(description: Any) -> None:
    """Raise a `_DamagedError` if a chunk is larger than its array, because such a chunk could fill the memory."""
    for leaf in jax.tree.leaves(description):
        chunk = leaf.storage.chunk_shape if getattr(leaf, "storage", None) else None
        if chunk and any(side > max(size, 1) for side, size in zip(chunk, leaf.shape, strict=True)):
            raise _DamagedError("a chunk is larger than its array")


def _described(tree: Any) -> dict[str, str]:
    """Return the dtype and shape of each leaf by its path, such as `meta_params/layers/0/kernel`.

    Orbax saves tuples as lists and named tuples as dicts.
    """
    leaves = jax.tree.leaves_with_path(ocp.tree.serialize_tree(tree, keep_empty_nodes=True))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{np.dtype(leaf.dtype)}{list(leaf.shape)}"
        for path, leaf in leaves
        if hasattr(leaf, "shape")
    }


def _check_same_leaves(found: dict[str, str], wanted: dict[str, str]) -> None:
    differing = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
    if differing:
        first = min(differing, key=lambda name: not name.startswith("meta_params"))
        nothing = "nothing"
        more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
        raise OtherParametersError(
            f"the model's parameters differ from the checkpoint: it has {found.get(first, nothing)} where "
            f"{wanted.get(first, nothing)} is expected, at {first}{more}"
        )


def _single_process_options() -> ocp.options.MultiprocessingOptions:
    """Return the Orbax options with which this process reads and writes without the other processes of its run.

    With the default options Orbax would wait for the other processes, which may have ended.
    """
    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process_{index}"
    )


def _check_encodable(directory: Path) -> None:
    """Raise a `UserError` if a path is not UTF-8, because Orbax cannot open it."""
    try:
        str(directory.resolve()).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{str(directory)!a} is not a name in UTF-8: rename the folder") from error


def _with_retry(action: Callable[[], None]) -> None:
    """Run an action of Orbax. If the action times out, run it a second time.

    Orbax's time limit ends too early if the system clock jumps ahead.
    """
    try:
        action()
    except Exception as error:
        if not _timed_out(error):
            raise
        action()


def _timed_out(error: BaseException | None) -> bool:
    if error is None:
        return False
    text = str(error).lower()
    named = isinstance(error, TimeoutError) or any(w in text for w in ("timed out", "timeout", "deadline_exceeded"))
    return named or _timed_out(error.__cause__)


@contextlib.contextmanager
def _writing(directory: Path) -> Iterator[None]:
    """Convert an exception of Orbax, from this save or an earlier save, into a `UserError` with a one-line message."""
    try:
        yield
    except Exception as error:
        raise UserError(f"{directory}: a checkpoint cannot be written ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """Return the reason why a checkpoint cannot be written, as the operating system reports it if possible."""
    for cause in itertools.chain([error], _causes(error)):
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror.lower()
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO):
        if os.strerror(code) in str(error):
            return os.strerror(code).lower()
    if _timed_out(error):
        return "it timed out twice"
    return str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    while (error := error.__cause__ or error.__context__) is not None:  # pyright: ignore[reportAssignmentType]
        yield error


def _damage(checkpoint: Path, error: Exception) -> str:
    """Describe why a checkpoint cannot be read, without Orbax's message, which names internal classes."""
    if isinstance(error, _DamagedError):
        return str(error)
    if not checkpoint.is_dir():
        return "it is not there"
    if isinstance(error, PermissionError):
        return "permission denied"
    return "its files are damaged or incomplete"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the messages that Orbax's concurrent reads and writes print after one of them fails.

    If the body of the `with` statement raises an exception, the suppression stays in effect, because the messages may
    be printed later.
    """
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
