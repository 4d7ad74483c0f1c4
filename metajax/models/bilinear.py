"""Operations that are linear in an input and in a kernel, each as one primitive in three roles.

Such an operation has two transposes: the cotangent of the input from that of the output, and the kernel's. Each one's
derivatives are the other two, so that derivatives of any order are again the operation in one of its roles, and each
role is computed in the form that its author chose for it.
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
"""What is computed: the output, or a cotangent of the input or of the kernel."""
_ARGUMENTS: dict[Role, tuple[Role, Role]] = {
    "output": ("input", "kernel"),
    "input": ("output", "kernel"),
    "kernel": ("input", "output"),
}
"""What each is computed from, in order."""


def bilinear(
    name: str, evaluate: Callable[..., jax.Array], shape: Callable[..., tuple[int, ...]], per_task: Callable[..., Any]
) -> Primitive:
    """Make the primitive, to be bound to two arrays with a `role` and settings of its own.

    Under `vmap`, arguments that share a kernel become one with more examples, along the first axis; where each task has
    a kernel of its own, `per_task` is run instead.

    Args:
        name: What programs show.
        evaluate: `(a, b, *, role, ...) -> array`, the arguments by role.
        shape: `(a, b, *, role, ...) -> shape of that array`.
        per_task: As `evaluate`.

    Returns:
        A primitive to bind to two arrays with a `role`, and the settings that the functions take.

    >>> import jax, jax.numpy as jnp
    >>> scale = bilinear("scale", lambda a, b, role: a * b, lambda a, b, role: a.shape, lambda a, b, role: a * b)
    >>> float(jax.grad(lambda x: scale.bind(x, jnp.float32(3), role="output") ** 2)(2.0))  # 2 * 6 * 3
    36.0
    """
    primitive = Primitive(name)

    def bind(wanted: Role, known: dict[Role, Any], settings: dict[str, Any]):
        return primitive.bind(*(known[name] for name in _ARGUMENTS[wanted]), role=wanted, **settings)

    def transpose_first(cotangent, a, b, *, role: Role, **settings):
        first, second = _ARGUMENTS[role]
        return bind(first, {role: cotangent, second: b}, settings)

    def transpose_second(cotangent, a, b, *, role: Role, **settings):
        first, second = _ARGUMENTS[role]
        return bind(second, {role: cotangent, first: a}, settings)

    def batch(arguments, axes, *, role: Role, **settings):
        (a, b), (a_axis, b_axis) = arguments, axes
        if role != "kernel" and b_axis is None:  # one kernel: all are examples
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
    """Floating-point operations in a role, from the shapes of the arguments and the result; channels come last.

    >>> [bilinear_flops((2, 3), (3, 4), (2, 4), role="output"), bilinear_flops((2, 3), (2, 4), (3, 4), role="kernel")]
    [48, 48]
    """
    shapes = dict(zip((*_ARGUMENTS[role], role), (a, b, out), strict=True))
    return 2 * math.prod(shapes["output"]) * math.prod(shapes["kernel"][:-1])
