"""Print results and warnings of the commands."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from metajax import files
from metajax.cli.device import is_first
from metajax.cli.streams import put_line
from metajax.errors import UserError


def say(text: str) -> None:
    """Print a line to standard output; only process 0 of a run prints."""
    if is_first():
        put_line(text, sys.stdout)


def warn(text: str) -> None:
    """Print a warning to standard error; only process 0 of a run prints."""
    if is_first():
        put_line(f"metajax: warning: {text}", sys.stderr)


def first_line(error: Exception) -> str:
    """Return the first line of the message of a JAX error."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:120]


@contextlib.contextmanager
def out_of_memory(advice: str) -> Iterator[None]:
    """Convert an out-of-memory error into a `UserError` with advice.

    Raises:
        UserError: If the block runs out of memory.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError, MemoryError) as error:  # ValueError: an operation outside jit
        if "RESOURCE_EXHAUSTED" not in str(error) and not isinstance(error, MemoryError):
            raise
        raise UserError(f"out of memory ({first_line(error)}): try {advice}") from error


def check_output(path: Path | None) -> None:
    """Check before a measurement that its report can be written.

    Raises:
        UserError: If the report cannot be written.
    """
    if path is None:
        return
    if not path.parent.is_dir():
        raise UserError(f"--output: there is no folder {path.parent}")
    try:
        files.check_writable(path)
    except UserError as error:
        raise UserError(f"--output: {error}") from error


def check_seconds(seconds: float) -> None:
    """Check the duration of a measurement.

    Raises:
        UserError: If the duration is not above 0, or is more than a day.
    """
    if not 0 < seconds <= 86_400:
        raise UserError(f"--seconds must be above 0 and at most 86400, a day, got {seconds:g}")


def devices(mesh: Mesh) -> str:
    """Describe the devices of a mesh: `2 cpu devices`."""
    kind = mesh.devices.flat[0].platform
    return f"{mesh.size} {kind} device{'s' if mesh.size > 1 else ''}"


def table(result: dict[str, Any]) -> None:
    """Print the metrics after a few inner steps, with intervals. The report has all inner steps."""
    if not is_first():
        return
    kinds = {"transductive": "", "non_transductive": "alone: "}
    columns = [
        (label + name, name, kind)
        for kind, label in kinds.items()
        for name in result.get(kind, {})
        if name != "diverged"
    ]
    rows = {str(step): (result, step) for step in _some_steps(result["inner_steps"])}
    domains = {name: (each, each["inner_steps"]) for name, each in result.get("domains", {}).items()}
    console = Console()
    tasks = result["num_tasks"]
    one = f"1 {result['split']} task: an interval needs more"
    many = f"{tasks} {result['split']} tasks, mean ± 95 % interval"
    with console.capture() as captured:
        console.print(one if tasks == 1 else many, highlight=False)
        console.print(_grid("inner steps", columns, rows))
        if domains:
            console.print(f"as many of each domain, after {result['inner_steps']} inner steps", highlight=False)
            console.print(_grid("domain", columns, domains))
        if "non_transductive" in result:
            console.print("alone: each query with the support set only; else all queries of a task together")
    put_line(
        captured.get().rstrip("\n"), sys.stdout, styled=True
    )  # rich itself would end the process where nobody reads
    diverged = result["transductive"]["diverged"]
    if diverged:
        warn(f"{diverged} of {result['num_tasks']} tasks diverged: their loss is not finite; the means include them")


def _grid(head: str, columns: list[tuple[str, str, str]], rows: dict[str, tuple[dict[str, Any], int]]) -> Table:
    """A table with a row for each report and step."""
    grid = Table(escape(head), box=box.SIMPLE)
    for title, _, _ in columns:
        grid.add_column(escape(title), justify="right", no_wrap=True)
    for label, (result, step) in rows.items():
        cells = [(name, result[kind][name]) for _, name, kind in columns]
        grid.add_row(
            escape(label), *[_cell(name, values["mean"][step], values["ci95"][step]) for name, values in cells]
        )
    return grid


def _some_steps(last: int) -> list[int]:
    return sorted({s for s in (0, 1, 2, 3, 5, 10, 20, 50, last) if s <= last})


def _cell(name: str, mean: float | None, half: float | None) -> str:
    if mean is None:
        return "not finite"
    interval = "" if half is None else f" ± {half:.2%}" if name == "accuracy" else f" ± {half:.3f}"
    return (f"{mean:.2%}" if name == "accuracy" else f"{mean:.3f}") + interval
