"""Compute a convolution, its max-pooling and its batch normalisation together: a layer of a pooled network."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from metajax.core.blocks import map_blocks
from metajax.kernels.conv import conv
from metajax.kernels.max_pool import max_pool
from metajax.kernels.plan import Plan, Platform, plan

Sums = tuple[jax.Array, jax.Array, jax.Array]
"""The pooled output of a convolution, and the sum and the sum of squares of each channel before pooling."""


def conv_pool_norm(
    images: jax.Array, kernel: jax.Array, offset: jax.Array, *, stride: int = 1, padding: int = 0, epsilon: float = 1e-3
) -> jax.Array:
    """Compute a convolution, batch normalisation with an offset and without a scale, and 2×2 max-pooling.

    Without a scale, normalisation is an increasing map. Normalising after max-pooling therefore gives the same result,
    and needs a quarter of the operations. The statistics are those of the whole output before pooling.

    On a CPU a large convolution is computed in blocks of examples whose activations stay in the cache. If the images
    then have few channels, the backward pass recomputes the convolution.

    Args:
        images: `[examples, height, width, in]`.
        kernel: `[size, size, in, out]`.
        offset: `[out]`, added after normalisation.
        stride: Distance in pixels between neighbouring outputs of the convolution.
        padding: Number of zeros on each side of the images.
        epsilon: Small constant that is added to the variance.

    Returns:
        `[examples, height' // 2, width' // 2, out]`.

    >>> import jax.numpy as jnp
    >>> conv_pool_norm(jnp.ones((4, 28, 28, 3)), jnp.ones((3, 3, 3, 8)), jnp.zeros(8), padding=1).shape
    (4, 14, 14, 8)
    """
    pooled, total, square = _conv_pool(images, kernel, stride=stride, padding=padding)
    height, width = ((side + 2 * padding - kernel.shape[0]) // stride + 1 for side in images.shape[1:3])
    count = images.shape[0] * height * width
    mean, mean_square = total / count, square / count
    factor = inverse_deviation(mean, mean_square, epsilon)
    return (pooled * factor + (offset - mean * factor)).astype(jnp.result_type(pooled, offset))


def widened(x: jax.Array) -> jax.Array:
    """Convert half precision to float32, as Flax does. Means and variances in half precision would be inaccurate."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def inverse_deviation(mean: jax.Array, mean_square: jax.Array, epsilon: float) -> jax.Array:
    """Return the inverse of the standard deviation, from the mean and the mean square."""
    # Compute the variance as E[x²] − E[x]², as Flax does with `use_fast_variance`. E[(x − mean)²] would read the
    # activations once more, which takes as long as the convolution. E[x²] − E[x]² is inaccurate if the mean is about a
    # thousand times the standard deviation, so the inputs of a network should be roughly normalised.
    variance = jax.nn.relu(mean_square - jnp.square(mean))
    return jax.lax.rsqrt(variance + epsilon)


# Without jit, each call outside of a jitted function would compile the loop over blocks again.
@functools.partial(jax.jit, static_argnames=("stride", "padding"))
def _conv_pool(images: jax.Array, kernel: jax.Array, *, stride: int, padding: int) -> Sums:
    """Compute a convolution and its max-pooling, and the sum and sum of squares of each channel before pooling."""

    def planned(platform: Platform) -> Plan:
        shapes, dtype = (images.shape, kernel.shape), jnp.result_type(images, kernel)
        return plan("conv_pool_norm", shapes, dtype, platform, stride=stride, padding=padding)

    whole = functools.partial(_whole, stride=stride, padding=padding)
    blocks = functools.partial(_in_blocks, whole, plan=planned("cpu"))
    if planned("cpu").algorithm == "native":
        return whole(images, kernel)
    return jax.lax.platform_dependent(images, kernel, cpu=blocks, default=whole)


def _whole(images: jax.Array, kernel: jax.Array, *, stride: int, padding: int) -> Sums:
    out = conv(images, kernel, stride=stride, padding=padding)
    wide = widened(out)
    return max_pool(out), wide.sum((0, 1, 2)), jnp.square(wide).sum((0, 1, 2))


def _in_blocks(whole: Callable[..., Sums], images: jax.Array, kernel: jax.Array, *, plan: Plan) -> Sums:
    """Compute `whole` for one block of examples after another."""

    def run(images: jax.Array) -> Sums:
        pooled, total, square = whole(images, kernel)
        return pooled, total[None], square[None]

    run = jax.checkpoint(run, prevent_cse=False) if plan.algorithm == "blocks_rematerialised" else run
    pooled, totals, squares = map_blocks(run, images, block=plan.block)
    return pooled, totals.sum(0), squares.sum(0)
