"""Call optax optimisers, and pass the loss to the optimisers that use it."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from metajax.core.checks import describe
from metajax.core.tracing import depends_on_first
from metajax.core.types import PyTree


def check_optimizer(optimizer: Any, what: str) -> None:
    """Raise a `TypeError` unless a value is an optax optimiser.

    Args:
        optimizer: The value.
        what: Name of the optimiser in error messages.
    """
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(f"the {what} must be an optax optimiser, such as optax.sgd(0.1), got {describe(optimizer)}")


def update(
    optimizer: optax.GradientTransformation, gradient: PyTree, state: PyTree, params: PyTree, loss: jax.Array | None
) -> tuple[PyTree, PyTree]:
    """Compute the updates and the next state of an optimiser.

    Args:
        optimizer: Any optax optimiser. An optimiser that adapts to the loss, such as `optax.contrib.reduce_on_plateau`
            or `optax.polyak_sgd`, receives the loss as `value`.
        gradient: The gradient, a pytree like `params`.
        state: The optimiser's state.
        params: The parameters.
        loss: The loss, a scalar, or `None` if the optimiser does not use it.

    Returns:
        `(updates, state)`.

    Raises:
        TypeError: If the optimiser needs to evaluate the loss at other parameters, as line searches do.
    """
    extra = {} if loss is None else {"value": loss, "grad": gradient}
    try:
        return optax.with_extra_args_support(optimizer).update(gradient, state, params, **extra)
    except TypeError as error:
        if "value_fn" not in str(error):
            raise
        raise TypeError(
            "this optimiser evaluates the loss at other parameters through value_fn (a line search, as in "
            "optax.lbfgs), which metajax does not offer: use an optimiser that needs only the gradient and the loss"
        ) from error


def uses_loss(optimizer: optax.GradientTransformation, params: PyTree) -> bool:
    """Return whether an optimiser's updates or state depend on the loss.

    Args:
        optimizer: Any optax optimiser.
        params: The parameters, or their shapes.

    >>> uses_loss(optax.adam(1e-3), jnp.ones(2)), uses_loss(optax.polyak_sgd(), jnp.ones(2))
    (False, True)
    """

    def step(loss, params):
        return update(optimizer, params, optimizer.init(params), params, loss)

    return depends_on_first(step, jnp.float32(1.0), params)
