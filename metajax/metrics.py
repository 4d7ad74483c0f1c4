"""Metrics of a run in its work directory: JSON lines, and TensorBoard events."""

import json
import platform
import time
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.record_writer import RecordWriter

from metajax.workdir import write_whole

METRICS = "metrics.jsonl"
EVENTS = "tensorboard"


def append(workdir: Path, row: dict[str, Any]) -> None:
    """Add a line to the metrics."""
    with (workdir / METRICS).open("a") as file:
        file.write(json.dumps(row) + "\n")


def read(workdir: Path) -> list[dict[str, Any]]:
    """The metrics, a dict per line, up to a line that was cut short or is damaged."""
    path = workdir / METRICS
    if not path.is_file():
        return []
    rows = []
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not (isinstance(row, dict) and "step" in row):
            break
        rows.append(row)
    return rows


def truncate(workdir: Path, step: int) -> None:
    """Drop the lines after `step`, which a resumed run is about to write again."""
    kept = [json.dumps(row) + "\n" for row in read(workdir) if row["step"] <= step]
    write_whole(workdir / METRICS, "".join(kept))


class Events:
    """A TensorBoard event file, written without a thread: that of tensorboardX cannot report a full disk.

    Args:
        workdir: Where it goes; a run that was resumed has several.
        step: Where the run goes on: what an interrupted run wrote after it is dropped by the reader.
    """

    def __init__(self, workdir: Path, step: int):
        folder = workdir / EVENTS
        folder.mkdir(exist_ok=True)
        self._writer = RecordWriter(str(folder / f"events.out.tfevents.{time.time():.6f}.{platform.node()}"))
        self._write(Event(file_version="brain.Event:2"))
        if len(list(folder.iterdir())) > 1:
            self._write(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def add(self, row: dict[str, Any]) -> None:
        """Add a line of the metrics."""
        values = {name: value for name, value in row.items() if name != "step" and value is not None}
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._write(Event(step=row["step"], summary=summary))

    def flush(self) -> None:
        """Put on disk what was added."""
        self._writer.flush()

    def close(self) -> None:
        """Put on disk what was added, and close the file."""
        self._writer.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.write(event.SerializeToString())
