"""Compute convolutions that are fast in derivatives of any order, for one task or for many with per-task weights.

A convolution is one primitive with three roles: the output, the cotangent of the images and the cotangent of the
kernel. Second derivatives are therefore convolutions in forms that XLA compiles well. JAX's own second derivatives have
forms that run ten times slower. On a CPU each role chooses among these algorithms:

- Output and cotangent of the images: Winograd tiles (`winograd.py`) for large 3 × 3 convolutions at stride 1. im2col
  patches (`windows.py`) for the cotangent of the images at a stride above 1, and where operands are rounded to bfloat16
  and either patches overlap little or there are many output channels. A native convolution in all other cases.
- Cotangent of the kernel: Winograd tiles for large convolutions in float32 with many channels. Shifted copies
  (`shifts.py`) at stride 1, unless there are few channels or rows, very many channels, or more output channels than
  input channels. im2col patches in all other cases.

Under `vmap` with per-task kernels, a native convolution becomes a grouped convolution, which is even slower. There the
primitive multiplies im2col patches by a matrix.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from metajax.core.blocks import largest_block, map_blocks, sum_blocks
from metajax.core.precision import products_precision
from metajax.kernels.bilinear import Role, bilinear
from metajax.kernels.shifts import kernel_by_shifts
from metajax.kernels.windows import Geometry, operand, output_sides, windows, windows_by_pixels, windows_channels_first
from metajax.kernels.winograd import convolve_tiles, kernel_cotangent

_BLOCK_BYTES = 6_000_000
"""Bytes of im2col patches or Winograd transforms in a block of examples: a core's share of the last-level cache."""
_SMALL_BLOCK_BYTES = 1_200_000
"""Bytes of im2col patches in a block of examples for the cotangent of a kernel: the size of a core's private cache."""
_SHIFTED_BYTES = 4_000_000
"""Bytes of shifted copies in a block of examples: four times the size of a core's private cache. The optimum is larger
than for im2col patches, because the matrix product uses each value of a shifted copy more often."""
_WIDE = 128
"""Smallest number of output channels for which im2col patches rounded to bfloat16 are faster on a CPU than a native
convolution."""
_LEAST_ROUNDED = 16
"""Smallest number of input channels for which rounding operands to bfloat16 makes a convolution faster."""
_SHIFTED_CHANNELS = (16, 256)
"""Smallest and largest number of input channels for which the cotangent of a kernel is faster from shifted copies than
from im2col patches."""
_SHIFTED_ROWS = 8
"""Smallest height of an output for which shifted copies are used. They add `size - 1` rows to each image, which costs
too much for low images."""
_TILED_CHANNELS = 32
"""Smallest number of input and output channels for which Winograd tiles are used. For the cotangent of a kernel the
smallest number is twice as large."""
_TILES = 2_000
"""Smallest number of Winograd tiles in a batch for which tiles are used. For fewer tiles the saved time does not
justify the longer compilation."""


