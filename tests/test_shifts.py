"""The kernel's cotangent by shifted copies, against lax, and where `convolve` takes it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax import lax

from metajax.models import convolution
from metajax.models.convolution import convolve
from metajax.models.shifts import kernel_by_shifts
from metajax.models.windows import Geometry, output_sides


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
        ours = jax.jit(functools.partial(kernel_by_shifts, geometry=geometry, block=block))(images, output)
        np.testing.assert_allclose(ours, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("channels", "stride", "taken"), [(16, 1, True), (3, 1, False), (16, 2, False)], ids=["wide", "few", "strided"]
)
def test_a_convolution_takes_them_at_stride_1_for_16_channels_or_more(monkeypatch, channels, stride, taken):
    called = []

    def noted(*args):
        called.append(args)
        return kernel_by_shifts(*args)

    monkeypatch.setattr(convolution, "kernel_by_shifts", noted)
    images, kernel = jnp.ones((2, 8, 8, channels)), jnp.ones((3, 3, channels, 4))
    energy = lambda kernel: jnp.sum(convolve(images, kernel, stride=stride, padding=1))  # noqa: E731
    jax.jit(jax.grad(energy)).lower(kernel)
    assert bool(called) == (taken and jax.default_backend() == "cpu")
