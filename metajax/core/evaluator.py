"""Evaluation: adapt to unseen tasks, and measure metrics with confidence intervals at every inner step."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeGuard

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from metajax.core.blocks import largest_block
from metajax.core.checks import as_key, check_count, check_loss, check_not_donated, check_params, evaluate_loss
from metajax.core.learner import MetaLearner, check_learner
from metajax.core.losses import weighted_mean
from metajax.core.parallel import (
    check_chunk_size,
    default_chunk_size,
    map_tasks,
    num_devices,
    replicate,
    replicated,
    task_keys,
)
from metajax.core.sampler import check_sampler
from metajax.core.tracing import depends_on_first
from metajax.core.trainer import as_partial
from metajax.core.types import Batch, LossFn, MetaParams, Metrics, Params, PyTree, Task, TaskSampler

_MOST_AT_ONCE = 8
"""Largest default number of tasks that run together. Non-transductive evaluation has one batch for each query, so more
tasks would need much memory."""

_CHUNKS_IN_A_CALL = 2
"""Number of chunks of tasks that each device processes in one call of the compiled program. XLA's CPU runtime keeps
memory for each iteration of nested loops until the call ends, so a call of one minute would need gigabytes."""

_CACHED_EXAMPLES = 40
"""Largest number of examples in a non-transductive forward pass on a CPU, so that the activations stay in the cache."""

_ACCELERATED_VALUES = 400_000
"""Largest number of input elements in a non-transductive forward pass on an accelerator. With this number the
accelerator is busy, and memory for the activations remains."""

_KINDS = ("transductive", "non_transductive")


class Statistics(NamedTuple):
    """Statistics of one metric over the tasks. Each field is a list over the inner steps `0..steps`.

    A value is `None` if it is not finite. The interval is also `None` if there is only one task.

    Attributes:
        mean: The mean over tasks.
        ci95: Half-width of the 95 % confidence interval of the mean, 1.96·σ/√n.
        median: The median over tasks.
    """

    mean: list[float | None]
    ci95: list[float | None]
    median: list[float | None]


@dataclasses.dataclass(frozen=True)
class Scores:
    """The metrics of either the transductive or the non-transductive predictions of the queries.

    `scores[name]` is the `Statistics` of the metric `name`.

    Attributes:
        diverged: Number of tasks with a non-finite value at any step. These tasks are never dropped.
        metrics: `Statistics` by name of the metric, `loss` first.
    """

    diverged: int
    metrics: dict[str, Statistics]

    def __getitem__(self, name: str) -> Statistics:
        return self.metrics[name]


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of an evaluation.

    Attributes:
        num_tasks: Number of tasks.
        inner_steps: Number of inner steps.
        transductive: Metrics with all queries of a task in one batch.
        non_transductive: Metrics with each query in a batch with only the support set; `None` if not measured.
        domains: For tasks from several domains, one report for each domain, by name.
        split: The split of the tasks, if the evaluation belongs to an experiment.
        seed: The seed of the tasks, if the evaluation belongs to an experiment.

    >>> loss = Statistics([2.0, 1.0], [0.2, 0.1], [2.0, 1.0])
    >>> report = Report(10, 1, Scores(0, {"loss": loss}))
    >>> report.transductive["loss"].mean[-1]
    1.0
    >>> Report.from_json(report.to_json()) == report
    True
    >>> print(report.table())
    10 tasks, mean ± 95 % interval
    inner steps           loss
              0  2.000 ± 0.200
              1  1.000 ± 0.100
    """

    num_tasks: int
    inner_steps: int
    transductive: Scores
    non_transductive: Scores | None = None
    domains: Mapping[str, "Report"] = dataclasses.field(default_factory=dict)
    split: str | None = None
    seed: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the report as dicts, lists and numbers, for `json.dump`."""
        scores = {kind: getattr(self, kind) for kind in _KINDS if getattr(self, kind) is not None}
        return {
            **{name: getattr(self, name) for name in ("split", "seed") if getattr(self, name) is not None},
            "num_tasks": self.num_tasks,
            "inner_steps": self.inner_steps,
            **{
                kind: {"diverged": each.diverged, **{name: m._asdict() for name, m in each.metrics.items()}}
                for kind, each in scores.items()
            },
            **({"domains": {name: each.to_json() for name, each in self.domains.items()}} if self.domains else {}),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Report":
        """Make a report from the result of `to_json`. Other entries are ignored.

        Raises:
            ValueError: If an entry is missing or has the wrong type.
        """
        _check_json(value)

        def scores(entry: Mapping[str, Any]) -> Scores:
            metrics = {
                name: Statistics(*(each.get(field) for field in Statistics._fields))
                for name, each in entry.items()
                if name != "diverged"
            }
            return Scores(entry.get("diverged", 0), metrics)

        return cls(
            num_tasks=value["num_tasks"],
            inner_steps=value["inner_steps"],
            **{kind: scores(value[kind]) for kind in _KINDS if kind in value},
            domains={name: cls.from_json(each) for name, each in value.get("domains", {}).items()},
            **{name: value[name] for name in ("split", "seed") if name in value},
        )

    def table(self) -> str:
        """Return a text table of the metrics after a few inner steps, with intervals."""
        kind = f"{self.split} task" if self.split else "task"
        one = f"1 {kind}: an interval needs more"
        lines = [one if self.num_tasks == 1 else f"{self.num_tasks} {kind}s, mean ± 95 % interval"]
        lines += _table("inner steps", {str(step): (self, step) for step in _some_steps(self.inner_steps)})
        if self.domains:
            lines.append(f"the same number of tasks for each domain, after {self.inner_steps} inner steps")
            lines += _table("domain", {name: (each, each.inner_steps) for name, each in self.domains.items()})
        if self.non_transductive is not None:
            lines.append("non-transductive: each query in a batch with only the support set")
        return "\n".join(lines)


def _check_json(report: Any) -> None:
    """Raise a `ValueError` that names the missing entry, unless a value is a report in the form of `to_json`."""
    if not isinstance(report, Mapping):
        raise ValueError(f"a report of an evaluation is a dict, got {type(report).__name__}")
    steps, tasks = report.get("inner_steps"), report.get("num_tasks")
    if not (_is_count(steps) and _is_count(tasks) and steps < 10**6):
        raise ValueError("a report of an evaluation has inner_steps and num_tasks")
    kinds = [report[kind] for kind in _KINDS if kind in report]
    if "transductive" not in report or not all(isinstance(kind, Mapping) and len(kind) > 1 for kind in kinds):
        raise ValueError("a report of an evaluation has transductive metrics")
    if any(set(kind) != set(kinds[0]) for kind in kinds) or not all(
        _is_count(kind.get("diverged", 0)) for kind in kinds
    ):
        raise ValueError("a report of an evaluation has equal metrics of both kinds, and the number of diverged tasks")
    for kind in kinds:
        for name, values in kind.items():
            if name != "diverged" and not (
                isinstance(values, Mapping)
                and all(_is_column(values.get(key), steps + 1) for key in ("mean", "ci95"))
                and ("median" not in values or _is_column(values["median"], steps + 1))
            ):
                raise ValueError(f"{name} has no mean and interval for each of {steps + 1} steps")
    if not isinstance(report.get("domains", {}), Mapping):
        raise ValueError("the entry `domains` of a report must be a dict with a report for each domain")


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_column(values: Any, length: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == length
        and all(each is None or (isinstance(each, int | float) and abs(each) < 1e300) for each in values)
    )


def _table(head: str, rows: Mapping[str, tuple[Report, int]]) -> list[str]:
    """Return the lines of a table with one row for each pair of a report and an inner step."""
    first = next(iter(rows.values()))[0]
    columns = [
        (label, name, kind)
        for kind, label in (("transductive", ""), ("non_transductive", "non-transductive "))
        for name in (getattr(first, kind).metrics if getattr(first, kind) else ())
    ]
    cells = [[head, *(label + name for label, name, _ in columns)]]
    for title, (report, step) in rows.items():
        values = [(name, getattr(report, kind)[name]) for _, name, kind in columns]
        cells.append([title, *(_cell(name, each.mean[step], each.ci95[step]) for name, each in values)])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]


def _some_steps(last: int) -> list[int]:
    return sorted({step for step in (0, 1, 2, 3, 5, 10, 20, 50, last) if step <= last})


def _cell(name: str, mean: float | None, half: float | None) -> str:
    if mean is None:
        return "not finite"
    as_text = "{:.2%}".format if name == "accuracy" else "{:.3f}".format
    return as_text(mean) if half is None else f"{as_text(mean)} ± {as_text(half)}"


class Evaluate(Protocol):
    """Evaluate meta-parameters on the tasks of an `evaluator`."""

    def __call__(
        self,
        meta_params: MetaParams,
        rng: jax.Array | int,
        learner_state: PyTree = (),
        *,
        sampler: TaskSampler | None = None,
    ) -> Report:
        """Return a report. `sampler` replaces the evaluator's sampler. Both samplers must compile to one program."""
        ...


