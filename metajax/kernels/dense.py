"""Compute the matrix product of a fully connected layer, fast in derivatives of any order with per-task weights.

The cotangent of a task's kernel contracts the rows of two matrices. XLA for CPUs is slow at this contraction under
`vmap`. It is fast if one of the matrices is transposed first, so that the contraction is an ordinary matrix product.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from metajax.kernels.bilinear import bilinear
from metajax.kernels.plan import Platform, Role, plan


def dense(
    x: jax.Array, kernel: jax.Array, dimension_numbers: Any = None, precision: Any = None, **options: Any
) -> jax.Array:
    """Compute `x @ kernel`. Pass this function as the `dot_general` of an `nnx.Linear`.

    Args:
        x: `[..., in]`.
        kernel: `[in, out]`.
        dimension_numbers: Ignored, because an `nnx.Linear` always contracts the last axis of `x`.
        precision: Precision of the operands, as in `jax.lax.dot_general`. Default: JAX's setting.
        options: Further options of `jax.lax.dot_general`. Each must be `None`, because they are not supported.

    Returns:
        `[..., out]`.

    Raises:
        ValueError: If the shapes are not compatible, or if an option in `options` is not `None`.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> nnx.Linear(3, 5, dot_general=dense, rngs=nnx.Rngs(0))(jnp.ones((2, 3))).shape
    (2, 5)
    """
    if unknown := [name for name, value in options.items() if value is not None]:
        raise ValueError(f"metajax's dense does not support the options {', '.join(unknown)}")
    if kernel.ndim != 2 or x.shape[-1:] != kernel.shape[:1]:
        raise ValueError(f"a kernel {kernel.shape} does not fit inputs of shape {x.shape}")
    dtype = jnp.result_type(x, kernel)
    # Read the matmul precision now. When JAX later differentiates or compiles the operation, the setting may differ.
    precision = precision or jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1]).astype(dtype)
    out = _product.bind(rows, kernel.astype(dtype), role="output", per_task=False, precision=precision)
    return out.reshape(*x.shape[:-1], kernel.shape[1])


def _evaluate(
    a: jax.Array, b: jax.Array, *, role: Role, platform: Platform, per_task: bool, precision: Any
) -> jax.Array:
    kernel = (a.shape[1], b.shape[1]) if role == "kernel" else b.shape
    shapes = (a.shape[0], kernel[0]), kernel
    if plan("dense", shapes, a.dtype, platform, role=role, per_task=per_task).algorithm == "transpose":
        return _kernel_cotangent(a, b, precision)
    contracted = {"output": (1, 0), "input": (1, 1), "kernel": (0, 0)}[role]
    return jnp.tensordot(a, b, axes=contracted, precision=precision)


def _kernel_cotangent(x: jax.Array, output: jax.Array, precision: Any) -> jax.Array:
    """Compute the cotangent of the kernel, after a transpose of the smaller operand."""
    # The barriers keep XLA from undoing the transpose.
    if x.shape[1] <= output.shape[1]:
        return jnp.matmul(lax.optimization_barrier(x.T), output, precision=precision)
    return jnp.matmul(lax.optimization_barrier(output.T), x, precision=precision).T


def _shape(a: tuple[int, ...], b: tuple[int, ...], *, role: Role, precision: Any) -> tuple[int, ...]:
    rows, columns = {"output": (0, 1), "input": (0, 0), "kernel": (1, 1)}[role]
    return a[rows], b[columns]


_product = bilinear("product", _evaluate, _shape)
