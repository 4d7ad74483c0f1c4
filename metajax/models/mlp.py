"""Multi-layer perceptrons: MAML's models for the sinusoid and, fully connected, for Omniglot."""

import itertools
from collections.abc import Sequence

import jax
from flax import nnx

from metajax.kernels.product import dot_general
from metajax.models.layers import BatchNorm


class MLP(nnx.Module):
    """Fully connected layers with ReLU; inputs are flattened.

    `hidden=(40, 40)` is MAML's sinusoid model. `hidden=(256, 128, 64, 64), normalise=True` is its fully connected
    model for Omniglot. The last layer is called `head`, the layers before it are `layers/0`, `layers/1` and so on.

    Args:
        inputs: Size of a flattened input.
        outputs: Size of the output.
        hidden: Widths of the hidden layers.
        normalise: Whether to add batch normalisation, by the statistics of the current batch, before each ReLU.
        kernel_init: Initialiser of the kernels; biases start from 0. The default with `normalise` is a truncated normal
            of standard deviation 0.01, as in MAML's code. The default without `normalise` is Glorot normal: with it,
            training on sinusoids converges for 1, 5 and 10 inner steps at the published inner rate, where He normal
            diverges.
        rngs: Random streams for the initial values.

    References:
        Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017, section 5.

    >>> import jax.numpy as jnp, metajax as mj
    >>> from flax import nnx
    >>> mj.models.MLP(1, 1, rngs=nnx.Rngs(0))(jnp.ones((10, 1))).shape
    (10, 1)
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        hidden: Sequence[int] = (40, 40),
        normalise: bool = False,
        kernel_init: nnx.Initializer | None = None,
        rngs: nnx.Rngs,
    ):
        if kernel_init is None:
            kernel_init = nnx.initializers.truncated_normal(0.01) if normalise else nnx.initializers.glorot_normal()
        *before, head = [
            nnx.Linear(a, b, kernel_init=kernel_init, dot_general=dot_general, rngs=rngs)
            for a, b in itertools.pairwise([inputs, *hidden, outputs])
        ]
        self.layers = nnx.List(before)
        self.norms = nnx.List([BatchNorm(width, use_scale=False, rngs=rngs) for width in hidden] if normalise else [])
        self.head = head

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[examples, ...]` to `[examples, outputs]`."""
        x = x.reshape(x.shape[0], -1)
        for i, layer in enumerate(self.layers):
            x = layer(x)
            x = nnx.relu(self.norms[i](x) if len(self.norms) else x)
        return self.head(x)
