"""The compiled training step: draw tasks, average their meta-gradients, update, many times in one call."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from metajax.learners import Estimate, MetaLearner
from metajax.parallel import (
    average_tasks,
    check_chunk_size,
    default_chunk_size,
    replicate,
    replicated,
    split_over_tasks,
    step_keys,
)
from metajax.types import MetaParams, Metrics, Params, PyTree, Task, TaskSampler

_SMALL_BYTES = 1_000_000
"""Of all tasks of a call, up to which they are drawn before its loop."""


class TrainState(NamedTuple):
    """All that a resume needs, as one pytree.

    Attributes:
        meta_params: What is meta-learned.
        opt_state: The outer optimiser's state.
        learner_state: What the learner carries from step to step.
        step: Meta-steps done, `int32[]`.
        key: The key of the run; every draw is a function of it, the step and the task's index in the step.
    """

    meta_params: MetaParams
    opt_state: PyTree
    learner_state: PyTree
    step: jax.Array
    key: jax.Array


class TrainStep(Protocol):
    """A compiled call of some meta-steps."""

    def __call__(self, state: TrainState, fed: PyTree = None, /) -> tuple[TrainState, Metrics]:
        """Advance the state, which is donated; `fed` are arrays `[steps_per_call, tasks_per_step, ...]`."""
        ...


def init_train_state(
    learner: MetaLearner, optimizer: optax.GradientTransformation, params: Params, seed: int | jax.Array = 0
) -> TrainState:
    """The state before the first meta-step.

    Args:
        learner: A meta-learner.
        optimizer: The outer optimiser, any optax transformation.
        params: A model's parameters; copied, since training donates its state's buffers.
        seed: An integer or a key.

    Returns:
        A `TrainState` at step 0.

    >>> import jax.numpy as jnp, optax, metajax as mj
    >>> learner = mj.maml(lambda p, data, rng: (p**2, {}), mj.inner_loop(optax.sgd(0.1), steps=1))
    >>> int(mj.init_train_state(learner, optax.adam(1e-3), jnp.float32(1.0)).step)
    0
    """
    meta_params, learner_state = learner.init(jax.tree.map(jnp.asarray, params))
    key = seed if isinstance(seed, jax.Array) else jax.random.key(seed)
    state = TrainState(meta_params, optimizer.init(meta_params), learner_state, jnp.zeros((), jnp.int32), key)
    return jax.tree.map(jnp.copy, state)  # no buffer twice: some optimisers keep the parameters they started from


def make_train_step(
    learner: MetaLearner,
    optimizer: optax.GradientTransformation,
    sampler: TaskSampler | Callable[[jax.Array, Any], Task],
    *,
    tasks_per_step: int,
    steps_per_call: int = 1,
    chunk_size: int | None = None,
    mesh: Mesh | None = None,
) -> TrainStep:
    """Compile `steps_per_call` meta-steps, sampling included, into one call.

    A meta-step whose loss, metrics or meta-gradient is not finite leaves the state as it was before it, and so
    do the rest of the call's: the state stays good, its `step` is the one that failed, and the metrics say what
    was not finite (`first_non_finite`).

    Args:
        learner: A meta-learner.
        optimizer: The outer optimiser; clipping and schedules are parts of an optax chain.
        sampler: `rng -> Task`. Arrays that it holds as a `jax.tree_util.Partial` (a class bank, say) are passed to
            the compiled function as arguments, not built into it as constants. Or `(rng, fed) -> Task` for tasks whose
            data does not live on the device: `fed` is then what the call is given for that task, from `feed` say. If
            several run together and all of a call are small (1 MB), they are drawn before the first meta-step.
        tasks_per_step: Tasks in a meta-step (the meta-batch).
        steps_per_call: Meta-steps in one call.
        chunk_size: Tasks that run together on a device; see `average_tasks`.
        mesh: Devices to split the tasks over, from `task_mesh`.

    Returns:
        `(state, fed=None) -> (state, metrics)`, which donates the state. `fed` is nothing, or a pytree of arrays
        `[steps_per_call, tasks_per_step, ...]`, from which each task gets its own. Each metric is
        `float[steps_per_call]`: the learner's own, averaged over tasks (counts and truth values too), and the norms of
        the meta-gradient and of the update, `gradient_norm` and `update_norm`.

    Raises:
        ValueError: If a count is below 1.

    >>> import jax, jax.numpy as jnp, optax, metajax as mj
    >>> loss = lambda p, target, rng: ((p - target) ** 2, {})
    >>> learner = mj.maml(loss, mj.inner_loop(optax.sgd(0.1), steps=1))
    >>> sampler = lambda rng: mj.Task(support=3.0, query=3.0)
    >>> train = mj.make_train_step(learner, optax.sgd(0.5), sampler, tasks_per_step=4, steps_per_call=50)
    >>> state = mj.init_train_state(learner, optax.sgd(0.5), jnp.float32(0.0))
    >>> state, metrics = train(state)
    >>> int(state.step), round(float(state.meta_params), 3), metrics["loss"].shape
    (50, 3.0, (50,))
    """
    for name, value in [("tasks_per_step", tasks_per_step), ("steps_per_call", steps_per_call)]:
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    check_chunk_size(chunk_size)

    def measured(shared, given) -> Estimate:
        meta_params, learner_state, draw = shared
        given, learn_key = given
        estimate = learner.gradient(meta_params, draw(given), learn_key, learner_state)
        return estimate._replace(metrics=jax.tree.map(_as_float, estimate.metrics))  # or averages would be rounded

    def meta_step(state: TrainState, draw, given, chunk: int) -> tuple[TrainState, Metrics]:
        shared = (state.meta_params, state.learner_state, draw)
        mean = average_tasks(measured, shared, given, chunk_size=chunk, mesh=mesh)
        updates, opt_state = optimizer.update(mean.gradient, state.opt_state, state.meta_params)
        norms = {"gradient_norm": optax.tree.norm(mean.gradient), "update_norm": optax.tree.norm(updates)}
        metrics = {**mean.metrics, **norms}
        finite = jnp.all(jnp.array([jnp.isfinite(value).all() for value in metrics.values()]))
        new = (optax.apply_updates(state.meta_params, updates), opt_state, mean.state, state.step + 1)
        old = (state.meta_params, state.opt_state, state.learner_state, state.step)
        meta_params, opt_state, learner_state, step = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
        return TrainState(meta_params, opt_state, learner_state, step, state.key), metrics

    def run(state: TrainState, sampler, fed) -> tuple[TrainState, Metrics]:
        first = state.step
        chunk = chunk_size or default_chunk_size(state.meta_params, tasks_per_step, mesh)
        # All keys at once, and all tasks if they are small: a tiny model would notice the time of one after the other.
        task_keys, learn_keys = step_keys(state.key, first, steps_per_call, tasks_per_step)
        tasks, draw = (task_keys, fed), jax.tree_util.Partial(_draw, sampler)
        draw_all = jax.vmap(jax.vmap(draw))
        if chunk > 1 and _bytes(jax.eval_shape(draw_all, tasks)) <= _SMALL_BYTES:
            tasks, draw = draw_all(tasks), jax.tree_util.Partial(lambda task: task)

        def step(state, _):  # a step that failed stays where it is, and so must what it is given
            given = jax.tree.map(lambda leaf: leaf[state.step - first], (tasks, learn_keys))
            return meta_step(state, draw, given, chunk)

        return jax.lax.scan(step, state, length=steps_per_call)

    everywhere = replicated(mesh)
    shardings = (everywhere, everywhere, split_over_tasks(mesh, tasks_per_step))
    compiled = jax.jit(run, donate_argnums=0, in_shardings=shardings, out_shardings=everywhere)
    held = replicate(as_partial(sampler), mesh)
    # A state that is not yet where the compiled step keeps it would make a second program.
    return lambda state, fed=None, /: compiled(replicate(state, mesh), held, fed)


def _draw(sampler: Callable[..., Task], given: tuple[jax.Array, Any]) -> Task:
    """A task, from its key and what it is fed, if anything."""
    key, fed = given
    return sampler(key) if fed is None else sampler(key, fed)


def _bytes(shapes: PyTree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def _as_float(value: jax.Array) -> jax.Array:
    return jnp.asarray(value, jnp.promote_types(jnp.result_type(value), jnp.float32))


def as_partial(fn: Callable) -> jax.tree_util.Partial:
    """`fn` as a pytree of the arrays it was given, so that they can be arguments of a compiled function."""
    return fn if isinstance(fn, jax.tree_util.Partial) else jax.tree_util.Partial(fn)


def first_non_finite(metrics: Metrics) -> tuple[int, str] | None:
    """The first meta-step of a call that went wrong, and the metric that says so.

    Args:
        metrics: What a training step returned, each `float[steps_per_call]`.

    Returns:
        `(index in the call, metric name)`, the loss before any other; `None` if all is finite.

    >>> import jax.numpy as jnp, metajax as mj
    >>> mj.first_non_finite({"loss": jnp.array([1.0, 2.0]), "gradient_norm": jnp.array([1.0, jnp.nan])})
    (1, 'gradient_norm')
    """
    bad = {name: ~jnp.isfinite(values) for name, values in metrics.items()}
    failures = [(int(jnp.argmax(rows)), name != "loss", name) for name, rows in bad.items() if bool(rows.any())]
    return (min(failures)[0], min(failures)[2]) if failures else None
