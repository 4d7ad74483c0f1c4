"""Conv4, the four-layer convolutional network that few-shot learning papers use."""

import dataclasses
import functools
import itertools
from typing import Literal

import jax
from flax import nnx

from metajax.errors import UserError
from metajax.kernels import conv_pool_norm, max_pool
from metajax.limits import MOST_CHANNELS, positive, whole
from metajax.models.config import as_image
from metajax.models.layers import Conv, NormKind, check_image_shape, make_norm


class Conv4(nnx.Module):
    """A network of four blocks (3×3 convolution, normalisation, ReLU) and a linear layer, the `head`.

    The default is the variant for Omniglot: 64 channels, convolutions with stride 2, and features averaged over height
    and width. `channels=32, pool=True` is the variant for mini-ImageNet: convolutions with stride 1, 2×2 max-pooling,
    and flattened features.

    Args:
        outputs: Number of outputs for each example: the number of classes in a task.
        image_shape: `(height, width, channels)` of an image. A call with images of another shape raises a `ValueError`.
        channels: Number of output channels of each block.
        pool: Whether to use stride 1, max-pooling and flattened features, as for mini-ImageNet.
        norm: `"batch"` normalises by the statistics of the current batch (`BatchNorm`), `"group"` normalises groups of
            channels of each example (`GroupNorm`).
        use_scale: Whether batch normalisation learns a scale in addition to an offset. MAML's code learns only an
            offset. Group normalisation always learns both.
        kernel_init: Initialiser of the kernels of the convolutions. Default: He normal. MAML's code uses Glorot
            uniform; PyTorch's layers use a uniform distribution on ±1/√fan_in.
        head_init: Initialiser of the kernel of the head. Default: Glorot uniform, as in MAML's code.
        epsilon: Small constant that is added to the variance in normalisation.
        rngs: Random streams for the initial parameters.

    Raises:
        ValueError: If `pool` is set and the images are smaller than 16×16 pixels.

    References:
        Vinyals et al., `Matching Networks <https://arxiv.org/abs/1606.04080>`_, 2016; Finn et al.,
        `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017, appendix A.1.

    >>> import jax.numpy as jnp, metajax as mj
    >>> from flax import nnx
    >>> mj.models.Conv4(5, rngs=nnx.Rngs(0))(jnp.ones((10, 28, 28, 1))).shape
    (10, 5)
    """

    def __init__(
        self,
        outputs: int,
        *,
        image_shape: tuple[int, int, int] = (28, 28, 1),
        channels: int = 64,
        pool: bool = False,
        norm: NormKind = "batch",
        use_scale: bool = False,
        kernel_init: nnx.Initializer = nnx.initializers.he_normal(),  # noqa: B008
        head_init: nnx.Initializer = nnx.initializers.glorot_uniform(),  # noqa: B008
        epsilon: float = 1e-3,
        rngs: nnx.Rngs,
    ):
        height, width, inputs = image_shape
        if pool and min(height, width) < 16:
            raise ValueError(f"four poolings need images of at least 16×16 pixels, got {height}×{width}")
        widths = [inputs, channels, channels, channels, channels]
        conv = functools.partial(Conv, stride=1 if pool else 2, kernel_init=kernel_init, rngs=rngs)
        self.convs = nnx.List([conv(a, b) for a, b in itertools.pairwise(widths)])
        self.norms = nnx.List(
            [make_norm(norm, channels, use_scale=use_scale, epsilon=epsilon, rngs=rngs) for _ in range(4)]
        )
        features = channels * (height // 16) * (width // 16) if pool else channels
        self.head = nnx.Linear(features, outputs, kernel_init=head_init, rngs=rngs)
        self.pool = pool
        self.normalises_pooled = (
            pool and norm == "batch" and not use_scale
        )  # pooling commutes only with a normalisation without scale
        self.image_shape = (height, width, inputs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[examples, height, width, channels]` to `[examples, outputs]`."""
        check_image_shape(x, *self.image_shape)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            if self.normalises_pooled:
                options = {"stride": conv.stride, "padding": conv.padding, "epsilon": norm.epsilon}
                x = conv_pool_norm(x, conv.kernel[...], norm.offset[...], **options)
            else:
                x = norm(conv(x))
                x = max_pool(x) if self.pool else x
            x = nnx.relu(x)
        x = x.reshape(x.shape[0], -1) if self.pool else x.mean((1, 2))
        return self.head(x)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conv4Config:
    """Four blocks of convolution, normalisation and ReLU."""

    channels: int = 64
    """Number of channels of each block."""
    pool: bool = False
    """True: each block ends in 2×2 max-pooling, and the last features are flattened (mini-ImageNet). False: the
    convolutions have stride 2, and the last features are averaged over all positions (Omniglot)."""
    norm: Literal["batch", "group"] = "batch"
    """Normalise by the statistics of the current batch, or by groups of channels of each example."""
    use_scale: bool = False
    """Whether batch normalisation learns a scale for each channel, in addition to an offset."""
    init: Literal["he_normal", "glorot_uniform", "uniform_fan_in"] = "he_normal"
    """Distribution of the initial kernels of the convolutions. MAML's code uses glorot_uniform. PyTorch's layers, and
    the code of papers that use PyTorch, have uniform_fan_in: a uniform distribution on ±1/√fan_in, for convolutions and
    head. With he_normal and glorot_uniform, the head has Glorot uniform values."""
    epsilon: float = 1e-3
    """Small constant that normalisation adds to the variance: 1e-3 in MAML's code, 1e-5 in PyTorch."""

    def __post_init__(self):
        whole("model", 1, MOST_CHANNELS, channels=self.channels)
        positive("model", epsilon=self.epsilon)

    def build(self, shape: tuple[int, ...], outputs: int, rngs: nnx.Rngs) -> nnx.Module:
        """Make the Conv4 network for examples of shape `shape`; see `ModelConfig.build`."""
        height, width, depth = as_image(shape)
        try:
            return Conv4(
                outputs,
                image_shape=(height, width, depth),
                channels=self.channels,
                pool=self.pool,
                norm=self.norm,
                use_scale=self.use_scale,
                kernel_init=_initializer(self.init),
                head_init=_initializer("uniform_fan_in" if self.init == "uniform_fan_in" else "glorot_uniform"),
                epsilon=self.epsilon,
                rngs=rngs,
            )
        except ValueError as error:
            raise UserError(f"model.pool: {error}") from error


def _initializer(name: Literal["he_normal", "glorot_uniform", "uniform_fan_in"]) -> nnx.Initializer:
    if name == "uniform_fan_in":  # the variance of a uniform distribution on ±1/√fan_in is 1/(3 fan_in)
        return nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    return nnx.initializers.he_normal() if name == "he_normal" else nnx.initializers.glorot_uniform()
