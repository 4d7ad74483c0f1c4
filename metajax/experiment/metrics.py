"""Write and read the metrics of a run in its work directory: JSON lines, and TensorBoard events."""

import json
import logging
import math
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metajax.errors import needs
from metajax.experiment.workdir import EVENTS
from metajax.system import files

with needs("cli"):
    from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboardX.record_writer import RecordWriter

METRICS = "metrics.jsonl"
_LOG = logging.getLogger("metajax")
_LARGEST = 2**63  # steps and integer metrics are smaller than this


def append(workdir: str | os.PathLike[str], row: Mapping[str, Any]) -> None:
    """Append a line to the metrics file.

    Args:
        workdir: The work directory, created if it is missing.
        row: `step` and the metrics: numbers, JAX or NumPy scalars, or `None`. Non-finite values are written as `None`.

    Raises:
        TypeError: If a value is not a scalar.
        UserError: If the file is a symbolic link or a special file.

    >>> import tempfile, jax.numpy as jnp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     append(folder, {"step": 10, "loss": jnp.float32(0.5), "validation_loss": None})
    ...     read(folder)
    [{'step': 10, 'loss': 0.5, 'validation_loss': None}]
    """
    line = json.dumps(_plain(row)).encode() + b"\n"
    Path(workdir).mkdir(parents=True, exist_ok=True)
    with files.open_append(Path(workdir) / METRICS) as file:
        file.write(line)


def amend(workdir: str | os.PathLike[str], row: Mapping[str, Any]) -> None:
    """Add metrics to the last line of the metrics file if that line has the same `step`; if not, append a line.

    Args:
        workdir: The work directory.
        row: `step` and the metrics to add, as for `append`.

    Raises:
        TypeError: If a value is not a scalar.
        UserError: If the file cannot be read, or is a symbolic link.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     append(folder, {"step": 10, "loss": 0.5})
    ...     amend(folder, {"step": 10, "validation_loss": 0.75})
    ...     read(folder)
    [{'step': 10, 'loss': 0.5, 'validation_loss': 0.75}]
    """
    plain, path, last = _plain(row), Path(workdir) / METRICS, None
    for last in _lines(Path(workdir)):  # noqa: B007, only the last line is used
        pass
    if last is None or last.row is None or last.row["step"] != plain["step"]:
        append(workdir, row)
        return
    with files.open_regular(path) as file, files.replacing(path) as copy:
        shutil.copyfileobj(file, copy)
        copy.seek(-len(last.text), os.SEEK_END)
        copy.truncate()
        copy.write(json.dumps(last.row | plain).encode() + b"\n")


class _Line(NamedTuple):
    """A line of the metrics file.

    Attributes:
        number: The line number, from 1.
        text: The bytes of the line, including the newline if there is one. `files.read_lines` removes the content of a
            line that is too long.
        row: The metrics, or `None` if the line is damaged.
    """

    number: int
    text: bytes
    row: dict[str, Any] | None

    @property
    def cut(self) -> bool:
        """Return whether the line has no newline because the process was killed, or the disk was full."""
        return self.row is None and self.text != b"" and not self.text.endswith(b"\n")


class _Damaged(NamedTuple):
    """The number of the first damaged line of the metrics file, and the count of damaged lines."""

    first: int = 0
    count: int = 0

    def and_line(self, number: int) -> "_Damaged":
        return _Damaged(self.first or number, self.count + 1)

    def warn(self, workdir: Path) -> None:
        if self.count:
            lines = "1 damaged line is" if self.count == 1 else f"{self.count} damaged lines are"
            _LOG.warning("%s:%d: %s left out", workdir / METRICS, self.first, lines)


