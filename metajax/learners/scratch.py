"""Training from scratch: a baseline without meta-learning."""

import dataclasses

import jax
import jax.numpy as jnp

from metajax.core.checks import check_loss, evaluate_loss
from metajax.core.inner_loop import InnerLoop, check_inner_loop
from metajax.core.learner import BuildContext, MetaGradient, MetaLearner, checked_learner
from metajax.core.types import LossFn


def scratch(loss_fn: LossFn, inner: InnerLoop) -> MetaLearner:
    r"""Make a baseline learner that trains on each task separately, from the model's initial parameters.

    The meta-gradient is 0, so the initialisation never changes. If a meta-learner reaches a lower query loss than
    :math:`L_{query}(U_S(\theta_0))`, the difference comes from meta-learning on other tasks.

    Args:
        loss_fn: The loss function, `(params, data, rng) -> (scalar, metrics)`.
        inner: The inner loop, from `inner_loop`, with as many steps as training from scratch needs.

    Returns:
        A `MetaLearner` whose meta-parameters are the initialisation.

    References:
        The baseline of e.g. Vinyals et al., `Matching Networks <https://arxiv.org/abs/1606.04080>`_, 2016.

    >>> import jax, optax, metajax as mj
    >>> from metajax.learners.scratch import scratch
    >>> loss = lambda params, target, rng: ((params - target) ** 2 / 2, {})
    >>> learner = scratch(loss, mj.inner_loop(optax.sgd(0.5), steps=2))
    >>> estimate = learner.gradient(jax.numpy.float32(1.0), mj.Task(0.0, 0.0), jax.random.key(0), ())
    >>> float(estimate.gradient), float(estimate.metrics["loss"])  # 1 -> 0.5 -> 0.25, and 0.25² / 2
    (0.0, 0.03125)
    """
    check_loss(loss_fn)
    check_inner_loop(inner)

    def adapt(meta_params, support, rng, *, state=(), **options):
        return inner.run(loss_fn, meta_params, support, rng, **options)

    def gradient(meta_params, task, rng, state):
        support_key, query_key = jax.random.split(rng)
        adapted = adapt(meta_params, task.support, support_key).params
        _, metrics = evaluate_loss(loss_fn, adapted, task.query, query_key)
        return MetaGradient(jax.tree.map(jnp.zeros_like, meta_params), metrics, ())

    return checked_learner(lambda params: (params, ()), adapt, gradient)


@dataclasses.dataclass(frozen=True)
class ScratchConfig:
    """Settings of training from scratch. One meta-step is enough, because meta-steps do not change the parameters."""

    def build(self, context: BuildContext) -> MetaLearner:
        """Make the meta-learner for the loss, the inner loop and the model in `context`."""
        return scratch(context.loss_fn, context.inner)
