"""Detect inner optimisers whose update has no finite derivative, before a meta-gradient becomes NaN."""

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import eval_context

from metajax.core.optimizers import update
from metajax.core.types import PyTree

_PROBED_STEPS = 8
"""Number of optimiser steps in the probe. With the usual decay rates, rectified Adam changes its formula at step 6."""

_PROBED_SIZE = 3
"""Largest axis length of the arrays in the probe. The arrays have the structure and the axes of the parameters."""


def check_derivative_on_use(optimizer: optax.GradientTransformation, grads: PyTree, steps: int) -> PyTree:
    """Return `grads`, and check the optimiser's derivative when JAX differentiates through them.

    The check runs while JAX traces the derivative, once for each trace. It is not part of the compiled program.

    Args:
        optimizer: The inner optimiser.
        grads: The inner gradients, the optimiser's next input.
        steps: Number of inner steps.

    Returns:
        `grads`, unchanged.
    """
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), grads)

    @jax.custom_jvp
    def identity(grads):
        return grads

    @identity.defjvp
    def rule(primals, tangents):
        check_derivative(optimizer, shapes, steps)
        return primals[0], tangents[0]

    return identity(grads)


def check_derivative(optimizer: optax.GradientTransformation, like: PyTree, steps: int) -> None:
    """Check that the first steps of an optimiser have a finite derivative with respect to the gradients.

    Args:
        optimizer: An optax optimiser.
        like: A pytree like the parameters, of arrays or of their shapes.
        steps: Number of inner steps.

    Raises:
        ValueError: If the derivative is not finite for gradients that are not 0.

    Warns:
        UserWarning: If the derivative is not finite where a gradient is exactly 0.

    >>> check_derivative(optax.sgd(0.1), jnp.ones(3), steps=5)
    >>> check_derivative(optax.radam(0.1), jnp.ones(3), steps=5)
    Traceback (most recent call last):
    ...
    ValueError: the derivative of the inner optimiser's update is NaN or infinite, ...
    """
    leaves, structure = jax.tree.flatten(like)
    small = tuple(
        jax.ShapeDtypeStruct(tuple(min(size, _PROBED_SIZE) for size in leaf.shape), leaf.dtype) for leaf in leaves
    )
    real = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
    for shapes in (small, real):
        try:
            generic, at_zero = _is_finite(optimizer, structure, shapes, min(steps, _PROBED_STEPS))
            break
        except jax.errors.UnexpectedTracerError:  # the optimiser uses a traced value, such as a learned rate
            return
        except (TypeError, ValueError):  # the optimiser has arrays like the parameters, such as rates
            continue
    else:  # the optimiser raises errors, which appear again when the inner loop calls it
        return
    if not generic:
        raise ValueError(
            "the derivative of the inner optimiser's update is NaN or infinite, so the meta-gradient would be too. Use "
            "another inner optimiser, such as optax.sgd or optax.adam(rate, eps_root=1e-8), or "
            "inner_loop(..., first_order=True)"
        )
    if not at_zero:
        warnings.warn(
            "the derivative of the inner optimiser's update is NaN or infinite where a gradient is exactly 0, as "
            "behind a ReLU that is off. Give the optimiser a small eps_root, such as optax.adam(rate, eps_root=1e-8)",
            stacklevel=2,
        )


def _is_finite(
    optimizer: optax.GradientTransformation, structure: Any, shapes: tuple[jax.ShapeDtypeStruct, ...], steps: int
) -> tuple[bool, bool]:
    """Return the result of `_probe`. The result is cached if the optimiser can be hashed."""
    try:
        hash(optimizer)
    except TypeError:
        return _probe(optimizer, structure, shapes, steps)
    return _probe_once(optimizer, structure, shapes, steps)


def _probe(
    optimizer: optax.GradientTransformation,
    structure: Any,
    shapes: tuple[jax.ShapeDtypeStruct, ...],
    steps: int,
) -> tuple[bool, bool]:
    """Return whether the derivative is finite for nonzero gradients, and for gradients with some entries equal to 0."""
    random = np.random.default_rng(0)
    params, grads = (
        structure.unflatten([random.uniform(0.5, 1.5, each.shape).astype(each.dtype) for each in shapes])
        for _ in range(2)
    )

    def adapted_sum(grads):
        def step(carry, scale):
            params, state = carry
            scaled = jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)
            updates, state = update(optimizer, scaled, state, params, jnp.float32(1.0))
            return (optax.apply_updates(params, updates), state), None

        scales = jnp.asarray(np.linspace(1.0, 2.0, steps, dtype=np.float32))
        (adapted, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), scales)
        return sum(leaf.astype(jnp.float32).sum() for leaf in jax.tree.leaves(adapted))

    def is_finite(first_factor):  # a factor of 0 sets the first entry of each gradient to 0
        def multiply(leaf):
            if leaf.size < 2:
                return leaf
            return leaf.reshape(-1).at[0].multiply(first_factor.astype(leaf.dtype)).reshape(leaf.shape)

        derivative = jax.grad(adapted_sum)(jax.tree.map(multiply, jax.tree.map(jnp.asarray, grads)))
        return jnp.all(jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(derivative)]))

    factors = np.array([1.0, 0.0], np.float32)
    # `eval_context` runs the jitted function now, and not as a part of an enclosing trace.
    with jax.disable_jit(False), eval_context():
        generic, at_zero = np.asarray(jax.jit(jax.vmap(is_finite))(factors)).tolist()
    return generic, at_zero


_probe_once = functools.lru_cache(maxsize=16)(_probe)
