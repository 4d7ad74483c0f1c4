"""Methods to differentiate the inner loop.

The functions `..._gradient` compute the gradient of one inner step. They have the same value and differ in their rule
for the derivative. The functions `unrolled` and `scan_in_stretches` run the steps, as `lax.scan` does. They differ in
the values that JAX stores for the backward pass.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import core, lax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from metajax.core.types import PyTree

_UNROLLED = 5
"""Largest number of steps for which a loop is unrolled by default. Longer unrolled loops compile slowly."""

_STORED = "inner_gradient"
_STORE_GRADIENTS = jax.checkpoint_policies.save_only_these_names(_STORED)

Gradient = Callable[[Callable[[PyTree, PyTree], jax.Array], PyTree, PyTree], PyTree]
"""`(loss, fast, rest) -> gradient`: the gradient of `loss(fast, rest)` with respect to `fast`."""

Loop = Callable[[Callable, PyTree, PyTree], tuple[PyTree, PyTree]]
"""`(step, carry, inputs) -> (carry, outputs)`, with the meaning of the arguments of `lax.scan`."""

_Linear = Callable[[Sequence[Any], Sequence[Any]], list[Any]]
"""`(residuals, inputs) -> outputs`, a function that is linear in `inputs`."""


def reverse_gradient(loss: Callable[[PyTree, PyTree], jax.Array], fast: PyTree, rest: PyTree) -> PyTree:
    """Compute the gradient of `loss(fast, rest)` with respect to `fast`; JAX differentiates it by reverse mode."""
    return jax.grad(loss)(fast, rest)


def first_order_gradient(loss: Callable[[PyTree, PyTree], jax.Array], fast: PyTree, rest: PyTree) -> PyTree:
    """Compute the gradient of `loss(fast, rest)` with respect to `fast`, as a constant for the meta-gradient."""
    return lax.stop_gradient(jax.grad(loss)(fast, rest))


def mixed_mode_gradient(loss: Callable[[PyTree, PyTree], jax.Array], fast: PyTree, rest: PyTree) -> PyTree:
    """Compute the gradient of `loss(fast, rest)` with respect to `fast`, with a custom rule for its derivative.

    In forward mode, the tangent of the gradient is the derivative of the gradient along the input tangents. In reverse
    mode, let v be the cotangent of the gradient. Second derivatives commute, so the cotangents of all arguments are the
    gradient of the directional derivative of the loss along v. Both modes use a forward-over-reverse product. For this
    product JAX stores only the arguments, and no values of the inner backward pass.

    Args:
        loss: The loss. It may close over arrays, which are differentiated too.
        fast: The pytree of arrays to differentiate with respect to.
        rest: The other arguments of the loss, a pytree of arrays.

    Returns:
        The gradient, a pytree like `fast`.
    """
    traced = jax.make_jaxpr(loss)(fast, rest)
    # The arrays that the loss closes over may be differentiated or mapped over, so they become arguments.
    program, closed_over = traced.jaxpr, traced.consts
    leaves, structure = jax.tree.flatten((rest, closed_over))
    is_real = [jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) for leaf in leaves]
    real = [leaf if yes else None for leaf, yes in zip(leaves, is_real, strict=True)]
    other = [None if yes else leaf for leaf, yes in zip(leaves, is_real, strict=True)]

    def loss_of(fast, real, other):
        rest, closed_over = structure.unflatten(
            [a if yes else b for a, b, yes in zip(real, other, is_real, strict=True)]
        )
        (value,) = core.eval_jaxpr(program, closed_over, *jax.tree.leaves((fast, rest)))
        return value

    arguments = jax.tree.structure((fast, real, other))
    differentiable = jax.tree.structure((fast, real))

    def product(residuals, tangents):
        fast, real, other = arguments.unflatten(residuals)
        _, tangent = jax.jvp(
            lambda fast, real: jax.grad(loss_of)(fast, real, other), (fast, real), differentiable.unflatten(tangents)
        )
        return jax.tree.leaves(tangent)

    def transposed(residuals, cotangents):
        fast, real, other = arguments.unflatten(residuals)
        gradients = lambda fast: jax.grad(loss_of, argnums=(0, 1))(fast, real, other)  # noqa: E731
        _, by_all = jax.jvp(gradients, (fast,), (jax.tree.structure(fast).unflatten(cotangents),))
        return jax.tree.leaves(by_all)

    @jax.custom_jvp
    def gradient(fast, real, other):
        return jax.grad(loss_of)(fast, real, other)

    @gradient.defjvp
    def rule(primals, tangents):
        fast, real, other = primals
        tangent = _linear_p.bind(
            *jax.tree.leaves(primals),
            *jax.tree.leaves(tangents[:2]),
            fn=product,
            transposed=transposed,
            num_residuals=arguments.num_leaves,
            outputs=tuple(jax.typeof(leaf) for leaf in jax.tree.leaves(fast)),
        )
        # The rule must not call gradient(*primals): a derivative of this derivative is plain reverse mode.
        return jax.grad(loss_of)(fast, real, other), jax.tree.structure(fast).unflatten(tangent)

    return gradient(fast, real, other)


_linear_p = Primitive("metajax_linear")
"""A JAX primitive for a linear function `fn(residuals, inputs)` and its transpose `transposed(residuals, cotangents)`.

