"""What a meta-learner is: an estimator of a meta-gradient on one task."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

from metajax.inner import Adapted, InnerLoop
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
