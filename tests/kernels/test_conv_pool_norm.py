"""A pooled and normalised convolution against its parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.kernels import conv, conv_pool_norm
from metajax.models import max_pool

pytestmark = pytest.mark.usefixtures("compiled_fast")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_is_a_convolution_normalised_then_pooled(key, dtype):
    x, kernel = jax.random.normal(key, (4, 9, 8, 3), dtype), jax.random.normal(key, (3, 3, 3, 5), dtype)
    offset = jnp.arange(5.0)
    out = conv(x, kernel, padding=1).astype(jnp.float32)
    mean, variance = out.mean((0, 1, 2)), out.var((0, 1, 2))
    expected = max_pool((out - mean) / jnp.sqrt(variance + 0.1) + offset)
    ours = conv_pool_norm(x, kernel, offset, padding=1, epsilon=0.1)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4 if dtype == jnp.float32 else 0.05)
