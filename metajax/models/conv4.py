"""Conv4, the four-layer convolutional network that few-shot learning papers use."""

import itertools

import jax
from flax import nnx

from metajax.kernels import conv_pool_norm, max_pool
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
        rngs: nnx.Rngs,
    ):
        height, width, inputs = image_shape
        if pool and min(height, width) < 16:
            raise ValueError(f"four poolings need images of at least 16×16 pixels, got {height}×{width}")
        widths = [inputs, channels, channels, channels, channels]
        self.convs = nnx.List([Conv(a, b, stride=1 if pool else 2, rngs=rngs) for a, b in itertools.pairwise(widths)])
        self.norms = nnx.List([make_norm(norm, channels, use_scale=use_scale, rngs=rngs) for _ in range(4)])
        features = channels * (height // 16) * (width // 16) if pool else channels
        self.head = nnx.Linear(features, outputs, kernel_init=nnx.initializers.glorot_uniform(), rngs=rngs)
        self.pool = pool
        self.normalises_pooled = pool and norm == "batch" and not use_scale  # with a scale, the two do not commute
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
