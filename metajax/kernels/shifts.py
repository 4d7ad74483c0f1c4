"""Compute the cotangent of a convolution's kernel at stride 1 from shifted copies instead of im2col patches.

For one example, `kernel[i, j] = sum over y, x of image[y + i, x + j] * output[y, x]`. im2col copies each pixel once for
each weight of the kernel. Here the images are shifted only by `j`, and the output by `i` in the other direction. For a
3 × 3 kernel this makes six copies instead of nine, and one matrix product,
`[size * out, positions] @ [positions, size * in]`.
"""

import jax
import jax.numpy as jnp
from jax import lax

from metajax.core.blocks import sum_blocks
from metajax.kernels.geometry import Geometry, as_integers, operand, output_sides, padded, transposed


def kernel_cotangent(images: jax.Array, output: jax.Array, geometry: Geometry, *, block: int) -> jax.Array:
    """Compute the cotangent of the kernel from the cotangent of the output, in at least float32.

    A non-finite value in the cotangent of one output channel makes the result non-finite for all output channels,
    because the cotangent is transposed by a matrix product.

    Args:
        images: `[examples, height, width, in]`.
        output: The cotangent of the output, `[examples, height', width', out]`.
        geometry: Sizes of the convolution; its stride must be 1.
        block: Number of examples that are processed at once, a divisor of the number of examples.

    Returns:
        `[size, size, in, out]`.

    >>> import jax.numpy as jnp
    >>> sizes = Geometry(4, 5, size=3, stride=1, padding=0)
    >>> kernel_cotangent(jnp.ones((2, 4, 5, 2)), jnp.ones((2, 2, 3, 7)), sizes, block=1)[:, :, 0, 0].tolist()
    [[12.0, 12.0, 12.0], [12.0, 12.0, 12.0], [12.0, 12.0, 12.0]]
    """
    size, channels, features = geometry.size, images.shape[-1], output.shape[-1]
    dtype = jnp.promote_types(images.dtype, jnp.float32)

    def products(images: jax.Array, output: jax.Array) -> jax.Array:
        rows, columns = _rows(output, geometry), _columns(images, geometry)
        return jnp.matmul(rows, columns, preferred_element_type=dtype)

    kernel = sum_blocks(products, images, output, block=block)
    return kernel.reshape(size, features, size, channels).transpose(0, 2, 3, 1)


def _rows(output: jax.Array, geometry: Geometry) -> jax.Array:
    """Shift `[examples, height', width', out]` down by each row index of a kernel: `[size * out, positions]`."""
    size, (height, width) = geometry.size, output_sides(geometry)
    y = operand(lax.collapse(output, 0, 3), geometry)
    x = transposed(y, output.dtype).reshape(output.shape[-1], len(output), height * width)
    shifted = [jnp.pad(x, ((0, 0), (0, 0), (i * width, (size - 1 - i) * width))) for i in range(size)]
    return lax.collapse(operand(jnp.concatenate(shifted), geometry), 1)


def _columns(images: jax.Array, geometry: Geometry) -> jax.Array:
    """Shift `[examples, height, width, in]` left by each column index of a kernel: `[positions, size * in]`."""

    def shift(images: jax.Array) -> jax.Array:
        x, width = padded(images, geometry), output_sides(geometry)[1]
        return jnp.concatenate([x[:, :, j : j + width] for j in range(geometry.size)], axis=-1)

    # The barrier keeps XLA from rounding the images once for each shift.
    shifted = as_integers(shift, lax.optimization_barrier(operand(images, geometry)))
    return lax.collapse(shifted, 0, 3)
