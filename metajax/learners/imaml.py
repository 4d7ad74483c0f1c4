"""iMAML: compute the meta-gradient by implicit differentiation of a proximal inner problem."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.scipy.sparse.linalg import cg

from metajax.core.checks import check_loss, evaluate_loss
from metajax.core.inner_loop import InnerLoop, check_inner_loop
from metajax.core.learner import BuildContext, MetaGradient, MetaLearner, checked_learner
from metajax.core.trees import merge
from metajax.core.types import LossFn, PyTree
from metajax.errors import UserError


def imaml(
    loss_fn: LossFn,
    inner: InnerLoop,
    *,
    strength: float = 2.0,
    cg_steps: int = 5,
    damping: float = 0.0,
    pull_once: bool = False,
) -> MetaLearner:
    r"""Make the learner of implicit MAML, which neither stores nor differentiates the steps of the inner loop.

    The inner loop starts from :math:`\theta` and approximately minimises
    :math:`L_{support}(\phi) + \frac{\lambda}{2} \lVert \phi - \theta \rVert^2`. At the minimum :math:`\phi^*` the
    meta-gradient is
    :math:`\left(I + \frac{1}{\lambda} \nabla^2 L_{support}(\phi^*)\right)^{-1} \nabla L_{query}(\phi^*)`. A few steps
    of conjugate gradients on Hessian-vector products solve this linear system. Memory does not grow with the number of
    inner steps.

    Args:
        loss_fn: The loss function, `(params, data, rng) -> (scalar, metrics)`.
        inner: The inner loop, from `inner_loop`, with as many steps as the inner problem needs.
        strength: :math:`\lambda`, the strength of the proximal term, which pulls the parameters towards the
            initialisation.
        cg_steps: Number of steps of conjugate gradients.
        damping: With damping :math:`d`, the factor of the Hessian is :math:`1/(\lambda + d)`. Damping keeps the linear
            system positive definite where the Hessian is not.
        pull_once: Adapt to the support loss only. Then take one step on the proximal term, from a fresh state of the
            inner optimiser, both in training and in evaluation. The authors' code does so with SGD; it solves the
            system with a damping of λ + 20 and scales the gradient by one half. The result is not a minimum of the
            inner problem, so the meta-gradient is a heuristic.

    Returns:
        A `MetaLearner` whose meta-parameters are the initialisation. Leaves that do not adapt also receive the implicit
        gradient, including the term with mixed second derivatives.

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
    check_loss(loss_fn)
    check_inner_loop(inner)
    strength, damping = float(strength), float(damping)  # Python floats do not promote the parameters' dtype
    if strength <= 0 or damping < 0 or cg_steps < 1:
        raise ValueError(
            "strength must be positive, damping not negative and cg_steps at least 1, "
            f"got {strength}, {damping} and {cg_steps}"
        )

    def init(params):
        return params, ()

    def pull(params, meta_params):
        return strength / 2 * optax.tree.norm(optax.tree.sub(params, meta_params), squared=True)

    def adapt(meta_params, support, rng, *, state=(), observe=None, **options):
        def proximal(params, data, rng):
            loss, metrics = evaluate_loss(loss_fn, params, data, rng)
            return loss + pull(params, meta_params), metrics

        if not pull_once:
            return inner.run(proximal, meta_params, support, rng, observe=observe, **options)

        def pulled(params):
            only_pull = lambda params, data, rng: (pull(params, meta_params), {})  # noqa: E731
            return inner.run(only_pull, params, support, rng, steps=1).params

        seen = None if observe is None else lambda params: observe(pulled(params))
        adapted = inner.run(loss_fn, meta_params, support, rng, observe=seen, **options)
        return adapted._replace(params=pulled(adapted.params))

    def gradient(meta_params, task, rng, state):
        support_key, query_key = jax.random.split(rng)
        adapted = adapt(meta_params, task.support, support_key).params
        measure = lambda params: evaluate_loss(loss_fn, params, task.query, query_key)  # noqa: E731
        grads, metrics = jax.grad(measure, has_aux=True)(adapted)
        support_gradient = jax.grad(lambda params: evaluate_loss(loss_fn, params, task.support, support_key)[0])
        by_fast, by_slow = inner.split(grads)

        def hessian_times(fast):  # rows of all parameters; `fast` is a direction of the adapting parameters
            zeros = jax.tree.map(jnp.zeros_like, inner.split(adapted)[1])
            product = jax.jvp(support_gradient, (adapted,), (merge(fast, zeros),))[1]
            return jax.tree.map(lambda leaf: leaf / (strength + damping), product)

        solution = _conjugate_gradients(lambda fast: inner.split(hessian_times(fast))[0], by_fast, cg_steps)
        mixed = inner.split(hessian_times(solution))[1]
        return MetaGradient(merge(solution, optax.tree.sub(by_slow, mixed)), metrics, ())

    return checked_learner(init, adapt, gradient)


def _conjugate_gradients(product: Callable[[PyTree], PyTree], target: PyTree, steps: int) -> PyTree:
    """Solve `x + product(x) = target` approximately, for a linear function `product`."""
    # Conjugate gradients need one dtype for all leaves, and do not converge with less precision than float32.
    dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(target))

    def matrix(x: PyTree) -> PyTree:
        return optax.tree.add(x, optax.tree.cast(product(optax.tree.cast_like(x, target)), dtype))

    solution, _ = cg(matrix, optax.tree.cast(target, dtype), tol=0.0, maxiter=steps)
    return optax.tree.cast_like(solution, target)


@dataclasses.dataclass(frozen=True, kw_only=True)
class IMAMLConfig:
    """Settings of iMAML."""

    strength: float = 2.0
    """λ, the strength of the proximal term, which pulls the parameters towards the initialisation."""
    cg_steps: int = 5
    """Number of steps of conjugate gradients."""
    damping: float = 0.0
    """The factor of the Hessian in the linear system is 1/(λ + damping)."""
    pull_once: bool = False
    """Adapt without the proximal term, then take one step on that term, in training and in evaluation, as the authors'
    code does."""

    def __post_init__(self):
        if not 1 <= self.cg_steps <= 10_000:
            raise UserError(f"learner.cg_steps must be from 1 to 10000, got {self.cg_steps}")
        if not 0 < self.strength < 1e37:
            raise UserError(f"learner.strength must be a number above 0 and below 1e37, got {self.strength}")
        if not 0 <= self.damping < 1e37:
            raise UserError(f"learner.damping must be a number from 0 to 1e37, got {self.damping}")

    def build(self, context: BuildContext) -> MetaLearner:
        """Make the meta-learner for the loss, the inner loop and the model in `context`."""
        return imaml(context.loss_fn, context.inner, **dataclasses.asdict(self))
