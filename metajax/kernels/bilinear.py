"""Make JAX primitives for bilinear operations, which are linear in an input and linear in a kernel.

A bilinear operation has two transposes. Both take the cotangent of the output: one computes the cotangent of the input,
the other the cotangent of the kernel. The primitive therefore has three roles: the operation and its two transposes.
Differentiating one role gives the two other roles, so the code for three roles computes derivatives of any order.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Role = Literal["output", "input", "kernel"]
"""Result of the primitive: the output of the operation, the cotangent of its input, or the cotangent of its kernel."""
_ARGUMENTS: dict[Role, tuple[Role, Role]] = {
    "output": ("input", "kernel"),
    "input": ("output", "kernel"),
    "kernel": ("input", "output"),
}
"""The two operands from which each role is computed, in the order of the primitive's arguments."""


def bilinear(
    name: str, evaluate: Callable[..., jax.Array], shape: Callable[..., tuple[int, ...]], per_task: Callable[..., Any]
) -> Primitive:
    """Return a JAX primitive for an operation that is linear in its input and linear in its kernel.

    Under `vmap` over tasks that share one kernel, the examples of all tasks are concatenated along the first axis. If
    each task has a different kernel, `vmap` of `per_task` is used.

    Args:
        name: Name of the primitive in printed programs.
        evaluate: `(a, b, *, role, ...) -> array`. The role determines the operands `a` and `b`.
        shape: `(a, b, *, role, ...) -> shape of the result of evaluate`.
        per_task: A function with the arguments and result of `evaluate` that is fast under `vmap` over kernels.

    Returns:
        A primitive. Bind it to two arrays, a `role`, and the other keyword arguments of the functions.

    >>> import jax, jax.numpy as jnp
    >>> scale = bilinear("scale", lambda a, b, role: a * b, lambda a, b, role: a.shape, lambda a, b, role: a * b)
    >>> float(jax.grad(lambda x: scale.bind(x, jnp.float32(3), role="output") ** 2)(2.0))  # 2 * 6 * 3
    36.0
    """
    primitive = Primitive(name)

    def bind(role: Role, operands: dict[Role, Any], settings: dict[str, Any]):
        return primitive.bind(*(operands[name] for name in _ARGUMENTS[role]), role=role, **settings)

    def transpose_first(cotangent, a, b, *, role: Role, **settings):
        first, second = _ARGUMENTS[role]
        return bind(first, {role: cotangent, second: b}, settings)

    def transpose_second(cotangent, a, b, *, role: Role, **settings):
        first, second = _ARGUMENTS[role]
        return bind(second, {role: cotangent, first: a}, settings)

    def batch(arguments, axes, *, role: Role, **settings):
        (a, b), (a_axis, b_axis) = arguments, axes
        if role != "kernel" and b_axis is None:  # the tasks share the kernel
            a = jnp.moveaxis(a, a_axis, 0)
            out = primitive.bind(a.reshape(-1, *a.shape[2:]), b, role=role, **settings)
            return out.reshape(*a.shape[:2], *out.shape[1:]), 0
        return jax.vmap(lambda a, b: per_task(a, b, role=role, **settings), (a_axis, b_axis))(a, b), 0

    def abstract(a, b, **settings):
        return a.update(shape=shape(a, b, **settings), weak_type=False)

    @functools.cache
    def compiled(settings: tuple[tuple[str, Any], ...]) -> Callable[..., jax.Array]:
        return jax.jit(functools.partial(evaluate, **dict(settings)))

    primitive.def_impl(lambda a, b, **settings: compiled(tuple(settings.items()))(a, b))
    primitive.def_abstract_eval(abstract)
    mlir.register_lowering(primitive, mlir.lower_fun(evaluate, multiple_results=False))
    ad.defbilinear(primitive, transpose_first, transpose_second)
    batching.primitive_batchers[primitive] = batch
    return primitive


def bilinear_flops(a: tuple[int, ...], b: tuple[int, ...], out: tuple[int, ...], *, role: Role) -> int:
    """Return the number of floating-point operations of one role, from the shapes of its operands and its result.

    Channels are the last axis of every shape.

    >>> [bilinear_flops((2, 3), (3, 4), (2, 4), role="output"), bilinear_flops((2, 3), (2, 4), (3, 4), role="kernel")]
    [48, 48]
    """
    shapes = dict(zip((*_ARGUMENTS[role], role), (a, b, out), strict=True))
    return 2 * math.prod(shapes["output"]) * math.prod(shapes["kernel"][:-1])
