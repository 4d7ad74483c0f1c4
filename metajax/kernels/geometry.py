"""Sizes of a convolution, and operations that its algorithms share."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike


class Geometry(NamedTuple):
    """Sizes of a convolution.

    Attributes:
        height: Height of the images.
        width: Width of the images.
        size: Side of the kernel.
        stride: Distance in pixels between neighbouring outputs.
        padding: Number of zeros on each side of the images.
        rounded: Whether operands of matrix products are rounded to bfloat16. Sums keep the dtype of the images.
    """

    height: int
    width: int
    size: int
    stride: int
    padding: int
    rounded: bool = False


def output_sides(geometry: Geometry) -> tuple[int, int]:
    """Return the height and width of the output of a convolution.

    >>> output_sides(Geometry(28, 28, size=3, stride=2, padding=1))
    (14, 14)
    """
    reach = geometry.size - 2 * geometry.padding
    return (geometry.height - reach) // geometry.stride + 1, (geometry.width - reach) // geometry.stride + 1


def images_like(output: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.ShapeDtypeStruct:
    """Return the shape and dtype of the images of a convolution, from its output and its kernel."""
    return jax.ShapeDtypeStruct((output.shape[0], geometry.height, geometry.width, kernel.shape[2]), output.dtype)


def operand(x: jax.Array, geometry: Geometry) -> jax.Array:
    """Return an operand of a matrix product, rounded to bfloat16 if `geometry.rounded`."""
    return x.astype(jnp.bfloat16) if geometry.rounded else x


def padded(images: jax.Array, geometry: Geometry) -> jax.Array:
    """Return the images with `geometry.padding` zeros on each side."""
    padding = (geometry.padding, geometry.padding)
    return jnp.pad(images, ((0, 0), padding, padding, (0, 0)))


def reversed_kernel(kernel: jax.Array) -> jax.Array:
    """Return the kernel that, convolved with the output's cotangent, gives the cotangent of the images, at stride 1."""
    # The barrier keeps XLA from folding the transpose into a layout of the kernel that its fast path does not support.
    return lax.optimization_barrier(kernel[::-1, ::-1].transpose(0, 1, 3, 2))


def reversed_padding(size: int, padding: int) -> int:
    """Return the padding for the convolution of the output's cotangent with the reversed kernel."""
    return size - 1 - padding


def transposed(rows: jax.Array, dtype: DTypeLike | None = None) -> jax.Array:
    """Transpose `[n, channels]` to `[channels, n]`, with dtype `dtype` if it is set.

    The transpose is a matrix product with the identity. On a CPU a matrix product is faster than XLA's transpose, which
    XLA would also repeat for each copy of the result.

    >>> transposed(jnp.array([[1.0, 2.0], [3.0, 4.0]])).tolist()
    [[1.0, 3.0], [2.0, 4.0]]
    """
    return jnp.matmul(jnp.eye(rows.shape[-1], dtype=rows.dtype), rows.T, preferred_element_type=dtype or rows.dtype)


def as_integers(move: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Return `move(x)`, for a function `move` that only copies values. bfloat16 values are copied as integers.

    Without this, XLA for CPUs converts bfloat16 values to float32 and back while it copies them.
    """
    if x.dtype != jnp.bfloat16:
        return move(x)
    return lax.bitcast_convert_type(move(lax.bitcast_convert_type(x, jnp.uint16)), jnp.bfloat16)
