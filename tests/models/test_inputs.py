"""Inputs of models with wrong shapes or types."""

import jax.numpy as jnp
import pytest
from flax import nnx

import metajax as mj


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (jnp.ones(()), r"x must be \[examples, ...\]"),
        (jnp.ones((4, 2)), r"equal to '3' .* got '2' .*x must have the model's `inputs` per example"),
        (jnp.ones((4, 3, 3)), r"equal to '3' .* got '9' .*x must have the model's `inputs` per example"),
    ],
)
def test_a_perceptron_names_inputs_of_another_shape(x, message):
    model = mj.models.MLP(3, 1, rngs=nnx.Rngs(0))
    with pytest.raises(AssertionError, match=message):
        model(x)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (jnp.zeros(4, jnp.int32), r"tokens must be \[examples, tokens\]"),
        (jnp.zeros((2, 4, 1), jnp.int32), r"tokens must be \[examples, tokens\]"),
        (jnp.zeros((2, 4)), "tokens must be integers"),
    ],
)
def test_a_transformer_names_tokens_of_another_shape_or_type(tokens, message):
    model = mj.models.Transformer(5, length=4, width=4, layers=1, heads=1, rngs=nnx.Rngs(0))
    with pytest.raises(AssertionError, match=message):
        model(tokens)
