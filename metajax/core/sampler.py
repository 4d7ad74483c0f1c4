"""Check that a sampler's tasks depend on the key, and make a sampler of one fixed task."""

from collections.abc import Callable

import jax

from metajax.core.checks import check_finite, check_task
from metajax.core.tracing import is_repeatable, used_inputs
from metajax.core.types import PyTree, StreamedSampler, Task, TaskSampler


def constant_task(task: Task) -> TaskSampler:
    """Return a sampler that gives the same task for every key.

    Args:
        task: The task. Its arrays become arguments of the compiled training step, not constants in the program.

    Raises:
        TypeError: If `task` has no support set and query set.
        ValueError: If an array of the task has NaN or infinite values.

    >>> import metajax as mj
    >>> mj.constant_task(mj.Task(support=1.0, query=2.0))(jax.random.key(0)).query
    2.0
    """
    check_task(task)
    check_finite(task, "the task")
    return jax.tree_util.Partial(_constant, task)


def _constant(task: Task, rng: jax.Array) -> Task:
    return task


def check_sampler(sampler: TaskSampler, *, rng: jax.Array | None = None) -> None:
    """Check that a sampler returns a task, and that the task depends on the random key.

    Args:
        sampler: The sampler, `rng -> Task`.
        rng: A key like the keys that the sampler will receive, or the shape of such a key. Default: a key of JAX's
            default implementation.

    Raises:
        TypeError: If the sampler does not return a `Task`.
        ValueError: If the sampler samples numbers outside JAX, so that the compiled sampler repeats these numbers, or
            if its task does not depend on the key. Samplers made by `constant_task` are exempt.
    """
    _check(sampler, jax.random.key(0) if rng is None else rng)


def check_streamed_sampler(sampler: StreamedSampler, examples: PyTree, *, rng: jax.Array) -> None:
    """Check that `sampler.sample` returns a task, and that the task depends on the random key or on the examples.

    Args:
        sampler: The sampler.
        examples: The examples of one task, or their shapes.
        rng: A key like the keys that the sampler will receive, or the shape of such a key.

    Raises:
        TypeError: If the sampler does not return a `Task`.
        ValueError: If the sampler samples numbers outside JAX, or if its task depends neither on the key nor on the
            examples.
    """
    _check(sampler.sample, rng, examples)


def _check(sample: Callable[..., Task], *inputs: PyTree) -> None:
    traced, task = jax.make_jaxpr(sample, return_shape=True)(*inputs)
    check_task(task)
    if traced.effects or getattr(sample, "func", None) is _constant:  # io_callback samples on the host at each call
        return
    advice = "Sample with jax.random and the key that the sampler receives"
    if not is_repeatable(sample, *inputs):
        raise ValueError(
            "the sampler draws numbers with NumPy or Python's random, but JAX runs this code only while it compiles: "
            f"every task would be the same. {advice}"
        )
    if not any(used_inputs(traced.jaxpr)):
        raise ValueError(
            f"the sampler ignores its key: every task would be the same. {advice}; for one fixed task use "
            "metajax.constant_task(task)"
        )
