"""Make losses on one batch, with the signature that learners expect: `(params, data, rng) -> (scalar, metrics)`."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from metajax.core.checks import check_model, describe
from metajax.core.types import ApplyFn, Batch, LossFn


def classification_loss(apply: ApplyFn, *, varied_ways: bool = False) -> LossFn:
    """Return a loss function: the mean cross-entropy of the logits from `apply`, with the accuracy as a metric.

    Args:
        apply: A model `(params, x, rng) -> logits [examples, ..., ways]`.
        varied_ways: Ignore the logits above the largest label of the batch, for tasks that may have fewer ways than
            the model has outputs. Every batch must then have an example of each way; the example may have weight 0.

    Returns:
        A loss on a `Batch` with integer labels `[examples, ...]` in `[0, number of logits)`. A label out of this range
        makes the loss and its gradient NaN, unless the example has weight 0. The metrics are `loss` (nats) and
        `accuracy` (in `[0, 1]`). The loss raises a `ValueError` if the shapes of labels and logits do not fit.

    >>> import jax.numpy as jnp, metajax as mj
    >>> loss = mj.classification_loss(lambda params, x, rng: params * x)
    >>> data = mj.Batch(x=jnp.array([[0.0, 9.0], [9.0, 0.0]]), y=jnp.array([1, 1]))
    >>> _, metrics = loss(1.0, data, None)
    >>> float(metrics["accuracy"])
    0.5
    """
    check_model(apply)

    def loss_fn(params, data: Batch, rng):
        _check_batch(data)
        if not jnp.issubdtype(jnp.result_type(data.y), jnp.integer):
            raise TypeError(f"labels are integers in [0, ways), got {describe(jnp.asarray(data.y))}")
        logits = _outputs(apply(params, data.x, rng))
        if jnp.shape(data.y) != logits.shape[:-1]:
            raise ValueError(
                f"logits have shape {logits.shape}, but labels {jnp.shape(data.y)}: the model must return logits "
                "[examples, ..., ways] for labels [examples, ...]"
            )
        if varied_ways:
            logits = jnp.where(jnp.arange(logits.shape[-1]) <= data.y.max(), logits, jnp.finfo(logits.dtype).min / 2)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, data.y)
        factors = jnp.where(_allowed(data, logits.shape[-1]), 1, jnp.asarray(jnp.nan, losses.dtype))
        losses = losses * factors  # without NaN, training would continue on the other examples
        loss = weighted_mean(losses, data.mask)
        accuracy = weighted_mean((jnp.argmax(logits, -1) == data.y).astype(losses.dtype), data.mask)
        return loss, {"loss": loss, "accuracy": accuracy}

    return loss_fn


def _allowed(data: Batch, outputs: int) -> jax.Array:
    """Return a mask of the labels that are in range or have weight 0."""
    allowed = (data.y >= 0) & (data.y < outputs)
    if data.mask is None:
        return allowed
    return allowed | (jnp.asarray(data.mask) == 0).reshape(-1, *[1] * (allowed.ndim - 1))


def regression_loss(apply: ApplyFn) -> LossFn:
    """Return a loss function: the mean squared error between the outputs of `apply` and the targets.

    Args:
        apply: A model `(params, x, rng) -> outputs`; outputs and targets have the same shape.

    Returns:
        A loss on a `Batch` with real targets `[examples, ...]`. The metric `loss` is the mean squared error, in
        squared units of the target, with at least float32 precision. The loss raises a `ValueError` if outputs and
        targets differ in shape.

    >>> import jax.numpy as jnp, metajax as mj
    >>> loss = mj.regression_loss(lambda params, x, rng: params * x)
    >>> data = mj.Batch(x=jnp.array([[1.0], [2.0]]), y=jnp.array([[0.0], [0.0]]))
    >>> float(loss(1.0, data, None)[0])
    2.5
    """
    check_model(apply)

    def loss_fn(params, data: Batch, rng):
        _check_batch(data)
        outputs = _outputs(apply(params, data.x, rng))
        if jnp.shape(outputs) != jnp.shape(data.y):
            raise ValueError(f"outputs have shape {jnp.shape(outputs)}, but targets {jnp.shape(data.y)}")
        errors = (outputs - jnp.asarray(data.y)) ** 2
        loss = weighted_mean(errors, data.mask)
        return loss, {"loss": loss}

    return loss_fn


def _check_batch(data: Any) -> None:
    if not (hasattr(data, "x") and hasattr(data, "y")):
        raise TypeError(f"this loss takes a metajax.Batch(x, y), got {describe(data)}")
    mask = getattr(data, "mask", None)
    if mask is not None and jnp.shape(mask) != jnp.shape(data.y)[:1]:
        examples = ", ".join(map(str, jnp.shape(data.y)[:1]))
        raise ValueError(f"a mask has one weight for each of the {examples} examples, got shape {jnp.shape(mask)}")


def _outputs(outputs: Any) -> jax.Array:
    """Return a model's outputs in at least float32, because half precision would round each sum over examples.

    Raises:
        TypeError: If the model returned something other than one array.
    """
    if not (hasattr(outputs, "dtype") and hasattr(outputs, "shape")):
        raise TypeError(
            f"a model returns one array of outputs, but this one returned {describe(outputs)}: choose the output in "
            "apply, such as lambda params, x, rng: apply(params, x, rng)[0]"
        )
    return jnp.asarray(outputs, jnp.promote_types(outputs.dtype, jnp.float32))


def weighted_mean(values: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Return the mean over examples, weighted by a mask; 0 if all weights are 0.

    The sums have at least float32 precision. The mean has the dtype of `values`. If `values` are integers or bools, the
    mean is a float32.

    Args:
        values: `[examples, ...]`.
        mask: Weights `[examples]`, or `None` to count every example once.

    Raises:
        AssertionError: If `mask` does not have one weight for each example.
    """
    wide = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    if mask is None:
        return _like(values, wide.mean())
    mask = jnp.asarray(mask, wide.dtype)
    chex.assert_shape(values, (None, ...), custom_message="values must be [examples, ...]")
    chex.assert_shape(mask, values.shape[:1], custom_message="mask must be [examples], one weight for each of values")
    wide = wide.reshape(wide.shape[0], -1).mean(-1)
    total = mask.sum()
    weighted = jnp.where(mask > 0, wide, 0) * mask  # NaN × 0 would be NaN
    return _like(values, weighted.sum() / jnp.where(total > 0, total, 1))


def _like(values: jax.Array, mean: jax.Array) -> jax.Array:
    """Convert a mean to the dtype of `values`. The mean of integers or bools stays a float."""
    return mean.astype(values.dtype) if jnp.issubdtype(values.dtype, jnp.inexact) else mean
