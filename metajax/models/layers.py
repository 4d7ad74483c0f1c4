"""Layers for few-shot models: convolution, normalisation without running statistics, and max-pooling."""

import contextlib
import contextvars
import functools
import math
from collections.abc import Iterator
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from metajax.core.blocks import largest_block, map_blocks
from metajax.kernels.convolution import convolve

NormKind = Literal["batch", "group"]
_BLOCK_BYTES = 2_000_000
"""Largest size in bytes of the activations of a block of examples: about the private cache of a CPU core."""
_FEW_CHANNELS = 16
"""With fewer input channels, recomputing a convolution in the backward pass is faster than storing its output."""
_HE_NORMAL = nnx.initializers.he_normal()
_in_blocks = contextvars.ContextVar("in_blocks", default=True)


class Conv(nnx.Module):
    """A 2-D convolution that is fast in derivatives of any order and under `vmap` with per-task weights.

    Args:
        in_features: Number of input channels.
        out_features: Number of output channels.
        kernel_size: Side of the square kernel.
        stride: Distance in pixels between neighbouring positions of the kernel.
        padding: Number of zeros added on each side of an image. Default: half the kernel size, rounded down. With the
            default, stride 1 and an odd kernel size, the output has the same height and width as the input.
        use_bias: Whether to add a bias. Before batch normalisation a bias has no effect.
        kernel_init: Initialiser of the kernel. Behind a normalisation the scale of the kernel does not change the
            output, but gradient steps are inversely proportional to its square: with smaller initial values the same
            learning rate changes the network more.
        rngs: Random streams for the initial kernel.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> Conv(3, 8, stride=2, rngs=nnx.Rngs(0))(jnp.ones((4, 28, 28, 3))).shape
    (4, 14, 14, 8)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int | None = None,
        use_bias: bool = False,
        kernel_init: nnx.Initializer = _HE_NORMAL,
        rngs: nnx.Rngs,
    ):
        shape = (kernel_size, kernel_size, in_features, out_features)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(out_features, jnp.float32)) if use_bias else None
        self.stride = stride
        self.padding = kernel_size // 2 if padding is None else padding

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[batch, height, width, in]` to `[batch, height', width', out]`."""
        out = convolve(x, self.kernel[...], stride=self.stride, padding=self.padding)
        return out if self.bias is None else out + self.bias[...]


class BatchNorm(nnx.Module):
    """Normalise each channel by the statistics of the current batch, without running statistics.

    MAML uses the statistics of the current batch in the inner loop, on the query set and in evaluation. With running
    statistics over tasks, the accuracy is close to chance.

    Args:
        features: Channels, the last axis.
        use_scale: Whether to learn a scale in addition to an offset. MAML's normalisation has only an offset.
        epsilon: Small constant that is added to the variance.
        rngs: Unused; all layers have the same constructor arguments.
    """

    def __init__(self, features: int, *, use_scale: bool = True, epsilon: float = 1e-3, rngs: nnx.Rngs):
        self.scale = nnx.Param(jnp.ones(features, jnp.float32)) if use_scale else None
        self.offset = nnx.Param(jnp.zeros(features, jnp.float32))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise an array with channels as the last axis. Mean and variance are over all axes except the last."""
        axes, wide = tuple(range(x.ndim - 1)), _widened(x)
        factor, shift = self.line(wide.mean(axes), jnp.square(wide).mean(axes))
        return (wide * factor + shift).astype(jnp.result_type(x, self.offset[...]))

    def line(self, mean: jax.Array, mean_square: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the factor and the shift of each channel; the normalised value of `x` is `x * factor + shift`.

        Both have the dtype of the moments. If `use_scale` is `False`, the factor is positive.

        Args:
            mean: Mean of each channel.
            mean_square: Mean of the squares of each channel.
        """
        inverse = _inverse_deviation(mean, mean_square, self.epsilon)
        factor = inverse if self.scale is None else inverse * self.scale[...]
        return factor, self.offset[...] - mean * factor


class GroupNorm(nnx.Module):
    """Normalise groups of channels of each example separately, so that no example influences another.

    Args:
        features: Channels, the last axis.
        groups: Largest number of groups. The layer uses the largest divisor of `features` that is at most `groups`.
        epsilon: Small constant that is added to the variance.
        rngs: Unused; all layers have the same constructor arguments.
    """

    def __init__(self, features: int, *, groups: int = 8, epsilon: float = 1e-3, rngs: nnx.Rngs):
        self.groups = next(g for g in range(min(groups, features), 0, -1) if features % g == 0)
        self.scale = nnx.Param(jnp.ones(features, jnp.float32))
        self.offset = nnx.Param(jnp.zeros(features, jnp.float32))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise `[batch, ..., channels]`. Statistics are over the middle axes and the channels of a group."""
        grouped = _widened(x).reshape(*x.shape[:-1], self.groups, -1)
        axes = (*range(1, x.ndim - 1), x.ndim)
        mean, mean_square = (values.mean(axes, keepdims=True) for values in (grouped, jnp.square(grouped)))
        inverse = _inverse_deviation(mean, mean_square, self.epsilon)
        out = ((grouped - mean) * inverse).reshape(x.shape) * self.scale[...] + self.offset[...]
        return out.astype(jnp.result_type(x, self.offset[...]))


def _widened(x: jax.Array) -> jax.Array:
    """Convert half precision to float32, as Flax does. Means and variances in half precision would be inaccurate."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _inverse_deviation(mean: jax.Array, mean_square: jax.Array, epsilon: float) -> jax.Array:
    # Compute the variance as E[x²] − E[x]², as Flax does with `use_fast_variance`. E[(x − mean)²] would read the
    # activations once more, which takes as long as the convolution. E[x²] − E[x]² is inaccurate if the mean is about a
    # thousand times the standard deviation, so the inputs of a network should be roughly normalised.
    variance = nnx.relu(mean_square - jnp.square(mean))
    return jax.lax.rsqrt(variance + epsilon)


