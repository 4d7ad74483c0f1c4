"""Convolution whose derivatives of any order stay fast, on one task or on many with weights of their own.

It is one primitive in three roles, so that second derivatives are convolutions of the forms that compilers know; left
to themselves, they come out in forms that run ten times slower. Which form each role takes on a CPU:

- output and images' cotangent: tiles (`winograd.py`) if it is a large one of 3 × 3 at stride 1; else a product with
  windows (`windows.py`) where operands are rounded and windows overlap little or serve many outputs, and always for the
  images' cotangent at a stride above 1; else a native convolution;
- kernel's cotangent: tiles for large ones in float32 of many channels; else shifted copies (`shifts.py`) at stride 1,
  but of few channels or rows, very many channels, or outputs wider than images; else windows.

Under `vmap` with a kernel for each task, a native convolution becomes a grouped one, slower still; there the
primitive is windows of the image times a matrix.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from metajax.blocks import largest_block, map_blocks, sum_blocks
from metajax.models.bilinear import Role, bilinear
from metajax.models.shifts import kernel_by_shifts
from metajax.models.windows import Geometry, operand, output_sides, windows, windows_by_pixels, windows_channels_first
from metajax.models.winograd import convolve_tiles, kernel_cotangent
from metajax.precision import products_precision

_BLOCK_BYTES = 6_000_000
"""Windows, or sums of tiles, in use at once: what a core's share of the last cache holds."""
_SMALL_BLOCK_BYTES = 1_200_000
"""The same where they are made for one product alone: what a core's own cache holds."""
_SHIFTED_BYTES = 4_000_000
"""Shifted copies in use at once, counted as if rounded: four times a core's own cache, for each value takes part in
more products than one of windows."""
_WIDE = 128
"""Channels of an output from which windows of an image pay for themselves by rounded products on a CPU."""
_LEAST_ROUNDED = 16
"""Channels of images below which products are too small to gain from rounded operands."""
_SHIFTED_CHANNELS = (16, 256)
"""Channels of images from which, and up to which, shifted copies make a kernel's cotangent faster than windows."""
_SHIFTED_ROWS = 8
"""Rows of an output from which they do: their product is of as many rows more as a kernel has, less one."""
_TILED_CHANNELS = 32
"""Channels of images and of outputs from which tiles save time; for a kernel's cotangent twice as many, in float32."""
_TILES = 2_000
"""Tiles of all images from which they do: each convolution by tiles makes a program longer, and slower to compile."""


def convolve(images: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: int = 0) -> jax.Array:
    """A 2-D convolution with a square kernel.

    Under `jax.default_matmul_precision("bfloat16")` the operands of its matrix products, and of its derivatives', are
    rounded to bfloat16 and summed in their own type, on every device, if images have 16 channels or more; what runs as
    a native convolution is left to the compiler. Large convolutions of 3 × 3 with 32 channels or more go by tiles on a
    CPU, their images' cotangents too: what is rounded are sums of 4 pixels, at nearly twice the error.

    Args:
        images: `[examples, height, width, in]`.
        kernel: `[size, size, in, out]`.
        stride: Step between outputs.
        padding: Zeros on each side.

    Returns:
        `[examples, height', width', out]`.

    Raises:
        ValueError: If images have not four axes, or the shapes do not fit each other.

    >>> import jax.numpy as jnp
    >>> convolve(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 5)), stride=2, padding=1).shape
    (1, 2, 2, 5)
    """
    if images.ndim != 4:
        raise ValueError(f"images must be [examples, height, width, channels], got {images.shape}")
    rounded = products_precision() == "bfloat16" and images.shape[-1] >= _LEAST_ROUNDED
    geometry = Geometry(images.shape[1], images.shape[2], kernel.shape[0], stride, padding, rounded)
    if kernel.shape[2] != images.shape[-1]:
        raise ValueError(f"images {images.shape} have {images.shape[-1]} channels, the kernel takes {kernel.shape[2]}")
    if kernel.shape[0] != kernel.shape[1] or min(output_sides(geometry)) < 1:
        raise ValueError(f"a kernel {kernel.shape} does not fit images {images.shape} with a padding of {padding}")
    dtype = jnp.result_type(images, kernel)
    images, kernel = images.astype(dtype), kernel.astype(dtype)
    if geometry.size == 1 and not padding and not rounded:
        return images[:, ::stride, ::stride] @ kernel[0, 0]
    return _convolution.bind(images, kernel, role="output", geometry=geometry)


