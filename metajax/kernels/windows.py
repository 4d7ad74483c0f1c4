"""Extract im2col patches with few copies. A patch has the pixels that the kernel multiplies for one output pixel."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

_FEW_COLUMNS = 16
"""Largest width of an output for which patches are extracted by rows. Each column adds an operation to the program."""
_ROW_CHANNELS = 16
"""Smallest number of input channels for extraction by rows. With fewer channels the copied pieces are too short."""


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


def operand(x: jax.Array, geometry: Geometry) -> jax.Array:
    """Return an operand of a matrix product, rounded to bfloat16 if `geometry.rounded`."""
    return x.astype(jnp.bfloat16) if geometry.rounded else x


def transposed(rows: jax.Array, dtype: DTypeLike | None = None) -> jax.Array:
    """Transpose `[n, channels]` to `[channels, n]`, with dtype `dtype` if it is set.

    The transpose is a matrix product with the identity. On a CPU a matrix product is faster than XLA's transpose, which
    XLA would also repeat for each copy of the result.

    >>> transposed(jnp.array([[1.0, 2.0], [3.0, 4.0]])).tolist()
    [[1.0, 3.0], [2.0, 4.0]]
    """
    return jnp.matmul(jnp.eye(rows.shape[-1], dtype=rows.dtype), rows.T, preferred_element_type=dtype or rows.dtype)


def padded(images: jax.Array, geometry: Geometry) -> jax.Array:
    """Return the images with `geometry.padding` zeros on each side."""
    padding = (geometry.padding, geometry.padding)
    return jnp.pad(images, ((0, 0), padding, padding, (0, 0)))


def as_integers(move: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Return `move(x)`, for a function `move` that only copies values. bfloat16 values are copied as integers.

    Without this, XLA for CPUs converts bfloat16 values to float32 and back while it copies them.
    """
    if x.dtype != jnp.bfloat16:
        return move(x)
    return lax.bitcast_convert_type(move(lax.bitcast_convert_type(x, jnp.uint16)), jnp.bfloat16)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def windows(images: jax.Array, geometry: Geometry) -> jax.Array:
    """Return the im2col patches of `[examples, h, w, c]`, `[examples, h', w', size * size * c]`.

    The last axis has the order of a kernel's axes.
    """
    fits = geometry.size > 1 and images.shape[-1] >= _ROW_CHANNELS and output_sides(geometry)[1] <= _FEW_COLUMNS
    cut = _by_rows if fits and jax.default_backend() == "cpu" else windows_by_pixels
    return as_integers(lambda images: cut(images, geometry), images)


@windows.defjvp
def _windows_jvp(geometry, primals, tangents):  # integers have no derivative, and that of `_by_rows` is slow
    (images,), (along,) = primals, tangents
    return windows(images, geometry), windows_by_pixels(along, geometry)


def windows_by_pixels(images: jax.Array, geometry: Geometry) -> jax.Array:
    """Return the im2col patches as concatenated slices of the images, a form whose transpose is fast."""
    return jnp.concatenate(_shifted(padded(images, geometry), geometry, axis=1), axis=-1)


def _by_rows(images: jax.Array, geometry: Geometry) -> jax.Array:
    """Return the im2col patches in two copies: rows that neighbouring patches share, then segments of these rows.

    A segment is longer than a pixel, so the second copy is faster than one that copies pixels.
    """
    size, stride, channels = geometry.size, geometry.stride, images.shape[-1]
    height, width = output_sides(geometry)
    x = padded(images, geometry)
    x = x.reshape(*x.shape[:2], x.shape[2] * channels)
    rows = jnp.stack([x[:, i : i + (height - 1) * stride + 1 : stride] for i in range(size)], axis=2)
    starts = [column * stride * channels for column in range(width)]
    columns = jnp.stack([rows[..., start : start + size * channels] for start in starts], axis=2)
    return columns.reshape(*columns.shape[:3], size**2 * channels)


def windows_channels_first(images: jax.Array, geometry: Geometry) -> jax.Array:
    """Return the transposed im2col patches, `[size * size * c, examples * h' * w']`.

    With few channels, a row of one channel is a longer piece to copy than a pixel.
    """
    # The barriers keep XLA from copying one pixel at a time.
    x = lax.optimization_barrier(padded(images, geometry).transpose(3, 0, 1, 2))
    rows = jnp.concatenate(_shifted(x, geometry, axis=2))
    return lax.optimization_barrier(rows.reshape(rows.shape[0], -1))


def _shifted(images: jax.Array, geometry: Geometry, axis: int) -> list[jax.Array]:
    """Return, for each weight of a kernel, the pixels that it multiplies. `axis` is the row axis of padded images."""
    size, stride = geometry.size, geometry.stride
    rows, columns = ((side - 1) * stride + 1 for side in output_sides(geometry))
    before = (slice(None),) * axis
    return [
        images[(*before, slice(i, i + rows, stride), slice(j, j + columns, stride))]
        for i in range(size)
        for j in range(size)
    ]
