"""Check the arguments of public functions.

Each error message names the expected value, the received value, and what to do. The checks use only types, structures
and shapes, so they also work while JAX traces a function.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from metajax.core.tracing import is_key
from metajax.core.types import LossFn, MetaParams, Metrics, Params, PyTree

_SHOWN_KEYS = 8
"""Largest number of keys of a dict that an error message lists."""


def as_key(seed: Any) -> jax.Array:
    """Return `seed` if it is a JAX key, and `jax.random.key(seed)` if it is an integer.

    Args:
        seed: A key from `jax.random.key`, a raw key `uint32[n]` from `jax.random.PRNGKey`, or an integer.

    Raises:
        TypeError: If `seed` is neither a key nor an integer.
        ValueError: If `seed` is an array of several keys.

    >>> bool(as_key(3) == jax.random.key(3)), bool(as_key(jax.random.key(3)) == jax.random.key(3))
    (True, True)
    """
    if is_key(seed):
        if seed.ndim:
            raise ValueError(
                f"one key is expected, got an array of keys of shape {seed.shape}: choose one, or use vmap"
            )
        return seed
    dtype, shape = getattr(seed, "dtype", None), np.shape(seed)
    if dtype == jnp.uint32 and len(shape) == 1:  # an old-style key, from jax.random.PRNGKey
        return seed
    is_integer = isinstance(seed, int) or (dtype is not None and jnp.issubdtype(dtype, jnp.integer))
    if shape == () and is_integer and not isinstance(seed, bool):
        return jax.random.key(seed)
    raise TypeError(f"a key from jax.random.key(seed) or an integer seed is expected, got {describe(seed)}")


def describe(value: Any) -> str:
    """Return a short description of a value for an error message.

    >>> describe(jnp.ones((2, 3))), describe((1, 2)), describe({"w": 1.0})
    ('float32[2, 3]', 'a tuple of 2', 'a dict with the keys w')
    """
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, dict):
        keys = [*map(str, value)][:_SHOWN_KEYS] + (["..."] if len(value) > _SHOWN_KEYS else [])
        return f"a dict with the keys {', '.join(keys)}" if value else "an empty dict"
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        return f"a {type(value).__name__} of {len(value)}"
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    return f"{value!r}" if value is None or isinstance(value, int | float | str) else f"a {type(value).__name__}"


def evaluate_loss(loss_fn: LossFn, params: Params, data: PyTree, rng: jax.Array) -> tuple[jax.Array, Metrics]:
    """Evaluate a loss, and check that it returns a real scalar and a dict of scalar metrics.

    Returns:
        The loss, and the metrics with the loss added under the name `loss`.

    Raises:
        TypeError: If the loss does not return a real scalar and a dict of scalar metrics.

    >>> evaluate_loss(lambda params, data, rng: (params * data, {"half": params / 2}), 2.0, 3.0, None)
    (6.0, {'half': 1.0, 'loss': 6.0})
    """
    outputs = loss_fn(params, data, rng)
    form = "a loss returns (scalar, metrics), such as (loss, {}) or (loss, {'accuracy': accuracy})"
    if not (isinstance(outputs, tuple) and len(outputs) == 2):
        raise TypeError(f"{form}; {_name(loss_fn)} returned {describe(outputs)}")
    loss, metrics = outputs
    if not isinstance(metrics, Mapping):
        raise TypeError(f"{form}; the metrics of {_name(loss_fn)} are {describe(metrics)}")
    if np.shape(loss) != () or not jnp.issubdtype(jnp.result_type(loss), jnp.floating):
        raise TypeError(f"{form}; the loss of {_name(loss_fn)} is {describe(loss)}, and not one real number")
    for name, value in metrics.items():
        if not _is_number(value) or np.shape(value) != ():
            raise TypeError(f"metrics are scalars: {name!r} of {_name(loss_fn)} is {describe(value)}; return its mean")
    return loss, {**metrics, "loss": loss}


def _name(fn: Callable) -> str:
    name = getattr(fn, "__name__", type(fn).__name__)
    return "the loss" if name in ("<lambda>", "loss_fn") else f"{name!r}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.generic) or (hasattr(value, "dtype") and not is_key(value))


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raise an error unless a value is a whole number of at least `least`.

    Raises:
        TypeError: If the value is not a whole number.
        ValueError: If the value is below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be a whole number, got {describe(value)}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_not_donated(tree: PyTree, what: str) -> None:
    """Raise a `ValueError` if an array of a pytree was donated to a training step. `what` names the pytree."""
    if any(isinstance(leaf, jax.Array) and _is_deleted(leaf) for leaf in jax.tree.leaves(tree)):
        raise ValueError(
            f"this {what} was donated to an earlier training step, which reused its memory: continue with the "
            "state that the step returned, or copy a state before the step with jax.tree.map(jax.numpy.copy, state)"
        )


def _is_deleted(array: jax.Array) -> bool:
    return not isinstance(array, Tracer) and array.is_deleted()


def check_loss(loss_fn: Any) -> None:
    """Raise a `TypeError` unless a loss is a function."""
    if not callable(loss_fn):
        raise TypeError(
            f"a loss is a function (params, data, rng) -> (scalar, metrics), got {describe(loss_fn)}; "
            "metajax.classification_loss and metajax.regression_loss make one from a model"
        )


def check_model(apply: Any) -> None:
    """Raise a `TypeError` unless a model is a function."""
    if not callable(apply):
        raise TypeError(
            f"a model is a function (params, x, rng) -> outputs, got {describe(apply)}; metajax.functional(module) "
            "returns the pair (apply, params)"
        )


def check_task(task: Any) -> None:
    """Raise a `TypeError` unless a task has a support set and a query set."""
    if not (hasattr(task, "support") and hasattr(task, "query")):
        raise TypeError(f"a task is metajax.Task(support, query), got {describe(task)}")


def check_finite(tree: PyTree, what: str) -> None:
    """Raise a `ValueError` if an array of a pytree has NaN or infinite values. Traced arrays are not checked.

    Args:
        tree: The pytree. Leaves that are not floating-point arrays are ignored.
        what: Name of the pytree in the error message.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        inexact = _is_number(leaf) and jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jnp.inexact)
        if inexact and not isinstance(leaf, Tracer) and not jnp.isfinite(leaf).all():
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise ValueError(f"{name or 'the array'} of {what} has NaN or infinite values: remove or replace them")


