"""Inspect the trace of a function: find the inputs that the outputs depend on, and the constants in the trace."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval


def depends_on_first(fn: Callable[..., Any], first: Any, *rest: Any) -> bool:
    """Return whether any output of `fn(first, *rest)` depends on `first`.

    Args:
        fn: A traceable function.
        first: A pytree of arrays, or of their shapes.
        *rest: Further arguments.

    >>> import jax.numpy as jnp
    >>> depends_on_first(lambda x, y: x * y, 1.0, 2.0), depends_on_first(lambda x, y: y, 1.0, 2.0)
    (True, False)
    """
    traced = jax.make_jaxpr(fn)(first, *rest).jaxpr
    return any(used_inputs(traced)[: len(jax.tree.leaves(first))])


def used_inputs(jaxpr: core.Jaxpr) -> list[bool]:
    """Return for each input of a program whether any output depends on the input.

    >>> used_inputs(jax.make_jaxpr(lambda x, y: x)(1.0, 2.0).jaxpr)
    [True, False]
    """
    _, used = partial_eval.dce_jaxpr(
        jaxpr, [True] * len(jaxpr.outvars)
    )  # follows the values into nested compiled functions, too
    return used


def is_repeatable(fn: Callable[..., Any], *args: Any) -> bool:
    """Return whether two traces of `fn(*args)` contain the same constants.

    Each trace of a function that samples with NumPy or `random` contains different constants.

    >>> is_repeatable(lambda x: x + 1.0, 1.0), is_repeatable(lambda x: x + np.random.rand(3), 1.0)
    (True, False)
    """
    # JAX caches the traces of jitted functions inside `fn` for each precision, so two precisions give two new traces.
    precisions = ("float32", "tensorfloat32")
    first, second = (list(_constants(_traced(fn, args, precision))) for precision in precisions)
    return len(first) == len(second) and all(map(_same, first, second))


def _traced(fn: Callable[..., Any], args: tuple, precision: str) -> core.ClosedJaxpr:
    with jax.default_matmul_precision(precision):
        return jax.make_jaxpr(lambda *args: fn(*args))(*args)


def _constants(closed: core.ClosedJaxpr) -> Iterator[Any]:
    """Yield the constants of a trace: arrays that it closes over, and numbers in its equations and outputs."""
    yield from closed.consts
    yield from _literals(closed.jaxpr)


def _literals(jaxpr: Any) -> Iterator[Any]:
    variables = [*(each for equation in jaxpr.eqns for each in equation.invars), *jaxpr.outvars]
    yield from (each.val for each in variables if isinstance(each, core.Literal))
    for equation in jaxpr.eqns:
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda each: isinstance(each, core.Jaxpr | core.ClosedJaxpr)
        ):
            if isinstance(value, core.ClosedJaxpr):
                yield from _constants(value)
            elif isinstance(value, core.Jaxpr):
                yield from _literals(value)


def is_key(value: Any) -> bool:
    """Return whether a value is a typed JAX key, or an array of keys."""
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    a, b = (np.asarray(jax.random.key_data(each) if is_key(each) else each) for each in (a, b))
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()
