"""Layers for few-shot models: convolution, and normalisation without running statistics."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from metajax.kernels import conv
from metajax.kernels.conv_pool_norm import inverse_deviation, widened

NormKind = Literal["batch", "group"]


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
        rngs: Random streams for the initial kernel (He normal).

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
        rngs: nnx.Rngs,
    ):
        shape = (kernel_size, kernel_size, in_features, out_features)
        self.kernel = nnx.Param(nnx.initializers.he_normal()(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(out_features, jnp.float32)) if use_bias else None
        self.stride = stride
        self.padding = kernel_size // 2 if padding is None else padding

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[batch, height, width, in]` to `[batch, height', width', out]`."""
        out = conv(x, self.kernel[...], stride=self.stride, padding=self.padding)
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
        axes, wide = tuple(range(x.ndim - 1)), widened(x)
        mean, mean_square = wide.mean(axes), jnp.square(wide).mean(axes)
        inverse = inverse_deviation(mean, mean_square, self.epsilon)
        factor = inverse if self.scale is None else inverse * self.scale[...]
        return (wide * factor + (self.offset[...] - mean * factor)).astype(jnp.result_type(x, self.offset[...]))


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
        grouped = widened(x).reshape(*x.shape[:-1], self.groups, -1)
        axes = (*range(1, x.ndim - 1), x.ndim)
        mean, mean_square = (values.mean(axes, keepdims=True) for values in (grouped, jnp.square(grouped)))
        inverse = inverse_deviation(mean, mean_square, self.epsilon)
        out = ((grouped - mean) * inverse).reshape(x.shape) * self.scale[...] + self.offset[...]
        return out.astype(jnp.result_type(x, self.offset[...]))


def make_norm(kind: NormKind, features: int, *, rngs: nnx.Rngs, use_scale: bool = True) -> BatchNorm | GroupNorm:
    """Make a `BatchNorm` layer if `kind` is `"batch"`, or a `GroupNorm` layer if it is `"group"`.

    `GroupNorm` ignores `use_scale` and always learns a scale.
    """
    if kind == "batch":
        return BatchNorm(features, use_scale=use_scale, rngs=rngs)
    return GroupNorm(features, rngs=rngs)


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