def check_params(params: Any, what: str = "parameters") -> None:
    """Raise a `TypeError` unless a value is a pytree of real or complex arrays.

    Args:
        params: The value.
        what: Name of the value in error messages.
    """
    check_no_state(params, what)
    if callable(params) and jax.tree_util.treedef_is_leaf(
        jax.tree.structure(params)
    ):  # a function, not a callable model that is a pytree
        raise TypeError(
            f"{what} are a pytree of arrays, got {describe(params)}; metajax.functional(module) returns them"
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not _is_number(leaf) or not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            where = f" at {name!r}" if name else ""
            raise TypeError(
                f"{what} are floating-point arrays, got {describe(leaf)}{where}; metajax.functional(module) returns "
                "the parameters of a module"
            )


def check_no_state(params: Any, what: str = "parameters") -> None:
    """Raise a `TypeError` if a value is a `TrainState` or an `Adapted`, a tuple that contains the parameters.

    Args:
        params: The value.
        what: Name of the value in error messages.
    """
    fields = getattr(params, "_fields", ())
    if "meta_params" in fields:
        raise TypeError(f"{what} are expected, got a {type(params).__name__}: pass its field, state.meta_params")
    if fields[:2] == ("params", "opt_state"):
        raise TypeError(f"{what} are expected, got an {type(params).__name__}: pass its field, adapted.params")


def check_entries(meta_params: MetaParams, names: Collection[str]) -> None:
    """Raise a `TypeError` unless meta-parameters are a dict whose keys are exactly `names`."""
    if not isinstance(meta_params, dict) or set(meta_params) != set(names):
        raise TypeError(
            f"the meta-parameters of this learner are a dict with {', '.join(names)}, from learner.init(params)[0]; "
            f"got {describe(meta_params)}"
        )
