"""Multi-layer perceptrons: MAML's for the sinusoid and its fully connected one for Omniglot."""

import itertools
from collections.abc import Sequence

import jax
from flax import nnx

from metajax.models.layers import BatchNorm
from metajax.models.product import dot_general


class MLP(nnx.Module):
    """Fully connected layers with ReLU; inputs are flattened.

    `hidden=(40, 40)` is MAML's sinusoid model; `hidden=(256, 128, 64, 64), normalise=True` its fully connected
    model for Omniglot. Weights start from a truncated normal of standard deviation 0.01, biases from 0, as
    in MAML's code for that; without normalisation He's scale is taken, as its sinusoid learns slowly otherwise.

    Args:
        inputs: Size of a flattened input.
        outputs: Size of the output.
        hidden: Widths of the hidden layers.
        normalise: Batch normalisation (by the batch at hand) before each ReLU.
        rngs: Source of the initial values.

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
        rngs: nnx.Rngs,
    ):
        widths = [inputs, *hidden, outputs]
        init = nnx.initializers.truncated_normal(0.01) if normalise else nnx.initializers.he_normal()
        self.layers = nnx.List(
            [
                nnx.Linear(a, b, kernel_init=init, dot_general=dot_general, rngs=rngs)
                for a, b in itertools.pairwise(widths)
            ]
        )
        self.norms = nnx.List([BatchNorm(width, use_scale=False, rngs=rngs) for width in hidden] if normalise else [])

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[examples, ...]` to `[examples, outputs]`."""
        x = x.reshape(x.shape[0], -1)
        for i, layer in enumerate(list(self.layers)[:-1]):
            x = layer(x)
            x = nnx.relu(self.norms[i](x) if len(self.norms) else x)
        return self.layers[-1](x)
