"""The compiled training step: one call runs several meta-steps.

Each meta-step samples tasks, averages their meta-gradients and updates the meta-parameters.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.sharding import Mesh

from metajax.core.checks import as_key, check_count, check_not_donated, check_params, describe
from metajax.core.learner import MetaGradient, MetaLearner, check_estimate, check_learner
from metajax.core.optimizers import check_optimizer, update
from metajax.core.parallel import (
    average_tasks,
    check_chunk_size,
    default_chunk_size,
    replicate,
    replicated,
    split_over_tasks,
    step_keys,
)
from metajax.core.sampler import check_sampler, check_streamed_sampler
from metajax.core.types import MetaParams, Metrics, Params, PyTree, StreamedSampler, Task, TaskSampler

_SMALL_BYTES = 1_000_000
"""Largest size in bytes of all tasks of a call for which the tasks are sampled before the first meta-step."""


class TrainState(NamedTuple):
    """The complete state of a training run, as one pytree. A resumed run needs nothing else.

    Attributes:
        meta_params: The meta-parameters.
        opt_state: The outer optimiser's state.
        learner_state: The learner's state, passed from meta-step to meta-step.
        step: Number of completed meta-steps, `int32[]`.
        key: The key of the run. All random numbers are functions of `key`, `step` and the task's index in the step.
    """

    meta_params: MetaParams
    opt_state: PyTree
    learner_state: PyTree
    step: jax.Array
    key: jax.Array


class TrainStep(Protocol):
    """A compiled function that runs several meta-steps in one call."""

    def __call__(
        self, state: TrainState, examples: PyTree = None, /, *, steps: int = ...
    ) -> tuple[TrainState, Metrics]:
        """Run `steps` meta-steps, and return the new state and the metrics. The input state is donated.

        `examples` are the examples from the host for a `StreamedSampler`, a pytree of arrays
        `[steps, tasks_per_step, ...]`; `None` for other samplers.
        """
        ...


class Trainer(NamedTuple):
    """Two functions that train, made by `trainer`.

    Attributes:
        init: `(params, seed=0) -> TrainState`, the state before the first meta-step.
        step: `(state, examples=None, *, steps=steps_per_call) -> (state, metrics)`, one call of the compiled training
            step.
        tasks_per_step: Number of tasks in a meta-step.
        steps_per_call: Default number of meta-steps in one call.
        skip_non_finite: Whether failed meta-steps are skipped.
    """

    init: Callable[..., TrainState]
    step: TrainStep
    tasks_per_step: int
    steps_per_call: int
    skip_non_finite: bool


def trainer(
    learner: MetaLearner,
    optimizer: optax.GradientTransformation,
    sampler: TaskSampler | StreamedSampler,
    *,
    tasks_per_step: int,
    steps_per_call: int = 1,
    chunk_size: int | None = None,
    mesh: Mesh | None = None,
    skip_non_finite: bool = False,
) -> Trainer:
    """Make the two functions that meta-train: `init` and the compiled `step`.

    One call of `step` samples tasks and runs `steps_per_call` meta-steps.

    A meta-step *fails* if its loss, another metric, its meta-gradient or its update is NaN or infinite. A failed step
    does not change the state, and neither do the later steps of the call: the state stays finite, `state.step` is the
    step that failed, and `first_non_finite(metrics)` names the metric. The next call with this state raises a
    `FloatingPointError`, so a training loop cannot continue without progress. For this check each call waits for the
    result of the previous call, so use many steps per call for a small model. With `skip_non_finite=True` a failed step
    changes only `state.step`, and training continues with the next tasks.

    An optimiser may handle a meta-gradient that is not finite, as `optax.apply_if_finite` and `optax.zero_nans` do: if
    its update is finite, and no number in its state becomes NaN or infinite, the step is applied and does not fail.

    Args:
        learner: A meta-learner.
        optimizer: The outer optimiser, any optax transformation; clipping and schedules are parts of an optax chain. An
            optimiser that adapts to the loss, such as `optax.contrib.reduce_on_plateau`, gets the average loss of the
            meta-batch as `value`.
        sampler: `rng -> Task`. If the sampler is a `jax.tree_util.Partial`, its arrays (for example a class bank) are
            arguments of the compiled function, not constants in it. For examples that are not on the device use a
            `StreamedSampler`, for example from `host_episodes`. If `chunk_size` is above 1 and all tasks of a call fit
            in 1 MB, they are sampled before the first meta-step.
        tasks_per_step: Number of tasks in a meta-step (the meta-batch).
        steps_per_call: Default number of meta-steps in one call.
        chunk_size: Number of tasks that run together on a device; see `average_tasks`.
        mesh: Devices to split the tasks over, from `task_mesh`.
        skip_non_finite: Skip meta-steps that fail, instead of stopping at the first one.

    Returns:
        A `Trainer`.

        `init(params, seed=0)` returns a `TrainState` at step 0. `params` are a model's parameters, which are copied.
        `seed` is an integer or a key.

        `step(state, examples=None, *, steps=steps_per_call)` runs `steps` meta-steps and returns `(state, metrics)`. It
        donates its input state: use only the returned state. For a `StreamedSampler`, `examples` is a pytree of arrays
        `[steps, tasks_per_step, ...]` with the examples of each task, for example from `prefetch`. Each metric is
        `float[steps]`: the learner's metrics, averaged over tasks (integers and bools too), and `gradient_norm` and
        `update_norm`, the norms of the meta-gradient and of the update. Each number of `steps` is compiled once.

    Raises:
        TypeError: If an argument has the wrong type. `step` raises a `TypeError` if the state is not a `TrainState` or
            the sampler does not return a `Task`.
        ValueError: If a count is below 1. `step` raises a `ValueError` if the state was donated before, or if the
            sampler's tasks do not depend on its key (see `check_sampler`).
        FloatingPointError: Raised by `step`, if a meta-step of the previous call failed.

    >>> import jax, jax.numpy as jnp, optax, metajax as mj
    >>> loss = lambda p, target, rng: ((p - target) ** 2, {})
    >>> learner = mj.maml(loss, mj.inner_loop(optax.sgd(0.1), steps=1))
    >>> sampler = mj.constant_task(mj.Task(support=3.0, query=3.0))
    >>> trainer = mj.trainer(learner, optax.sgd(0.5), sampler, tasks_per_step=4, steps_per_call=50)
    >>> state = trainer.init(jnp.float32(0.0), seed=0)
    >>> state, metrics = trainer.step(state)
    >>> int(state.step), round(float(state.meta_params), 3), metrics["loss"].shape
    (50, 3.0, (50,))
    """
    check_learner(learner)
    check_optimizer(optimizer, "outer optimiser")
    for name, value in [("tasks_per_step", tasks_per_step), ("steps_per_call", steps_per_call)]:
        check_count(name, value)
    check_chunk_size(chunk_size)

    last: list[Any] = []  # the last call's metrics, the meta-step that failed or -1, and the key

    def init(params: Params, seed: int | jax.Array = 0) -> TrainState:
        last.clear()  # a failure of an earlier training does not count
        return init_state(learner, optimizer, params, seed)

    def run(
        state: TrainState, sampler, examples, steps: int, chunk: int
    ) -> tuple[TrainState, Metrics, tuple[jax.Array, jax.Array]]:
        first = state.step
        # Compute all keys at once, and sample all tasks at once if they are small. Sampling in each meta-step
        # would take a noticeable share of a tiny model's time.
        task_keys, learn_keys = step_keys(state.key, first, steps, tasks_per_step)
        tasks, draw = (task_keys, examples), jax.tree_util.Partial(_draw, sampler)
        draw_all = jax.vmap(jax.vmap(draw))
        if chunk > 1 and _bytes(jax.eval_shape(draw_all, tasks)) <= _SMALL_BYTES:
            tasks, draw = draw_all(tasks), jax.tree_util.Partial(lambda task: task)

        def step(state, _):  # after a failed meta-step state.step stays the same, and so must the tasks
            inputs = jax.tree.map(lambda leaf: leaf[state.step - first], (tasks, learn_keys))
            mean = _average(learner, state, draw, inputs, chunk, mesh)
            return _apply(optimizer, state, mean, skip_non_finite)

        state, metrics = jax.lax.scan(step, state, length=steps)
        failed_at = jnp.where(state.step - first < steps, state.step, -1)
        return state, metrics, (failed_at, jax.random.key_data(state.key))

    everywhere = replicated(mesh)
    shardings = (everywhere, everywhere, split_over_tasks(mesh, tasks_per_step))
    compiled = jax.jit(run, static_argnums=(3, 4), donate_argnums=0, in_shardings=shardings, out_shardings=everywhere)

    def start(state: TrainState, sampler, examples, steps: int) -> tuple[TrainState, Metrics, tuple]:
        chunk = chunk_size or default_chunk_size(state.meta_params, tasks_per_step, mesh)
        return compiled(state, sampler, examples, steps, chunk)

    sizes = (steps_per_call, tasks_per_step)
    step = _checked_step(start, sampler, sizes, mesh, None if skip_non_finite else last)
    return Trainer(init, step, tasks_per_step, steps_per_call, skip_non_finite)


def init_state(
    learner: MetaLearner, optimizer: optax.GradientTransformation, params: Params, seed: int | jax.Array = 0
) -> TrainState:
    """Return the state before the first meta-step, as `Trainer.init` does."""
    check_learner(learner)
    check_optimizer(optimizer, "outer optimiser")
    check_params(params)
    meta_params, learner_state = learner.init(jax.tree.map(jnp.asarray, params))
    opt_state = optimizer.init(meta_params)
    state = TrainState(meta_params, opt_state, learner_state, jnp.zeros((), jnp.int32), as_key(seed))
    return jax.tree.map(jnp.copy, state)  # a buffer must not be donated twice: some optimisers store params


def _average(
    learner: MetaLearner, state: TrainState, draw: Callable[..., Task], inputs: PyTree, chunk: int, mesh: Mesh | None
) -> MetaGradient:
    """Return the average of the learner's `MetaGradient` over the tasks of a meta-step.

    `inputs` has, for each task, the argument of `draw` and the key for the learner.
    """

    def measure(shared, inputs) -> MetaGradient:
        meta_params, learner_state, draw = shared
        task_input, learn_key = inputs
        estimate = learner.gradient(meta_params, draw(task_input), learn_key, learner_state)
        check_estimate(estimate, meta_params)
        return estimate._replace(
            metrics=jax.tree.map(_as_float, estimate.metrics)
        )  # the average of integers would be rounded

    shared = (state.meta_params, state.learner_state, draw)
    return average_tasks(measure, shared, inputs, chunk_size=chunk, mesh=mesh)


def _apply(
    optimizer: optax.GradientTransformation, state: TrainState, mean: MetaGradient, skip_non_finite: bool
) -> tuple[TrainState, Metrics]:
    """Update the state with an averaged meta-gradient, unless the meta-step failed."""
    loss = mean.metrics.get("loss")
    updates, opt_state = update(optimizer, mean.gradient, state.opt_state, state.meta_params, loss)
    norms = {"gradient_norm": _norm(mean.gradient), "update_norm": _norm(updates)}
    metrics = {**mean.metrics, **norms}
    spoiled = _is_spoiled(state.opt_state, opt_state)
    handled = ~jnp.isfinite(norms["gradient_norm"]) & jnp.isfinite(norms["update_norm"]) & ~spoiled
    good = handled | jnp.all(jnp.array([jnp.isfinite(value) for value in metrics.values()]))
    # The learner's state comes from the tasks, which no optimiser handles.
    learner_state = _where(good & ~handled, mean.state, state.learner_state)
    new = (optax.apply_updates(state.meta_params, updates), opt_state)
    meta_params, opt_state = _where(good, new, (state.meta_params, state.opt_state))
    step = state.step + (1 if skip_non_finite else good.astype(jnp.int32))
    return TrainState(meta_params, opt_state, learner_state, step, state.key), metrics


def _checked_step(
    compiled: Callable,
    sampler: TaskSampler | StreamedSampler,
    sizes: tuple[int, int],
    mesh: Mesh | None,
    last: list[Any] | None,
) -> TrainStep:
    """Return a function that checks its arguments and the result of the previous call, then calls a compiled step.

    `sizes` are the default number of meta-steps and the number of tasks in one. `last` keeps the result of the previous
    call; `None` if failures are skipped.
    """
    steps_per_call, tasks_per_step = sizes
    shared = replicate(_with_examples(sampler), mesh)
    checked: list[bool] = []

    def step(
        state: TrainState, examples: PyTree = None, /, *, steps: int = steps_per_call
    ) -> tuple[TrainState, Metrics]:
        check_state(state)
        check_count("steps", steps)
        _check_examples(sampler, examples, steps, tasks_per_step)
        if not checked:
            key = jax.eval_shape(lambda key: key, state.key)
            if isinstance(sampler, StreamedSampler):
                one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[2:], leaf.dtype), examples)
                check_streamed_sampler(sampler, one, rng=key)
            else:
                check_sampler(sampler, rng=key)
            checked.append(True)
        if last and not isinstance(state.step, Tracer):
            _raise_if_failed(state, *last)
        # JAX would compile a second program if the state were not yet on the devices of the mesh.
        state, metrics, failure = compiled(replicate(state, mesh), shared, examples, steps)
        if last is not None and not isinstance(state.step, Tracer):
            last[:] = [metrics, *failure]
        return state, metrics

    return step


def _check_examples(sampler: TaskSampler | StreamedSampler, examples: PyTree, steps: int, tasks_per_step: int) -> None:
    """Raise a `ValueError` unless there are examples for each task exactly if the sampler is a `StreamedSampler`."""
    if not isinstance(sampler, StreamedSampler):
        if examples is not None:
            raise ValueError("only a StreamedSampler takes examples from the host: call step(state)")
        return
    if examples is None:
        raise ValueError(
            "a StreamedSampler takes examples from the host: call step(state, examples), with examples from "
            "metajax.prefetch, or make the trainer with metajax.on_demand(sampler)"
        )
    for leaf in jax.tree.leaves(examples):
        if leaf.shape[:2] != (steps, tasks_per_step):
            raise ValueError(
                f"examples has arrays [steps, tasks_per_step, ...], here [{steps}, {tasks_per_step}, ...], got "
                f"{leaf.shape}"
            )


def _raise_if_failed(state: TrainState, metrics: Metrics, failed_at: jax.Array, key: jax.Array) -> None:
    """Raise a `FloatingPointError` if the last call belongs to this run and failed at the meta-step `state.step`."""
    step = int(failed_at)
    if step < 0 or int(state.step) != step or (jax.random.key_data(state.key) != key).any():
        return
    row = {name: values[-1:] for name, values in metrics.items()}  # the failed step was repeated up to the call's end
    _, name = first_non_finite(row) or (0, "loss")
    raise FloatingPointError(
        f"meta-step {step} failed: {name} is {float(row[name][0])}. The state is the one before that "
        "step. Try a smaller inner or outer rate, or clip gradients; if the first step fails, look for NaN, infinity "
        "or labels out of range in the data; to skip such steps use trainer(..., skip_non_finite=True)"
    )


def check_state(state: Any) -> None:
    """Raise a `TypeError` unless a value is a `TrainState`, and a `ValueError` if it was donated before."""
    if not isinstance(state, TrainState):
        raise TypeError(f"a TrainState from trainer.init or the last call is expected, got {describe(state)}")
    check_not_donated(state, "state")


def _where(condition: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _norm(tree: PyTree) -> jax.Array:
    """Return the global norm of a pytree. The sum is in at least float32, because half-precision squares overflow."""
    return optax.tree.norm(jax.tree.map(_as_float, tree))


def _is_spoiled(before: PyTree, after: PyTree) -> jax.Array:
    """Return whether a finite number in an optimiser's state became NaN or infinite."""
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    spoiled = [
        (jnp.isfinite(old) & ~jnp.isfinite(new)).any()
        for old, new in pairs
        if jnp.issubdtype(jnp.result_type(new), jnp.inexact)
    ]
    return jnp.any(jnp.array([False, *spoiled]))


