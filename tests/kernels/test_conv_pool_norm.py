"""A pooled and normalised convolution: in blocks and at once, on each platform."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.kernels import conv, conv_pool_norm
from metajax.models import max_pool

pytestmark = pytest.mark.usefixtures("compiled_fast")
PLAN = importlib.import_module("metajax.kernels.plan")
MODULE = importlib.import_module("metajax.kernels.conv_pool_norm")


@pytest.fixture
def block_bytes(monkeypatch):
    """Return a function that sets the size of a block."""

    def set_bytes(most: int) -> None:
        monkeypatch.setattr(PLAN, "POOL_BLOCK_BYTES", most)
        MODULE._conv_pool.clear_cache()

    yield set_bytes
    MODULE._conv_pool.clear_cache()


@pytest.mark.parametrize("own_kernels", [False, True])
@pytest.mark.parametrize("channels", [3, 16])
def test_blocks_of_examples_change_nothing(block_bytes, channels, own_kernels):
    """Compare the value, its gradient and that gradient's derivative, for one kernel or one for each of two tasks.

    With few channels the backward pass recomputes outputs; with many it uses stored outputs.
    """
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        kernels, along = rng.normal(size=(2, 2, 3, 3, channels, 4))
        images, offset = rng.normal(size=(2, 6, 9, 8, channels)), jnp.asarray(rng.normal(size=4))

        def energy(kernel, x):
            return jnp.sin(conv_pool_norm(x, kernel, offset)).sum()

        def derivatives(kernel, along, x):
            gradient = jax.grad(energy, argnums=(0, 1))
            return gradient(kernel, x), jax.jvp(lambda kernel: gradient(kernel, x), (kernel,), (along,))[1]

        def run():  # a new function for each call, which JAX has not traced
            one = lambda *arrays: derivatives(*(a[0] for a in arrays))  # noqa: E731
            return jax.jit(jax.vmap(derivatives) if own_kernels else one)

        whole = run()(kernels, along, images)
        assert "while" not in run().lower(kernels, along, images).as_text()
        block_bytes(2 * 7 * 6 * 4 * 8)
        assert "while" in run().lower(kernels, along, images).as_text(), "blocks one after the other"
        assert ("remat" in str(jax.make_jaxpr(energy)(kernels[0], images[0]))) == (channels == 3)
        for a, b in zip(jax.tree.leaves(run()(kernels, along, images)), jax.tree.leaves(whole), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


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


def test_outside_of_jit_a_pooled_convolution_is_compiled_once(key, block_bytes, monkeypatch):
    traced = []
    block_bytes(1)  # a block for each image
    monkeypatch.setattr(MODULE, "max_pool", lambda x: traced.append(x.shape) or max_pool(x))
    x, kernel, offset = jax.random.normal(key, (4, 6, 6, 3)), jax.random.normal(key, (3, 3, 3, 5)), jnp.zeros(5)
    first = conv_pool_norm(x, kernel, offset)
    assert (1, 4, 4, 5) in traced
    traced.clear()
    again = conv_pool_norm(x, kernel, offset)
    assert not traced
    np.testing.assert_array_equal(again, first)