def read(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read all metrics of a run; see `rows`.

    Returns:
        A list with a dict for each line of the metrics file; an empty list if there is no file.
    """
    return list(rows(workdir))


def rows(workdir: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Read the metrics of a run line by line, so that a large metrics file needs little memory.

    Damaged lines are skipped with a warning. An incomplete last line is skipped without a warning.

    Args:
        workdir: The work directory.

    Yields:
        A dict for each line of the metrics file; nothing if there is no file.

    Raises:
        UserError: If the file cannot be read.
    """
    damaged = _Damaged()
    for line in _lines(Path(workdir)):
        if line.row is not None:
            yield line.row
        elif not line.cut:
            damaged = damaged.and_line(line.number)
    damaged.warn(Path(workdir))


def truncate(workdir: str | os.PathLike[str], step: int) -> None:
    """Remove the lines of steps after `step` from the metrics file, because a resumed run will write them again.

    Damaged lines are also removed, with a warning; a copy of the original file then stays in the same folder. If there
    is nothing to remove, the file does not change.

    Raises:
        UserError: If the file cannot be read, or is a symbolic link.
    """
    directory = Path(workdir)
    path = directory / METRICS
    if step and not os.path.lexists(path):
        _LOG.warning("%s is missing: the metrics up to step %d are lost", path, step)
    damaged, last, changes = _Damaged(), -1, False
    for line in _lines(directory):
        changes |= not line.text.endswith(b"\n")
        if line.row is None:
            # If the previous line is at the checkpoint's step, the resumed run writes the incomplete line again.
            damaged = damaged if line.cut and last >= step else damaged.and_line(line.number)
        elif line.row["step"] <= step:
            last = line.row["step"]
        else:
            changes = True
    damaged.warn(directory)
    if not changes:
        return
    if damaged.count:
        _keep(path)
    with files.replacing(path) as file:
        for line in _lines(directory):
            if line.row is not None and line.row["step"] <= step:
                file.write(line.text.removesuffix(b"\n") + b"\n")


def _lines(workdir: Path) -> Iterator[_Line]:
    path = workdir / METRICS
    if os.path.lexists(path):
        for number, text in enumerate(files.read_lines(path), 1):
            yield _Line(number, text, _row(text))


def _row(text: bytes) -> dict[str, Any] | None:
    """Return the metrics of a line; `None` if the line is damaged."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not all(value is None or _is_number(value) for value in row.values()):
        return None
    step = row.get("step")
    return row if isinstance(step, int) and step >= 0 else None


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or abs(value) < _LARGEST


def _keep(path: Path) -> None:
    """Copy a damaged file within its folder, to the first unused name that ends in `.damaged_1`, `.damaged_2`, ..."""
    number = 1
    while os.path.lexists(old := path.with_name(f"{path.name}.damaged_{number}")):
        number += 1
    with files.open_regular(path) as file, files.replacing(old) as copy:
        shutil.copyfileobj(file, copy)
    _LOG.warning("the file as it was is %s", old)


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with Python numbers instead of arrays, and `None` instead of non-finite values."""
    if "step" not in row:
        raise TypeError(f"a row of metrics has a step, got only {', '.join(row) or 'an empty row'}")
    plain = {name: _scalar(name, value) for name, value in row.items()}
    plain["step"] = int(row["step"])
    return plain


def _scalar(name: str, value: Any) -> int | float | None:
    if value is None:
        return None
    array = np.asarray(value)
    if array.size != 1 or not (array.dtype.kind in "iufb" or array.dtype.name == "bfloat16"):
        raise TypeError(f"{name} must be a scalar, got {array.dtype}{list(array.shape)}")
    if array.dtype.kind in "iub":
        return int(array.item())
    number = float(array.item())
    return number if math.isfinite(number) else None


class Events:
    """A TensorBoard event file, written without a thread, because tensorboardX's thread cannot report a full disk.

    Args:
        workdir: The work directory, created if it is missing. A resumed run has several event files.
        step: Step from which the run continues. TensorBoard drops the events of later steps, which an interrupted run
            wrote.

    Raises:
        UserError: If the folder of the events is a symbolic link out of the work directory.
    """

    def __init__(self, workdir: str | os.PathLike[str], step: int = 0):
        folder = files.subfolder(workdir, EVENTS)
        path = folder / f"events.out.tfevents.{time.time():.6f}.{platform.node()}"
        path.touch(exist_ok=False)  # fails if the path is a symbolic link
        self._writer = RecordWriter(str(path))
        self._write(Event(file_version="brain.Event:2"))
        if len(list(folder.iterdir())) > 1:
            self._write(Event(step=int(step) + 1, session_log=SessionLog(status=SessionLog.START)))

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row of metrics: `step`, and numbers, JAX or NumPy scalars, or `None`.

        Raises:
            TypeError: If a value is not a scalar.
        """
        plain = _plain(row)
        values = {name: value for name, value in plain.items() if name != "step" and value is not None}
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._write(Event(step=plain["step"], summary=summary))

    def flush(self) -> None:
        """Write all added rows to disk."""
        self._writer.flush()

    def close(self) -> None:
        """Write all added rows to disk, and close the file."""
        self._writer.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.write(event.SerializeToString())
