"""Make JAX primitives for bilinear operations, which are linear in an input and linear in a kernel.

A bilinear operation has two transposes. Both take the cotangent of the output: one computes the cotangent of the input,
the other the cotangent of the kernel. The primitive therefore has three roles: the operation and its two transposes.
Differentiating one role gives the two other roles, so the code for three roles computes derivatives of any order.

JAX lowers a primitive for the platform of the program. The code of a role therefore knows the platform, also in a
program that is exported for another device.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from metajax.kernels.plan import Platform, Role

_ARGUMENTS: dict[Role, tuple[Role, Role]] = {
    "output": ("input", "kernel"),
    "input": ("output", "kernel"),
    "kernel": ("input", "output"),
}
"""For each result of the primitive (its role), the two arrays from which the primitive computes this result."""


def bilinear(name: str, evaluate: Callable[..., jax.Array], shape: Callable[..., tuple[int, ...]]) -> Primitive:
    """Return a JAX primitive for an operation that is linear in its input and linear in its kernel.

    Under `vmap` over tasks that share one kernel, the examples of all tasks are concatenated along the first axis. If
    each task has a different kernel, the primitive gets the parameter `per_task=True` and operands with a leading task
    axis, and computes `vmap` of `evaluate`.

    Args:
        name: Name of the primitive in printed programs.
        evaluate: `(a, b, *, role, platform, per_task, ...) -> array`, for one task. The role determines the operands
            `a` and `b`. `evaluate` is never differentiated. If `per_task` is set, it runs under `vmap` over tasks.
        shape: `(a, b, *, role, ...) -> shape of the result of evaluate`, from the shapes `a` and `b` of the operands.

    Returns:
        A primitive. Bind it to two arrays, a `role`, `per_task=False` and the other keyword arguments of the functions.

    >>> import jax, jax.numpy as jnp
    >>> scale = bilinear("scale", lambda a, b, **settings: a * b, lambda a, b, **settings: a)
    >>> square = lambda x: scale.bind(x, jnp.float32(3), role="output", per_task=False) ** 2
    >>> float(jax.grad(square)(2.0))  # 2 * 6 * 3
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

    def batch(arguments, axes, *, role: Role, per_task: bool, **settings):
        (a, b), (a_axis, b_axis) = arguments, axes
        size = next(x.shape[axis] for x, axis in zip(arguments, axes, strict=True) if axis is not None)
        run = functools.partial(primitive.bind, role=role, per_task=True, **settings)
        if role != "kernel" and b_axis is None:  # the tasks share the kernel: concatenate their examples
            axis = 1 if per_task else 0
            a = jnp.moveaxis(a, a_axis, axis)
            out = primitive.bind(_merged(a, axis), b, role=role, per_task=per_task, **settings)
            return out.reshape(*a.shape[: axis + 2], *out.shape[axis + 1 :]), axis
        a, b = (_with_leading_axis(x, axis, size) for x, axis in zip(arguments, axes, strict=True))
        if not per_task:
            return run(a, b), 0
        out = run(_merged(a, 0), _merged(b, 0))
        return out.reshape(*a.shape[:2], *out.shape[1:]), 0

    def abstract(a, b, *, per_task: bool, **settings):
        if per_task:
            return a.update(shape=(a.shape[0], *shape(a.shape[1:], b.shape[1:], **settings)), weak_type=False)
        return a.update(shape=shape(a.shape, b.shape, **settings), weak_type=False)

    def lowered(a, b, *, per_task: bool, platform: Platform, **settings):
        run = functools.partial(evaluate, per_task=per_task, platform=platform, **settings)
        return jax.vmap(run)(a, b) if per_task else run(a, b)

    @functools.cache
    def compiled(settings: tuple[tuple[str, Any], ...]) -> Callable[..., jax.Array]:
        return jax.jit(functools.partial(primitive.bind, **dict(settings)))

    def impl(a, b, **settings):
        with jax.disable_jit(False):  # without jit, `compiled` would call this function again
            return compiled(tuple(settings.items()))(a, b)

    primitive.def_impl(impl)
    primitive.def_abstract_eval(abstract)
    for platform, key in _LOWERINGS.items():
        rule = mlir.lower_fun(functools.partial(lowered, platform=platform), multiple_results=False)
        mlir.register_lowering(primitive, rule, platform=key)
    ad.defbilinear(primitive, transpose_first, transpose_second)
    batching.primitive_batchers[primitive] = batch
    return primitive


_LOWERINGS: dict[Platform, str | None] = {"cpu": "cpu", "tpu": "tpu", "gpu": None}
"""The name by which JAX registers the lowering for each platform. `None` is the default: CUDA, ROCm and others."""


def _merged(x: jax.Array, axis: int) -> jax.Array:
    """Merge an axis and the next axis."""
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def _with_leading_axis(x: jax.Array, axis: int | None, size: int) -> jax.Array:
    """Move a batch axis to the front, or repeat an array that has none."""
    return jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)


def bilinear_flops(
    a: tuple[int, ...], b: tuple[int, ...], out: tuple[int, ...], *, role: Role, per_task: bool = False
) -> int:
    """Return the number of floating-point operations of one role, from the shapes of its operands and its result.

    Channels are the last axis of every shape. If `per_task` is set, tasks are the first axis of every shape.

    >>> [bilinear_flops((2, 3), (3, 4), (2, 4), role="output"), bilinear_flops((2, 3), (2, 4), (3, 4), role="kernel")]
    [48, 48]
    >>> bilinear_flops((5, 2, 3), (5, 3, 4), (5, 2, 4), role="output", per_task=True)
    240
    """
    shapes = dict(zip((*_ARGUMENTS[role], role), (a, b, out), strict=True))
    return 2 * math.prod(shapes["output"]) * math.prod(shapes["kernel"][int(per_task) : -1])
