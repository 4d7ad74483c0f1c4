"""Plot figures of a run: the learning curve, the metrics against inner steps, and example tasks."""

import io
import os
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from metajax.core.evaluator import Report
from metajax.errors import needs
from metajax.system import files

with needs("cli"):
    from matplotlib.figure import Figure

_KINDS = {"transductive": ("C0", "transductive"), "non_transductive": ("C1", "non-transductive")}

_BEYOND = 100
"""If all training losses are positive, a loss above this multiple of the largest training loss counts as diverged."""


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure to a file. The suffix of the file name determines the format: png, svg or pdf.

    An existing file is replaced when the new file is complete. Missing folders are created.

    Raises:
        ValueError: If Matplotlib does not support the suffix.
    """
    path = Path(path)
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix.removeprefix(".") or "png", dpi=150)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, content.getvalue())


def learning_curve(rows: Iterable[dict[str, Any]]) -> Figure:
    """Plot training and validation metrics against meta-steps.

    Args:
        rows: The lines of `metrics.jsonl`: dicts with `step`, metrics of training tasks and, at checkpoints, metrics of
            validation tasks, whose names begin with `validation_`.

    Returns:
        A figure with a panel for the loss and, if the rows have an accuracy, a panel for the accuracy. Diverged values
        are marks at the upper edge. A value counts as diverged if it is not finite. If all training losses are
        positive, a loss above 100 times the largest training loss also counts as diverged.

    Raises:
        ValueError: If a row has no step, no row has a loss or an accuracy, or a value is not a number.

    >>> (axes,) = learning_curve([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "validation_loss": 1e12}]).axes
    >>> axes.get_legend_handles_labels()[1], round(float(axes.get_ylim()[1]))  # the axis does not reach 1e12
    (['training tasks', 'diverged'], 2)
    >>> (axes,) = learning_curve([{"step": 1, "loss": -2.0, "validation_loss": -1.0}]).axes  # a log-likelihood
    >>> axes.get_legend_handles_labels()[1]
    ['training tasks', 'validation tasks']
    """
    curves = _curves(rows)
    names = [name for name in ("loss", "accuracy") if curves[name][0]]
    if not names:
        raise ValueError("no row of the metrics has a loss or an accuracy")
    figure = Figure(figsize=(5 * len(names), 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        trained = np.array(curves[name][1])
        trained = trained[np.isfinite(trained)]
        positive = name == "loss" and trained.size > 0 and trained.min() > 0
        top = _BEYOND * trained.max() if positive else np.inf
        diverged = []
        for prefix, label, style in [("", "training tasks", "-"), ("validation_", "validation tasks", "o-")]:
            steps, values = map(np.array, curves[prefix + name])
            usual = np.isfinite(values) & (values <= top)
            diverged += steps[~usual].tolist()
            if usual.any():
                axes.plot(steps[usual], values[usual], style, label=label, markersize=3, linewidth=1)
        axes.set(xlabel="meta-step", ylabel=f"{name} after adaptation")
        if positive:
            axes.set_yscale("log")
        if diverged:  # in coordinates of the axes, so that these marks do not change the scale of the curve
            edge = {"transform": axes.get_xaxis_transform(), "clip_on": False}
            axes.plot(diverged, [1] * len(diverged), "^", color="grey", label="diverged", **edge)
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)
    return figure


def _curves(rows: Iterable[dict[str, Any]]) -> dict[str, tuple[array, array]]:
    """Return the steps and values of each metric that a learning curve shows, with NaN for `None`."""
    names = ("loss", "accuracy", "validation_loss", "validation_accuracy")
    curves = {name: (array("d"), array("d")) for name in names}
    for row in rows:
        for name in names:
            if name not in row:
                continue
            try:
                curves[name][0].append(int(row["step"]))
                curves[name][1].append(np.nan if row[name] is None else float(row[name]))
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                raise ValueError(f"a row of the metrics has no step, or its {name} is not a number") from error
    return curves


def adaptation(report: Report) -> Figure:
    """Plot metrics against inner steps, with 95 % intervals as bands.

    Args:
        report: The report of an evaluation. A mean that is `None`, because tasks diverged, is not plotted.

    Returns:
        A figure with a panel for each metric.
    """
    scores = {kind: getattr(report, kind) for kind in _KINDS if getattr(report, kind) is not None}
    names = list(report.transductive.metrics)
    figure = Figure(figsize=(5 * len(names), 3.6), layout="constrained")
    steps = np.arange(report.inner_steps + 1)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for kind, each in scores.items():
            colour, label = _KINDS[kind]
            mean, half = np.array(each[name].mean, float), np.array(each[name].ci95, float)
            axes.plot(steps, mean, ".-" if len(steps) < 20 else "-", color=colour, label=label)
            axes.fill_between(steps, mean - half, mean + half, color=colour, alpha=0.25, linewidth=0)
        axes.set(xlabel="inner steps", ylabel=f"query {name}".replace("$", r"\$"))
        axes.xaxis.get_major_locator().set_params(integer=True)
        tasks = report.num_tasks
        axes.legend(frameon=False, title="1 task" if tasks == 1 else f"{tasks} tasks, 95 % interval")
        axes.grid(alpha=0.3)
    return figure


def regression_fits(tasks: list[dict[str, ArrayLike]]) -> Figure:
    """Plot the fits of one-dimensional regression tasks before and after adaptation.

    Args:
        tasks: For each task arrays `x`, `truth`, `before`, `after` (`[points]`, x ascending), and `support_x`,
            `support_y`.

    Returns:
        A figure with a panel for each task.
    """
    figure = Figure(figsize=(3.6 * len(tasks), 3.2), layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False, sharey=True)[0]
    for axes, task in zip(panels, tasks, strict=True):
        axes.plot(task["x"], task["truth"], color="0.6", linewidth=3, label="truth")
        axes.plot(task["x"], task["before"], "--", color="C1", label="before")
        axes.plot(task["x"], task["after"], color="C0", label="after adaptation")
        axes.plot(task["support_x"], task["support_y"], "k^", markersize=6, label="support")
        axes.set(xlabel="x")
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="y")
    panels[-1].legend(frameon=False, fontsize="small")
    return figure


def episode(
    support_x: ArrayLike, support_y: ArrayLike, query_x: ArrayLike, query_y: ArrayLike, predicted: ArrayLike
) -> Figure:
    """Plot a few-shot task with one row per class: support images on the left, queries with predictions on the right.

    Args:
        support_x: Support images in `[0, 1]`, `[examples, height, width, channels]`.
        support_y: The labels of the support images.
        query_x: Query images, in the format of the support images.
        query_y: The true labels of the query images.
        predicted: The labels that the adapted model predicts for the queries.

    Returns:
        A figure. Wrong predictions are red and show the predicted class.
    """
    support_x, support_y, query_x, query_y, predicted = map(
        np.asarray, (support_x, support_y, query_x, query_y, predicted)
    )
    ways = int(max(support_y.max(), query_y.max())) + 1
    columns = [np.flatnonzero(labels == c) for labels in (support_y, query_y) for c in range(ways)]
    shots = min(5, max(len(rows) for rows in columns[:ways]))
    queries = min(10, max(len(rows) for rows in columns[ways:]))
    figure = Figure(figsize=(0.8 * (shots + queries + 0.4), 0.95 * ways + 0.4), layout="constrained")
    grid = figure.add_gridspec(ways, shots + 1 + queries, width_ratios=[1] * shots + [0.3] + [1] * queries)
    for c in range(ways):
        for i, row in enumerate(columns[c][:shots]):
            axes = figure.add_subplot(grid[c, i])
            _show(axes, support_x[row], "0.2")
            if i == 0:
                axes.set_ylabel(f"{c}", rotation=0, labelpad=10, va="center")
        for i, row in enumerate(columns[ways + c][:queries]):
            axes = figure.add_subplot(grid[c, shots + 1 + i])
            right = predicted[row] == c
            _show(axes, query_x[row], "C2" if right else "C3")
            axes.set_title(f"{predicted[row]}", fontsize=8, color="C2" if right else "C3", pad=2)
    share = float((predicted == query_y).mean())
    figure.suptitle(f"support | queries with predicted class ({share:.0%} right)", fontsize=9)
    return figure


def _show(axes, image: np.ndarray, colour: str) -> None:
    axes.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray_r", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])
    for side in axes.spines.values():
        side.set(color=colour, linewidth=1.5)
