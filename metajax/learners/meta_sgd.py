"""Meta-SGD: a learned rate for every parameter; and a learned diagonal preconditioner."""

import dataclasses

import jax
import jax.numpy as jnp

from metajax.inner import InnerLoop
from metajax.learners._interface import Ingredients, MetaLearner, Part
from metajax.learners.maml import maml
from metajax.partition import scaled
from metajax.types import LossFn


def learned_rates() -> Part:
    """Multiply each parameter's inner update by a factor of its own, of either sign, that is meta-learned from 1 on.

    Returns:
        A part for `maml`, of the name `rates`. Its factors are those of the model's
        parameters, so it does not combine with parts that adapt something else, a context or low-rank factors.

    >>> learned_rates().init({"w": 3.0})
    {'w': Array(1., dtype=float32, weak_type=True)}
    """

    def change(rates, adaptation, support):
        return adaptation._replace(
            rescale=lambda updates, step: scaled(adaptation.rescale(updates, step), rates),
        )

    return Part("rates", change, lambda params: jax.tree.map(jnp.ones_like, params))


def diagonal_preconditioner() -> Part:
    r"""Multiply each parameter's inner update by a positive factor :math:`e^p`, :math:`p` meta-learned from 0 on.

    Returns:
        A part for `maml`, of the name `log_diagonal`.

    >>> diagonal_preconditioner().init({"w": 3.0})
    {'w': Array(0., dtype=float32, weak_type=True)}
    """

    def change(log_diagonal, adaptation, support):
        diagonal = jax.tree.map(jnp.exp, log_diagonal)
        return adaptation._replace(
            rescale=lambda updates, step: scaled(adaptation.rescale(updates, step), diagonal),
        )

    return Part("log_diagonal", change, lambda params: jax.tree.map(jnp.zeros_like, params))


def meta_sgd(loss_fn: LossFn, inner: InnerLoop, *parts: Part) -> MetaLearner:
    r"""Meta-SGD: MAML that also meta-learns the inner rate of every parameter.

    The inner step is :math:`\phi \leftarrow \phi - \alpha \circ \nabla L(\phi)`, the meta-gradient by
    :math:`\theta` and :math:`\alpha`. Here :math:`\alpha` is the inner optimiser's rate times a factor that starts at
    1, so that one outer rate does for both, and the inner optimiser may be any.

    Args:
        loss_fn: `(params, data, rng) -> (scalar, metrics)`.
        inner: The inner loop, from `inner_loop`; the paper's is one step of SGD.
        *parts: Parts to combine it with; see `maml`.

    Returns:
        A `MetaLearner` whose meta-parameters are the initialisation, `"init"`, and the factors, `"rates"`.

    References:
        Li et al., `Meta-SGD: Learning to Learn Quickly for Few-Shot Learning
        <https://arxiv.org/abs/1707.09835>`_, 2017.

    >>> import jax, optax, metajax as mj
    >>> loss = lambda params, target, rng: ((params - target) ** 2 / 2, {})
    >>> learner = mj.meta_sgd(loss, mj.inner_loop(optax.sgd(0.5), steps=1))
    >>> meta_params, _ = learner.init(jax.numpy.float32(1.0))
    >>> gradient = learner.gradient(meta_params, mj.Task(0.0, 0.0), jax.random.key(0), ()).gradient
    >>> float(gradient["init"]), float(gradient["rates"])  # by the factor: 0.5 · (−0.5 · 1)
    (0.25, -0.25)
    """
    return maml(loss_fn, inner, learned_rates(), *parts)


@dataclasses.dataclass(frozen=True)
class MetaSGD:
    """Meta-SGD as settings; `inner.learning_rate` is where its rates start."""

    def build(self, given: Ingredients) -> MetaLearner:
        """Make the learner."""
        return meta_sgd(given.loss_fn, given.inner)


@dataclasses.dataclass(frozen=True)
class Preconditioned:
    """MAML with a meta-learned positive diagonal preconditioner of the inner updates, as settings."""

    def build(self, given: Ingredients) -> MetaLearner:
        """Make the learner."""
        return maml(given.loss_fn, given.inner, diagonal_preconditioner())