def _draw(sampler: Callable[[jax.Array, PyTree], Task], inputs: tuple[jax.Array, PyTree]) -> Task:
    """Sample a task from its key and the examples from the host for this task."""
    key, examples = inputs
    return sampler(key, examples)


def _with_examples(sampler: TaskSampler | StreamedSampler) -> jax.tree_util.Partial:
    """Return a function `(rng, examples) -> Task` for either kind of sampler.

    The function of a `TaskSampler` ignores `examples`, which only a `StreamedSampler` uses.
    """
    if isinstance(sampler, StreamedSampler):
        return as_partial(sampler.sample)
    return jax.tree_util.Partial(_ignore_examples, as_partial(sampler))


def _ignore_examples(sampler: TaskSampler, rng: jax.Array, examples: PyTree) -> Task:
    return sampler(rng)


def _bytes(shapes: PyTree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def _as_float(value: jax.Array) -> jax.Array:
    return jnp.asarray(value, jnp.promote_types(jnp.result_type(value), jnp.float32))


def as_partial(fn: Callable) -> jax.tree_util.Partial:
    """Return a sampler as a `Partial`, so that its arrays can be arguments of a compiled function.

    Raises:
        TypeError: If the sampler is not a function.
    """
    if isinstance(fn, StreamedSampler):
        raise TypeError("a StreamedSampler leaves its examples on the host: pass metajax.on_demand(sampler)")
    if not callable(fn):
        raise TypeError(f"a sampler is a function rng -> metajax.Task, got {describe(fn)}")
    return fn if isinstance(fn, jax.tree_util.Partial) else jax.tree_util.Partial(fn)


def first_non_finite(metrics: Metrics) -> tuple[int, str] | None:
    """Find the first meta-step with a non-finite metric.

    Args:
        metrics: The metrics that a training step returned, each `float[steps_per_call]`.

    Returns:
        `(index in the call, metric name)`. If several metrics of the step are not finite, `loss` has priority. `None`
        if all metrics are finite.

    >>> import jax.numpy as jnp, metajax as mj
    >>> mj.first_non_finite({"loss": jnp.array([1.0, 2.0]), "gradient_norm": jnp.array([1.0, jnp.nan])})
    (1, 'gradient_norm')
    """
    bad = {name: ~jnp.isfinite(values).reshape(len(values), -1).all(1) for name, values in metrics.items()}
    failures = [(int(jnp.argmax(rows)), name != "loss", name) for name, rows in bad.items() if bool(rows.any())]
    return (min(failures)[0], min(failures)[2]) if failures else None
