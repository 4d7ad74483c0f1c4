"""Compute convolutions that are fast in derivatives of any order, for one task or for many with per-task weights.

A convolution is one primitive with three roles: the output, the cotangent of the images and the cotangent of the
kernel. Second derivatives are therefore convolutions in forms that XLA compiles well. JAX's own second derivatives have
forms that run ten times slower. `plan.py` chooses the algorithm of each role.
"""

import jax
import jax.numpy as jnp

from metajax.core.precision import products_precision
from metajax.kernels import im2col, native, shifts, winograd
from metajax.kernels.bilinear import bilinear
from metajax.kernels.geometry import Geometry, output_sides
from metajax.kernels.plan import ROUNDED_CHANNELS, Platform, Role, plan


def conv(images: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: int = 0) -> jax.Array:
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
    >>> conv(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 5)), stride=2, padding=1).shape
    (1, 2, 2, 5)
    """
    if images.ndim != 4:
        raise ValueError(f"images must be [examples, height, width, channels], got {images.shape}")
    rounded = products_precision() == "bfloat16" and images.shape[-1] >= ROUNDED_CHANNELS
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
    operands = images.astype(dtype), kernel.astype(dtype)
    return _convolution.bind(*operands, role="output", per_task=False, geometry=geometry)


def _evaluate(
    a: jax.Array, b: jax.Array, *, role: Role, platform: Platform, per_task: bool, geometry: Geometry
) -> jax.Array:
    """Compute one role of the convolution for one kernel.

    The operands `a` and `b` are (images, kernel), (output, kernel) or (images, output).
    """
    kernel = (geometry.size, geometry.size, a.shape[-1], b.shape[-1]) if role == "kernel" else b.shape
    images = (a.shape[0], geometry.height, geometry.width, kernel[2])
    algorithm, block = plan(
        "conv",
        (images, kernel),
        a.dtype,
        platform,
        role=role,
        stride=geometry.stride,
        padding=geometry.padding,
        rounded=geometry.rounded,
        per_task=per_task,
    )
    match algorithm, role:
        case "native", "output":
            return native.forward(a, b, geometry)
        case "native_padded_channels", "output":
            return native.forward_of_padded_channels(a, b, geometry)
        case "native", "input":
            return native.input_cotangent(a, b, geometry)
        case "native", "kernel":
            return native.kernel_cotangent(a, b, geometry)
        case "native_reversed", "input":
            return native.input_cotangent_by_reversed_kernel(a, b, geometry)
        case "winograd", "output":
            return winograd.forward(a, b, geometry, block=block)
        case "winograd", "input":
            return winograd.input_cotangent(a, b, geometry, block=block)
        case "winograd", "kernel":
            return winograd.kernel_cotangent(a, b, geometry, block=block)
        case "shifts", "kernel":
            return shifts.kernel_cotangent(a, b, geometry, block=block).astype(a.dtype)
        case "im2col", "input":
            return im2col.input_cotangent(a, b, geometry, block=block)
        case "im2col" | "im2col_by_rows", "output":
            return im2col.forward(a, b, geometry, block=block, by_rows=algorithm == "im2col_by_rows")
        case "im2col" | "im2col_by_rows", "kernel":
            by_rows = algorithm == "im2col_by_rows"
            return im2col.kernel_cotangent(a, b, geometry, block=block, by_rows=by_rows).astype(a.dtype)
    raise ValueError(f"the algorithm {algorithm!r} does not compute the role {role!r} of a convolution")


def _shape(a: tuple[int, ...], b: tuple[int, ...], *, role: Role, geometry: Geometry) -> tuple[int, ...]:
    if role == "output":
        return (a[0], *output_sides(geometry), b[-1])
    if role == "input":
        return (a[0], geometry.height, geometry.width, b[2])
    return (geometry.size, geometry.size, a[-1], b[-1])


_convolution = bilinear("convolution", _evaluate, _shape)
