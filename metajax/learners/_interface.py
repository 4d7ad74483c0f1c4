"""What a meta-learner is: an estimator of a meta-gradient on one task."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from metajax.checks import as_key, check_entries, check_not_donated, check_params, check_task, describe
from metajax.inner import Adapted, InnerLoop
from metajax.partition import names
from metajax.types import ApplyFn, LossFn, MetaParams, Metrics, Params, PyTree, Task


class Estimate(NamedTuple):
    """What one task says; averaged over the tasks of a step, entry by entry.

    Attributes:
        gradient: The meta-gradient, of the structure of the meta-parameters; for any optax optimiser.
        metrics: Scalars by name, `loss` among them, measured on the query set after adaptation.
        state: The learner's state after this task.
    """

    gradient: MetaParams
    metrics: Metrics
    state: PyTree


class Adapt(Protocol):
    """Adapt to the support set of one task; usable alone."""

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
        """Return the adapted parameters, the inner optimiser's state and what `observe` saw at every step."""
        ...


class MetaLearner(NamedTuple):
    """Three pure functions on one task; `vmap`, `jit` and averaging over tasks are the caller's.

    Attributes:
        init: `params -> (meta_params, state)`: what is meta-learned, starting from a model's parameters, and
            what the learner carries from step to step (`()` if nothing).
        adapt: `(meta_params, support, rng, *, state, steps, batch_size, observe) -> Adapted`, whose parameters are the
            model's.
        gradient: `(meta_params, task, rng, state) -> Estimate`.
    """

    init: Callable[[Params], tuple[MetaParams, Any]]
    adapt: Adapt
    gradient: Callable[[MetaParams, Task, jax.Array, PyTree], Estimate]


def checked_learner(
    init: Callable[[Params], tuple[MetaParams, Any]],
    adapt: Callable[..., Adapted],
    gradient: Callable[..., Estimate],
    entries: Collection[str] = (),
) -> MetaLearner:
    """Make a learner of three functions, and check the arguments of its calls.

    Args:
        init: As in `MetaLearner`.
        adapt: As in `MetaLearner`.
        gradient: As in `MetaLearner`.
        entries: Names of the entries of the meta-parameters, if these are a dict that the learner makes.

    Returns:
        A learner that raises a `TypeError` for arguments of another form, and takes an integer seed for a key.
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
    if not isinstance(estimate, Estimate):
        raise TypeError(
            f"a learner's gradient returns metajax.Estimate(gradient, metrics, state), got {describe(estimate)}"
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
    """How the inner loop works on one task; `InnerLoop` says when it calls the functions.

    Attributes:
        params: What adapts, at its start.
        view: `(params, step) -> the model's parameters`.
        rescale: `(updates, step) -> updates`.
    """

    params: PyTree
    view: Callable[[PyTree, Any], Params] = lambda params, step: params
    rescale: Callable[[PyTree, Any], PyTree] = lambda updates, step: updates


class Part(NamedTuple):
    """What a relative of MAML does otherwise; `maml` takes any number of them, each working on what the last one left.

    Attributes:
        name: Under which its share of the meta-parameters is kept.
        change: `(what it meta-learned, adaptation, support) -> adaptation`.
        init: `(model's params) -> what it meta-learns`; `None` for a part that meta-learns nothing more.
        steps: Inner steps that the part was made for, if it has values for each step; `None` for any number.
    """

    name: str
    change: Callable[[PyTree, Adaptation, PyTree], Adaptation]
    init: Callable[[Params], PyTree] | None = None
    steps: int | None = None


class Ingredients(NamedTuple):
    """What an experiment hands to a learner's settings.

    Attributes:
        loss_fn: The loss on a batch.
        inner: The inner loop.
        apply: The model that the loss uses.
        rng: A key for initial values.
    """

    loss_fn: LossFn
    inner: InnerLoop
    apply: ApplyFn
    rng: jax.Array
