"""Windows of images, which a convolution multiplies with its kernel, and how they are cut fast."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

_FEW_COLUMNS = 16
"""Columns of an output up to which windows are cut from rows: each column is an operation of the program."""
_ROW_CHANNELS = 16
"""Channels of images from which they are: pieces of rows of few are as short as pixels of many, and slower to copy."""


class Geometry(NamedTuple):
    """Sizes of a convolution.

    Attributes:
        height: Of the images.
        width: Of the images.
        size: Side of the kernel.
        stride: Step between outputs.
        padding: Zeros on each side.
        rounded: Whether operands of matrix products are rounded to bfloat16; sums are kept in their own type.
    """

    height: int
    width: int
    size: int
    stride: int
    padding: int
    rounded: bool = False


def output_sides(geometry: Geometry) -> tuple[int, int]:
    """Height and width of the output.

    >>> output_sides(Geometry(28, 28, size=3, stride=2, padding=1))
    (14, 14)
    """
    reach = geometry.size - 2 * geometry.padding
    return (geometry.height - reach) // geometry.stride + 1, (geometry.width - reach) // geometry.stride + 1


def operand(x: jax.Array, geometry: Geometry) -> jax.Array:
    """An operand of a product, rounded if it is to be."""
    return x.astype(jnp.bfloat16) if geometry.rounded else x


def turned(rows: jax.Array, dtype: DTypeLike | None = None) -> jax.Array:
    """`[n, channels]` as `[channels, n]`, of a type of its own if one is given.

    By a product with the identity: libraries for products turn a matrix faster than compilers for a CPU, which would
    turn each copy that is made of it.

    >>> turned(jnp.array([[1.0, 2.0], [3.0, 4.0]])).tolist()
    [[1.0, 3.0], [2.0, 4.0]]
    """
    return jnp.matmul(jnp.eye(rows.shape[-1], dtype=rows.dtype), rows.T, preferred_element_type=dtype or rows.dtype)


def padded(images: jax.Array, geometry: Geometry) -> jax.Array:
    """Images with the zeros around them."""
    padding = (geometry.padding, geometry.padding)
    return jnp.pad(images, ((0, 0), padding, padding, (0, 0)))


def as_integers(move: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Move values, those of bfloat16 as integers: compilers for a CPU would convert them to float32 and back."""
    if x.dtype != jnp.bfloat16:
        return move(x)
    return lax.bitcast_convert_type(move(lax.bitcast_convert_type(x, jnp.uint16)), jnp.bfloat16)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def windows(images: jax.Array, geometry: Geometry) -> jax.Array:
    """Windows of `[examples, h, w, c]` as `[examples, h', w', size * size * c]`, in the order of a kernel's axes."""
    fits = geometry.size > 1 and images.shape[-1] >= _ROW_CHANNELS and output_sides(geometry)[1] <= _FEW_COLUMNS
    cut = _by_rows if fits and jax.default_backend() == "cpu" else windows_by_pixels
    return as_integers(lambda images: cut(images, geometry), images)


@windows.defjvp
def _windows_jvp(geometry, primals, tangents):  # integers have no derivative, and rows have a slow one
    (images,), (along,) = primals, tangents
    return windows(images, geometry), windows_by_pixels(along, geometry)


def windows_by_pixels(images: jax.Array, geometry: Geometry) -> jax.Array:
    """The same, in the form whose transpose is fast."""
    return jnp.concatenate(_shifted(padded(images, geometry), geometry, axis=1), axis=-1)


def _by_rows(images: jax.Array, geometry: Geometry) -> jax.Array:
    """First the rows that windows share, then their columns: longer pieces to copy than pixels, of few columns."""
    size, stride, channels = geometry.size, geometry.stride, images.shape[-1]
    height, width = output_sides(geometry)
    x = padded(images, geometry)
    x = x.reshape(*x.shape[:2], x.shape[2] * channels)
    rows = jnp.stack([x[:, i : i + (height - 1) * stride + 1 : stride] for i in range(size)], axis=2)
    starts = [column * stride * channels for column in range(width)]
    columns = jnp.stack([rows[..., start : start + size * channels] for start in starts], axis=2)
    return columns.reshape(*columns.shape[:3], size**2 * channels)


def windows_channels_first(images: jax.Array, geometry: Geometry) -> jax.Array:
    """`[size * size * c, examples * h' * w']`: a row of one channel is a longer piece to copy than a pixel of few."""
    # Barriers keep the compiler from copying a pixel at a time after all.
    x = lax.optimization_barrier(padded(images, geometry).transpose(3, 0, 1, 2))
    rows = jnp.concatenate(_shifted(x, geometry, axis=2))
    return lax.optimization_barrier(rows.reshape(rows.shape[0], -1))


def _shifted(images: jax.Array, geometry: Geometry, axis: int) -> list[jax.Array]:
    """What each weight of a kernel meets, of padded images whose rows lie along an axis and columns along the next."""
    size, stride = geometry.size, geometry.stride
    rows, columns = ((side - 1) * stride + 1 for side in output_sides(geometry))
    before = (slice(None),) * axis
    return [
        images[(*before, slice(i, i + rows, stride), slice(j, j + columns, stride))]
        for i in range(size)
        for j in range(size)
    ]
