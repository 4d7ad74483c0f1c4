"""Low-rank adaptation in the inner loop: each update of a weight matrix is a product of two thin matrices."""

import dataclasses

import jax
import jax.numpy as jnp

from metajax.core.checks import check_count
from metajax.core.inner_loop import InnerLoop
from metajax.core.learner import BuildContext, MetaLearner, Modifier
from metajax.core.trees import Mask, map_changed, named, split
from metajax.core.types import LossFn
from metajax.errors import UserError
from metajax.learners.maml import maml


def low_rank(rank: int, adapts: Mask, rng: jax.Array) -> Modifier:
    r"""Adapt some weights :math:`W` as :math:`W + A B` with thin :math:`A`, :math:`B`; other parameters do not adapt.

    A kernel with more than two axes is reshaped to a matrix: the last axis gives the columns, all others the rows.

    Args:
        rank: Number of columns of :math:`A` and of rows of :math:`B`.
        adapts: Mask of the weights: a predicate `(path, leaf) -> bool` or a pytree of bools. Each selected weight must
            have at least two axes.
        rng: A random key for the initial values of :math:`A`, which are normally distributed with standard deviation
            :math:`1/\sqrt{inputs}`. :math:`B` starts from 0, so the initial update :math:`A B` is 0.

    Returns:
        A modifier for `maml` with the name `low_rank`. It meta-learns the initial :math:`A` and :math:`B` of each
        weight, in the weight's dtype.

    Raises:
        ValueError: If `rank` is below 1. The modifier's `init` raises a `ValueError` if the mask selects no leaf, or a
            leaf with fewer than two axes.

    >>> modifier = low_rank(2, named("kernel"), jax.random.key(0))
    >>> jax.tree.map(jnp.shape, modifier.init({"bias": jnp.zeros(3), "kernel": jnp.zeros((5, 3))}))
    {'bias': None, 'kernel': ((5, 2), (2, 3))}
    """
    check_count("rank", rank)

    def init(params):
        leaves, structure = jax.tree.flatten(split(params, adapts, "adapts")[0])
        if not leaves or any(jnp.ndim(leaf) < 2 for leaf in leaves):
            raise ValueError("low-rank adaptation needs at least one weight, and weights of two axes or more")
        pairs = []
        for leaf, key in zip(leaves, jax.random.split(rng, len(leaves)), strict=True):
            inputs, outputs = leaf.size // leaf.shape[-1], leaf.shape[-1]
            a = jax.random.normal(key, (inputs, rank), leaf.dtype) / inputs**0.5
            pairs.append((a, jnp.zeros((rank, outputs), leaf.dtype)))
        return structure.unflatten(pairs)

    def change(factors, adaptation, support):
        def to_model(factors, step):
            def changed(leaf, pair):
                return leaf + (pair[0] @ pair[1]).reshape(leaf.shape)

            return adaptation.to_model(map_changed(changed, adaptation.params, factors), step)

        return adaptation._replace(params=factors, to_model=to_model)

    return Modifier("low_rank", change, init)


def lora(
    loss_fn: LossFn, inner: InnerLoop, *modifiers: Modifier, adapts: Mask, rng: jax.Array, rank: int = 4
) -> MetaLearner:
    r"""Make the learner of MAML whose inner loop adapts some weights by low-rank updates, and no other parameters.

    The inner loop adapts :math:`A, B` of :math:`W = W_0 + A B`. The meta-parameters are :math:`W_0`, all other
    parameters and the initial :math:`A, B`; their meta-gradient is differentiated through the inner loop.

    Args:
        loss_fn: The loss function, `(params, data, rng) -> (scalar, metrics)`.
        inner: The inner loop, from `inner_loop`.
        *modifiers: Further modifiers of the inner loop; see `maml`.
        adapts: Mask of the weights that adapt; see `low_rank`.
        rng: A random key for the initial values of :math:`A`.
        rank: Rank of the updates :math:`A B`.

    Returns:
        A `MetaLearner` whose meta-parameters are `"init"`, the model's parameters, and `"low_rank"`, the initial
        factors. `adapt` returns the model's parameters with the updates added.

    Raises:
        ValueError: If `rank` is below 1. The learner's `init` raises a `ValueError` if the mask selects no leaf, or a
            leaf with fewer than two axes.

    References:
        Hu et al., `LoRA: Low-Rank Adaptation of Large Language Models <https://arxiv.org/abs/2106.09685>`_, 2021.

    >>> import jax, jax.numpy as jnp, optax, metajax as mj
    >>> loss = lambda p, target, rng: (((p["w"] - target) ** 2).sum() / 2, {})
    >>> everything = lambda path, leaf: True
    >>> learner = mj.lora(loss, mj.inner_loop(optax.sgd(0.1), 3), adapts=everything, rng=jax.random.key(0), rank=1)
    >>> meta_params, _ = learner.init({"w": jnp.zeros((4, 4))})
    >>> int(jnp.linalg.matrix_rank(learner.adapt(meta_params, jnp.eye(4), jax.random.key(1)).params["w"]))
    1
    """
    return maml(loss_fn, inner, low_rank(rank, adapts, rng), *modifiers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Settings of MAML with low-rank inner updates."""

    rank: int = 4
    """Rank of the low-rank updates."""
    adapts: tuple[str, ...] = ("kernel",)
    """Names of the weight matrices that adapt."""

    def __post_init__(self):
        if not 1 <= self.rank <= 4096:
            raise UserError(f"learner.rank must be from 1 to 4096, got {self.rank}")

    def build(self, context: BuildContext) -> MetaLearner:
        """Make the meta-learner for the loss, the inner loop and the model in `context`."""
        return lora(context.loss_fn, context.inner, adapts=named(*self.adapts), rng=context.rng, rank=self.rank)
