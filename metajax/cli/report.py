"""What the commands print."""

import sys
from typing import Any

from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table


def say(text: str) -> None:
    """A line on standard output."""
    print(text, flush=True)


def warn(text: str) -> None:
    """A line on standard error."""
    print(f"metajax: warning: {text}", file=sys.stderr, flush=True)


def devices(mesh: Mesh) -> str:
    """`2 cpu devices`."""
    kind = mesh.devices.flat[0].platform
    return f"{mesh.size} {kind} device{'s' if mesh.size > 1 else ''}"


def table(result: dict[str, Any]) -> None:
    """Metrics at a few inner steps, with intervals; all are in the report."""
    kinds = {"transductive": "transductive", "non_transductive": "each query alone"}
    shown = _some_steps(result["inner_steps"])
    grid = Table(title=f"{result['num_tasks']} {result['split']} tasks, mean ± 95 % interval", title_justify="left")
    grid.add_column("after inner steps")
    for step in shown:
        grid.add_column(str(step), justify="right")
    for kind, label in kinds.items():
        for name, values in result.get(kind, {}).items():
            if name != "diverged":
                cells = [_cell(name, values["mean"][s], values["ci95"][s]) for s in shown]
                grid.add_row(f"{name}, {label}", *cells)
    Console(width=max(100, Console().width)).print(grid)
    diverged = result["transductive"]["diverged"]
    if diverged:
        warn(f"{diverged} of {result['num_tasks']} tasks diverged: their loss is not finite, and they are not left out")


def _some_steps(last: int) -> list[int]:
    return sorted({s for s in (0, 1, 2, 3, 5, 10, 20, 50, last) if s <= last})


def _cell(name: str, mean: float | None, half: float | None) -> str:
    if mean is None:
        return "not finite"
    interval = "" if half is None else f" ± {half:.2%}" if name == "accuracy" else f" ± {half:.3f}"
    return (f"{mean:.2%}" if name == "accuracy" else f"{mean:.3f}") + interval
