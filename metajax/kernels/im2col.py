"""Compute convolutions as matrix products of im2col patches. A patch has the pixels that one output pixel depends on.

With per-task kernels, `vmap` converts the matrix product into a batched matrix product, which is fast on every device.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from metajax.core.blocks import map_blocks, sum_blocks
from metajax.kernels.geometry import Geometry, as_integers, images_like, operand, output_sides, padded


def forward(
    images: jax.Array, kernel: jax.Array, geometry: Geometry, *, block: int, by_rows: bool = False
) -> jax.Array:
    """Compute the output of a convolution, in blocks of examples whose patches stay in the cache.

    Args:
        images: `[examples, height, width, in]`.
        kernel: `[size, size, in, out]`.
        geometry: Sizes of the convolution.
        block: Number of examples that are processed at once, a divisor of the number of examples.
        by_rows: Whether `patches_by_rows` extracts the patches.

    Returns:
        `[examples, height', width', out]`.

    >>> import jax.numpy as jnp
    >>> sizes = Geometry(4, 5, size=3, stride=1, padding=0)
    >>> forward(jnp.ones((1, 4, 5, 2)), jnp.ones((3, 3, 2, 7)), sizes, block=1)[0, :, :, 0].tolist()
    [[18.0, 18.0, 18.0], [18.0, 18.0, 18.0]]
    """
    matrix = _matrix(kernel, geometry)

    def products(images: jax.Array) -> jax.Array:
        rows = patches(operand(images, geometry), geometry, by_rows=by_rows)
        return jnp.matmul(rows, matrix, preferred_element_type=images.dtype)

    return map_blocks(products, images, block=block)


def input_cotangent(output: jax.Array, kernel: jax.Array, geometry: Geometry, *, block: int) -> jax.Array:
    """Compute the cotangent of the images from the cotangent of the output.

    Args:
        output: The cotangent of the output, `[examples, height', width', out]`.
        kernel: `[size, size, in, out]`.
        geometry: Sizes of the convolution.
        block: Number of examples that are processed at once, a divisor of the number of examples.

    Returns:
        `[examples, height, width, in]`.

    >>> import jax.numpy as jnp
    >>> sizes = Geometry(3, 4, size=3, stride=1, padding=0)
    >>> input_cotangent(jnp.ones((1, 1, 2, 7)), jnp.ones((3, 3, 2, 7)), sizes, block=1)[0, 0, :, 0].tolist()
    [7.0, 14.0, 14.0, 7.0]
    """
    matrix = _matrix(kernel, geometry)

    def products(output: jax.Array) -> jax.Array:
        to_images = jax.linear_transpose(
            lambda images: _slices(images, geometry), images_like(output, kernel, geometry)
        )
        rows = operand(lax.collapse(output, 0, 3), geometry)  # XLA of JAX 0.8 rounds only operands with two axes
        cotangents = jnp.matmul(rows, matrix.T, preferred_element_type=output.dtype)
        return to_images(cotangents.reshape(*output.shape[:-1], len(matrix)))[0]

    return map_blocks(products, output, block=block)


def kernel_cotangent(
    images: jax.Array, output: jax.Array, geometry: Geometry, *, block: int, by_rows: bool = False
) -> jax.Array:
    """Compute the cotangent of the kernel from the cotangent of the output, in at least float32.

    Args:
        images: `[examples, height, width, in]`.
        output: The cotangent of the output, `[examples, height', width', out]`.
        geometry: Sizes of the convolution.
        block: Number of examples that are processed at once, a divisor of the number of examples.
        by_rows: Whether `patches_by_rows` extracts the patches.

    Returns:
        `[size, size, in, out]`, in float32 or float64, because half precision is inaccurate in long sums.

    >>> import jax.numpy as jnp
    >>> sizes = Geometry(4, 5, size=3, stride=1, padding=0)
    >>> kernel_cotangent(jnp.ones((2, 4, 5, 2)), jnp.ones((2, 2, 3, 7)), sizes, block=1)[:, :, 0, 0].tolist()
    [[12.0, 12.0, 12.0], [12.0, 12.0, 12.0], [12.0, 12.0, 12.0]]
    """
    shape = (geometry.size, geometry.size, images.shape[-1], output.shape[-1])
    einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.promote_types(images.dtype, jnp.float32))

    def products(images: jax.Array, output: jax.Array) -> jax.Array:
        rows, cotangent = patches(operand(images, geometry), geometry, by_rows=by_rows), operand(output, geometry)
        # XLA copies the transpose of the first operand, so the smaller operand is the first. The barrier keeps XLA from
        # exchanging the operands.
        if rows.shape[-1] < cotangent.shape[-1]:
            return einsum("bhwk,bhwo->ko", rows, cotangent).reshape(shape)
        return lax.optimization_barrier(einsum("bhwo,bhwk->ok", cotangent, rows)).T.reshape(shape)

    return sum_blocks(products, images, output, block=block)


def patches(images: jax.Array, geometry: Geometry, *, by_rows: bool = False) -> jax.Array:
    """Return the im2col patches of `[examples, h, w, c]`, `[examples, h', w', size * size * c]`.

    The last axis has the order of a kernel's axes.

    Args:
        images: The images.
        geometry: Sizes of the convolution.
        by_rows: Whether to copy rows that neighbouring patches share, and then segments of these rows. A segment is
            longer than a pixel, so the second copy is faster than one that copies pixels.
    """
    extract = _by_rows if by_rows else _slices
    return as_integers(lambda images: extract(images, geometry), images)


def _matrix(kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Return the matrix `[size * size * in, out]` by which patches are multiplied."""
    return operand(kernel.reshape(-1, kernel.shape[-1]), geometry)


def _slices(images: jax.Array, geometry: Geometry) -> jax.Array:
    """Return the im2col patches as concatenated slices of the images, one for each weight of a kernel.

    The transpose of this function is fast, too.
    """
    x, size, stride = padded(images, geometry), geometry.size, geometry.stride
    rows, columns = ((side - 1) * stride + 1 for side in output_sides(geometry))
    slices = [x[:, i : i + rows : stride, j : j + columns : stride] for i in range(size) for j in range(size)]
    return jnp.concatenate(slices, axis=-1)


def _by_rows(images: jax.Array, geometry: Geometry) -> jax.Array:
    """Return the im2col patches in two copies: rows that neighbouring patches share, then segments of these rows."""
    size, stride, channels = geometry.size, geometry.stride, images.shape[-1]
    height, width = output_sides(geometry)
    x = padded(images, geometry)
    x = x.reshape(*x.shape[:2], x.shape[2] * channels)
    rows = jnp.stack([x[:, i : i + (height - 1) * stride + 1 : stride] for i in range(size)], axis=2)
    starts = [column * stride * channels for column in range(width)]
    columns = jnp.stack([rows[..., start : start + size * channels] for start in starts], axis=2)
    return columns.reshape(*columns.shape[:3], size**2 * channels)
