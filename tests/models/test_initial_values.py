"""The distributions of initial kernels, and how they scale gradient steps behind a normalisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from metajax.core.functional import functional
from metajax.errors import UserError
from metajax.experiment import Conv4Config

pytestmark = pytest.mark.usefixtures("compiled_fast")


def kernels(init: str) -> tuple[np.ndarray, np.ndarray]:
    module = Conv4Config(channels=64, init=init).build((28, 28, 1), 5, nnx.Rngs(0))
    return np.asarray(module.convs[1].kernel[...]), np.asarray(module.head.kernel[...])


@pytest.mark.parametrize(
    ("init", "variance", "limit"),
    [
        ("he_normal", 2 / (9 * 64), np.inf),
        ("glorot_uniform", 2 / (9 * (64 + 64)), np.sqrt(6 / (9 * (64 + 64)))),
        ("uniform_fan_in", 1 / (3 * 9 * 64), np.sqrt(1 / (9 * 64))),
    ],
)
def test_kernels_have_the_variance_and_limits_of_their_distribution(init, variance, limit):
    kernel, _ = kernels(init)
    # The standard error of a variance is below variance × √(2 / count) for normal values, and smaller for uniform ones.
    np.testing.assert_allclose(kernel.var(), variance, rtol=4 * np.sqrt(2 / kernel.size))
    assert np.abs(kernel).max() <= limit
    assert np.isinf(limit) or np.abs(kernel).max() > 0.99 * limit


@pytest.mark.parametrize(
    ("init", "limit"),
    [("he_normal", np.sqrt(6 / 69)), ("glorot_uniform", np.sqrt(6 / 69)), ("uniform_fan_in", np.sqrt(1 / 64))],
)
def test_the_head_has_glorot_values_or_those_of_pytorch(init, limit):
    _, head = kernels(init)
    assert 0.95 * limit < np.abs(head).max() <= limit


def test_behind_a_normalisation_a_gradient_is_inversely_proportional_to_the_scale_of_the_kernel():
    x = jax.random.normal(jax.random.key(0), (6, 16, 16, 2))
    module = Conv4Config(channels=4, epsilon=1e-30).build((16, 16, 2), 3, nnx.Rngs(0))
    apply, params = functional(module)

    def loss(kernel):
        changed = {**params, "convs": {**params["convs"], 0: {"kernel": kernel}}}
        return jnp.square(apply(changed, x, None)).mean()

    loss, gradient, kernel = jax.jit(loss), jax.jit(jax.grad(loss)), params["convs"][0]["kernel"]
    np.testing.assert_allclose(loss(2.5 * kernel), loss(kernel), rtol=1e-5)
    np.testing.assert_allclose(gradient(2.5 * kernel), gradient(kernel) / 2.5, rtol=1e-3, atol=1e-6)


def test_an_epsilon_of_zero_is_refused():
    with pytest.raises(UserError, match=r"model\.epsilon must be a number above 0, got 0"):
        Conv4Config(epsilon=0.0)