def evaluator(
    learner: MetaLearner,
    loss_fn: LossFn,
    sampler: TaskSampler,
    *,
    steps: int,
    num_tasks: int = 600,
    batch_size: int | None = None,
    non_transductive: bool = True,
    chunk_size: int | None = None,
    mesh: Mesh | None = None,
) -> Evaluate:
    """Make a function that evaluates meta-parameters on `num_tasks` tasks, at every inner step `0..steps`.

    The evaluation predicts the queries in two ways. *Transductive*: all queries of a task are in one batch, as in the
    papers, so batch normalisation uses statistics of all queries. *Non-transductive*: each query is in a batch with
    only the support set, so no query influences the prediction of another query.

    Args:
        learner: A meta-learner.
        loss_fn: The loss on the query set; its model should not use dropout. For non-transductive evaluation the loss
            must weight examples by `Batch.mask`, as metajax's losses do.
        sampler: The task sampler, `rng -> Task`.
        steps: Number of inner steps.
        num_tasks: Number of tasks. Task `i` depends only on the key and on `i`, not on the devices.
        batch_size: Number of support examples in each inner step. Default: the batch size of the inner loop.
        non_transductive: Whether to evaluate non-transductively as well. This runs a forward pass of the support set
            for each query.
        chunk_size: Number of tasks that run together on a device; see `average_tasks`.
        mesh: Devices to split the tasks over, from `task_mesh`.

    Returns:
        `(meta_params, rng, learner_state=(), *, sampler=None) -> Report`. Its argument `sampler` replaces the sampler
        by another one that compiles to the same program, for example from `one_domain`. Diverged tasks are never
        dropped: a mean that includes a non-finite value is `None`.

    Raises:
        ValueError: If a count is out of range. The returned function raises a `ValueError` if `non_transductive` is set
            and the loss does not use `Batch.mask`.

    >>> import jax, jax.numpy as jnp, optax, metajax as mj
    >>> loss = lambda p, target, rng: ((p - target) ** 2 / 2, {})
    >>> learner = mj.maml(loss, mj.inner_loop(optax.sgd(0.5), steps=1))
    >>> sampler = mj.constant_task(mj.Task(0.0, 0.0))
    >>> evaluate = mj.evaluator(learner, loss, sampler, steps=2, num_tasks=4, non_transductive=False)
    >>> evaluate(jnp.float32(1.0), jax.random.key(0)).transductive["loss"].mean
    [0.5, 0.125, 0.03125]
    """
    check_learner(learner)
    check_loss(loss_fn)
    check_count("num_tasks", num_tasks)
    check_count("steps", steps, least=0)
    check_chunk_size(chunk_size)

    measure = measure_task(learner, loss_fn, steps=steps, batch_size=batch_size, non_transductive=non_transductive)

    def tasks_of_a_call(chunk: int) -> int:
        most = chunk * num_devices(mesh) * _CHUNKS_IN_A_CALL
        return -(-num_tasks // -(-num_tasks // most))  # all calls have equally many tasks, so they share one program

    def run(meta_params, learner_state, rng, first, sampler, chunk: int):
        shared = (meta_params, learner_state, sampler)
        keys = task_keys(rng, tasks_of_a_call(chunk), first)
        return map_tasks(measure, shared, keys, chunk_size=chunk, mesh=mesh)

    everywhere = replicated(mesh)
    compiled = jax.jit(run, static_argnums=5, in_shardings=everywhere, out_shardings=everywhere)
    default_sampler, default_partial = sampler, replicate(as_partial(sampler), mesh)
    checked_samplers: list[Any] = []  # the last 8 samplers that passed the check

    def evaluate(
        meta_params: MetaParams,
        rng: jax.Array | int,
        learner_state: PyTree = (),
        *,
        sampler: TaskSampler | None = None,
    ) -> Report:
        check_params(meta_params, "meta-parameters")
        check_not_donated((meta_params, learner_state), "state")
        shared = replicate((meta_params, learner_state, as_key(rng)), mesh)
        partial = default_partial if sampler is None else replicate(as_partial(sampler), mesh)
        sampler = default_sampler if sampler is None else sampler
        if not any(each is sampler for each in checked_samplers):
            check_sampler(partial, rng=jax.eval_shape(lambda key: key, shared[2]))
            checked_samplers[:] = [*checked_samplers[-7:], sampler]
        chunk = chunk_size or min(default_chunk_size(shared[0], num_tasks, mesh), _MOST_AT_ONCE)
        parts = []
        for first in range(0, num_tasks, tasks_of_a_call(chunk)):  # the last call may compute more tasks than needed
            parts.append(jax.device_get(compiled(*shared, replicate(jnp.int32(first), mesh), partial, chunk)))
        values = jax.tree.map(lambda *parts: np.concatenate(parts)[:num_tasks], *parts)
        scores = {kind: _scores(each) for kind, each in values.items()}
        return Report(num_tasks, steps, scores["transductive"], scores.get("non_transductive"))

    return evaluate


def measure_task(
    learner: MetaLearner, loss_fn: LossFn, *, steps: int, batch_size: int | None, non_transductive: bool
) -> Callable[[tuple[MetaParams, PyTree, TaskSampler], jax.Array], dict[str, Metrics]]:
    """Return the evaluation of one task; the arguments are those of `evaluator`.

    Returns:
        `((meta_params, learner_state, sampler), key) -> metrics`, for `map_tasks`. The metrics are
        `transductive` and, if it is measured, `non_transductive`, each a dict of `float[steps + 1]`.
    """

    def measure(shared, key) -> dict[str, Metrics]:
        meta_params, learner_state, sampler = shared
        task_key, adapt_key, query_key = jax.random.split(key, 3)
        task = sampler(task_key)

        def observe(params) -> dict[str, Metrics]:
            seen = {"transductive": _metrics(loss_fn, params, task.query, query_key)}
            if non_transductive:
                seen["non_transductive"] = _one_query_at_a_time(loss_fn, params, task, query_key)
            return seen

        adapted = learner.adapt(
            meta_params,
            task.support,
            adapt_key,
            state=learner_state,
            steps=steps,
            batch_size=batch_size,
            observe=observe,
        )
        return adapted.trace

    return measure


def weighs_examples(loss_fn: LossFn, params: Params, data: Batch, rng: jax.Array) -> bool:
    """Return whether a loss depends on `Batch.mask`, as non-transductive evaluation requires.

    The arguments may be shapes instead of arrays.

    >>> import jax.numpy as jnp, metajax as mj
    >>> data, loss = mj.Batch(jnp.ones((2, 1)), jnp.ones((2, 1))), lambda p, data, rng: ((p * data.x).sum(), {})
    >>> weighs_examples(loss, jnp.ones(()), data, jax.random.key(0))
    False
    >>> weighs_examples(mj.regression_loss(lambda p, x, rng: p * x), jnp.ones(()), data, jax.random.key(0))
    True
    """

    def masked(mask, params, data, rng):
        return _metrics(loss_fn, params, data._replace(mask=mask), rng)

    return depends_on_first(masked, jnp.ones(_size(data)), params, data, rng)


def _size(data: Batch) -> int:
    return jax.tree.leaves(data.y)[0].shape[0]


def _metrics(loss_fn: LossFn, params: Params, data: PyTree, rng: jax.Array) -> Metrics:
    return evaluate_loss(loss_fn, params, data, rng)[1]


def _one_query_at_a_time(loss_fn: LossFn, params: Params, task: Task, rng: jax.Array) -> Metrics:
    """Return metrics averaged over queries. Each query is predicted in a batch of the support set and that query."""
    support, query = task.support, task.query
    if not (isinstance(support, Batch) and isinstance(query, Batch)):
        raise ValueError("non-transductive evaluation needs tasks made of Batch; pass non_transductive=False")
    if not weighs_examples(loss_fn, params, support, rng):
        raise ValueError(
            "the loss does not use data.mask, so it cannot ignore the support set in the batch of each query: weight "
            "examples by data.mask, or pass non_transductive=False"
        )
    jax.tree.map(_check_same_examples, support.x, query.x)
    only_last = jnp.zeros(_size(support) + 1).at[-1].set(1)

    def measure(xy):
        x, y = xy

        def join(a, b):
            return jnp.concatenate([a, b[None]])

        batch = Batch(jax.tree.map(join, support.x, x), jax.tree.map(join, support.y, y), only_last)
        return _metrics(loss_fn, params, batch, rng)

    def measure_blocks(block: int):
        return lambda *xy: jax.lax.map(measure, xy, batch_size=block)

    queries = _size(query)
    cached = largest_block(queries, _size(support) + 1, _CACHED_EXAMPLES)
    busy = largest_block(queries, sum(leaf.size for leaf in jax.tree.leaves(support.x)), _ACCELERATED_VALUES)
    if cached == busy:
        values = measure_blocks(cached)(query.x, query.y)
    else:
        values = jax.lax.platform_dependent(query.x, query.y, cpu=measure_blocks(cached), default=measure_blocks(busy))
    return jax.tree.map(lambda each: weighted_mean(each, query.mask), values)


def _check_same_examples(support: jax.Array, query: jax.Array) -> None:
    message = "query.x must have examples of the shape of the examples of support.x"
    chex.assert_shape(query, (None, *support.shape[1:]), custom_message=message)


def _scores(values: dict[str, np.ndarray]) -> Scores:
    """Return the statistics over tasks of each metric `[tasks, steps + 1]`."""
    diverged = ~np.all([np.isfinite(v).all(1) for v in values.values()], axis=0)
    metrics = {}
    for name in sorted(values, key=lambda name: (name != "loss", name)):
        tasks = np.asarray(values[name], np.float64)
        with np.errstate(all="ignore"):
            spread = tasks.std(0, ddof=1) if len(tasks) > 1 else np.full(tasks.shape[1], np.nan)
            interval = 1.96 * spread / np.sqrt(len(tasks))
            median = np.median(np.where(np.isnan(tasks), np.inf, tasks), axis=0)
            metrics[name] = Statistics(*([_or_none(v) for v in each] for each in (tasks.mean(0), interval, median)))
    return Scores(int(diverged.sum()), metrics)


def _or_none(value: np.floating) -> float | None:
    """Return a finite value as a `float`, and `None` for NaN and infinity, which JSON does not have."""
    return float(value) if np.isfinite(value) else None
