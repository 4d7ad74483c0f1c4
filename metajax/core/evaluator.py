"""Evaluation: adapt to unseen tasks, and measure metrics with confidence intervals at every inner step."""

from collections.abc import Callable
from typing import Any

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
"""Largest default chunk size. Non-transductive evaluation needs one batch for each query, which limits the memory."""

_CHUNKS_IN_A_CALL = 2
"""Chunks of a device's tasks in one call of the compiled program. XLA's CPU runtime keeps some memory for each
iteration of nested loops until the call ends: gigabytes after one minute."""

_CACHED_EXAMPLES = 40
"""Examples in a non-transductive forward pass on a CPU. Activations of this many examples stay in the cache."""

_ACCELERATED_VALUES = 400_000
"""Elements in the inputs of a non-transductive forward pass on an accelerator. This many elements keep the accelerator
busy and leave memory for activations."""

Evaluation = dict[str, Any]
"""A report that `json.dumps` accepts; `make_evaluation` describes its entries."""


def make_evaluation(
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
) -> Callable[..., Evaluation]:
    """Compile an evaluation over `num_tasks` tasks, at every inner step `0..steps`.

    The evaluation predicts the queries in two ways. *Transductive*: all queries of a task are in one batch, as in the
    papers, so batch normalisation uses statistics of all queries. *Non-transductive*: each query is in a batch with
    only the support set, so no query influences the prediction of another query.

    Args:
        learner: A meta-learner.
        loss_fn: The loss on the query set; its model should not use dropout. For non-transductive evaluation the loss
            must weight examples by `Batch.mask`, as metajax's losses do.
        sampler: `rng -> Task`.
        steps: Inner steps.
        num_tasks: Tasks. Task `i` is a function of the key and of `i`; it does not depend on the devices.
        batch_size: Examples in an inner minibatch. Default: as in training.
        non_transductive: Whether to evaluate non-transductively as well. This runs a forward pass of the support set
            for each query.
        chunk_size: Tasks that run together on a device; see `average_tasks`.
        mesh: Devices to split the tasks over, from `task_mesh`.

    Returns:
        `(meta_params, rng, learner_state=(), *, sampler=None) -> report`. Its argument `sampler` replaces the sampler
        by another one that compiles to the same program, for example from `one_domain`. The report has the entries
        `num_tasks`, `inner_steps`, `transductive` and `non_transductive`. Each of the last two has, for every metric of
        the loss, `mean`, `ci95` (1.96·σ/√n over tasks) and `median`, each a list over steps `0..steps`; and `diverged`,
        the number of tasks with a non-finite value at any step. Diverged tasks are never dropped: a mean that includes
        a non-finite value is `None`.

    Raises:
        ValueError: If a count is out of range. The returned function raises a `ValueError` if `non_transductive` is set
            and the loss does not use `Batch.mask`.

    >>> import jax, jax.numpy as jnp, optax, metajax as mj
    >>> loss = lambda p, target, rng: ((p - target) ** 2 / 2, {})
    >>> learner = mj.maml(loss, mj.inner_loop(optax.sgd(0.5), steps=1))
    >>> sampler = mj.constant_task(mj.Task(0.0, 0.0))
    >>> evaluate = mj.make_evaluation(learner, loss, sampler, steps=2, num_tasks=4, non_transductive=False)
    >>> evaluate(jnp.float32(1.0), jax.random.key(0))["transductive"]["loss"]["mean"]
    [0.5, 0.125, 0.03125]
    """
    check_learner(learner)
    check_loss(loss_fn)
    check_count("num_tasks", num_tasks)
    check_count("steps", steps, least=0)
    check_chunk_size(chunk_size)

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

    def chunk(meta_params) -> int:
        return chunk_size or min(default_chunk_size(meta_params, num_tasks, mesh), _MOST_AT_ONCE)

    def tasks_of_a_call(meta_params) -> int:
        most = chunk(meta_params) * num_devices(mesh) * _CHUNKS_IN_A_CALL
        return -(-num_tasks // -(-num_tasks // most))  # alike in all calls

    def run(meta_params, learner_state, rng, first, sampler):
        shared = (meta_params, learner_state, sampler)
        keys = task_keys(rng, tasks_of_a_call(meta_params), first)
        return map_tasks(measure, shared, keys, chunk_size=chunk(meta_params), mesh=mesh)

    everywhere = replicated(mesh)
    compiled = jax.jit(run, in_shardings=everywhere, out_shardings=everywhere)
    held = replicate(as_partial(sampler), mesh)
    default, checked = sampler, list[Any]()  # the last samplers that were checked

    def evaluate(
        meta_params: MetaParams, rng: jax.Array, learner_state: PyTree = (), *, sampler: TaskSampler | None = None
    ) -> Evaluation:
        check_params(meta_params, "meta-parameters")
        check_not_donated((meta_params, learner_state), "state")
        shared = replicate((meta_params, learner_state, as_key(rng)), mesh)
        drawn_by = held if sampler is None else replicate(as_partial(sampler), mesh)
        given = default if sampler is None else sampler
        if not any(each is given for each in checked):
            check_sampler(drawn_by, rng=jax.eval_shape(lambda key: key, shared[2]))
            checked[:] = [*checked[-7:], given]
        parts = []
        for first in range(0, num_tasks, tasks_of_a_call(meta_params)):  # surplus tasks of the last call are dropped
            parts.append(jax.device_get(compiled(*shared, replicate(jnp.int32(first), mesh), drawn_by)))
        values = jax.tree.map(lambda *parts: np.concatenate(parts)[:num_tasks], *parts)
        return {
            "num_tasks": num_tasks,
            "inner_steps": steps,
            **{kind: _summary(values[kind]) for kind in values},
        }

    return evaluate


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
    only_last = jnp.zeros(_size(support) + 1).at[-1].set(1)

    def measure(xy):
        x, y = xy

        def join(a, b):
            return jnp.concatenate([a, b[None]])

        batch = Batch(jax.tree.map(join, support.x, x), jax.tree.map(join, support.y, y), only_last)
        return _metrics(loss_fn, params, batch, rng)

    queries, examples = _size(query), _size(support) + 1
    if jax.default_backend() == "cpu":
        together = largest_block(queries, examples, _CACHED_EXAMPLES)
    else:
        together = largest_block(queries, sum(leaf.size for leaf in jax.tree.leaves(support.x)), _ACCELERATED_VALUES)
    values = jax.lax.map(measure, (query.x, query.y), batch_size=together)
    return jax.tree.map(lambda each: weighted_mean(each, query.mask), values)


def _summary(values: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return mean, confidence interval and median over tasks of each metric `[tasks, steps + 1]`, `loss` first."""
    diverged = ~np.all([np.isfinite(v).all(1) for v in values.values()], axis=0)
    report: dict[str, Any] = {"diverged": int(diverged.sum())}
    for name in sorted(values, key=lambda name: (name != "loss", name)):
        tasks = np.asarray(values[name], np.float64)
        with np.errstate(all="ignore"):
            spread = tasks.std(0, ddof=1) if len(tasks) > 1 else np.full(tasks.shape[1], np.nan)
            statistics = {
                "mean": tasks.mean(0),
                "ci95": 1.96 * spread / np.sqrt(len(tasks)),
                "median": np.median(np.where(np.isnan(tasks), np.inf, tasks), axis=0),
            }
        report[name] = {key: [_or_none(v) for v in column] for key, column in statistics.items()}
    return report


def _or_none(value: np.floating) -> float | None:
    """Return a finite value as a `float`, and `None` for NaN and infinity, which JSON does not have."""
    return float(value) if np.isfinite(value) else None
