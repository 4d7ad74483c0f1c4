"""The cotangent of a kernel by shifted copies, against that of lax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax import lax

from metajax.kernels.geometry import Geometry, output_sides
from metajax.kernels.shifts import kernel_cotangent


@settings(deadline=None, max_examples=15)
@given(
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    size=st.integers(1, 4),
    padding=st.integers(0, 2),
    block=st.sampled_from([1, 2, 4]),
)
def test_shifts_are_the_transpose_of_a_convolution(height, width, size, padding, block):
    """In float64, of kernels of any size and images of any shape."""
    geometry = Geometry(height, width, size, 1, padding)
    assume(min(output_sides(geometry)) >= 1)
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        images, kernel = jnp.asarray(rng.normal(size=(4, height, width, 3))), jnp.zeros((size, size, 3, 2))
        output = jnp.asarray(rng.normal(size=(4, *output_sides(geometry), 2)))
        sides = [(padding, padding)] * 2
        forward = lambda kernel: lax.conv_general_dilated(  # noqa: E731
            images, kernel, (1, 1), sides, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        (expected,) = jax.linear_transpose(forward, kernel)(output)
        ours = jax.jit(functools.partial(kernel_cotangent, geometry=geometry, block=block))(images, output)
        np.testing.assert_allclose(ours, expected, atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rounded", [False, True])
def test_shifts_of_small_integers_are_exact_in_every_precision(dtype, rounded):
    """Which bfloat16 holds, and float32 their sums of products."""
    rng = np.random.default_rng(0)
    images, output = (jnp.asarray(rng.integers(-8, 9, (4, 6, 6, channels)), dtype) for channels in (16, 8))
    exact = jnp.float32(images), jnp.float32(output)
    sizes = Geometry(6, 6, size=3, stride=1, padding=1)
    ours = kernel_cotangent(images, output, sizes._replace(rounded=rounded), block=2)
    assert ours.dtype == jnp.float32
    np.testing.assert_array_equal(ours, kernel_cotangent(*exact, sizes, block=4))
    assert float(jnp.abs(ours).max()) > 256, "more than bfloat16 holds every integer of"
