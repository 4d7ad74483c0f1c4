"""`metajax plot`: plot the learning curve, adaptation and example tasks of a run."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.figure import Figure

from metajax.cli import report
from metajax.cli.evaluate import warn_of_changed_code
from metajax.cli.parse import DescribedDefault, parse
from metajax.core.evaluator import Report
from metajax.core.trainer import TrainState
from metajax.core.types import Batch, Task
from metajax.errors import UserError
from metajax.experiment import Experiment, Parts, build, metrics, workdir
from metajax.experiment.build import evaluation_batch_size, purpose_key
from metajax.experiment.devices import check_devices, prepare_devices
from metajax.experiment.run import load_state, tasks_of_run
from metajax.report import plots
from metajax.system import files

_FITS = 3
"""Number of regression tasks whose fits are plotted."""


@dataclasses.dataclass
class Options:
    """Plot the learning curve of a run, its metrics against inner steps, and example tasks.

    A run with types of your own needs the code in its config.py. The code is executed only if you began a run with it,
    or with --trust. A copy of a work directory counts as yours if its config.py is unchanged.
    """

    workdir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="WORKDIR")]
    """Work directory of a run."""
    format: str = "png"
    """Format of the figures: png, svg or pdf."""
    seed: DescribedDefault[int | None] = None
    """Seed of the example tasks (default: the seed of the run)."""
    data_dir: DescribedDefault[Path | None] = None
    """Folder of prepared data sets (default: $METAJAX_DATA_DIR, else ~/.cache/metajax)."""
    trust: bool = False
    """Execute the code in the work directory's config.py even if another user began the run, with imports from the work
    directory. Read the code first."""


def run(args: Sequence[str]) -> None:
    """Run `metajax plot` with the arguments `args`."""
    options = parse(Options, args, prog="metajax plot")
    if options.format not in ("png", "svg", "pdf"):
        raise UserError(f"--format must be png, svg or pdf, got {options.format!r}")
    experiment = workdir.load_experiment(options.workdir, trust=options.trust)
    folder = files.check_inside(options.workdir, workdir.PLOTS)
    files.check_writable(folder / f"learning_curve.{options.format}")
    warn_of_changed_code(options.workdir, experiment)
    prepare_devices(1)
    check_devices()
    figures: dict[str, Figure] = {}
    if os.path.lexists(options.workdir / metrics.METRICS):
        try:
            figures["learning_curve"] = plots.learning_curve(metrics.rows(options.workdir))
        except ValueError:
            report.warn(f"{options.workdir / metrics.METRICS} has no line that can be read: no learning curve is drawn")
    evaluation = options.workdir / workdir.EVALUATION
    if evaluation.is_file():
        try:
            figures["adaptation"] = plots.adaptation(Report.from_json(files.read_json(evaluation)))
        except ValueError as error:
            raise UserError(f"{evaluation} is damaged: {error}") from error
    tasks = tasks_of_run(options.workdir, experiment, options.data_dir)
    parts = build(experiment, options.data_dir, tasks=tasks)
    state, _ = load_state(options.workdir, experiment, parts)
    seed = experiment.seed if options.seed is None else options.seed
    figures |= _examples(experiment, parts, state, purpose_key(seed, "test"))
    for name, figure in figures.items():
        path = folder / f"{name}.{options.format}"
        try:
            plots.save(figure, path)
        except ValueError as error:
            raise UserError(f"{path} cannot be drawn: {error}") from error
        report.say(str(path))


def _examples(experiment: Experiment, parts: Parts, state: TrainState, key: jax.Array) -> dict[str, Figure]:
    """Plot example test tasks: one few-shot task with images, or the fits of several one-dimensional regressions."""
    if "test" not in parts.tasks.splits:
        return {}
    sampler = parts.tasks.splits["test"].sampler
    sample_key, key = jax.random.split(key)
    tasks = [sampler(each) for each in jax.random.split(sample_key, _FITS)]
    query = tasks[0].query
    if query.x.ndim == 4:
        adapted = _adapt(experiment, parts, state, tasks[0], key)
        support, query = (_without_padding(data) for data in (tasks[0].support, query))
        ways = int(support.y.max()) + 1  # the model may have more outputs than the task has ways
        predicted = jnp.argmax(parts.apply(adapted, query.x)[:, :ways], -1)
        return {"episode": plots.episode(support.x, support.y, query.x, query.y, predicted)}
    if query.x.shape[1:] == (1,) and query.y.shape[1:] == (1,):
        return {"fits": plots.regression_fits([_fit(experiment, parts, state, task, key) for task in tasks])}
    return {}


def _without_padding(data: Batch) -> Batch:
    real = slice(None) if data.mask is None else np.asarray(data.mask, bool)
    return Batch(data.x[real], data.y[real])


def _fit(experiment: Experiment, parts: Parts, state: TrainState, task: Task, key: jax.Array) -> dict:
    adapted = _adapt(experiment, parts, state, task, key)
    before = parts.learner.adapt(state.meta_params, task.support, key, state=state.learner_state, steps=0).params
    order = np.argsort(task.query.x[:, 0])
    x = task.query.x[order]
    return {
        "x": x[:, 0],
        "truth": task.query.y[order, 0],
        "before": parts.apply(before, x)[:, 0],
        "after": parts.apply(adapted, x)[:, 0],
        "support_x": task.support.x[:, 0],
        "support_y": task.support.y[:, 0],
    }


def _adapt(experiment: Experiment, parts: Parts, state: TrainState, task: Task, key: jax.Array):
    return parts.learner.adapt(
        state.meta_params,
        task.support,
        key,
        state=state.learner_state,
        steps=experiment.evaluation.steps,
        batch_size=evaluation_batch_size(experiment, task.support.x.shape[0]),
    ).params
