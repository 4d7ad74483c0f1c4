"""Choose the algorithm of each operation from its shapes, its dtype and the platform on which it runs.

All thresholds are here. They were tuned on one CPU with AVX-512 instructions for bfloat16 (AMD EPYC, 2 cores, jax
0.10.2) and apply to every CPU. Each threshold names its measurement and date. A gain is the time of a whole meta-step
without the algorithm, divided by the time with it. Accelerators use XLA's convolution, except for per-task kernels,
where the grouped convolution that `vmap` makes would take 3 to 10 times as long (NVIDIA H100, jax 0.11.2, 2026-11-26).
"""

import math
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from metajax.core.blocks import largest_block

Operation = Literal["conv", "dense"]
"""Name of an operation of this package that has a choice of algorithms."""
Platform = Literal["cpu", "gpu", "tpu"]
"""Kind of device."""
Role = Literal["output", "input", "kernel"]
"""Result of an operation: its output, the cotangent of its input, or the cotangent of its kernel."""
Algorithm = Literal[
    "native",  # XLA's convolution or matrix product, and the transposes that JAX defines
    "native_padded_channels",  # XLA's convolution with one more input channel, of zeros (`native.py`)
    "native_reversed",  # XLA's convolution with the reversed kernel, for the cotangent of the input (`native.py`)
    "im2col",  # matrix products of patches that consist of slices of the images (`im2col.py`)
    "im2col_by_rows",  # matrix products of patches that are extracted in two copies (`im2col.py`)
    "winograd",  # Winograd's minimal filtering F(2x2, 3x3) (`winograd.py`)
    "shifts",  # matrix product of shifted copies (`shifts.py`)
    "transpose",  # matrix product after a transpose of the smaller operand (`dense.py`)
]


class Plan(NamedTuple):
    """How an operation is computed.

    Attributes:
        algorithm: Name of the algorithm.
        block: Number of examples that are processed at once.
    """

    algorithm: Algorithm
    block: int


ROUNDED_CHANNELS = 16
"""Smallest number of input channels of a convolution whose operands are rounded to bfloat16, if rounding is on. With
fewer channels, extracting patches takes longer than rounded products save (2026-11-26)."""

BLOCK_BYTES = 6_000_000
"""Bytes of im2col patches or Winograd transforms in a block of examples: a core's share of the last-level cache
(2026-11-26)."""

KERNEL_BLOCK_BYTES = 1_200_000
"""Bytes of im2col patches in a block of examples for the cotangent of a kernel: the size of a core's private cache.
With extraction by rows, gain 1.05 to 1.09 on Omniglot (2026-11-26)."""

SHIFTS_BLOCK_BYTES = 4_000_000
"""Bytes of shifted copies in a block of examples: four times the size of a core's private cache. The optimum is larger
than for im2col patches, because the matrix product uses each value of a shifted copy more often (2026-11-27)."""

WIDE_FEATURES = 128
"""Smallest number of output channels for which im2col patches rounded to bfloat16 are faster than a native convolution
(ResNet-12, 2026-11-26)."""

BY_ROWS_WIDTH = 16
"""Largest width of an output for which patches are extracted by rows. Each column adds an operation to the program.
Gain of the extraction by rows in bfloat16: 1.04 to 1.11 on Omniglot with 15 queries and 1 step, 1.05 with 1 query and 5
steps (2026-12-01)."""

BY_ROWS_CHANNELS = 16
"""Smallest number of input channels for extraction by rows. With fewer channels the copied pieces are too short
(2026-11-26)."""

SHIFTS_CHANNELS = (16, 256)
"""Smallest and largest number of input channels for which the cotangent of a kernel is faster from shifted copies than
from im2col patches: 51 instead of 108 ms for 64 channels at 84×84 in bfloat16, 69 instead of 57 ms for 320 channels at
21×21 (2026-11-27). Gain in bfloat16: 1.08 on mini-ImageNet 5w1s, 1.06 on ResNet-12 (2026-12-01)."""

SHIFTS_HEIGHT = 8
"""Smallest height of an output for which shifted copies are used. They add `size - 1` rows to each image, which costs
too much for low images (2026-11-27)."""

