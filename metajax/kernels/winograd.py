"""Compute 3 × 3 convolutions by Winograd's minimal filtering: 16 multiplications for 4 outputs instead of 36.

The output is divided into tiles of 2 × 2. The input transform maps the 4 × 4 pixels of a tile's receptive field to 16
sums, and the filter transform maps the kernel to 16 matrices. Each sum is multiplied by one matrix, over the channels.
The output transform adds the products to give the tile's 4 outputs.

Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (arXiv 1509.09308), F(2×2, 3×3).
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from metajax.core.blocks import sum_blocks
from metajax.kernels.windows import transposed


def convolve_tiles(
    images: jax.Array, kernel: jax.Array, *, padding: int, product_dtype: DTypeLike | None = None
) -> jax.Array:
    """Compute a convolution with a 3 × 3 kernel at stride 1 by Winograd tiles.

    Args:
        images: `[examples, height, width, in]`.
        kernel: `[3, 3, in, out]`.
        padding: Zeros on each side.
        product_dtype: Dtype of the operands of matrix products. Default: the dtype of the images. Sums keep the dtype
            of the images.

    Returns:
        `[examples, height + 2 * padding - 2, width + 2 * padding - 2, out]`.

    >>> import jax.numpy as jnp
    >>> convolve_tiles(jnp.ones((1, 4, 5, 2)), jnp.ones((3, 3, 2, 7)), padding=0)[0, :, :, 0].tolist()
    [[18.0, 18.0, 18.0], [18.0, 18.0, 18.0]]
    """
    height, width = (side + 2 * padding - 2 for side in images.shape[1:3])
    rows, columns = -(-height // 2), -(-width // 2)
    kernels = [sums for line in _of_kernel(kernel) for sums in _of_kernel(line)]
    pixels = _pixels(images, padding, rows, columns)
    products = [_product(*pair, product_dtype) for pair in zip(pixels, kernels, strict=True)]
    left, right = zip(*(_of_products(*products[line : line + 4]) for line in range(0, 16, 4)), strict=True)
    lines = zip(_of_products(*left), _of_products(*right), strict=True)
    tiles = jnp.stack([jnp.stack(line, axis=3) for line in lines], axis=2)
    return tiles.reshape(images.shape[0], 2 * rows, 2 * columns, kernel.shape[-1])[:, :height, :width]


def kernel_cotangent(images: jax.Array, output: jax.Array, *, padding: int, block: int) -> jax.Array:
    """Compute the cotangent of the kernel from the cotangent of the output, the transpose of `convolve_tiles`.

    A non-finite value in the cotangent of one output channel makes the result non-finite for all output channels,
    because the cotangent is transposed by a matrix product.

    Args:
        images: `[examples, height, width, in]`.
        output: The cotangent of the output, `[examples, height + 2 * padding - 2, width + 2 * padding - 2, out]`, with
            the dtype of the images.
        padding: Number of zeros on each side of the images.
        block: Number of examples that are processed at once, a divisor of the number of examples.

    Returns:
        `[3, 3, in, out]`.

    >>> import jax.numpy as jnp
    >>> images, output = jnp.ones((2, 4, 5, 2)), jnp.ones((2, 2, 3, 7))
    >>> kernel_cotangent(images, output, padding=0, block=1)[:, :, 0, 0].tolist()
    [[12.0, 12.0, 12.0], [12.0, 12.0, 12.0], [12.0, 12.0, 12.0]]
    """
    _, height, width, features = output.shape
    rows, columns = -(-height // 2), -(-width // 2)

    def products(images: jax.Array, output: jax.Array) -> jax.Array:
        x = jnp.pad(output, ((0, 0), (0, 2 * rows - height), (0, 2 * columns - width), (0, 0)))
        x = x.reshape(-1, 2, columns, 2, features)
        # transpose four arrays before the transform, not the sixteen arrays that result from it
        (a, b), (c, d) = ([transposed(x[:, i, :, j].reshape(-1, features)) for j in range(2)] for i in range(2))
        lines = zip(_of_outputs(a, c), _of_outputs(b, d), strict=True)
        outputs = [sums for line in lines for sums in _of_outputs(*line)]
        pixels = [sums.reshape(-1, sums.shape[-1]) for sums in _pixels(images, padding, rows, columns)]
        return jnp.stack([jnp.matmul(*pair) for pair in zip(outputs, pixels, strict=True)])

    totals = sum_blocks(products, images, output, block=block)
    lines = [_to_kernel(*line) for line in totals.reshape(4, 4, *totals.shape[1:])]
    kernel = [_to_kernel(*column) for column in zip(*lines, strict=True)]
    return jnp.array([[kernel[j][i].T for j in range(3)] for i in range(3)])


def _pixels(images: jax.Array, padding: int, rows: int, columns: int) -> list[jax.Array]:
    """Compute the Winograd input transform: 16 arrays `[examples, rows, columns, in]`."""
    beyond = [
        (padding, 2 * count + 2 - side - padding)
        for count, side in zip((rows, columns), images.shape[1:3], strict=True)
    ]
    x = jnp.pad(images, [(0, 0), *beyond, (0, 0)])
    return [sums for line in _of_images(x, 1, rows) for sums in _of_images(line, 2, columns)]


def _product(a: jax.Array, b: jax.Array, product_dtype: DTypeLike | None) -> jax.Array:
    dtype = a.dtype if product_dtype is None else product_dtype
    return jnp.matmul(a.astype(dtype), b.astype(dtype), preferred_element_type=a.dtype)


def _of_images(x: jax.Array, axis: int, tiles: int) -> tuple[jax.Array, ...]:
    """Apply the input transform along one axis. Receptive fields of tiles have 4 pixels and overlap by 2."""
    a, b, c, d = (lax.slice_in_dim(x, i, i + 2 * tiles - 1, 2, axis) for i in range(4))
    return a - c, b + c, c - b, b - d


def _of_kernel(kernel: jax.Array) -> tuple[jax.Array, ...]:
    """Apply the filter transform along the first axis of a kernel."""
    a, b, c = kernel
    return a, (a + b + c) / 2, (a - b + c) / 2, c


def _of_products(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Apply the output transform along one axis of the tiles."""
    return a + b + c, b - c - d


def _of_outputs(a: jax.Array, b: jax.Array) -> tuple[jax.Array, ...]:
    """Apply the transpose of the output transform, `_of_products`."""
    return a, a + b, a - b, -b


def _to_kernel(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> tuple[jax.Array, ...]:
    """Apply the transpose of the filter transform, `_of_kernel`."""
    return a + (b + c) / 2, (b - c) / 2, (b + c) / 2 + d