def _native(a: jax.Array, b: jax.Array, *, role: Role, geometry: Geometry) -> jax.Array:
    """One task: arguments are (images, kernel), (output, kernel) or (images, output), by role."""
    if jax.default_backend() != "cpu":
        return (_by_windows if _few_overlap(geometry) else _transposed)(a, b, role=role, geometry=geometry)
    if block := _tiled_examples(role, a, b, geometry):
        return _by_tiles(role, a, b, geometry, block)
    if role != "kernel" and geometry.rounded and b.shape[-1] >= _WIDE:
        return _in_blocks(a, b, role=role, geometry=geometry)
    if role != "kernel" and (_small(geometry) or _few_overlap(geometry)):
        # The compiler would exchange a kernel and images no larger than it, and leave its fast path. Rounded products
        # beat a native convolution in float32 if windows overlap little, or serve many outputs (above);
        # in bfloat16 it is slow on a CPU.
        return _by_windows(a, b, role=role, geometry=geometry)
    if role == "output":
        if a.shape[-1] == 3:  # three channels fit no vector
            a, b = jnp.pad(a, [(0, 0)] * 3 + [(0, 1)]), jnp.pad(b, [(0, 0)] * 2 + [(0, 1), (0, 0)])
        return _forward(a, b, geometry)
    if role == "input" and geometry.stride == 1:
        return _forward(a, _reversed(b), geometry._replace(padding=_reversed_padding(geometry)))
    if role == "input":
        return _by_windows(a, b, role=role, geometry=geometry)
    return _kernel_in_blocks(a, b, geometry)


def _small(geometry: Geometry) -> bool:
    """Whether images are no larger than a kernel."""
    return min(geometry.height, geometry.width) <= geometry.size


def _few_overlap(geometry: Geometry) -> bool:
    """Whether windows overlap so little that rounded products of them beat a native convolution."""
    return geometry.rounded and (geometry.stride > 1 or geometry.size == 1)


def _transposed(a: jax.Array, b: jax.Array, *, role: Role, geometry: Geometry) -> jax.Array:
    """In the forms that libraries for accelerators have a kernel for: a convolution, and its two transposes."""
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
    """The kernel with which a convolution of the output's cotangent, at stride 1, is the images'."""
    # The barrier keeps the compiler from folding the turn into a layout of the kernel that its fast path lacks.
    return lax.optimization_barrier(kernel[::-1, ::-1].transpose(0, 1, 3, 2))


def _reversed_padding(geometry: Geometry) -> int:
    """Of the output's cotangent, for a convolution with that kernel."""
    return geometry.size - 1 - geometry.padding


