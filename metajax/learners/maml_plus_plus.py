"""MAML++: per-layer per-step rates, a multi-step loss, per-step normalisation offsets, first-order steps at first."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metajax.core.inner_loop import InnerLoop, check_inner_loop
from metajax.core.learner import BuildContext, MetaLearner, Modifier
from metajax.core.trees import Mask, invert, merge, named, scaled, split
from metajax.core.types import LossFn
from metajax.errors import UserError
from metajax.learners.maml import maml


def _norms(path: str, leaf: Any) -> bool:
    """Return whether a leaf belongs to a normalisation layer; a model may have none."""
    return named("norms")(path, leaf)


def rates_per_layer_and_step(steps: int) -> Modifier:
    """Multiply the inner update by a meta-learned factor for each leaf and inner step. The factors start at 1.

    Args:
        steps: Number of inner steps in training; it must equal `steps` of the inner loop. If evaluation has more steps,
            the additional steps use the factors of the last training step.

    Returns:
        A modifier for `maml` with the name `step_rates`. It meta-learns factors `[steps]` for each leaf, in the leaf's
        dtype.

    Raises:
        ValueError: If `steps` is below 1.

    >>> rates_per_layer_and_step(2).init({"w": 3.0})
    {'w': Array([1., 1.], dtype=float32)}
    """
    _check_steps("rates", steps)

    def change(rates, adaptation, support):
        def rescale(updates, step):
            at = jnp.minimum(step, steps - 1)
            return scaled(adaptation.rescale(updates, step), jax.tree.map(lambda rate: jnp.asarray(rate)[at], rates))

        return adaptation._replace(rescale=rescale)

    def init(params):
        return jax.tree.map(lambda leaf: jnp.ones(steps, jnp.result_type(leaf)), params)

    return Modifier("step_rates", change, init, steps)


def _check_steps(name: str, steps: int) -> None:
    if steps < 1:
        raise ValueError(f"{name} per step need an inner step at least, got {steps}")


def values_per_step(mask: Mask, steps: int) -> Modifier:
    """Use a separate meta-learned value of some leaves in each inner step, instead of adapting these leaves.

    MAML++ uses this modifier for the offsets of normalisation. MAML++'s per-step normalisation statistics need no extra
    code, because metajax always normalises by the statistics of the current batch.

    The query loss after `s` steps uses value `s`. The authors' code has `steps` values, not `steps + 1`. It evaluates
    the query set with the value that the support set used before the last update. metajax differs on purpose: value `s`
    is trained with the features after `s` steps.

    Args:
        mask: Mask of the leaves: a predicate `(path, leaf) -> bool` or a pytree of bools.
        steps: Number of inner steps in training; it must equal `steps` of the inner loop. If evaluation has more steps,
            the additional steps use the last value.

    Returns:
        A modifier for `maml` with the name `per_step`. It meta-learns `[steps + 1, ...]` for each selected leaf.

    Raises:
        ValueError: If `steps` is below 1.

    >>> values_per_step(named("b"), 1).init({"w": 3.0, "b": 2.0})
    {'b': Array([2., 2.], dtype=float32, weak_type=True), 'w': None}
    """
    _check_steps("values", steps)

    def init(params):
        return jax.tree.map(
            lambda leaf: jnp.stack([jnp.asarray(leaf)] * (steps + 1)), split(params, mask, "per_step")[0]
        )

    def change(values, adaptation, support):
        fast, _ = split(adaptation.params, invert(mask))

        def to_model(fast, step):
            at = jnp.minimum(step, steps)
            return adaptation.to_model(merge(fast, jax.tree.map(lambda leaf: jnp.asarray(leaf)[at], values)), step)

        return adaptation._replace(params=fast, to_model=to_model)

    return Modifier("per_step", change, init, steps)


def annealed_weights(steps: int, over: int) -> Callable[[jax.Array], jax.Array]:
    """Return a schedule for the weights of a multi-step loss: equal at first, then shifted to the last inner step.

    Args:
        steps: Number of inner steps.
        over: Meta-steps over which the weights of all inner steps but the last fall linearly to 3 % of their initial
            value. From meta-step `over` on these weights are 0 and the last weight is 1, as in the authors' code.

    Returns:
        `completed meta-steps -> float32[steps]`; the weights sum to 1.

    Raises:
        ValueError: If a count is below 1.

    >>> [round(float(w), 3) for w in annealed_weights(2, 100)(0)], [
    ...     round(float(w), 3) for w in annealed_weights(2, 100)(1000)
    ... ]
    ([0.5, 0.5], [0.0, 1.0])
    """
    if steps < 1 or over < 1:
        raise ValueError(f"a multi-step loss needs an inner step and a meta-step at least, got {steps} and {over}")

    def weights(step):
        earlier = jnp.where(step < over, jnp.maximum(1 - step / over, 0.03) / steps, 0)
        return jnp.full(steps, earlier).at[-1].set(1 - (steps - 1) * earlier)

    return weights


def maml_plus_plus(
    loss_fn: LossFn,
    inner: InnerLoop,
    *modifiers: Modifier,
    per_step: Mask = _norms,
    anneal_loss: int = 5_000,
    second_order_from: int = 0,
) -> MetaLearner:
    r"""Make the learner of MAML++: `maml` with the modifiers of MAML++.

    The inner step is :math:`\phi_l \leftarrow \phi_l - \alpha_{l,s} \nabla_{\phi_l} L(\phi; b_s)`, with a rate for each
    layer :math:`l` and step :math:`s`, and per-step normalisation offsets :math:`b_s`. The meta-loss is
    :math:`\sum_s v_s L_{query}(\phi_s)`, with weights annealed towards the last step. The rates, the offsets and the
    initialisation are meta-learned. MAML++'s cosine schedule is a setting of the outer optimiser.

    Args:
        loss_fn: The loss function, `(params, data, rng) -> (scalar, metrics)`.
        inner: The inner loop, from `inner_loop`.
        *modifiers: Further modifiers of the inner loop; see `maml`.
        per_step: Mask of the leaves that have per-step values and do not adapt.
        anneal_loss: Number of meta-steps over which the weights of the multi-step loss are annealed. One compiled
            program serves all meta-steps. So later meta-steps still compute the query losses of all inner steps, and
            all but the last have weight 0.
        second_order_from: First-order until meta-step `second_order_from`, then second-order.

    Returns:
        A `MetaLearner` whose meta-parameters are `"init"`, `"step_rates"` and `"per_step"`. The learner's state is the
        number of completed meta-steps.

    References:
        Antoniou et al., `How to Train Your MAML <https://arxiv.org/abs/1810.09502>`_, 2018.

    >>> import jax, optax, metajax as mj
    >>> loss = lambda p, target, rng: ((p["w"] + p["norms"] - target) ** 2 / 2, {})
    >>> learner = mj.maml_plus_plus(loss, mj.inner_loop(optax.sgd(0.5), steps=2))
    >>> meta_params, state = learner.init({"w": 1.0, "norms": 0.0})
    >>> {name: jax.tree.map(jax.numpy.shape, value) for name, value in sorted(meta_params.items()) if name != "init"}
    {'per_step': {'norms': (3,), 'w': None}, 'step_rates': {'norms': (2,), 'w': (2,)}}
    """
    check_inner_loop(inner)
    steps = inner.steps
    return maml(
        loss_fn,
        inner,
        rates_per_layer_and_step(steps),
        values_per_step(per_step, steps),
        *modifiers,
        step_weights=annealed_weights(steps, anneal_loss),
        second_order_from=second_order_from,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MAMLPlusPlusConfig:
    """Settings of MAML++."""

    per_step: tuple[str, ...] | None = None
    """Names of parameters that have per-step values and do not adapt. Default: "norms", if the model has any."""
    anneal_loss: int = 5_000
    """Number of meta-steps over which the weights of the multi-step loss are annealed towards the last step."""
    second_order_from: int = 0
    """First-order until this meta-step, then second-order."""

    def __post_init__(self):
        if not 1 <= self.anneal_loss < 2**31:
            raise UserError(f"learner.anneal_loss must be from 1 to 2³¹ − 1, got {self.anneal_loss}")
        if not 0 <= self.second_order_from < 2**31:
            raise UserError(f"learner.second_order_from must be from 0 to 2³¹ − 1, got {self.second_order_from}")

    def build(self, context: BuildContext) -> MetaLearner:
        """Make the meta-learner for the loss, the inner loop and the model in `context`."""
        return maml_plus_plus(
            context.loss_fn,
            context.inner,
            per_step=_norms if self.per_step is None else named(*self.per_step),
            anneal_loss=self.anneal_loss,
            second_order_from=self.second_order_from,
        )
