"""MAML: differentiate the query loss through the inner loop."""

import dataclasses

import jax

from metajax.inner import InnerLoop
from metajax.learners._interface import Estimate, MetaLearner
from metajax.types import LossFn


def maml(loss_fn: LossFn, inner: InnerLoop) -> MetaLearner:
    r"""Model-agnostic meta-learning, of second or first order.

    The meta-gradient of a task is :math:`\nabla_\theta L_{query}(U_S(\theta))`, with :math:`U_S` the inner loop on
    the support set. An inner loop made with `first_order=True` gives first-order MAML: the Jacobian of
    :math:`U_S` is replaced by the identity.

    Args:
        loss_fn: `(params, data, rng) -> (scalar, metrics)`, on the support set and on the query set.
        inner: The inner loop, from `inner_loop`.

    Returns:
        A `MetaLearner` whose meta-parameters are the initialisation, and which carries no state.

    Raises:
        TypeError: If `inner` is not an inner loop.

    References:
        Finn et al., `Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks
        <https://arxiv.org/abs/1703.03400>`_, 2017.

    >>> import jax, optax, metajax as mj
    >>> loss = lambda params, target, rng: ((params - target) ** 2 / 2, {})
    >>> learner = mj.maml(loss, mj.inner_loop(optax.sgd(0.5), steps=1))
    >>> task = mj.Task(support=0.0, query=0.0)  # adapted: 0.5; meta-gradient: 0.5 * (1 - 0.5)
    >>> float(learner.gradient(jax.numpy.float32(1.0), task, jax.random.key(0), ()).gradient)
    0.25
    """
    if not isinstance(inner, InnerLoop):
        raise TypeError(f"inner must be made by inner_loop(optimizer, steps), got {type(inner).__name__}")

    def init(params):
        return params, ()

    def adapt(meta_params, support, rng, *, state=(), **options):
        return inner.run(loss_fn, meta_params, support, rng, **options)

    def gradient(meta_params, task, rng, state):
        support_key, query_key = jax.random.split(rng)

        def query_loss(meta_params):
            adapted = adapt(meta_params, task.support, support_key)
            return loss_fn(adapted.params, task.query, query_key)

        (loss, metrics), grads = jax.value_and_grad(query_loss, has_aux=True)(meta_params)
        return Estimate(grads, {**metrics, "loss": loss}, state)

    return MetaLearner(init, adapt, gradient)


@dataclasses.dataclass(frozen=True)
class MAML:
    """MAML as settings; `inner.first_order` makes it first-order MAML."""

    def build(self, loss_fn: LossFn, inner: InnerLoop) -> MetaLearner:
        """Make the learner."""
        return maml(loss_fn, inner)
