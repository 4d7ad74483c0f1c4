"""Convolution by tiles, against lax, and as the form that `convolve` chooses."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax import lax

from metajax.kernels import conv, winograd
from metajax.kernels.geometry import Geometry

PLAN = importlib.import_module("metajax.kernels.plan")


def of_lax(images, kernel, padding=1):
    sides = [(padding, padding)] * 2
    return lax.conv_general_dilated(images, kernel, (1, 1), sides, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.slow
@settings(deadline=None, max_examples=15)
@given(height=st.integers(1, 9), width=st.integers(1, 9), padding=st.integers(0, 2), block=st.sampled_from([1, 2, 4]))
def test_tiles_are_a_convolution_and_its_transpose(height, width, padding, block):
    """In float64, also where sides are odd or smaller than a tile."""
    assume(min(height, width) + 2 * padding >= 3)

    @jax.jit
    def both(images, kernel, along):
        out, back = jax.vjp(functools.partial(of_lax, images, padding=padding), kernel)
        sizes = Geometry(height, width, 3, 1, padding)
        by_tiles = winograd.kernel_cotangent(images, along, sizes, block=block)
        return (out, *back(along)), (winograd.forward(images, kernel, sizes, block=block), by_tiles)

    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        images, kernel = rng.normal(size=(4, height, width, 3)), rng.normal(size=(3, 3, 3, 2))
        along = rng.normal(size=(4, height + 2 * padding - 2, width + 2 * padding - 2, 2))
        for theirs, ours in zip(*both(images, kernel, along), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-12)


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles also where they do not pay, of few images at a time."""
    for limit in ("WINOGRAD_TILES", "WINOGRAD_CHANNELS", "WINOGRAD_KERNEL_CHANNELS", "BLOCK_BYTES"):
        monkeypatch.setattr(PLAN, limit, 1)


@pytest.fixture
def by_tiles(monkeypatch):
    """The names of the functions for tiles that were called, so far."""
    called = []

    def noted(fn):
        def run(*args, **kwargs):
            called.append(fn.__name__)
            return fn(*args, **kwargs)

        return run

    for fn in (winograd.forward, winograd.kernel_cotangent):
        monkeypatch.setattr(winograd, fn.__name__, noted(fn))
    return called


def pulled_back(x, w, cotangent, **settings):
    """The output and both cotangents."""
    out, back = jax.vjp(functools.partial(conv, **settings), x, w)
    return out, *back(cotangent)


@pytest.mark.parametrize("padding", [0, 1, 2])
def test_derivatives_of_tiles_are_those_of_lax(small_tiles, by_tiles, padding):
    """A convolution, its gradients, and derivatives of these, in all three roles."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, w = rng.normal(size=(4, 7, 8, 2)), rng.normal(size=(3, 3, 2, 3))
        along = rng.normal(size=x.shape), rng.normal(size=w.shape)

        def derivatives(conv):
            energy = lambda x, w: jnp.sum(jnp.sin(conv(x, w, padding=padding)))  # noqa: E731
            return jax.jvp(jax.value_and_grad(energy, argnums=(0, 1)), (x, w), along)

        tiled = jax.jit(functools.partial(derivatives, conv)).lower()
        assert "stablehlo.convolution" not in tiled.as_text()
        assert set(by_tiles) == {"forward", "kernel_cotangent"}
        for ours, theirs in zip(jax.tree.leaves(tiled.compile()()), jax.tree.leaves(derivatives(of_lax)), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-11)


def test_in_bfloat16_operands_of_tiles_are_rounded(small_tiles, by_tiles):
    """The output and the images' cotangent; the kernel's goes by shifts, without sums of pixels to round."""
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((4, 8, 8, 16), (3, 3, 16, 16)))
    cotangent = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    run = jax.jit(functools.partial(pulled_back, padding=1))
    exact = run(x, w, cotangent)
    with jax.default_matmul_precision("bfloat16"):
        rounded = run(x, w, cotangent)
    assert by_tiles.count("kernel_cotangent") == 1, "in float32"
    assert by_tiles.count("forward") == 4
    output, images, kernel = (
        float(jnp.linalg.norm(ours - theirs) / jnp.linalg.norm(theirs))
        for ours, theirs in zip(rounded, exact, strict=True)
    )
    assert 3e-3 < min(output, images) < max(output, images) < 6e-3, "of rounded images and kernels it would be 2.4e-3"
    assert 2e-3 < kernel < 3e-3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int32"])
def test_of_narrower_images_there_are_no_tiles(small_tiles, by_tiles, dtype):
    """Sums of their pixels would lose digits, and integers have no halves."""
    x, w = jnp.zeros((5, 8, 8, 16), dtype), jnp.zeros((3, 3, 16, 16), dtype)
    jax.jit(functools.partial(conv, padding=1)).lower(x, w)
    assert not by_tiles


def test_outside_of_jit_a_convolution_is_compiled_once(small_tiles, by_tiles):
    x, w = jnp.ones((4, 8, 8, 4)), jnp.ones((3, 3, 4, 5))
    first = conv(x, w, padding=1)
    traced = len(by_tiles)
    np.testing.assert_array_equal(conv(x, w, padding=1), first)
    assert len(by_tiles) == traced > 0
