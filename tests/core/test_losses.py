"""Losses against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax as mj
from metajax.core.losses import weighted_mean


def test_cross_entropy_and_accuracy_are_means_over_weighted_examples():
    logits = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    labels, mask = np.array([0, 1, 2, 0, 1, 2]), np.array([1.0, 0, 2, 1, 0, 1], np.float32)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(6), labels]
    loss_fn = mj.classification_loss(lambda params, x, rng: x)
    for weights in (None, mask):
        loss, metrics = loss_fn(None, mj.Batch(jnp.asarray(logits), labels, weights), jax.random.key(0))
        np.testing.assert_allclose(loss, np.average(losses, weights=weights), rtol=1e-5)
        right = np.average(logits.argmax(1) == labels, weights=weights)
        np.testing.assert_allclose(metrics["accuracy"], right, rtol=1e-6)


def test_squared_error_is_a_mean_over_outputs_and_weighted_examples():
    y, prediction = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    mask = np.array([1.0, 0, 1, 1], np.float32)
    loss_fn = mj.regression_loss(lambda params, x, rng: x)
    loss, _ = loss_fn(None, mj.Batch(prediction, y, mask), jax.random.key(0))
    np.testing.assert_allclose(loss, ((y - prediction) ** 2)[mask > 0].mean(), rtol=1e-5)


def test_sequences_are_weighted_by_example():
    """As many positions as examples: weights must not fall on positions."""
    logits = np.random.default_rng(0).normal(size=(3, 3, 4)).astype(np.float32)
    labels, mask = np.arange(9).reshape(3, 3) % 4, np.array([1.0, 0, 2], np.float32)
    losses = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, labels[..., None], -1)[..., 0]
    loss_fn = mj.classification_loss(lambda params, x, rng: x)
    loss, metrics = loss_fn(None, mj.Batch(jnp.asarray(logits), labels, mask), jax.random.key(0))
    np.testing.assert_allclose(loss, np.average(losses.mean(1), weights=mask), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], np.average((logits.argmax(-1) == labels).mean(1), weights=mask))


def test_all_masked_is_zero_and_not_nan():
    loss_fn = mj.regression_loss(lambda params, x, rng: x)
    assert float(loss_fn(None, mj.Batch(jnp.ones((2, 1)), jnp.zeros((2, 1)), jnp.zeros(2)), None)[0]) == 0


def test_weights_may_be_fractions_and_hide_what_is_not_finite():
    loss_fn = mj.regression_loss(lambda params, x, rng: x)
    x, y = jnp.array([[1.0], [2.0], [jnp.nan]]), jnp.zeros((3, 1))
    loss, _ = loss_fn(None, mj.Batch(x, y, jnp.array([0.25, 0.25, 0.0])), None)
    np.testing.assert_allclose(loss, 2.5)


def test_outputs_of_another_shape_than_the_targets_are_refused():
    """Broadcast, they would make a table of errors."""
    loss_fn = mj.regression_loss(lambda params, x, rng: x)
    with pytest.raises(ValueError, match=r"outputs have shape \(3, 1\), but targets \(3,\)"):
        loss_fn(None, mj.Batch(jnp.ones((3, 1)), jnp.ones(3)), None)


@pytest.mark.parametrize("labels", [[1, 1, 1], [[1], [1]]])
def test_labels_of_another_shape_than_rows_of_logits_are_refused(labels):
    loss_fn = mj.classification_loss(lambda params, x, rng: x)
    with pytest.raises(ValueError, match=r"logits have shape \(2, 3\), but labels \(.*the model must return logits"):
        loss_fn(None, mj.Batch(jnp.ones((2, 3)), jnp.asarray(labels)), None)


@pytest.mark.parametrize("label", [3, -1])
def test_a_label_of_no_logit_makes_loss_and_gradient_nan_unless_it_does_not_count(label):
    loss_fn = mj.classification_loss(lambda params, x, rng: params * x)
    data = mj.Batch(jnp.arange(6.0).reshape(2, 3), jnp.array([0, label]))
    run = jax.value_and_grad(lambda params, data: loss_fn(params, data, None)[0])
    assert jnp.isnan(jnp.array(run(1.0, data))).all()
    hidden = run(1.0, data._replace(mask=jnp.array([1.0, 0.0])))
    np.testing.assert_allclose(hidden, run(1.0, mj.Batch(data.x[:1], data.y[:1])), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_averaged_in_float32(dtype):
    """513 of 1024 right: bfloat16 would round the share, float16 the sum of squares to infinity."""
    labels = jnp.arange(1024) % 2
    predicted = jnp.where(jnp.arange(1024) < 513, labels, 1 - labels)
    logits = jax.nn.one_hot(predicted, 2, dtype=dtype)
    loss, metrics = mj.classification_loss(lambda params, x, rng: x)(None, mj.Batch(logits, labels), None)
    assert float(metrics["accuracy"]) == 513 / 1024
    exact = np.log(np.exp(1) + 1) - 513 / 1024
    np.testing.assert_allclose(loss, exact, rtol=1e-6)
    outputs = jnp.full((1024, 1), 200, dtype)
    squared = mj.regression_loss(lambda params, x, rng: x)(None, mj.Batch(outputs, jnp.zeros((1024, 1))), None)[0]
    assert float(squared) == 40_000
    weights = jnp.where(jnp.arange(1024) < 257, 1, 0).astype(dtype)
    weighted = mj.regression_loss(lambda params, x, rng: x)(
        None, mj.Batch(outputs, jnp.zeros((1024, 1)), weights), None
    )
    assert float(weighted[0]) == 40_000
    gradient = jax.grad(lambda x: mj.regression_loss(lambda p, x, rng: x)(None, mj.Batch(x, x * 0), None)[0])(outputs)
    assert gradient.dtype == dtype


@pytest.mark.parametrize("make", [mj.regression_loss, mj.classification_loss])
def test_other_outputs_data_and_masks_are_named(make):
    x, y = jnp.ones((4, 1)), jnp.zeros(4, jnp.int32) if make is mj.classification_loss else jnp.ones((4, 1))
    for outputs, said in [((x, {}), "a tuple of 2"), (None, "None"), ({"logits": x}, "a dict with the keys logits")]:
        with pytest.raises(TypeError, match=f"one array of outputs, but this one returned {said}"):
            make(lambda params, x, rng, outputs=outputs: outputs)({}, mj.Batch(x, y), None)
    loss = make(lambda params, x, rng: x)
    with pytest.raises(TypeError, match=r"takes a metajax.Batch\(x, y\), got a tuple of 2"):
        loss({}, (x, y), None)
    for mask in (jnp.ones((4, 1)), jnp.ones(3), jnp.ones(())):
        with pytest.raises(ValueError, match="one weight for each of the 4 examples"):
            loss({}, mj.Batch(x, y, mask), None)


def test_labels_are_integers():
    loss = mj.classification_loss(lambda params, x, rng: x)
    with pytest.raises(TypeError, match=r"labels are integers in \[0, ways\), got float32\[4\]"):
        loss({}, mj.Batch(jnp.ones((4, 2)), jnp.ones(4)), None)


@pytest.mark.parametrize("mask", [jnp.ones(3), jnp.ones((4, 1)), jnp.ones(())])
def test_a_mean_needs_one_weight_per_example(mask):
    with pytest.raises(AssertionError, match=r"mask must be \[examples\]"):
        jax.jit(weighted_mean)(jnp.ones((4, 2)), mask)
    with pytest.raises(AssertionError, match=r"values must be \[examples, ...\]"):
        jax.jit(weighted_mean)(jnp.ones(()), mask)


def test_the_mean_of_integers_and_truth_values_is_not_rounded():
    for values in (jnp.array([1, 0, 1, 1]), jnp.array([True, False, True, True]), jnp.array([1, 0, 1, 1], jnp.uint8)):
        assert float(weighted_mean(values, None)) == 0.75
        assert float(weighted_mean(values, jnp.array([1, 1, 0, 0]))) == 0.5


@pytest.mark.parametrize("make", [mj.regression_loss, mj.classification_loss])
def test_a_pair_is_no_model(make):
    with pytest.raises(TypeError, match=r"a model is a function .*got a tuple of 2; metajax.functional"):
        make((lambda params, x, rng: x, {}))
