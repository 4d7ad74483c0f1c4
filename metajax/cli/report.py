"""Print the results and warnings of commands, and check the options of measurements."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import jax

from metajax.core.evaluator import Report
from metajax.errors import UserError
from metajax.experiment.devices import is_first
from metajax.system import files
from metajax.system.streams import put_line


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
    """Convert an out-of-memory error in the body of the `with` statement into a `UserError` with `advice`.

    Raises:
        UserError: If the body runs out of memory.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError, MemoryError) as error:  # ValueError: an operation outside jit
        if "RESOURCE_EXHAUSTED" not in str(error) and not isinstance(error, MemoryError):
            raise
        raise UserError(f"out of memory ({first_line(error)}): try {advice}") from error


def check_output(path: Path | None) -> None:
    """Check before a measurement that its report can be written to the path of `--output`.

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
    """Check the value of `--seconds`, the duration of a measurement.

    Raises:
        UserError: If the duration is not above 0, or is more than a day.
    """
    if not 0 < seconds <= 86_400:
        raise UserError(f"--seconds must be above 0 and at most 86400, a day, got {seconds:g}")


def table(result: Report) -> None:
    """Print a table of an evaluation's metrics after some inner steps, and warn of diverged tasks."""
    if not is_first():
        return
    put_line(result.table(), sys.stdout)
    diverged = result.transductive.diverged
    if diverged:
        warn(f"{diverged} of {result.num_tasks} tasks diverged: their loss is not finite; the means include them")
