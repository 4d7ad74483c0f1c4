"""Progress of a training on a terminal; nothing elsewhere."""

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from metajax.cli.device import is_first


class Progress:
    """A line with the step, tasks per second, loss, accuracy and time left; a context manager."""

    def __init__(self, step: int, steps: int, tasks_per_step: int):
        console = Console(stderr=True)
        self._bar = Bar(
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not (console.is_terminal and is_first()),
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