def make_norm(
    kind: NormKind, features: int, *, rngs: nnx.Rngs, use_scale: bool = True, epsilon: float = 1e-3
) -> nnx.Module:
    """Make a `BatchNorm` layer if `kind` is `"batch"`, or a `GroupNorm` layer if it is `"group"`.

    `GroupNorm` ignores `use_scale` and always learns a scale.
    """
    if kind == "batch":
        return BatchNorm(features, use_scale=use_scale, epsilon=epsilon, rngs=rngs)
    return GroupNorm(features, epsilon=epsilon, rngs=rngs)


def check_image_shape(x: jax.Array, height: int | None, width: int | None, channels: int) -> None:
    """Raise a `ValueError` unless `x` is a batch of images of the expected shape.

    Args:
        x: The input of a network, `[examples, height, width, channels]`.
        height: Expected height; `None` accepts any height.
        width: Expected width; `None` accepts any width.
        channels: Expected number of channels.
    """
    if x.ndim != 4:
        raise ValueError(f"a network takes images [examples, height, width, channels], got {x.shape}")
    expected = (height, width, channels)
    if any(size not in (None, actual) for size, actual in zip(expected, x.shape[1:], strict=True)):
        text = "×".join("any" if size is None else str(size) for size in expected)
        raise ValueError(
            f"the network was made for images of shape {text}, got images of shape {'×'.join(map(str, x.shape[1:]))}: "
            "resize the images, or make the network for their shape"
        )


def max_pool(x: jax.Array, size: int = 2) -> jax.Array:
    """Compute max-pooling over non-overlapping squares of `size` by `size` pixels.

    If `size` does not divide the height or width, the last rows or columns are ignored. The maximum is computed by
    comparing neighbours, because the derivatives of comparisons are fast to any order. If several values of a square
    are the maximum, the first value receives the whole gradient.

    >>> import jax.numpy as jnp
    >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1))[0, :, :, 0].tolist()
    [[5.0, 7.0], [13.0, 15.0]]
    """
    x = _largest_neighbour(x, 1, size)
    return _largest_neighbour(x, 2, size)


@contextlib.contextmanager
def nothing_twice() -> Iterator[None]:
    """Trace models without recomputing convolutions in the backward pass, in the body of a `with` statement.

    Counts of floating-point operations use this, because recomputed operations are not necessary operations.
    """
    before = _in_blocks.set(False)
    try:
        yield
    finally:
        _in_blocks.reset(before)


def convolve_and_pool(conv: Conv, x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Compute a convolution and its max-pooling, and the mean and mean square of the convolution's output.

    On a CPU a large convolution is computed in blocks of examples whose activations stay in the cache. If the images
    then have few channels, the backward pass recomputes the convolution.

    Args:
        conv: The convolution.
        x: The images, `[examples, height, width, in]`.

    Returns:
        The pooled output, `[examples, height' // 2, width' // 2, out]`, and the mean and the mean square of each output
        channel before pooling, both `[out]`.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> pooled, (mean, mean_square) = convolve_and_pool(Conv(3, 8, rngs=nnx.Rngs(0)), jnp.ones((4, 28, 28, 3)))
    >>> pooled.shape, mean.shape
    ((4, 14, 14, 8), (8,))
    """
    out = jax.eval_shape(conv, x)
    block = largest_block(x.shape[0], math.prod(out.shape[1:]) * out.dtype.itemsize, _BLOCK_BYTES)
    if block == x.shape[0] or not _in_blocks.get() or jax.default_backend() != "cpu":
        pooled, total, square = _pooled_sums(conv, x)
    else:
        pooled, total, square = _pooled_sums_by_blocks(*nnx.split(conv), x, block=block)
    count = math.prod(out.shape[:-1])
    return pooled, (total / count, square / count)


def _pooled_sums(conv: nnx.Module, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compute a convolution and its max-pooling, and the sum and sum of squares of each channel before pooling."""
    out = conv(x)  # pyright: ignore[reportCallIssue]
    wide = _widened(out)
    return max_pool(out), wide.sum((0, 1, 2)), jnp.square(wide).sum((0, 1, 2))


# Without jit, the loop of `map_blocks` would be compiled in every call.
@functools.partial(jax.jit, static_argnames=("graph", "block"))
def _pooled_sums_by_blocks(
    graph: nnx.GraphDef, weights: nnx.State, x: jax.Array, *, block: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compute `_pooled_sums` for one block of `block` examples after another, so that a block stays in the cache."""

    def run(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        pooled, total, square = _pooled_sums(nnx.merge(graph, weights), x)
        return pooled, total[None], square[None]

    run = jax.checkpoint(run, prevent_cse=False) if x.shape[-1] < _FEW_CHANNELS else run
    pooled, totals, squares = map_blocks(run, x, block=block)
    return pooled, totals.sum(0), squares.sum(0)


def _largest_neighbour(x: jax.Array, axis: int, size: int) -> jax.Array:
    """Return the maximum of each group of `size` neighbours along an axis."""
    length = x.shape[axis] // size
    x = jax.lax.slice_in_dim(x, 0, length * size, axis=axis)
    groups = x.reshape(*x.shape[:axis], length, size, *x.shape[axis + 1 :])
    best, *others = (jax.lax.index_in_dim(groups, i, axis + 1, keepdims=False) for i in range(size))
    for other in others:
        best = jnp.where(best >= other, best, other)
    return best