def convolve(images: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: int = 0) -> jax.Array:
    """Compute a 2-D convolution with a square kernel.

    Under `jax.default_matmul_precision("bfloat16")`, the operands of matrix products are rounded to bfloat16 and summed
    in the dtype of the images, on every device, if the images have at least 16 channels. The same holds for the matrix
    products of derivatives. For native convolutions XLA decides on the precision. On a CPU large 3 × 3 convolutions
    with at least 32 channels, and the cotangents of their images, use Winograd tiles. Their rounded operands are sums
    of 4 pixels, so the rounding error is nearly twice as large.

    Args:
        images: `[examples, height, width, in]`.
        kernel: `[size, size, in, out]`.
        stride: Distance in pixels between neighbouring outputs.
        padding: Number of zeros on each side of the images.

    Returns:
        `[examples, height', width', out]`.

    Raises:
        ValueError: If `images` does not have four axes, or if the shapes are not compatible.

    >>> import jax.numpy as jnp
    >>> convolve(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 5)), stride=2, padding=1).shape
    (1, 2, 2, 5)
    """
    if images.ndim != 4:
        raise ValueError(f"images must be [examples, height, width, channels], got {images.shape}")
    rounded = products_precision() == "bfloat16" and images.shape[-1] >= _LEAST_ROUNDED
    geometry = Geometry(images.shape[1], images.shape[2], kernel.shape[0], stride, padding, rounded)
    if kernel.shape[2] != images.shape[-1]:
        raise ValueError(
            f"images of shape {images.shape} have {images.shape[-1]} channels, but the kernel takes {kernel.shape[2]}"
        )
    if kernel.shape[0] != kernel.shape[1] or min(output_sides(geometry)) < 1:
        raise ValueError(
            f"a kernel of shape {kernel.shape} does not fit images of shape {images.shape}, padding {padding}"
        )
    dtype = jnp.result_type(images, kernel)
    images, kernel = images.astype(dtype), kernel.astype(dtype)
    if geometry.size == 1 and not padding and not rounded:
        return images[:, ::stride, ::stride] @ kernel[0, 0]
    return _convolution.bind(images, kernel, role="output", geometry=geometry)


def _native(a: jax.Array, b: jax.Array, *, role: Role, geometry: Geometry) -> jax.Array:
    """Compute one role of the convolution for one kernel, by the algorithm that is fastest on this device.

    The operands `a` and `b` are (images, kernel), (output, kernel) or (images, output).
    """
    if jax.default_backend() != "cpu":
        return (_by_windows if _few_overlap(geometry) else _transposed)(a, b, role=role, geometry=geometry)
    if block := _tiled_examples(role, a, b, geometry):
        return _by_tiles(role, a, b, geometry, block)
    if role != "kernel" and geometry.rounded and b.shape[-1] >= _WIDE:
        return _in_blocks(a, b, role=role, geometry=geometry)
    if role != "kernel" and (_small(geometry) or _few_overlap(geometry)):
        # If images are no larger than a kernel, XLA exchanges the two and leaves its fast path. Rounded matrix products
        # are faster than a native float32 convolution if patches overlap little. A native bfloat16 convolution is slow
        # on a CPU.
        return _by_windows(a, b, role=role, geometry=geometry)
    if role == "output":
        if a.shape[-1] == 3:  # three channels do not fill a SIMD vector
            a, b = jnp.pad(a, [(0, 0)] * 3 + [(0, 1)]), jnp.pad(b, [(0, 0)] * 2 + [(0, 1), (0, 0)])
        return _forward(a, b, geometry)
    if role == "input" and geometry.stride == 1:
        return _forward(a, _reversed(b), geometry._replace(padding=_reversed_padding(geometry)))
    if role == "input":
        return _by_windows(a, b, role=role, geometry=geometry)
    return _kernel_in_blocks(a, b, geometry)


def _small(geometry: Geometry) -> bool:
    """Return whether the images are no larger than the kernel."""
    return min(geometry.height, geometry.width) <= geometry.size


def _few_overlap(geometry: Geometry) -> bool:
    """Return whether operands are rounded and im2col patches overlap so little that they beat a native convolution."""
    return geometry.rounded and (geometry.stride > 1 or geometry.size == 1)


def _transposed(a: jax.Array, b: jax.Array, *, role: Role, geometry: Geometry) -> jax.Array:
    """Compute one role as a native convolution of XLA or as a transpose of it, which is fast on accelerators."""
    if role == "output":
        return _forward(a, b, geometry)
    if role == "input":
        images = jax.ShapeDtypeStruct((a.shape[0], geometry.height, geometry.width, b.shape[2]), a.dtype)
        return jax.linear_transpose(lambda images: _forward(images, b, geometry), images)(a)[0]
    kernel = jax.ShapeDtypeStruct((geometry.size, geometry.size, a.shape[-1], b.shape[-1]), a.dtype)
    return jax.linear_transpose(lambda kernel: _forward(a, kernel, geometry), kernel)(b)[0]


