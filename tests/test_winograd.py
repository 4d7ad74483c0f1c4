"""Convolution by tiles, against lax, and as the form that `convolve` chooses."""

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
from metajax.models.winograd import convolve_tiles, kernel_cotangent


def of_lax(images, kernel, padding=1):
    sides = [(padding, padding)] * 2
    return lax.conv_general_dilated(images, kernel, (1, 1), sides, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@settings(deadline=None, max_examples=15)
@given(height=st.integers(1, 9), width=st.integers(1, 9), padding=st.integers(0, 2), block=st.sampled_from([1, 2, 4]))
def test_tiles_are_a_convolution_and_its_transpose(height, width, padding, block):
    """In float64, also where sides are odd or smaller than a tile."""
    assume(min(height, width) + 2 * padding >= 3)

    @jax.jit
    def both(images, kernel, along):
        out, back = jax.vjp(functools.partial(of_lax, images, padding=padding), kernel)
        by_tiles = kernel_cotangent(images, along, padding=padding, block=block)
        return (out, *back(along)), (convolve_tiles(images, kernel, padding=padding), by_tiles)

    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        images, kernel = rng.normal(size=(4, height, width, 3)), rng.normal(size=(3, 3, 3, 2))
        along = rng.normal(size=(4, height + 2 * padding - 2, width + 2 * padding - 2, 2))
        for theirs, ours in zip(*both(images, kernel, along), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-12)


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles also where they do not pay, in blocks of one image."""
    monkeypatch.setattr(convolution, "_TILES", 1)
    monkeypatch.setattr(convolution, "_TILED_CHANNELS", 1)
    monkeypatch.setattr(convolution, "_BLOCK_BYTES", 1)


@pytest.mark.parametrize("padding", [0, 1, 2])
def test_derivatives_of_tiles_are_those_of_lax(small_tiles, padding):
    """A convolution, its gradients, and derivatives of these, in all three roles."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, w = rng.normal(size=(4, 7, 8, 2)), rng.normal(size=(3, 3, 2, 3))
        along = rng.normal(size=x.shape), rng.normal(size=w.shape)

        def derivatives(convolve):
            energy = lambda x, w: jnp.sum(jnp.sin(convolve(x, w, padding=padding)))  # noqa: E731
            return jax.jvp(jax.value_and_grad(energy, argnums=(0, 1)), (x, w), along)

        tiled = jax.jit(functools.partial(derivatives, convolve)).lower()
        assert "stablehlo.convolution" not in tiled.as_text()
        for ours, theirs in zip(jax.tree.leaves(tiled.compile()()), jax.tree.leaves(derivatives(of_lax)), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-11)


def test_in_bfloat16_operands_of_tiles_are_rounded(small_tiles):
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((4, 8, 8, 16), (3, 3, 16, 16)))
    cotangent = jnp.asarray(rng.normal(size=x.shape), jnp.float32)

    @jax.jit
    def run(x, w):
        out, back = jax.vjp(functools.partial(convolve, padding=1), x, w)
        return out, *back(cotangent)

    exact = run(x, w)
    with jax.default_matmul_precision("bfloat16"):
        rounded = run(x, w)
    for ours, theirs in zip(rounded, exact, strict=True):
        error = float(jnp.linalg.norm(ours - theirs) / jnp.linalg.norm(theirs))
        assert 1e-3 < error < 1e-2, "sums of 4 rounded values lose somewhat more than rounded images, 2.4e-3"


@pytest.mark.parametrize(
    ("side", "channels", "padding", "tiled"),
    [(40, 32, 1, True), (40, 32, 3, False), (40, 16, 1, False), (8, 32, 1, False)],
)  # fmt: skip
def test_tiles_are_for_large_convolutions(side, channels, padding, tiled):
    """A small one, or one of few channels, is faster as the compiler has it, and a shorter program."""
    x, w = jnp.zeros((5, side, side, channels)), jnp.zeros((3, 3, channels, channels))
    program = jax.jit(functools.partial(convolve, padding=padding)).lower(x, w).as_text()
    assert ("stablehlo.convolution" not in program) == tiled


def test_images_in_bfloat16_do_not_go_by_tiles(small_tiles):
    """Sums of their pixels would be rounded."""
    x, w = jnp.zeros((5, 8, 8, 16), jnp.bfloat16), jnp.zeros((3, 3, 16, 16), jnp.bfloat16)
    assert "stablehlo.convolution" in jax.jit(functools.partial(convolve, padding=1)).lower(x, w).as_text()
