"""The inner loop: adaptation to one task by gradient descent, differentiable from end to end.

This module defines the steps of the adaptation: the inner optimiser, the number of steps, the mask of adapting leaves,
minibatches and the trace. The module `differentiation` has the methods to differentiate these steps.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax import lax

from metajax.core.checks import as_key, check_loss, check_params, evaluate_loss
from metajax.core.differentiability import check_derivative_on_use
from metajax.core.differentiation import (
    choose_loop,
    first_order_gradient,
    mixed_mode_gradient,
    reverse_gradient,
    stored,
)
from metajax.core.optimizers import check_optimizer, update, uses_loss
from metajax.core.trees import Mask, all_names, merge, split
from metajax.core.types import LossFn, Params, PyTree

_LARGE = 10_000
"""Smallest number of adapting parameters for which mixed mode is the default."""


class Adapted(NamedTuple):
    """The result of an inner loop.

    Attributes:
        params: The adapted parameters, with the structure of the input parameters.
        opt_state: The inner optimiser's state after the last step.
        trace: The values of `observe`, stacked over steps `0..steps` along a leading axis; `None` without `observe`.
    """

    params: Params
    opt_state: PyTree
    trace: PyTree = None


class Run(Protocol):
    """Adapt parameters to the data of one task."""

    def __call__(
        self,
        loss_fn: LossFn,
        params: Params,
        data: PyTree,
        rng: jax.Array,
        *,
        steps: int | None = None,
        batch_size: int | None = None,
        first_order: bool | None = None,
        opt_state: PyTree = None,
        observe: Callable[[Params], PyTree] | None = None,
        to_model: Callable[[PyTree, Any], Params] | None = None,
        rescale: Callable[[PyTree, Any], PyTree] | None = None,
    ) -> Adapted:
        """Run the inner loop; `steps`, `batch_size` and `first_order` override the arguments of `inner_loop`."""
        ...


class InnerLoop(NamedTuple):
    """Pure functions on one task, made by `inner_loop`.

    Attributes:
        init: `params -> opt_state`, the initial state of the inner optimiser.
        run: `(loss_fn, params, data, rng, *, ...) -> Adapted`. `observe` is a function of the model's parameters; its
            values at steps `0..steps` form the trace. `to_model(params, step)` maps the adapted parameters to the
            model's parameters, for the loss and for `observe` (default: identity); `step` is the number of updates
            before this call. `rescale(updates, step)` changes the updates before they are added to the parameters.
            `to_model` and `rescale` may close over meta-parameters.
        split: `params -> (adapting leaves, constant leaves)`: two trees like `params`. Each tree has `None` in place of
            the leaves that belong to the other tree.
        steps: Default number of gradient steps.
    """

    init: Callable[[Params], PyTree]
    run: Run
    split: Callable[[Params], tuple[PyTree, PyTree]]
    steps: int


def inner_loop(
    optimizer: optax.GradientTransformation,
    steps: int,
    *,
    adapts: Mask | None = None,
    batch_size: int | None = None,
    first_order: bool = False,
    mixed_mode: bool | None = None,
    remat: bool = False,
    unroll: int | bool | None = None,
) -> InnerLoop:
    """Make an inner loop: `steps` steps of any optax `optimizer`, differentiated through.

    Args:
        optimizer: Any optax transformation: SGD, momentum, Adam, a chain, with schedules. To differentiate through
            Adam, give it a small `eps_root`: the derivative of a square root at 0 is infinite.
        steps: Number of gradient steps; each call of `run` may override it.
        adapts: Mask of the leaves that adapt: a predicate `(path, leaf) -> bool`, for example from `named`, or a
            pytree of bools. Default: all leaves. The inner loop does not change the other leaves; they are still
            meta-learned.
        batch_size: Number of support examples in each step. The examples are sampled without replacement; when all of
            them have been used, the support set is shuffled again. Default: the whole support set in each step.
        first_order: Treat the inner gradient as a constant in the outer differentiation (first-order MAML).
            `stop_gradient` is applied inside each step, so JAX stores nothing for a backward pass through the gradient.
        mixed_mode: Differentiate each inner gradient by one forward-over-reverse Hessian-vector product, so that JAX
            stores nothing of the inner backward pass. Default: `True` if at least 10,000 parameters adapt, because
            mixed mode is slightly slower for fewer. Plain reverse mode (`False`) gives the same result up to rounding.
            `False` is needed if the loss has a custom derivative that is not its true derivative (a straight-through
            estimator). Reverse mode and forward mode both work through the loop.
        remat: Store only the gradient of each step, and the parameters and optimiser state after every √`steps` steps.
            The backward pass recomputes all other values. Use `remat` for long loops and large models.
        unroll: Number of steps to unroll in the compiled loop; `True` unrolls all steps. Default: unroll the whole loop
            if it has at most 5 steps, because XLA then generates faster code. `True` does not work with `remat`.

    Returns:
        An `InnerLoop`.

    Raises:
        TypeError: If `optimizer` is not an optax optimiser.
        ValueError: If `steps` is not a whole number of at least 0, or if both `remat` and `unroll=True` are set. The
            loop's `run` raises a `ValueError` if its argument `steps` is not a whole number of at least 0, if the batch
            size is not between 1 and the number of examples, or if no parameter adapts.

    References:
        Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017. Mixed mode: Kemaev et
        al., `Scalable Meta-Learning via Mixed-Mode Differentiation <https://arxiv.org/abs/2505.00793>`_, 2025.

    >>> import jax, optax, metajax as mj
    >>> loss = lambda params, data, rng: ((params - data) ** 2 / 2, {})
    >>> inner = mj.inner_loop(optax.sgd(0.5), steps=2)
    >>> float(inner.run(loss, jax.numpy.float32(1.0), 0.0, jax.random.key(0)).params)
    0.25
    """
    check_optimizer(optimizer, "inner optimiser")
    steps = _whole_steps(steps)
    if remat and unroll is True:
        raise ValueError("remat needs a compiled loop: choose remat or unroll=True, not both")

    @functools.lru_cache(maxsize=16)  # eager calls would otherwise trace the optimiser each time
    def optimizer_uses_loss(structure: Any, shapes: tuple[jax.ShapeDtypeStruct, ...]) -> bool:
        return uses_loss(optimizer, structure.unflatten(shapes))

    def split_adapting(params: Params) -> tuple[PyTree, PyTree]:
        every = lambda path, leaf: True  # noqa: E731
        return split(params, every if adapts is None else adapts, "mask of the inner loop")

    def init(params: Params) -> PyTree:
        return optimizer.init(split_adapting(params)[0])

    settings = _Settings(
        optimizer, optimizer_uses_loss, split_adapting, steps, batch_size, first_order, mixed_mode, remat, unroll
    )
    return InnerLoop(init, functools.partial(_run, settings), split_adapting, steps)


class _Settings(NamedTuple):
    """The arguments of `inner_loop`, with a function `split` in place of the mask `adapts`."""

    optimizer: optax.GradientTransformation
    uses_loss: Callable[[Any, tuple[jax.ShapeDtypeStruct, ...]], bool]
    split: Callable[[Params], tuple[PyTree, PyTree]]
    steps: int
    batch_size: int | None
    first_order: bool
    mixed_mode: bool | None
    remat: bool
    unroll: int | bool | None


def _run(
    settings: _Settings,
    loss_fn: LossFn,
    params: Params,
    data: PyTree,
    rng: jax.Array,
    *,
    steps: int | None = None,
    batch_size: int | None = None,
    first_order: bool | None = None,
    opt_state: PyTree = None,
    observe: Callable[[Params], PyTree] | None = None,
    to_model: Callable[[PyTree, Any], Params] | None = None,
    rescale: Callable[[PyTree, Any], PyTree] | None = None,
) -> Adapted:
    """Run the inner loop; `InnerLoop.run` describes the arguments."""
    steps = settings.steps if steps is None else _whole_steps(steps)
    batch_size = settings.batch_size if batch_size is None else batch_size
    first_order = settings.first_order if first_order is None else first_order
    check_loss(loss_fn)
    fast, slow = settings.split(params)
    check_params(fast, "parameters that adapt")
    if steps > 0 and not any(jnp.size(leaf) for leaf in jax.tree.leaves(fast)):
        raise ValueError(f"no parameter adapts: the mask selects none of {', '.join(all_names(params)) or 'none'}")
    opt_state = settings.optimizer.init(fast) if opt_state is None else opt_state
    loss_key, batch_key = jax.random.split(as_key(rng))
    rows = None if batch_size is None else _minibatches(batch_key, _num_examples(data), batch_size, steps)

    def model(fast, slow, i) -> Params:
        params = merge(fast, slow)
        return params if to_model is None else to_model(params, i)

    def seen(fast, i) -> PyTree:
        if observe is None:
            return None
        return jax.tree.map(jnp.asarray, observe(model(fast, slow, i)))  # a metric may be a Python number

    before = seen(fast, 0)
    if steps == 0:  # JAX has no scan of length 0 while jit is disabled
        return Adapted(merge(fast, slow), opt_state, jax.tree.map(lambda value: value[None], before))
    inner_step = _make_step(settings, loss_fn, model, fast, steps=steps, first_order=first_order, rescale=rescale)

    def step(carry, inputs):
        i, rows = inputs
        batch = data if rows is None else jax.tree.map(lambda a: jnp.asarray(a)[rows], data)
        carry = inner_step(carry, (slow, batch, jax.random.fold_in(loss_key, i)), i)
        return carry, seen(carry[0], i + 1)

    loop = choose_loop(steps=steps, remat=settings.remat, unroll=settings.unroll)
    (fast, opt_state), after = loop(step, (fast, opt_state), (jnp.arange(steps), rows))
    trace = jax.tree.map(lambda b, a: jnp.concatenate([b[None], a]), before, after)
    return Adapted(merge(fast, slow), opt_state, trace)


def _make_step(
    settings: _Settings,
    loss_fn: LossFn,
    model: Callable[[PyTree, PyTree, Any], Params],
    fast: PyTree,
    *,
    steps: int,
    first_order: bool,
    rescale: Callable[[PyTree, Any], PyTree] | None,
) -> Callable[[tuple[PyTree, PyTree], tuple[PyTree, PyTree, jax.Array], Any], tuple[PyTree, PyTree]]:
    """Return the function of one gradient step, `((fast, opt_state), (slow, batch, key), i) -> (fast, opt_state)`.

    `fast` are the adapting leaves, `slow` the other leaves, and `i` is the index of the step.
    """
    optimizer = settings.optimizer
    leaves, structure = jax.tree.flatten(fast)
    shapes = tuple(jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    wants_loss = settings.uses_loss(structure, shapes)
    is_large = sum(jnp.size(leaf) for leaf in leaves) >= _LARGE
    if first_order:
        gradient = first_order_gradient
    elif is_large if settings.mixed_mode is None else settings.mixed_mode:
        gradient = mixed_mode_gradient
    else:
        gradient = reverse_gradient

    def step(carry, rest, i):
        fast, opt_state = carry

        def loss(fast, rest):
            slow, batch, key = rest
            return evaluate_loss(loss_fn, model(fast, slow, i), batch, key)[0]

        grads = gradient(loss, fast, rest)
        grads = stored(grads if first_order else check_derivative_on_use(optimizer, grads, steps))
        value = loss(fast, rest) if wants_loss else None
        if first_order and wants_loss:
            value = lax.stop_gradient(value)
        updates, opt_state = update(optimizer, grads, opt_state, fast, value)
        if rescale is not None:
            updates = rescale(updates, i)
        return optax.apply_updates(fast, updates), opt_state

    return step


def _whole_steps(steps: Any) -> int:
    try:
        whole = operator.index(steps)
    except TypeError:
        whole = -1
    if whole < 0:
        raise ValueError(f"steps must be a whole number, at least 0, got {steps!r}")
    return whole


def check_inner_loop(inner: object) -> None:
    """Raise a `TypeError` unless `inner` was made by `inner_loop`. Passing only an optimiser is an easy mistake."""
    if not isinstance(inner, InnerLoop):
        raise TypeError(f"inner must be made by inner_loop(optimizer, steps), got {type(inner).__name__}")


def _num_examples(data: PyTree) -> int:
    leaves = jax.tree.leaves(data)
    if not leaves or any(leaf.shape[:1] != leaves[0].shape[:1] for leaf in leaves):
        raise ValueError("minibatches need data whose arrays share a leading example axis")
    return leaves[0].shape[0]


def _minibatches(rng: jax.Array, examples: int, batch_size: int, steps: int) -> jax.Array:
    """Return the example indices of each step's minibatch, `int32[steps, batch_size]`, from consecutive epochs."""
    if not 0 < batch_size <= examples:
        raise ValueError(f"batch_size must be between 1 and the {examples} support examples, got {batch_size}")
    epochs = -(-steps * batch_size // examples)
    keys = jax.random.split(rng, epochs)
    order = jax.vmap(lambda key: jax.random.permutation(key, examples))(keys).reshape(-1)
    return order[: steps * batch_size].reshape(steps, batch_size)
