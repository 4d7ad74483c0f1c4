"""Low-rank adaptation in the inner loop: chosen matrices adapt by a product of two thin ones."""

import dataclasses

import jax
import jax.numpy as jnp

from metajax.checks import check_count
from metajax.errors import UserError
from metajax.inner import InnerLoop
from metajax.learners._interface import Ingredients, MetaLearner, Part
from metajax.learners.maml import maml
from metajax.partition import Chooses, map_changed, named, split
from metajax.types import LossFn


def low_rank(rank: int, adapts: Chooses, rng: jax.Array) -> Part:
    r"""Adapt some weights :math:`W` as :math:`W + A B` with thin :math:`A`, :math:`B`; the rest stays put.

    A kernel of more than two axes counts as a matrix from all but its last axis to the last.

    Args:
        rank: Columns of :math:`A` and rows of :math:`B`.
        adapts: The weights, as a predicate `(path, leaf) -> bool` or a pytree of bools; each of two axes or more.
        rng: A key for :math:`A`'s initial values, normal with standard deviation :math:`1/\sqrt{inputs}`; :math:`B`
            starts from 0, so that nothing is changed at first.

    Returns:
        A part for `maml`, of the name `low_rank`, which meta-learns the initial :math:`A` and :math:`B` of each weight,
        in the weight's dtype.

    Raises:
        ValueError: If `rank` is below 1; from the part's `init`, if no weight is chosen, or a vector.

    >>> part = low_rank(2, named("kernel"), jax.random.key(0))
    >>> jax.tree.map(jnp.shape, part.init({"bias": jnp.zeros(3), "kernel": jnp.zeros((5, 3))}))
    {'bias': None, 'kernel': ((5, 2), (2, 3))}
    """
    check_count("rank", rank)

    def init(params):
        leaves, structure = jax.tree.flatten(split(params, adapts, "adapts")[0])
        if not leaves or any(jnp.ndim(leaf) < 2 for leaf in leaves):
            raise ValueError("low-rank adaptation needs weights of two axes or more, and at least one")
        pairs = []
        for leaf, key in zip(leaves, jax.random.split(rng, len(leaves)), strict=True):
            inputs, outputs = leaf.size // leaf.shape[-1], leaf.shape[-1]
            a = jax.random.normal(key, (inputs, rank), leaf.dtype) / inputs**0.5
            pairs.append((a, jnp.zeros((rank, outputs), leaf.dtype)))
        return structure.unflatten(pairs)

    def change(factors, adaptation, support):
        def view(factors, step):
            def changed(leaf, pair):
                return leaf + (pair[0] @ pair[1]).reshape(leaf.shape)

            return adaptation.view(map_changed(changed, adaptation.params, factors), step)

        return adaptation._replace(params=factors, view=view)

    return Part("low_rank", change, init)


def lora(
    loss_fn: LossFn, inner: InnerLoop, *parts: Part, adapts: Chooses, rng: jax.Array, rank: int = 4
) -> MetaLearner:
    r"""MAML that adapts chosen weights by updates of low rank alone.

    The inner loop runs on :math:`A, B` of :math:`W = W_0 + A B`; :math:`W_0`, all other parameters and the initial
    :math:`A, B` are meta-learned, differentiated through the inner loop.

    Args:
        loss_fn: `(params, data, rng) -> (scalar, metrics)`.
        inner: The inner loop, from `inner_loop`.
        *parts: Parts to combine it with; see `maml`.
        adapts: The weights that adapt; see `low_rank`.
        rng: A key for initial values.
        rank: Rank of the updates.

    Returns:
        A `MetaLearner` whose meta-parameters are the model's, `"init"`, and the initial factors, `"low_rank"`; `adapt`
        returns the model's parameters, updates added.

    Raises:
        ValueError: If `rank` is below 1; from `init`, if no weight is chosen, or one is a vector.

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
    return maml(loss_fn, inner, low_rank(rank, adapts, rng), *parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRA:
    """MAML with low-rank inner updates, as settings."""

    rank: int = 4
    """Rank of the updates."""
    adapts: tuple[str, ...] = ("kernel",)
    """Names of the weights that adapt."""

    def __post_init__(self):
        if not 1 <= self.rank <= 4096:
            raise UserError(f"learner.rank must be from 1 to 4096, got {self.rank}")

    def build(self, given: Ingredients) -> MetaLearner:
        """Make the learner."""
        return lora(given.loss_fn, given.inner, adapts=named(*self.adapts), rng=given.rng, rank=self.rank)
