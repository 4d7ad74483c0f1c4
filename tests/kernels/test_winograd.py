"""Convolution by tiles, against lax, and as the form that `convolve` chooses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax import lax

from metajax.kernels import convolution
from metajax.kernels.convolution import convolve
from metajax.kernels.winograd import convolve_tiles, kernel_cotangent


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
    """Tiles also where they do not pay, of few images at a time."""
    monkeypatch.setattr(convolution, "_TILES", 1)
    monkeypatch.setattr(convolution, "_TILED_CHANNELS", 1)
    monkeypatch.setattr(convolution, "_BLOCK_BYTES", 1)


@pytest.fixture
def by_tiles(monkeypatch):
    """The names of the functions for tiles that were called, so far."""
    called = []

    def noted(fn):
        def run(*args, **kwargs):
            called.append(fn.__name__)
            return fn(*args, **kwargs)

        return run

    for fn in (convolve_tiles, kernel_cotangent):
        monkeypatch.setattr(convolution, fn.__name__, noted(fn))
    return called


def pulled_back(x, w, cotangent, **settings):
    """The output and both cotangents."""
    out, back = jax.vjp(functools.partial(convolve, **settings), x, w)
    return out, *back(cotangent)


@pytest.mark.parametrize("padding", [0, 1, 2])
def test_derivatives_of_tiles_are_those_of_lax(small_tiles, by_tiles, padding):
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
        assert set(by_tiles) == {"convolve_tiles", "kernel_cotangent"}
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
    assert by_tiles.count("convolve_tiles") == 4
    output, images, kernel = (
        float(jnp.linalg.norm(ours - theirs) / jnp.linalg.norm(theirs))
        for ours, theirs in zip(rounded, exact, strict=True)
    )
    assert 3e-3 < min(output, images) < max(output, images) < 6e-3, "of rounded images and kernels it would be 2.4e-3"
    assert 2e-3 < kernel < 3e-3


TILED = {"convolve_tiles"}


@pytest.mark.parametrize(
    ("shape", "channels", "padding", "forms"),
    [
        ((5, 40, 40), (32, 32), 1, TILED),
        ((5, 40, 40), (64, 64), 1, {"convolve_tiles", "kernel_cotangent"}),
        ((5, 40, 40), (64, 32), 1, TILED),  # of its kernel only from 64 channels
        ((1, 100, 100), (64, 64), 1, {"convolve_tiles", "kernel_cotangent"}),
        ((5, 40, 40), (32, 32), 3, set()),
        ((5, 40, 40), (16, 32), 1, set()),
        ((5, 40, 40), (32, 16), 1, set()),
        ((5, 8, 8), (32, 32), 1, set()),  # few tiles
        ((25, 10, 10), (640, 640), 1, set()),  # more channels than tiles
        ((101, 10, 10), (64, 64), 1, set()),  # a prime number of images goes one by one
        ((8_000, 1, 1), (32, 32), 1, set()),  # tiles that are mostly outside
        ((2_000, 3, 3), (32, 32), 1, set()),
        ((2_000, 3, 3), (32, 32), 0, set()),
        ((0, 40, 40), (32, 32), 1, set()),
    ],
)
def test_tiles_are_for_large_convolutions(by_tiles, shape, channels, padding, forms):
    """Others are as fast as the compiler has them, or faster, and shorter programs."""
    x, w = jax.ShapeDtypeStruct((*shape, channels[0]), "float32"), jax.ShapeDtypeStruct((3, 3, *channels), "float32")
    convolution = functools.partial(convolve, padding=padding)
    cotangent = jax.eval_shape(convolution, x, w)
    jax.jit(functools.partial(pulled_back, padding=padding)).lower(x, w, cotangent)
    assert set(by_tiles) == forms


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int32"])
def test_of_narrower_images_there_are_no_tiles(small_tiles, by_tiles, dtype):
    """Sums of their pixels would lose digits, and integers have no halves."""
    x, w = jnp.zeros((5, 8, 8, 16), dtype), jnp.zeros((3, 3, 16, 16), dtype)
    jax.jit(functools.partial(convolve, padding=1)).lower(x, w)
    assert not by_tiles


def test_outside_of_jit_a_convolution_is_compiled_once(small_tiles, by_tiles):
    x, w = jnp.ones((4, 8, 8, 4)), jnp.ones((3, 3, 4, 5))
    first = convolve(x, w, padding=1)
    traced = len(by_tiles)
    np.testing.assert_array_equal(convolve(x, w, padding=1), first)
    assert len(by_tiles) == traced > 0
