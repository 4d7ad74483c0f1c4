"""Compute 3 × 3 convolutions by Winograd's minimal filtering: 16 multiplications for 4 outputs instead of 36.

The output is divided into tiles of 2 × 2. The input transform maps the 4 × 4 pixels of a tile's receptive field to 16
sums, and the filter transform maps the kernel to 16 matrices. Each sum is multiplied by one matrix, over the channels.
The output transform adds the products to give the tile's 4 outputs.

Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (arXiv 1509.09308), F(2×2, 3×3).
"""

import jax
import jax.numpy as jnp
from jax import lax

from metajax.core.blocks import map_blocks, sum_blocks
from metajax.kernels.geometry import Geometry, operand, reversed_kernel, reversed_padding, transposed


def forward(images: jax.Array, kernel: jax.Array, geometry: Geometry, *, block: int) -> jax.Array:
    """Compute the output of a convolution with a 3 × 3 kernel at stride 1.

    With `geometry.rounded`, the transformed images and kernel are rounded, because they are the operands of the matrix
    products.

    Args:
        images: `[examples, height, width, in]`.
        kernel: `[3, 3, in, out]`.
        geometry: Sizes of the convolution.
        block: Number of examples that are processed at once, a divisor of the number of examples.

    Returns:
        `[examples, height', width', out]`.

    >>> import jax.numpy as jnp
    >>> sizes = Geometry(4, 5, size=3, stride=1, padding=0)
    >>> forward(jnp.ones((1, 4, 5, 2)), jnp.ones((3, 3, 2, 7)), sizes, block=1)[0, :, :, 0].tolist()
    [[18.0, 18.0, 18.0], [18.0, 18.0, 18.0]]
    """
    return map_blocks(lambda images: _forward(images, kernel, geometry), images, block=block)


def input_cotangent(output: jax.Array, kernel: jax.Array, geometry: Geometry, *, block: int) -> jax.Array:
    """Compute the cotangent of the images, by a convolution of the output's cotangent with the reversed kernel.

    Args:
        output: The cotangent of the output, `[examples, height', width', out]`.
        kernel: `[3, 3, in, out]`.
        geometry: Sizes of the convolution; its padding must be at most 2.
        block: Number of examples that are processed at once, a divisor of the number of examples.

    Returns:
        `[examples, height, width, in]`.
    """
    sizes = geometry._replace(
        height=output.shape[1], width=output.shape[2], padding=reversed_padding(geometry.size, geometry.padding)
    )
    return forward(output, reversed_kernel(kernel), sizes, block=block)


def kernel_cotangent(images: jax.Array, output: jax.Array, geometry: Geometry, *, block: int) -> jax.Array:
    """Compute the cotangent of the kernel from the cotangent of the output, the transpose of `forward`.

    A non-finite value in the cotangent of one output channel makes the result non-finite for all output channels,
    because the cotangent is transposed by a matrix product.

    Args:
        images: `[examples, height, width, in]`.
        output: The cotangent of the output, `[examples, height', width', out]`, with the dtype of the images.
        geometry: Sizes of the convolution.
        block: Number of examples that are processed at once, a divisor of the number of examples.

    Returns:
        `[3, 3, in, out]`.

    >>> import jax.numpy as jnp
    >>> images, output, sizes = jnp.ones((2, 4, 5, 2)), jnp.ones((2, 2, 3, 7)), Geometry(4, 5, 3, 1, padding=0)
    >>> kernel_cotangent(images, output, sizes, block=1)[:, :, 0, 0].tolist()
    [[12.0, 12.0, 12.0], [12.0, 12.0, 12.0], [12.0, 12.0, 12.0]]
    """
    _, height, width, features = output.shape
    rows, columns = -(-height // 2), -(-width // 2)

    def products(images: jax.Array, output: jax.Array) -> jax.Array:
        x = jnp.pad(output, ((0, 0), (0, 2 * rows - height), (0, 2 * columns - width), (0, 0)))
        x = x.reshape(-1, 2, columns, 2, features)
        # transpose four arrays before the transform, not the sixteen arrays that result from it
        (a, b), (c, d) = ([transposed(x[:, i, :, j].reshape(-1, features)) for j in range(2)] for i in range(2))
        lines = zip(output_transform_transpose(a, c), output_transform_transpose(b, d), strict=True)
        outputs = [sums for line in lines for sums in output_transform_transpose(*line)]
        pixels = [sums.reshape(-1, sums.shape[-1]) for sums in _pixels(images, geometry.padding, rows, columns)]
        return jnp.stack([jnp.matmul(*pair) for pair in zip(outputs, pixels, strict=True)])

    totals = sum_blocks(products, images, output, block=block)
    lines = [filter_transform_transpose(*line) for line in totals.reshape(4, 4, *totals.shape[1:])]
    kernel = [filter_transform_transpose(*column) for column in zip(*lines, strict=True)]
    return jnp.array([[kernel[j][i].T for j in range(3)] for i in range(3)])


def input_transform(x: jax.Array, axis: int, tiles: int) -> tuple[jax.Array, ...]:
    """Apply the input transform along one axis. Receptive fields of tiles have 4 pixels and overlap by 2."""
    a, b, c, d = (lax.slice_in_dim(x, i, i + 2 * tiles - 1, 2, axis) for i in range(4))
    return a - c, b + c, c - b, b - d


def filter_transform(kernel: jax.Array) -> tuple[jax.Array, ...]:
    """Apply the filter transform along the first axis of a kernel."""
    a, b, c = kernel
    return a, (a + b + c) / 2, (a - b + c) / 2, c


def filter_transform_transpose(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> tuple[jax.Array, ...]:
    """Apply the transpose of the filter transform."""
    return a + (b + c) / 2, (b - c) / 2, (b + c) / 2 + d


def output_transform(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Apply the output transform along one axis of the tiles."""
    return a + b + c, b - c - d


def output_transform_transpose(a: jax.Array, b: jax.Array) -> tuple[jax.Array, ...]:
    """Apply the transpose of the output transform."""
    return a, a + b, a - b, -b


def _forward(images: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Compute the output of a convolution for one block of examples."""
    height, width = (side + 2 * geometry.padding - 2 for side in images.shape[1:3])
    rows, columns = -(-height // 2), -(-width // 2)
    kernels = [matrix for line in filter_transform(kernel) for matrix in filter_transform(line)]
    pixels = _pixels(images, geometry.padding, rows, columns)
    products = [_product(*pair, geometry) for pair in zip(pixels, kernels, strict=True)]
    left, right = zip(*(output_transform(*products[line : line + 4]) for line in range(0, 16, 4)), strict=True)
    lines = zip(output_transform(*left), output_transform(*right), strict=True)
    tiles = jnp.stack([jnp.stack(line, axis=3) for line in lines], axis=2)
    return tiles.reshape(images.shape[0], 2 * rows, 2 * columns, kernel.shape[-1])[:, :height, :width]


def _pixels(images: jax.Array, padding: int, rows: int, columns: int) -> list[jax.Array]:
    """Apply the input transform along both axes: 16 arrays `[examples, rows, columns, in]`."""
    beyond = [
        (padding, 2 * count + 2 - side - padding)
        for count, side in zip((rows, columns), images.shape[1:3], strict=True)
    ]
    x = jnp.pad(images, [(0, 0), *beyond, (0, 0)])
    return [sums for line in input_transform(x, 1, rows) for sums in input_transform(line, 2, columns)]


def _product(a: jax.Array, b: jax.Array, geometry: Geometry) -> jax.Array:
    return jnp.matmul(operand(a, geometry), operand(b, geometry), preferred_element_type=a.dtype)
