"""Reptile: move the initialisation towards each task's adapted parameters."""

import dataclasses

import jax

from metajax.core.checks import check_loss, evaluate_loss
from metajax.core.inner_loop import InnerLoop, check_inner_loop
from metajax.core.learner import BuildContext, MetaGradient, MetaLearner, checked_learner
from metajax.core.types import LossFn


def reptile(loss_fn: LossFn, inner: InnerLoop, *, carry_optimizer: bool = False) -> MetaLearner:
    r"""Make the learner of Reptile. Its meta-gradient is the negative parameter change, :math:`\theta - U_S(\theta)`.

    Averaged over tasks and applied by SGD with rate :math:`\epsilon`, the meta-gradient gives the paper's update
    :math:`\theta \leftarrow \theta + \epsilon \frac{1}{n} \sum_i (U_i(\theta) - \theta)`. The paper anneals
    :math:`\epsilon` linearly from 1 to 0. Any other optax optimiser may replace SGD. The query set is used only for the
    metrics.

    Args:
        loss_fn: The loss function, `(params, data, rng) -> (scalar, metrics)`.
        inner: The inner loop, from `inner_loop`. The paper uses minibatches of the support set and Adam with `b1=0`.
        carry_optimizer: Keep the inner optimiser's state from meta-step to meta-step and into evaluation. The authors'
            code passes the state from task to task. In metajax all tasks of a meta-step start from the same state, and
            the next meta-step starts from the average of their final states. `adapt` without a state starts from a
            fresh state.

    Returns:
        A `MetaLearner` whose meta-parameters are the initialisation. The learner's state is the inner optimiser's state
        if `carry_optimizer` is set, else `()`.

    Raises:
        TypeError: If `inner` is not an inner loop.
        ValueError: If `inner` has no steps.

    References:
        Nichol et al., `On First-Order Meta-Learning Algorithms <https://arxiv.org/abs/1803.02999>`_, 2018.

    >>> import jax, optax, metajax as mj
    >>> loss = lambda params, target, rng: ((params - target) ** 2 / 2, {})
    >>> learner = mj.reptile(loss, mj.inner_loop(optax.sgd(0.5), steps=2))
    >>> task = mj.Task(support=0.0, query=0.0)  # 1 -> 0.5 -> 0.25
    >>> float(learner.gradient(jax.numpy.float32(1.0), task, jax.random.key(0), ()).gradient)
    0.75
    """
    check_loss(loss_fn)
    check_inner_loop(inner)
    if inner.steps < 1:
        raise ValueError("Reptile needs at least one inner step, because it moves towards the adapted parameters")

    def init(params):
        return params, inner.init(params) if carry_optimizer else ()

    def adapt(meta_params, support, rng, *, state=(), **options):
        opt_state = state if carry_optimizer and jax.tree.leaves(state) else None
        return inner.run(loss_fn, meta_params, support, rng, opt_state=opt_state, **options)

    def gradient(meta_params, task, rng, state):
        support_key, query_key = jax.random.split(rng)
        adapted = adapt(meta_params, task.support, support_key, state=state)
        minus_delta = jax.tree.map(lambda before, after: before - after, meta_params, adapted.params)
        _, metrics = evaluate_loss(loss_fn, adapted.params, task.query, query_key)
        return MetaGradient(minus_delta, metrics, adapted.opt_state if carry_optimizer else ())

    return checked_learner(init, adapt, gradient)


@dataclasses.dataclass(frozen=True)
class ReptileConfig:
    """Settings of Reptile."""

    carry_optimizer: bool = False
    """Keep the inner optimiser's state from meta-step to meta-step and into evaluation, like the authors' code."""

    def build(self, context: BuildContext) -> MetaLearner:
        """Make the meta-learner for the loss, the inner loop and the model in `context`."""
        return reptile(context.loss_fn, context.inner, carry_optimizer=self.carry_optimizer)
