"""Show the progress of training on standard error.

On a terminal one line is updated in place. If standard error is not a terminal, a line is printed every 30 seconds.
"""

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from metajax.experiment.devices import is_first
from metajax.system.streams import put_line, unread_is_fine

_SECONDS = 30.0
"""Seconds between two lines if standard error is not a terminal."""


class Progress:
    """A context manager that shows a line with the step, tasks per second, loss, accuracy and remaining time.

    Args:
        steps: Total number of meta-steps.
    """

    def __init__(self, steps: int):
        console = Console(stderr=True)
        self._steps = steps
        self._in_lines = not console.is_terminal and is_first()
        self._last_line = time.monotonic()
        self._printed = False
        self._bar = Bar(
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_terminal or not is_first(),
            speed_estimate_period=60,
        )
        self._task = self._bar.add_task("", total=steps)
        self._compiled = False

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc_info) -> None:
        with unread_is_fine(sys.stderr):
            self._bar.stop()

    def update(self, row: dict[str, Any]) -> None:
        """Show a row of the metrics. Without a terminal, print the row only every 30 seconds and at the last step.

        The tasks per second of the first call include its compilation and are not shown.
        """
        parts = [f"{_rounded(row['tasks_per_second'])} tasks/s"] if self._compiled else []
        self._compiled = True
        parts.append(f"loss {row['loss']:.4f}")
        if "accuracy" in row:
            parts.append(f"accuracy {row['accuracy']:.2%}")
        with unread_is_fine(sys.stderr):
            self._bar.start()
            self._bar.update(self._task, completed=row["step"], description="  ".join(parts))
            if row["step"] >= self._steps:  # end the progress bar before the evaluation prints its lines
                self._bar.stop()
        ends = self._printed and row["step"] == self._steps
        if self._in_lines and (ends or time.monotonic() >= self._last_line + _SECONDS):
            self._printed = True
            put_line(f"step {row['step']:,} of {self._steps:,}: {', '.join(parts)}", sys.stderr)
            self._last_line = time.monotonic()


def _rounded(rate: float) -> str:
    """Return a rate as text; a slow rate is not rounded to 0.

    >>> _rounded(1234.5), _rounded(0.0321)
    ('1,234', '0.032')
    """
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
