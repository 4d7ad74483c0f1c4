"""Progress of a training: a line that changes on a terminal, a line every half minute in a file."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from metajax.cli import report
from metajax.cli.device import is_first

_SECONDS = 30.0
"""Between lines where there is no terminal."""


class Progress:
    """A line with the step, tasks per second, loss, accuracy and time left; a context manager."""

    def __init__(self, step: int, steps: int, tasks_per_step: int):
        console = Console(stderr=True)
        self._steps = steps
        self._said = None if console.is_terminal else time.monotonic()
        self._bar = Bar(
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=self._said is not None or not is_first(),
            speed_estimate_period=60,
        )
        self._task = self._bar.add_task("compiling", total=steps, completed=step)

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *exc_info) -> None:
        self._bar.stop()

    def update(self, row: dict[str, Any]) -> None:
        """Show a line of the metrics."""
        parts = [f"{row['tasks_per_second']:,.0f} tasks/s", f"loss {row['loss']:.4f}"]
        if "accuracy" in row:
            parts.append(f"accuracy {row['accuracy']:.2%}")
        self._bar.update(self._task, completed=row["step"], description="  ".join(parts))
        if self._said is not None and time.monotonic() >= self._said + _SECONDS:
            report.say(f"step {row['step']:,} of {self._steps:,}: {', '.join(parts)}")
            self._said = time.monotonic()