`jax.custom_derivatives.linear_call` has the same purpose, but no batching rule, so it does not work under `vmap`.
"""
_linear_p.multiple_results = True


@_linear_p.def_impl
def _call(*operands, fn: _Linear, num_residuals: int, **_):
    return fn(operands[:num_residuals], operands[num_residuals:])


@_linear_p.def_abstract_eval
def _outputs(*_, outputs, **__):
    return list(outputs)


def _transpose(cotangents, *operands, transposed: _Linear, num_residuals: int, **_):
    residuals, inputs = operands[:num_residuals], operands[num_residuals:]
    by_inputs = transposed(residuals, [ad.instantiate_zeros(each) for each in cotangents])
    return [None] * num_residuals + [
        value if ad.is_undefined_primal(each) else None for each, value in zip(inputs, by_inputs, strict=True)
    ]


def _jvp(primals, tangents, *, num_residuals: int, **params):
    out = _linear_p.bind(*primals, num_residuals=num_residuals, **params)
    if all(isinstance(each, ad.Zero) for each in tangents[:num_residuals]):
        inputs = map(ad.instantiate_zeros, tangents[num_residuals:])
        return out, _linear_p.bind(*primals[:num_residuals], *inputs, num_residuals=num_residuals, **params)
    is_active = [not isinstance(each, ad.Zero) for each in tangents]

    def call_active(active):
        active = iter(active)
        operands = [next(active) if yes else each for each, yes in zip(primals, is_active, strict=True)]
        return _call(*operands, num_residuals=num_residuals, **params)

    active, directions = (
        [each for each, yes in zip(values, is_active, strict=True) if yes] for values in (primals, tangents)
    )
    _, tangent = jax.jvp(call_active, (active,), (directions,))
    return out, tangent


def _batch(operands, axes, *, fn: _Linear, transposed: _Linear, num_residuals: int, outputs):
    (size,) = {each.shape[axis] for each, axis in zip(operands, axes, strict=True) if axis is not None}
    residual_axes, input_axes = list(axes[:num_residuals]), list(axes[num_residuals:])

    def batched_fn(residuals, inputs):
        return jax.vmap(fn, (residual_axes, input_axes), axis_size=size)(list(residuals), list(inputs))

    def batched_transposed(residuals, cotangents):
        out_axes = [0 if axis is None else axis for axis in input_axes]
        values = jax.vmap(transposed, (residual_axes, 0), out_axes, axis_size=size)(list(residuals), list(cotangents))
        return [value.sum(0) if axis is None else value for value, axis in zip(values, input_axes, strict=True)]

    out = _linear_p.bind(
        *operands,
        fn=batched_fn,
        transposed=batched_transposed,
        num_residuals=num_residuals,
        outputs=tuple(each.update(shape=(size, *each.shape)) for each in outputs),
    )
    return out, [0] * len(out)


ad.primitive_transposes[_linear_p] = _transpose
ad.primitive_jvps[_linear_p] = _jvp
batching.primitive_batchers[_linear_p] = _batch
mlir.register_lowering(_linear_p, mlir.lower_fun(_call, multiple_results=True))


def stored(gradient: PyTree) -> PyTree:
    """Mark the gradient of an inner step as a value that `scan_in_stretches` stores for the backward pass."""
    return checkpoint_name(gradient, _STORED)


def choose_loop(*, steps: int, remat: bool, unroll: int | bool | None) -> Loop:
    """Return the function that runs the inner steps. `inner_loop` describes the arguments."""
    if remat:
        return scan_in_stretches
    if unroll is None:
        unroll = bool(steps <= _UNROLLED)
    unrolls_all = steps > 0 and (unroll is True or unroll >= steps)
    return unrolled if unrolls_all else functools.partial(lax.scan, unroll=unroll)


def unrolled(step: Callable, carry: PyTree, inputs: PyTree) -> tuple[PyTree, PyTree]:
    """Run all steps as an unrolled `lax.scan`, with the first step outside the scan.

    Under `vmap` the first step starts from parameters that all tasks share. A scan over the first step would copy these
    parameters for each task.
    """
    carry, first = step(carry, jax.tree.map(lambda leaf: leaf[0], inputs))
    first = jax.tree.map(lambda leaf: leaf[None], first)
    if jax.tree.leaves(inputs)[0].shape[0] == 1:
        return carry, first
    carry, others = lax.scan(step, carry, jax.tree.map(lambda leaf: leaf[1:], inputs), unroll=True)
    return carry, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, others)


def scan_in_stretches(step: Callable, carry: PyTree, inputs: PyTree) -> tuple[PyTree, PyTree]:
    """Run `lax.scan` over n steps, and store only the inner gradients and the carry after every √n steps.

    The backward pass recomputes all other values.
    """
    steps = jax.tree.leaves(inputs)[0].shape[0]
    stretch = max(math.isqrt(steps), 1)
    in_stretches = steps - steps % stretch
    run = jax.checkpoint(functools.partial(lax.scan, step), policy=_STORE_GRADIENTS)

    def divided(leaf):
        return leaf[:in_stretches].reshape(-1, stretch, *leaf.shape[1:])

    carry, first = lax.scan(run, carry, jax.tree.map(divided, inputs))
    first = jax.tree.map(lambda values: values.reshape(-1, *values.shape[2:]), first)
    if in_stretches == steps:
        return carry, first
    carry, last = run(carry, jax.tree.map(lambda leaf: leaf[in_stretches:], inputs))
    return carry, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, last)
