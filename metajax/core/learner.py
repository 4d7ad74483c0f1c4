"""The interface of meta-learners. A meta-learner estimates a meta-gradient from one task."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from metajax.core.checks import as_key, check_entries, check_not_donated, check_params, check_task, describe
from metajax.core.inner_loop import Adapted, InnerLoop
from metajax.core.trees import names
from metajax.core.types import ApplyFn, LossFn, MetaParams, Metrics, Params, PyTree, Task


class MetaGradient(NamedTuple):
    """The meta-gradient, metrics and learner state from one task. Each field is averaged over the meta-batch.

    Attributes:
        gradient: The meta-gradient, with the structure of the meta-parameters. Any optax optimiser can apply it.
        metrics: Scalars by name, including `loss`, measured on the query set after adaptation.
        state: The learner's state after this task.
    """

    gradient: MetaParams
    metrics: Metrics
    state: PyTree


class Adapt(Protocol):
    """Adapt to the support set of one task, in training or for predictions after training."""

    def __call__(
        self,
        meta_params: MetaParams,
        support: PyTree,
        rng: jax.Array,
        *,
        state: PyTree = (),
        steps: int | None = None,
        batch_size: int | None = None,
        observe: Callable[[Params], PyTree] | None = None,
    ) -> Adapted:
        """Return the adapted parameters, the inner optimiser's state and the values of `observe` at every step."""
        ...


class MetaLearner(NamedTuple):
    """Three pure functions on one task. The caller applies `vmap`, `jit` and the average over tasks.

    Attributes:
        init: `params -> (meta_params, state)`: the initial meta-parameters, made from a model's parameters, and the
            learner's state, which is passed from meta-step to meta-step (`()` if the learner has no state).
        adapt: `(meta_params, support, rng, *, state, steps, batch_size, observe) -> Adapted`. Its field `params` has
            the adapted parameters of the model.
        gradient: `(meta_params, task, rng, state) -> MetaGradient`.
    """

    init: Callable[[Params], tuple[MetaParams, Any]]
    adapt: Adapt
    gradient: Callable[[MetaParams, Task, jax.Array, PyTree], MetaGradient]


def checked_learner(
    init: Callable[[Params], tuple[MetaParams, Any]],
    adapt: Callable[..., Adapted],
    gradient: Callable[..., MetaGradient],
    entries: Collection[str] = (),
) -> MetaLearner:
    """Make a learner from three functions, and check the arguments of its calls.

    Args:
        init: The function `init` of the learner; see `MetaLearner`.
        adapt: The function `adapt` of the learner; see `MetaLearner`.
        gradient: The function `gradient` of the learner; see `MetaLearner`.
        entries: Names of the entries of the meta-parameters, if the learner's meta-parameters are a dict.

    Returns:
        A learner that raises a `TypeError` for arguments of the wrong type, and accepts an integer seed as `rng`.
    """

    def check(meta_params: MetaParams) -> None:
        check_params(meta_params, "meta-parameters")
        check_not_donated(meta_params, "state")
        if entries:
            check_entries(meta_params, entries)

    def checked_init(params):
        check_params(params)
        return init(params)

    def checked_adapt(meta_params, support, rng, **options):
        check(meta_params)
        return adapt(meta_params, support, as_key(rng), **options)

    def checked_gradient(meta_params, task, rng, state=()):
        check(meta_params)
        check_task(task)
        return gradient(meta_params, task, as_key(rng), state)

    return MetaLearner(checked_init, checked_adapt, checked_gradient)


def check_learner(learner: Any) -> None:
    """Raise a `TypeError` unless a value is a meta-learner."""
    if not all(hasattr(learner, name) for name in MetaLearner._fields):
        raise TypeError(
            f"a learner from metajax.maml(loss, inner) or another learner is expected, got {describe(learner)}"
        )


def check_estimate(estimate: Any, meta_params: MetaParams) -> None:
    """Raise a `TypeError` unless a learner's `gradient` returned an estimate that fits its meta-parameters."""
    if not isinstance(estimate, MetaGradient):
        raise TypeError(
            f"a learner's gradient returns metajax.MetaGradient(gradient, metrics, state), got {describe(estimate)}"
        )
    if not isinstance(estimate.metrics, Mapping):
        raise TypeError(f"the metrics of an estimate are a dict of scalars, got {describe(estimate.metrics)}")
    for name, value in estimate.metrics.items():
        if jnp.shape(value) != ():
            raise TypeError(f"metrics are scalars: {name!r} is {describe(value)}; return its mean")
    shapes = [
        {name: jnp.shape(leaf) for name, leaf in zip(names(tree), jax.tree.leaves(tree), strict=True)}
        for tree in (meta_params, estimate.gradient)
    ]
    if shapes[0] != shapes[1]:
        differing = [name for name in {**shapes[0], **shapes[1]} if shapes[0].get(name) != shapes[1].get(name)]
        raise TypeError(
            "a learner's gradient has the structure and shapes of its meta-parameters, but the two differ in "
            f"{', '.join(map(repr, differing))}"
        )


class Adaptation(NamedTuple):
    """The inner loop's arguments for one task, which a `Modifier` changes. `InnerLoop` describes the two functions.

    Attributes:
        params: The initial values of the adapting parameters.
        to_model: `(params, step) -> the model's parameters`. Default: identity.
        rescale: `(updates, step) -> updates`. Default: identity.
    """

    params: PyTree
    to_model: Callable[[PyTree, Any], Params] = lambda params, step: params
    rescale: Callable[[PyTree, Any], PyTree] = lambda updates, step: updates


class Modifier(NamedTuple):
    """A modification of MAML's inner loop.

    `maml` takes any number of modifiers and applies them in order; each modifier receives the output of the previous
    one.

    Attributes:
        name: Key of the modifier's meta-parameters in the dict of all meta-parameters.
        change: `(the modifier's meta-parameters, adaptation, support) -> adaptation`.
        init: `(model's params) -> the modifier's initial meta-parameters`; `None` for a modifier without
            meta-parameters.
        steps: Number of inner steps that a modifier with per-step values was made for; `None` if any number is valid.
    """

    name: str
    change: Callable[[PyTree, Adaptation, PyTree], Adaptation]
    init: Callable[[Params], PyTree] | None = None
    steps: int | None = None


class BuildContext(NamedTuple):
    """The arguments that an experiment passes to the `build` method of a learner's settings.

    Attributes:
        loss_fn: The loss of the model on a batch.
        inner: The inner loop, from `inner_loop`.
        apply: The model that the loss uses.
        rng: A key for initial values.
    """

    loss_fn: LossFn
    inner: InnerLoop
    apply: ApplyFn
    rng: jax.Array
