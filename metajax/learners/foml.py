"""FOML: the last inner gradient is the meta-gradient."""

import dataclasses

import jax
import jax.numpy as jnp

from metajax.core.checks import check_loss, evaluate_loss
from metajax.core.inner_loop import InnerLoop, check_inner_loop
from metajax.core.learner import BuildContext, MetaGradient, MetaLearner, checked_learner
from metajax.core.trees import merge
from metajax.core.types import LossFn


def foml(loss_fn: LossFn, inner: InnerLoop) -> MetaLearner:
    r"""Make the learner of FOML. Its meta-gradient is the last inner gradient, the last term of Reptile's sum.

    The meta-gradient is :math:`\nabla L_{support}(\phi_{S-1})`. It is computed on the whole support set, even if the
    inner loop uses minibatches; the authors' code uses the last minibatch, or separate examples. First-order MAML
    instead uses the gradient on the query set after the last step; for first-order MAML use `fomaml`.

    Args:
        loss_fn: The loss function, `(params, data, rng) -> (scalar, metrics)`.
        inner: The inner loop, from `inner_loop`, of at least one step.

    Returns:
        A `MetaLearner` whose meta-parameters are the initialisation. The query set is used only for the metrics.

    Raises:
        TypeError: If `inner` is not an inner loop.
        ValueError: If the inner loop has no step.

    References:
        Nichol et al., `On First-Order Meta-Learning Algorithms <https://arxiv.org/abs/1803.02999>`_, 2018, section 6.

    >>> import jax, optax, metajax as mj
    >>> loss = lambda params, target, rng: ((params - target) ** 2 / 2, {})
    >>> learner = mj.foml(loss, mj.inner_loop(optax.sgd(0.5), steps=2))
    >>> float(learner.gradient(jax.numpy.float32(1.0), mj.Task(0.0, 0.0), jax.random.key(0), ()).gradient)
    0.5
    """
    check_loss(loss_fn)
    check_inner_loop(inner)
    if inner.steps < 1:
        raise ValueError("FOML needs at least one inner step, because it uses the last inner gradient")

    def adapt(meta_params, support, rng, *, state=(), **options):
        return inner.run(loss_fn, meta_params, support, rng, **options)

    def gradient(meta_params, task, rng, state):
        support_key, query_key = jax.random.split(rng)
        before = adapt(meta_params, task.support, support_key, steps=inner.steps - 1)
        grads = jax.grad(lambda params: evaluate_loss(loss_fn, params, task.support, support_key)[0])(before.params)
        fast, slow = inner.split(grads)
        grads = merge(fast, jax.tree.map(jnp.zeros_like, slow))  # leaves that do not adapt have no inner gradient
        after = adapt(before.params, task.support, support_key, steps=1, opt_state=before.opt_state)
        _, metrics = evaluate_loss(loss_fn, after.params, task.query, query_key)
        return MetaGradient(grads, metrics, ())

    return checked_learner(lambda params: (params, ()), adapt, gradient)


@dataclasses.dataclass(frozen=True)
class FOMLConfig:
    """Settings of FOML."""

    def build(self, context: BuildContext) -> MetaLearner:
        """Make the meta-learner for the loss, the inner loop and the model in `context`."""
        return foml(context.loss_fn, context.inner)
