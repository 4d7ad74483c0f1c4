"""The four-layer convolutional network of the few-shot literature."""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx

from metajax.models.layers import BatchNorm, Conv, NormKind, check_image_shape, convolve_and_pool, make_norm, max_pool


class Conv4(nnx.Module):
    """Four blocks of 3×3 convolution, normalisation and ReLU, then a linear layer.

    The default is the Omniglot variant: 64 channels, stride 2, mean over space. `channels=32, pool=True` is the
    mini-ImageNet variant: stride 1, 2×2 max-pooling, features flattened.

    Args:
        outputs: Size of the output: the ways.
        image_shape: `(height, width, channels)` of an image. A call with images of another shape raises a `ValueError`.
        channels: Channels of each block.
        pool: Whether to use the mini-ImageNet variant.
        norm: Normalisation by the statistics of the current batch, or by groups of channels.
        use_scale: Whether batch normalisation learns a scale as well as an offset. MAML's code learns only an offset.
        rngs: Random streams for the initial values.

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
        self.image_shape = (height, width, inputs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[examples, height, width, channels]` to `[examples, outputs]`."""
        check_image_shape(x, *self.image_shape)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            if self.pool and isinstance(norm, BatchNorm) and norm.scale is None:
                # An increasing affine map commutes with the maximum, so apply it to the pooled quarter of the values.
                x, moments = convolve_and_pool(conv, x)
                factor, shift = norm.line(*moments)
                x = (x * factor + shift).astype(jnp.result_type(x, norm.offset[...]))
            else:
                x = norm(conv(x))
                x = max_pool(x) if self.pool else x
            x = nnx.relu(x)
        x = x.reshape(x.shape[0], -1) if self.pool else x.mean((1, 2))
        return self.head(x)