PADDED_CHANNELS = 3
"""Number of input channels of a native convolution to which a channel of zeros is added: three channels do not fill a
vector register. Gain 1.24 on mini-ImageNet 5w1s in bfloat16 (2026-12-01)."""

WINOGRAD_CHANNELS = 32
"""Smallest number of input and output channels for which Winograd tiles are used. Gain on ResNet-12 1.37 in bfloat16
and 1.2 in float32 (2026-11-26)."""

WINOGRAD_KERNEL_CHANNELS = 64
"""Smallest number of input and output channels for which the cotangent of a kernel uses Winograd tiles, in float32: 75
ms for 160 channels at 42×42, where shifted copies take 110 ms (2026-11-27). Gain on ResNet-12 in float32: 1.10
(2026-12-01)."""

WINOGRAD_TILES = 2_000
"""Smallest number of Winograd tiles in a batch for which tiles are used. For fewer tiles the saved time does not
justify the longer compilation (2026-11-26)."""


def plan(
    operation: Operation,
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    dtype: DTypeLike,
    platform: Platform,
    *,
    role: Role = "output",
    stride: int = 1,
    padding: int = 0,
    rounded: bool = False,
    per_task: bool = False,
) -> Plan:
    """Choose the algorithm of an operation.

    Args:
        operation: Name of the operation.
        shapes: Shapes of the input and the kernel: `[examples, height, width, in]` and `[size, size, in, out]`, or
            `[examples, in]` and `[in, out]` for `dense`.
        dtype: Dtype of the input and the kernel.
        platform: Kind of device on which the operation runs.
        role: Which result is computed.
        stride: Distance in pixels between neighbouring outputs of a convolution.
        padding: Number of zeros on each side of the images.
        rounded: Whether operands of matrix products are rounded to bfloat16.
        per_task: Whether the operation runs under `vmap` over tasks with different kernels.

    >>> plan("conv", ((80, 28, 28, 64), (3, 3, 64, 64)), "float32", "cpu", stride=2, padding=1)
    Plan(algorithm='native', block=80)
    >>> plan("conv", ((80, 28, 28, 64), (3, 3, 64, 64)), "float32", "gpu", stride=2, padding=1, per_task=True)
    Plan(algorithm='im2col', block=80)
    """
    match operation:
        case "conv":
            sizes = _Sizes(*shapes, jnp.dtype(dtype), stride, padding, rounded)
            return (_conv_on_cpu if platform == "cpu" else _conv)(sizes, role, per_task)
        case "dense":
            # With per-task kernels the cotangent of a kernel contracts the rows of two matrices, at which XLA for CPUs
            # is slow. Gain of the transpose: 1.20 on the sinusoid with 5 steps (2026-12-01).
            slow = platform == "cpu" and per_task and role == "kernel"
            return Plan("transpose" if slow else "native", shapes[0][0])


