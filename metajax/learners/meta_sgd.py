"""Meta-SGD, which meta-learns a rate for every parameter, and MAML with a meta-learned diagonal preconditioner."""

import dataclasses

import jax
import jax.numpy as jnp

from metajax.core.inner_loop import InnerLoop
from metajax.core.learner import BuildContext, MetaLearner, Modifier
from metajax.core.trees import scaled
from metajax.core.types import LossFn
from metajax.learners.maml import maml


def learned_rates() -> Modifier:
    """Multiply each parameter's inner update by a meta-learned factor. The factors start at 1 and may become negative.

    Returns:
        A modifier for `maml` with the name `rates`. The modifier has one factor for each of the model's parameters. So
        it cannot be combined with modifiers that adapt other arrays, such as a context or low-rank factors.

    >>> learned_rates().init({"w": 3.0})
    {'w': Array(1., dtype=float32, weak_type=True)}
    """

    def change(rates, adaptation, support):
        return adaptation._replace(
            rescale=lambda updates, step: scaled(adaptation.rescale(updates, step), rates),
        )

    return Modifier("rates", change, lambda params: jax.tree.map(jnp.ones_like, params))


def diagonal_preconditioner() -> Modifier:
    r"""Multiply each parameter's inner update by a positive factor :math:`e^p`. The meta-learned :math:`p` starts at 0.

    Returns:
        A modifier for `maml` with the name `log_diagonal`.

    >>> diagonal_preconditioner().init({"w": 3.0})
    {'w': Array(0., dtype=float32, weak_type=True)}
    """

    def change(log_diagonal, adaptation, support):
        diagonal = jax.tree.map(jnp.exp, log_diagonal)
        return adaptation._replace(
            rescale=lambda updates, step: scaled(adaptation.rescale(updates, step), diagonal),
        )

    return Modifier("log_diagonal", change, lambda params: jax.tree.map(jnp.zeros_like, params))


def meta_sgd(loss_fn: LossFn, inner: InnerLoop, *modifiers: Modifier) -> MetaLearner:
    r"""Make the learner of Meta-SGD: MAML that also meta-learns the inner learning rate of every parameter.

    The inner step is :math:`\phi \leftarrow \phi - \alpha \circ \nabla L(\phi)`. The meta-gradient is taken with
    respect to :math:`\theta` and :math:`\alpha`. In metajax :math:`\alpha` is the inner optimiser's learning rate times
    a factor that starts at 1. So one outer learning rate suits both :math:`\theta` and the factors, and the inner
    optimiser may be any optax optimiser.

    Args:
        loss_fn: The loss function, `(params, data, rng) -> (scalar, metrics)`.
        inner: The inner loop, from `inner_loop`. The paper uses one step of SGD.
        *modifiers: Further modifiers of the inner loop; see `maml`.

    Returns:
        A `MetaLearner` whose meta-parameters are `"init"`, the initialisation, and `"rates"`, the factors.

    References:
        Li et al., `Meta-SGD: Learning to Learn Quickly for Few-Shot Learning
        <https://arxiv.org/abs/1707.09835>`_, 2017.

    >>> import jax, optax, metajax as mj
    >>> loss = lambda params, target, rng: ((params - target) ** 2 / 2, {})
    >>> learner = mj.meta_sgd(loss, mj.inner_loop(optax.sgd(0.5), steps=1))
    >>> meta_params, _ = learner.init(jax.numpy.float32(1.0))
    >>> gradient = learner.gradient(meta_params, mj.Task(0.0, 0.0), jax.random.key(0), ()).gradient
    >>> float(gradient["init"]), float(gradient["rates"])  # derivative by the factor: 0.5 · (−0.5 · 1)
    (0.25, -0.25)
    """
    return maml(loss_fn, inner, learned_rates(), *modifiers)


@dataclasses.dataclass(frozen=True)
class MetaSGDConfig:
    """Settings of Meta-SGD. Its learned rates start at `inner.learning_rate`."""

    def build(self, context: BuildContext) -> MetaLearner:
        """Make the meta-learner for the loss, the inner loop and the model in `context`."""
        return meta_sgd(context.loss_fn, context.inner)


@dataclasses.dataclass(frozen=True)
class PreconditionedConfig:
    """Settings of MAML with a meta-learned positive diagonal preconditioner of the inner updates."""

    def build(self, context: BuildContext) -> MetaLearner:
        """Make the meta-learner for the loss, the inner loop and the model in `context`."""
        return maml(context.loss_fn, context.inner, diagonal_preconditioner())
