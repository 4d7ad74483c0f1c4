"""MAML: differentiate the query loss through the inner loop. Other learners modify MAML by a `Modifier`."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metajax.core.checks import check_loss, describe, evaluate_loss
from metajax.core.inner_loop import InnerLoop, check_inner_loop
from metajax.core.learner import Adaptation, BuildContext, MetaGradient, MetaLearner, Modifier, checked_learner
from metajax.core.types import LossFn


def maml(
    loss_fn: LossFn,
    inner: InnerLoop,
    *modifiers: Modifier,
    step_weights: Callable[[jax.Array], jax.Array] | None = None,
    second_order_from: int = 0,
) -> MetaLearner:
    r"""Make the learner of model-agnostic meta-learning, second-order or first-order, with optional modifications.

    The meta-gradient of a task is :math:`\nabla_\theta L_{query}(U_S(\theta))`, where :math:`U_S` is the inner loop on
    the support set. An inner loop made with `first_order=True` gives first-order MAML: the Jacobian of :math:`U_S` is
    replaced by the identity. With 0 inner steps MAML is joint training on all tasks.

    Args:
        loss_fn: The loss function, `(params, data, rng) -> (scalar, metrics)`, on the support set and on the query set.
        inner: The inner loop, from `inner_loop`.
        *modifiers: Modifications of the inner loop, such as a mask of adapting parameters, or learned rates. ANIL,
            Meta-SGD and other variants of MAML are MAML with one or two modifiers. Modifiers can be combined.
        step_weights: MAML++'s multi-step loss: `completed meta-steps -> weights float[steps]`. The meta-loss is the
            weighted sum of the query losses after each inner step.
        second_order_from: First-order until meta-step `second_order_from`, then second-order.

    Returns:
        A `MetaLearner` whose meta-parameters are the initialisation. If modifiers have meta-parameters, it is a dict
        with the initialisation as `"init"` and each modifier's meta-parameters under its name. The learner's state is
        the number of completed meta-steps if `step_weights` or `second_order_from` is set, else `()`.

    Raises:
        TypeError: If `inner` is not an inner loop.
        ValueError: If two modifiers have the same name, or a modifier or `step_weights` was made for another number of
            inner steps than `inner`.

    References:
        Finn et al., `Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks
        <https://arxiv.org/abs/1703.03400>`_, 2017. Multi-step loss and annealed order: Antoniou et al., `How to Train
        Your MAML <https://arxiv.org/abs/1810.09502>`_, 2018.

    >>> import jax, optax, metajax as mj
    >>> loss = lambda params, target, rng: ((params - target) ** 2 / 2, {})
    >>> learner = mj.maml(loss, mj.inner_loop(optax.sgd(0.5), steps=1))
    >>> task = mj.Task(support=0.0, query=0.0)  # adapted: 0.5; meta-gradient: 0.5 * (1 - 0.5)
    >>> float(learner.gradient(jax.numpy.float32(1.0), task, jax.random.key(0), ()).gradient)
    0.25
    """
    check_loss(loss_fn)
    check_inner_loop(inner)
    _check_modifiers(modifiers)
    _check_steps(inner.steps, modifiers, step_weights)
    counts = step_weights is not None or second_order_from > 0
    inits = {modifier.name: modifier.init for modifier in modifiers if modifier.init is not None}

    def init(params):
        meta_params = {"init": params, **{name: make(params) for name, make in inits.items()}} if inits else params
        return meta_params, jnp.zeros((), jnp.int32) if counts else ()

    def begin(meta_params, support) -> Adaptation:
        adaptation = Adaptation(meta_params["init"] if inits else meta_params)
        for modifier in modifiers:
            learned = meta_params[modifier.name] if modifier.name in inits else ()
            adaptation = modifier.change(learned, adaptation, support)
        return adaptation

    def adapt(meta_params, support, rng, *, state=(), steps=None, **options):
        start = begin(meta_params, support)
        adapted = inner.run(
            loss_fn, start.params, support, rng, steps=steps, to_model=start.to_model, rescale=start.rescale, **options
        )
        return adapted._replace(params=start.to_model(adapted.params, inner.steps if steps is None else steps))

    def gradient(meta_params, task, rng, state):
        support_key, query_key = jax.random.split(rng)

        def query_loss(meta_params, **options):
            def measure(params):
                return evaluate_loss(loss_fn, params, task.query, query_key)

            if step_weights is None:
                return measure(adapt(meta_params, task.support, support_key, **options).params)
            losses, metrics = adapt(meta_params, task.support, support_key, observe=measure, **options).trace
            last = jax.tree.map(lambda values: values[-1], metrics)
            return step_weights(state) @ losses[1:], last

        def estimate(**options):
            return jax.grad(lambda meta_params: query_loss(meta_params, **options), has_aux=True)(meta_params)

        if counts:
            _check_count(state)
        if second_order_from:
            grads, metrics = jax.lax.cond(
                state < second_order_from, lambda: estimate(first_order=True), lambda: estimate()
            )
        else:
            grads, metrics = estimate()
        return MetaGradient(grads, metrics, state + 1 if counts else ())

    return checked_learner(init, adapt, gradient, ("init", *inits) if inits else ())


def fomaml(loss_fn: LossFn, inner: InnerLoop, *modifiers: Modifier) -> MetaLearner:
    r"""Make the learner of first-order MAML: `maml` whose meta-gradient treats the inner gradients as constants.

    The meta-gradient of a task is :math:`\nabla L_{query}(\phi)` at the adapted parameters :math:`\phi`. It is cheaper
    than second-order MAML and needs less memory.

    Args:
        loss_fn: The loss function, `(params, data, rng) -> (scalar, metrics)`, on the support set and on the query set.
        inner: The inner loop, from `inner_loop`. Its argument `first_order` has no effect.
        *modifiers: Modifiers of the inner loop; see `maml`.

    Returns:
        A `MetaLearner`; see `maml`.

    Raises:
        TypeError: If `inner` is not an inner loop.
        ValueError: As in `maml`.

    References:
        Nichol et al., `On First-Order Meta-Learning Algorithms <https://arxiv.org/abs/1803.02999>`_, 2018.

    >>> import jax, optax, metajax as mj
    >>> loss = lambda params, target, rng: ((params - target) ** 2 / 2, {})
    >>> learner = mj.fomaml(loss, mj.inner_loop(optax.sgd(0.5), steps=1))
    >>> task = mj.Task(support=0.0, query=0.0)  # adapted: 0.5; its gradient: 0.5
    >>> float(learner.gradient(jax.numpy.float32(1.0), task, jax.random.key(0), ()).gradient)
    0.5
    """
    check_inner_loop(inner)
    return maml(loss_fn, inner._replace(run=functools.partial(inner.run, first_order=True)), *modifiers)


def _check_modifiers(modifiers: tuple[Modifier, ...]) -> None:
    for modifier in modifiers:
        if not isinstance(modifier, Modifier):
            raise TypeError(f"a modification of MAML is a metajax.Modifier, got {describe(modifier)}")
    names = [modifier.name for modifier in modifiers]
    if len({"init", *names}) <= len(names):
        raise ValueError(f"modifiers need different names, other than init, got {', '.join(names)}")


def _check_count(state: Any) -> None:
    """Raise a `TypeError` unless a learner's state is the number of completed meta-steps."""
    if isinstance(state, tuple | list | dict) or jnp.shape(state) != ():
        raise TypeError(
            "this learner counts meta-steps: pass the state from learner.init(params)[1], or the state of the last "
            f"estimate; got {describe(state)}"
        )


def _check_steps(
    steps: int, modifiers: tuple[Modifier, ...], step_weights: Callable[[jax.Array], jax.Array] | None
) -> None:
    """Raise a `ValueError` if a modifier or `step_weights` was made for a number of steps other than `steps`."""
    for modifier in modifiers:
        if modifier.steps not in (None, steps):
            raise ValueError(
                f"the modifier {modifier.name!r} was made for {modifier.steps} inner steps, but the inner loop has "
                f"{steps}: use the same number for both"
            )
    if step_weights is None:
        return
    shape = jax.eval_shape(step_weights, jax.ShapeDtypeStruct((), jnp.int32)).shape
    if shape != (steps,):
        raise ValueError(
            f"step_weights must return a weight for each inner step, float[{steps}], got an array of shape {shape}"
        )


@dataclasses.dataclass(frozen=True)
class MAMLConfig:
    """Settings of MAML. `inner.first_order` gives first-order MAML; `inner.steps = 0` gives joint training."""

    def build(self, context: BuildContext) -> MetaLearner:
        """Make the meta-learner for the loss, the inner loop and the model in `context`."""
        return maml(context.loss_fn, context.inner)