class _Sizes(NamedTuple):
    images: tuple[int, ...]
    kernel: tuple[int, ...]
    dtype: np.dtype
    stride: int
    padding: int
    rounded: bool

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def examples(self) -> int:
        return self.images[0]

    @property
    def size(self) -> int:
        return self.kernel[0]

    @property
    def channels(self) -> int:
        return self.kernel[2]

    @property
    def features(self) -> int:
        return self.kernel[3]

    @property
    def output(self) -> tuple[int, int]:
        """The height and width of the output."""
        height, width = ((side + 2 * self.padding - self.size) // self.stride + 1 for side in self.images[1:3])
        return height, width

    @property
    def small(self) -> bool:
        """Whether the images are no larger than the kernel. XLA would exchange the two and leave its fast path."""
        return min(self.images[1:3]) <= self.size

    @property
    def disjoint(self) -> bool:
        """Whether patches overlap so little that their matrix products beat a native convolution."""
        pixels = self.size == 1 and not self.padding  # im2col patches are then the images themselves
        return pixels or (self.rounded and (self.stride > 1 or self.size == 1))


def _conv(sizes: _Sizes, role: Role, per_task: bool) -> Plan:
    """Choose the algorithm of a convolution on an accelerator."""
    # `vmap` over kernels would make a grouped convolution, which is several times slower.
    return Plan("im2col" if per_task or sizes.disjoint else "native", sizes.examples)


def _conv_on_cpu(sizes: _Sizes, role: Role, per_task: bool) -> Plan:
    """Choose the algorithm of a convolution on a CPU."""
    by_rows = sizes.size > 1 and sizes.channels >= BY_ROWS_CHANNELS and sizes.output[1] <= BY_ROWS_WIDTH
    im2col: Algorithm = "im2col_by_rows" if by_rows and role != "input" else "im2col"
    if per_task:
        return Plan(im2col, sizes.examples)
    if block := _winograd_block(sizes, role):
        return Plan("winograd", block)
    if role == "kernel":
        return _kernel_cotangent(sizes, im2col)
    if sizes.rounded and sizes.features >= WIDE_FEATURES:
        return Plan(im2col, _im2col_block(sizes, BLOCK_BYTES, 2 if role == "output" else sizes.itemsize))
    if sizes.small or sizes.disjoint or (role == "input" and sizes.stride > 1):
        return Plan(im2col, sizes.examples)
    if role == "input":
        return Plan("native_reversed", sizes.examples)
    return Plan("native_padded_channels" if sizes.channels == PADDED_CHANNELS else "native", sizes.examples)


def _kernel_cotangent(sizes: _Sizes, im2col: Algorithm) -> Plan:
    """Choose between shifted copies and im2col patches for the cotangent of a kernel."""
    itemsize, (height, width) = 2 if sizes.rounded else sizes.itemsize, sizes.output
    least, most = SHIFTS_CHANNELS
    # With more output than input channels, transposing the output's cotangent takes longer than extracting patches.
    fits = least <= sizes.channels <= most and sizes.features <= sizes.channels and height >= SHIFTS_HEIGHT
    if sizes.stride == 1 and sizes.size > 1 and fits:
        positions = (height + sizes.size - 1) * width
        each = positions * sizes.size * (sizes.channels + sizes.features) * itemsize
        return Plan("shifts", largest_block(sizes.examples, each, SHIFTS_BLOCK_BYTES))
    kernel = math.prod(sizes.kernel) * sizes.itemsize  # bytes that each block reads and writes
    return Plan(im2col, _im2col_block(sizes, max(KERNEL_BLOCK_BYTES, min(kernel, BLOCK_BYTES)), itemsize))


def _im2col_block(sizes: _Sizes, most: int, itemsize: int) -> int:
    """Return the number of examples whose im2col patches need at most `most` bytes."""
    return largest_block(sizes.examples, math.prod(sizes.output) * math.prod(sizes.kernel[:-1]) * itemsize, most)


def _winograd_block(sizes: _Sizes, role: Role) -> int:
    """Return the number of examples in a block of Winograd tiles, or 0 if tiles would be slower."""
    supported = (sizes.size, sizes.stride) == (3, 1) and sizes.padding <= 2
    exact = sizes.dtype in (np.float32, np.float64)  # in half precision the sums of pixels would be inaccurate
    if not (supported and exact) or (role == "kernel" and sizes.rounded) or sizes.small:
        return 0
    height, width = sizes.images[1:3] if role == "input" else sizes.output
    tiles = -(-height // 2) * -(-width // 2)
    # A transformed tile has as many bytes as the transform of one output channel of the kernel.
    transform_bytes = 16 * sizes.channels * sizes.itemsize
    most = max(BLOCK_BYTES, 2 * sizes.features * transform_bytes)  # each block reads the transformed kernel
    block = largest_block(sizes.examples, tiles * transform_bytes, most)
    widest, narrowest = max(sizes.channels, sizes.features), min(sizes.channels, sizes.features)
    enough = sizes.examples * tiles >= WINOGRAD_TILES and 2 * block * tiles >= 3 * widest
    wide = narrowest >= (WINOGRAD_KERNEL_CHANNELS if role == "kernel" else WINOGRAD_CHANNELS)
    filled = 16 * tiles <= 6 * height * width  # with an odd side, tiles at the edge compute unused values
    return block if enough and wide and filled else 0
