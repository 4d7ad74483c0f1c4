"""Compute a convolution, its max-pooling and its batch normalisation together: a layer of a pooled network."""

import jax
import jax.numpy as jnp

from metajax.kernels.conv import conv
from metajax.kernels.max_pool import max_pool


def conv_pool_norm(
    images: jax.Array, kernel: jax.Array, offset: jax.Array, *, stride: int = 1, padding: int = 0, epsilon: float = 1e-3
) -> jax.Array:
    """Compute a convolution, batch normalisation with an offset and without a scale, and 2×2 max-pooling.

    Without a scale, normalisation is an increasing map. Normalising after max-pooling therefore gives the same result,
    and needs a quarter of the operations. The statistics are those of the whole output before pooling.

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
    out = conv(images, kernel, stride=stride, padding=padding)
    pooled, wide = max_pool(out), widened(out)
    mean, mean_square = wide.mean((0, 1, 2)), jnp.square(wide).mean((0, 1, 2))
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