def _tiled_examples(role: Role, a: jax.Array, b: jax.Array, geometry: Geometry) -> int:
    """Examples that go by tiles at once, or 0 where the sums of tiles cost more than the products that they save."""
    of_its_kind = (geometry.size, geometry.stride) == (3, 1) and _reversed_padding(geometry) >= 0
    exact = a.dtype in (jnp.float32, jnp.float64)  # sums of pixels in fewer digits would lose some
    if not (of_its_kind and exact) or (role == "kernel" and geometry.rounded) or _small(geometry):
        return 0
    inner, outer = _channels(role, a, b)
    height, width = (geometry.height, geometry.width) if role == "input" else output_sides(geometry)
    tiles = -(-height // 2) * -(-width // 2)
    sums_bytes = 16 * inner * a.dtype.itemsize  # of a tile, and of each output channel's kernel
    most = max(_BLOCK_BYTES, 2 * outer * sums_bytes)  # twice what is read again for each block
    block = largest_block(a.shape[0], tiles * sums_bytes, most)
    enough = a.shape[0] * tiles >= _TILES and 2 * block * tiles >= 3 * max(inner, outer)
    wide = min(inner, outer) >= (2 * _TILED_CHANNELS if role == "kernel" else _TILED_CHANNELS)
    filled = 16 * tiles <= 6 * height * width  # at the edges of odd sides products are of nothing
    return block if enough and wide and filled else 0


def _by_shifts(geometry: Geometry, channels: int, features: int) -> bool:
    """Whether a kernel's cotangent is faster by shifted copies than by windows."""
    least, most = _SHIFTED_CHANNELS
    # outputs that are wider than images cost more to turn than windows of these to cut
    fits = least <= channels <= most and features <= channels and output_sides(geometry)[0] >= _SHIFTED_ROWS
    return geometry.stride == 1 and geometry.size > 1 and fits


def _channels(role: Role, a: jax.Array, b: jax.Array) -> tuple[int, int]:
    """Of images and of outputs."""
    return (a.shape[-1], b.shape[-1]) if role == "kernel" else (b.shape[2], b.shape[3])


def _by_tiles(role: Role, a: jax.Array, b: jax.Array, geometry: Geometry, block: int) -> jax.Array:
    """The same by sums of tiles, of some examples at a time, whose sums stay in the cache."""
    padding = geometry.padding
    if role == "kernel":
        return kernel_cotangent(a, b, padding=padding, block=block)
    if role == "input":
        b, padding = _reversed(b), _reversed_padding(geometry)
    product_dtype = jnp.bfloat16 if geometry.rounded else None
    run = functools.partial(convolve_tiles, kernel=b, padding=padding, product_dtype=product_dtype)
    return map_blocks(run, a, block=block)


def _kernel_in_blocks(images: jax.Array, output: jax.Array, geometry: Geometry) -> jax.Array:
    """The kernel's cotangent, summed over blocks of images whose windows or shifted copies stay in the cache."""
    examples, channels, features = images.shape[0], images.shape[-1], output.shape[-1]
    size, itemsize = geometry.size, 2 if geometry.rounded else images.dtype.itemsize
    height, width = output.shape[1:3]
    if _by_shifts(geometry, channels, features):
        positions = (height + size - 1) * width
        block = largest_block(examples, positions * size * (channels + features) * itemsize, _SHIFTED_BYTES)
        return kernel_by_shifts(images, output, geometry, block).astype(images.dtype)
    kernel = size**2 * channels * features * images.dtype.itemsize  # which each block reads and writes
    most = max(_SMALL_BLOCK_BYTES, min(kernel, _BLOCK_BYTES))
    block = largest_block(examples, height * width * size**2 * channels * itemsize, most)
    run = functools.partial(_kernel_by_windows, geometry=geometry)
    return sum_blocks(run, images, output, block=block).astype(images.dtype)


def _by_windows(a: jax.Array, b: jax.Array, *, role: Role, geometry: Geometry) -> jax.Array:
    """The same as a matrix product, which `vmap` makes a batched one."""
    if role == "kernel":
        return _kernel_by_windows(a, b, geometry).astype(a.dtype)
    matrix = operand(b.reshape(-1, b.shape[-1]), geometry)
    if role == "output":
        return jnp.matmul(windows(operand(a, geometry), geometry), matrix, preferred_element_type=a.dtype)
    images = jax.ShapeDtypeStruct((a.shape[0], geometry.height, geometry.width, b.shape[2]), a.dtype)
    to_images = jax.linear_transpose(lambda images: windows_by_pixels(images, geometry), images)
    rows = operand(lax.collapse(a, 0, 3), geometry)  # XLA of JAX 0.8 rounds operands of two axes only
    cotangents = jnp.matmul(rows, matrix.T, preferred_element_type=a.dtype)
    return to_images(cotangents.reshape(*a.shape[:-1], len(matrix)))[0]


def _in_blocks(a: jax.Array, b: jax.Array, *, role: Role, geometry: Geometry) -> jax.Array:
    """The same by blocks of examples whose windows stay in the cache."""
    positions, itemsize = math.prod(output_sides(geometry)), 2 if role == "output" else a.dtype.itemsize
    block = largest_block(a.shape[0], positions * geometry.size**2 * b.shape[2] * itemsize, _BLOCK_BYTES)
    return map_blocks(lambda a: _by_windows(a, b, role=role, geometry=geometry), a, block=block)


def _kernel_by_windows(images: jax.Array, output: jax.Array, geometry: Geometry) -> jax.Array:
    """The kernel's cotangent, in float32 at least: sums of blocks would lose digits of a narrower type."""
    dtype = jnp.promote_types(images.dtype, jnp.float32)
    shape = (geometry.size, geometry.size, images.shape[-1], output.shape[-1])
    if images.shape[-1] < _LEAST_ROUNDED and jax.default_backend() == "cpu":  # so few that no operand is rounded
        rows = windows_channels_first(images, geometry)
        return jnp.matmul(rows, output.reshape(-1, output.shape[-1]), preferred_element_type=dtype).reshape(shape)
    # The compiler copies the first operand turned: it should be the smaller one, and a barrier keeps it the first.
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
