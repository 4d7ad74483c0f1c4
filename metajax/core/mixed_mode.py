"""Mixed mode: the gradient of a loss, whose derivative is one forward-over-reverse Hessian-vector product."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import core
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from metajax.core.types import PyTree

_Linear = Callable[[Sequence[Any], Sequence[Any]], list[Any]]
"""`(residuals, inputs) -> outputs`, linear in the inputs."""


def mixed_mode_gradient(loss: Callable[[PyTree, PyTree], jax.Array], fast: PyTree, rest: PyTree) -> PyTree:
    """Compute the gradient of `loss(fast, rest)` with respect to `fast`, with a custom rule for its derivative.

    Forward mode computes the gradient's tangent as the derivative of the gradient along the input tangents. In reverse
    mode, for a cotangent v of the gradient, the cotangents of all arguments are the gradient of the directional
    derivative of the loss along v, because second derivatives commute. Both are forward over reverse. JAX stores only
    the arguments for them, and nothing of the inner backward pass.

    Args:
        loss: The loss. It may close over arrays, which are differentiated too.
        fast: The pytree of arrays to differentiate with respect to.
        rest: Other arguments, a pytree of arrays.

    Returns:
        The gradient, a pytree like `fast`.
    """
    traced = jax.make_jaxpr(loss)(fast, rest)
    program, closed_over = (
        traced.jaxpr,
        traced.consts,
    )  # these may be differentiated or mapped over too, so they become arguments
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
"""A linear function with its transpose: `fn(residuals, inputs)`, and `transposed(residuals, cotangents)`.

`jax.custom_derivatives.linear_call` is the same without a rule for `vmap`.
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
    moves = [not isinstance(each, ad.Zero) for each in tangents]

    def of_moving(moving):
        moving = iter(moving)
        operands = [next(moving) if yes else each for each, yes in zip(primals, moves, strict=True)]
        return _call(*operands, num_residuals=num_residuals, **params)

    moving, along = ([each for each, yes in zip(values, moves, strict=True) if yes] for values in (primals, tangents))
    _, tangent = jax.jvp(of_moving, (moving,), (along,))
    return out, tangent


def _batch(operands, axes, *, fn: _Linear, transposed: _Linear, num_residuals: int, outputs):
    (size,) = {each.shape[axis] for each, axis in zip(operands, axes, strict=True) if axis is not None}
    of_residuals, of_inputs = list(axes[:num_residuals]), list(axes[num_residuals:])

    def batched_fn(residuals, inputs):
        return jax.vmap(fn, (of_residuals, of_inputs), axis_size=size)(list(residuals), list(inputs))

    def batched_transposed(residuals, cotangents):
        out_axes = [0 if axis is None else axis for axis in of_inputs]
        values = jax.vmap(transposed, (of_residuals, 0), out_axes, axis_size=size)(list(residuals), list(cotangents))
        return [value.sum(0) if axis is None else value for value, axis in zip(values, of_inputs, strict=True)]

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
