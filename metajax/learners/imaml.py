"""iMAML: the meta-gradient by implicit differentiation of a proximal inner problem."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jax.scipy.sparse.linalg import cg

from metajax.errors import UserError
from metajax.inner import InnerLoop, check_inner_loop
from metajax.learners._interface import Estimate, Ingredients, MetaLearner
from metajax.partition import merge
from metajax.types import LossFn


def imaml(
    loss_fn: LossFn,
    inner: InnerLoop,
    *,
    strength: float = 2.0,
    cg_steps: int = 5,
    damping: float = 0.0,
    pull_once: bool = False,
) -> MetaLearner:
    r"""Implicit MAML: what the inner loop does on the way is neither stored nor differentiated.

    The inner loop minimises :math:`L_{support}(\phi) + \frac{\lambda}{2} \lVert \phi - \theta \rVert^2` from
    :math:`\theta` to about :math:`\phi^*`, where the meta-gradient is
    :math:`\left(I + \frac{1}{\lambda} \nabla^2 L_{support}(\phi^*)\right)^{-1} \nabla L_{query}(\phi^*)`, solved by
    a few steps of conjugate gradients on Hessian-vector products. Memory does not grow with the inner steps.

    Args:
        loss_fn: `(params, data, rng) -> (scalar, metrics)`.
        inner: The inner loop, from `inner_loop`, with as many steps as the inner problem needs.
        strength: :math:`\lambda`, of the pull towards the initialisation.
        cg_steps: Steps of conjugate gradients.
        damping: Added to :math:`\lambda` where the Hessian is divided by it: keeps the system positive where the
            Hessian is not.
        pull_once: Adapt to the support loss alone, and in training take one inner step on the pull after that, as the
            authors' code does; it solves the system of a damping of λ + 20, its gradient half as large. What is reached
            is then no minimum, and the gradient a heuristic.

    Returns:
        A `MetaLearner` whose meta-parameters are the initialisation. Leaves that do not adapt get the implicit
        gradient too, the mixed second derivatives' share included.

    Raises:
        TypeError: If `inner` is not an inner loop.
        ValueError: If `strength` is not positive, `damping` negative or `cg_steps` below 1.

    References:
        Rajeswaran et al., `Meta-Learning with Implicit Gradients <https://arxiv.org/abs/1909.04630>`_, 2019.

    >>> import jax, optax, metajax as mj
    >>> loss = lambda params, target, rng: ((params - target) ** 2 / 2, {})
    >>> learner = mj.imaml(loss, mj.inner_loop(optax.sgd(0.25), steps=50), strength=1.0)
    >>> estimate = learner.gradient(jax.numpy.float32(1.0), mj.Task(0.0, 0.0), jax.random.key(0), ())
    >>> round(float(estimate.gradient), 4)  # φ* = θ/2, so half of ∇L at 1/2
    0.25
    """
    check_inner_loop(inner)
    if strength <= 0 or damping < 0 or cg_steps < 1:
        raise ValueError(
            "strength must be positive, damping not negative and cg_steps at least 1, "
            f"got {strength}, {damping} and {cg_steps}"
        )

    def init(params):
        return params, ()

    def pull(params, meta_params):
        return strength / 2 * optax.tree.norm(optax.tree.sub(params, meta_params), squared=True)

    def adapt(meta_params, support, rng, *, state=(), **options):
        def proximal(params, data, rng):
            loss, metrics = loss_fn(params, data, rng)
            return loss + pull(params, meta_params), metrics

        return inner.run(loss_fn if pull_once else proximal, meta_params, support, rng, **options)

    def gradient(meta_params, task, rng, state):
        support_key, query_key = jax.random.split(rng)
        adapted, inner_state, _ = adapt(meta_params, task.support, support_key, first_order=True)
        if pull_once:
            only_pull = lambda params, data, rng: (pull(params, meta_params), {})  # noqa: E731
            options = {"opt_state": inner_state, "first_order": True, "steps": 1}
            adapted = inner.run(only_pull, adapted, task.support, support_key, **options).params
        (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(adapted, task.query, query_key)
        support_gradient = jax.grad(lambda params: loss_fn(params, task.support, support_key)[0])
        by_fast, by_slow = inner.split(grads)

        def hessian_times(fast):  # by all parameters, along those that adapt
            nothing = jax.tree.map(jnp.zeros_like, inner.split(adapted)[1])
            product = jax.jvp(support_gradient, (adapted,), (merge(fast, nothing),))[1]
            return jax.tree.map(lambda leaf: leaf / (strength + damping), product)

        def matrix(fast):
            return optax.tree.add(fast, inner.split(hessian_times(fast))[0])

        solution, _ = cg(matrix, by_fast, tol=0.0, maxiter=cg_steps)
        mixed = inner.split(hessian_times(solution))[1]
        return Estimate(merge(solution, optax.tree.sub(by_slow, mixed)), {**metrics, "loss": loss}, ())

    return MetaLearner(init, adapt, gradient)


@dataclasses.dataclass(frozen=True, kw_only=True)
class IMAML:
    """iMAML as settings."""

    strength: float = 2.0
    """Of the pull towards the initialisation, λ."""
    cg_steps: int = 5
    """Steps of conjugate gradients."""
    damping: float = 0.0
    """Added to λ where the Hessian is divided by it."""
    pull_once: bool = False
    """Adapt without the pull, and take one step on it at the end, as the authors' code does."""

    def __post_init__(self):
        if not 1 <= self.cg_steps <= 10_000:
            raise UserError(f"learner.cg_steps must be from 1 to 10000, got {self.cg_steps}")
        if not 0 < self.strength < 1e37:
            raise UserError(f"learner.strength must be a number above 0 and below 1e37, got {self.strength}")
        if not 0 <= self.damping < 1e37:
            raise UserError(f"learner.damping must be a number from 0 to 1e37, got {self.damping}")

    def build(self, given: Ingredients) -> MetaLearner:
        """Make the learner."""
        return imaml(given.loss_fn, given.inner, **dataclasses.asdict(self))