def _forward(images: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    padding = [(geometry.padding, geometry.padding)] * 2
    strides = (geometry.stride, geometry.stride)
    return lax.conv_general_dilated(images, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _reversed(kernel: jax.Array) -> jax.Array:
    """Return the kernel that, convolved with the output's cotangent, gives the cotangent of the images, at stride 1."""
    # The barrier keeps XLA from folding the transpose into a layout of the kernel that its fast path does not support.
    return lax.optimization_barrier(kernel[::-1, ::-1].transpose(0, 1, 3, 2))


def _reversed_padding(geometry: Geometry) -> int:
    """Return the padding for the convolution of the output's cotangent with `_reversed(kernel)`."""
    return geometry.size - 1 - geometry.padding


def _tiled_examples(role: Role, a: jax.Array, b: jax.Array, geometry: Geometry) -> int:
    """Return the number of examples in a block of Winograd tiles, or 0 if tiles would be slower."""
    supported = (geometry.size, geometry.stride) == (3, 1) and _reversed_padding(geometry) >= 0
    exact = a.dtype in (jnp.float32, jnp.float64)  # in half precision the sums of pixels would be inaccurate
    if not (supported and exact) or (role == "kernel" and geometry.rounded) or _small(geometry):
        return 0
    inner, outer = _channels(role, a, b)
    height, width = (geometry.height, geometry.width) if role == "input" else output_sides(geometry)
    tiles = -(-height // 2) * -(-width // 2)
    transform_bytes = (
        16 * inner * a.dtype.itemsize
    )  # bytes of one transformed tile; a transformed output channel of the kernel has as many
    most = max(_BLOCK_BYTES, 2 * outer * transform_bytes)  # twice the transformed kernel, which each block reads
    block = largest_block(a.shape[0], tiles * transform_bytes, most)
    enough = a.shape[0] * tiles >= _TILES and 2 * block * tiles >= 3 * max(inner, outer)
    wide = min(inner, outer) >= (2 * _TILED_CHANNELS if role == "kernel" else _TILED_CHANNELS)
    filled = 16 * tiles <= 6 * height * width  # with an odd side, tiles at the edge compute unused values
    return block if enough and wide and filled else 0


def _by_shifts(geometry: Geometry, channels: int, features: int) -> bool:
    """Return whether shifted copies are faster than im2col patches for the cotangent of a kernel."""
    least, most = _SHIFTED_CHANNELS
    # With more output than input channels, transposing the output's cotangent takes longer than extracting patches.
    fits = least <= channels <= most and features <= channels and output_sides(geometry)[0] >= _SHIFTED_ROWS
    return geometry.stride == 1 and geometry.size > 1 and fits


def _channels(role: Role, a: jax.Array, b: jax.Array) -> tuple[int, int]:
    """Return the numbers of input channels and output channels of the convolution."""
    return (a.shape[-1], b.shape[-1]) if role == "kernel" else (b.shape[2], b.shape[3])


def _by_tiles(role: Role, a: jax.Array, b: jax.Array, geometry: Geometry, block: int) -> jax.Array:
    """Compute a role by Winograd tiles, in blocks of examples whose transforms stay in the cache."""
    padding = geometry.padding
    if role == "kernel":
        return kernel_cotangent(a, b, padding=padding, block=block)
    if role == "input":
        b, padding = _reversed(b), _reversed_padding(geometry)
    product_dtype = jnp.bfloat16 if geometry.rounded else None
    run = functools.partial(convolve_tiles, kernel=b, padding=padding, product_dtype=product_dtype)
    return map_blocks(run, a, block=block)


def _kernel_in_blocks(images: jax.Array, output: jax.Array, geometry: Geometry) -> jax.Array:
    """Compute the cotangent of the kernel, summed over blocks of images whose copies stay in the cache."""
    examples, channels, features = images.shape[0], images.shape[-1], output.shape[-1]
    size, itemsize = geometry.size, 2 if geometry.rounded else images.dtype.itemsize
    height, width = output.shape[1:3]
    if _by_shifts(geometry, channels, features):
        positions = (height + size - 1) * width
        block = largest_block(examples, positions * size * (channels + features) * itemsize, _SHIFTED_BYTES)
        return kernel_by_shifts(images, output, geometry, block).astype(images.dtype)
    kernel = size**2 * channels * features * images.dtype.itemsize  # each block reads and writes it
    most = max(_SMALL_BLOCK_BYTES, min(kernel, _BLOCK_BYTES))
    block = largest_block(examples, height * width * size**2 * channels * itemsize, most)
    run = functools.partial(_kernel_by_windows, geometry=geometry)
    return sum_blocks(run, images, output, block=block).astype(images.dtype)


def _by_windows(a: jax.Array, b: jax.Array, *, role: Role, geometry: Geometry) -> jax.Array:
    """Compute one role as a matrix product of im2col patches. `vmap` converts it into a batched matrix product."""
    if role == "kernel":
        return _kernel_by_windows(a, b, geometry).astype(a.dtype)
    matrix = operand(b.reshape(-1, b.shape[-1]), geometry)
    if role == "output":
        return jnp.matmul(windows(operand(a, geometry), geometry), matrix, preferred_element_type=a.dtype)
    images = jax.ShapeDtypeStruct((a.shape[0], geometry.height, geometry.width, b.shape[2]), a.dtype)
    to_images = jax.linear_transpose(lambda images: windows_by_pixels(images, geometry), images)
    rows = operand(lax.collapse(a, 0, 3), geometry)  # XLA of JAX 0.8 rounds only operands with two axes
    cotangents = jnp.matmul(rows, matrix.T, preferred_element_type=a.dtype)
    return to_images(cotangents.reshape(*a.shape[:-1], len(matrix)))[0]


def _in_blocks(a: jax.Array, b: jax.Array, *, role: Role, geometry: Geometry) -> jax.Array:
    """Compute a role as matrix products of blocks of examples whose im2col patches stay in the cache."""
    positions, itemsize = math.prod(output_sides(geometry)), 2 if role == "output" else a.dtype.itemsize
    block = largest_block(a.shape[0], positions * geometry.size**2 * b.shape[2] * itemsize, _BLOCK_BYTES)
    return map_blocks(lambda a: _by_windows(a, b, role=role, geometry=geometry), a, block=block)


def _kernel_by_windows(images: jax.Array, output: jax.Array, geometry: Geometry) -> jax.Array:
    """Compute the cotangent of the kernel in at least float32, because half precision is inaccurate in long sums."""
    dtype = jnp.promote_types(images.dtype, jnp.float32)
    shape = (geometry.size, geometry.size, images.shape[-1], output.shape[-1])
    # With fewer channels than `_LEAST_ROUNDED` no operand is rounded.
    if images.shape[-1] < _LEAST_ROUNDED and jax.default_backend() == "cpu":
        rows = windows_channels_first(images, geometry)
        return jnp.matmul(rows, output.reshape(-1, output.shape[-1]), preferred_element_type=dtype).reshape(shape)
    # XLA copies the transpose of the first operand, so the smaller operand is the first. The barrier keeps XLA from
    # exchanging the operands.
    patches, cotangent = windows(operand(images, geometry), geometry), operand(output, geometry)
    if patches.shape[-1] < output.shape[-1]:
        product = jnp.einsum("bhwk,bhwo->ko", patches, cotangent, preferred_element_type=dtype)
    else:
        product = jnp.einsum("bhwo,bhwk->ok", cotangent, patches, preferred_element_type=dtype)
        product = lax.optimization_barrier(product).T
    return product.reshape(shape)


def _shape(a: Any, b: Any, *, role: Role, geometry: Geometry) -> tuple[int, ...]:
    if role == "output":
        return (a.shape[0], *output_sides(geometry), b.shape[-1])
    if role == "input":
        return (a.shape[0], geometry.height, geometry.width, b.shape[2])
    return (geometry.size, geometry.size, a.shape[-1], b.shape[-1])


_convolution = bilinear("convolution", _native, _shape, _by_windows)
