"""The kernel's cotangent of a convolution at stride 1, from shifted copies in place of windows.

Of an example it is `kernel[i, j] = sum over y, x of image[y + i, x + j] * output[y, x]`. Windows copy each pixel for
each weight of the kernel. Here the images are shifted by `j` only, and the output by `i` in the other direction: for
nine weights that are six copies, and one product, `[size * out, positions] @ [positions, size * in]`.
"""

import jax
import jax.numpy as jnp
from jax import lax

from metajax.blocks import sum_blocks
from metajax.models.windows import Geometry, as_integers, operand, output_sides, padded, turned


def kernel_by_shifts(images: jax.Array, output: jax.Array, geometry: Geometry, block: int) -> jax.Array:
    """The kernel's cotangent from the output's, in float32 at least.

    A value of the output's cotangent that is not finite spoils the kernels of all outputs, not of its own alone: the
    cotangent is turned by a product.

    Args:
        images: `[examples, height, width, in]`.
        output: `[examples, height', width', out]`.
        geometry: Of the convolution; its stride is 1.
        block: Examples at once, a divisor of all.

    Returns:
        `[size, size, in, out]`.

    >>> import jax.numpy as jnp
    >>> sizes = Geometry(4, 5, size=3, stride=1, padding=0)
    >>> kernel_by_shifts(jnp.ones((2, 4, 5, 2)), jnp.ones((2, 2, 3, 7)), sizes, block=1)[:, :, 0, 0].tolist()
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
    """`[size * out, positions]`: `[examples, height', width', out]` shifted down by each row of a kernel, in zeros."""
    size, (height, width) = geometry.size, output_sides(geometry)
    y = operand(lax.collapse(output, 0, 3), geometry)
    x = turned(y, output.dtype).reshape(output.shape[-1], len(output), height * width)
    shifted = [jnp.pad(x, ((0, 0), (0, 0), (i * width, (size - 1 - i) * width))) for i in range(size)]
    return lax.collapse(operand(jnp.concatenate(shifted), geometry), 1)


def _columns(images: jax.Array, geometry: Geometry) -> jax.Array:
    """`[positions, size * in]`: images `[examples, height, width, in]` shifted left by each column of a kernel."""

    def shift(images: jax.Array) -> jax.Array:
        x, width = padded(images, geometry), output_sides(geometry)[1]
        return jnp.concatenate([x[:, :, j : j + width] for j in range(geometry.size)], axis=-1)

    # A barrier keeps the compiler from rounding again for each shift.
    shifted = as_integers(shift, lax.optimization_barrier(operand(images, geometry)))
    return lax.collapse(shifted, 0, 3)
