"""Convolutions and their derivatives against those of lax, in every precision and under every batching."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bilinear_checks import derivatives, plan_for, pulled_back
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import metajax as mj
from metajax.kernels import conv
from metajax.models import Conv

pytestmark = pytest.mark.usefixtures("compiled_fast")
PLAN = importlib.import_module("metajax.kernels.plan")


def rounded(x):
    return x.astype(jnp.bfloat16).astype(jnp.float32)


def test_a_convolution_under_vmap_is_no_grouped_convolution():
    """The reason for the layer: weights of a task's own must become a batched matrix product."""
    apply, params = mj.functional(Conv(2, 3, rngs=nnx.Rngs(0)))
    many = jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), params)
    text = jax.jit(jax.vmap(apply)).lower(many, jnp.ones((4, 2, 8, 8, 2))).as_text()
    assert "convolution" not in text
    assert "dot_general" in text


@pytest.mark.slow
@settings(deadline=None, max_examples=10)
@given(
    side=st.integers(4, 7),
    kernel=st.sampled_from([2, 3, 4]),
    stride=st.integers(1, 3),
    padding=st.integers(0, 4),
    batched=st.sampled_from([None, (0, None), (None, 0), (0, 0), (1, None), (None, 2), (2, 1)]),
    channels=st.sampled_from([3, 16]),
    forms_of=st.sampled_from(["cpu", "gpu"]),
)
def test_derivatives_of_a_convolution_are_those_of_lax(side, kernel, stride, padding, batched, channels, forms_of):
    """First and second, forward over reverse and reverse over reverse, alone and under vmap over either argument."""

    def lax_convolve(x, w):
        sides = [(padding, padding)] * 2
        return jax.lax.conv_general_dilated(x, w, (stride, stride), sides, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    with jax.enable_x64(True), plan_for(forms_of):
        rng, axes = np.random.default_rng(0), batched or (None, None)
        shapes = [(2, side, side + 1, channels), (kernel, kernel, channels, 2)]
        shapes = [s if axis is None else (*s[:axis], 3, *s[axis:]) for s, axis in zip(shapes, axes, strict=True)]
        (x, dx), (w, dw) = (rng.normal(size=(2, *shape)) for shape in shapes)
        ours = derivatives(lambda x, w: conv(x, w, stride=stride, padding=padding), batched)(x, w, dx, dw)
        theirs = derivatives(lax_convolve, batched)(x, w, dx, dw)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("batched", [None, (0, None), (0, 0)])
@pytest.mark.parametrize("kernel", [1, 3])
def test_in_bfloat16_a_convolution_rounds_operands_and_nothing_else(kernel, batched):
    """The output and both cotangents are those of lax for rounded operands, exact to float32."""

    def pull_back(convolve):
        run = pulled_back(convolve)
        return run if batched is None else jax.vmap(run, (*batched, 0))

    def expected(x, w):
        sides = [(kernel // 2, kernel // 2)] * 2
        return jax.lax.conv_general_dilated(x, w, (2, 2), sides, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    rng = np.random.default_rng(0)
    shapes = [(2, 8, 8, 16), (kernel, kernel, 16, 4), (2, 4, 4, 4)]
    shapes = [s if axis is None else (3, *s) for s, axis in zip(shapes, (*(batched or (None, None)), 0), strict=True)]
    if batched is None:
        shapes[2] = shapes[2][1:]
    operands = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    with jax.default_matmul_precision("bfloat16"):
        ours = pull_back(lambda x, w: conv(x, w, stride=2, padding=kernel // 2))(*operands)
    theirs = pull_back(expected)(*map(rounded, operands))
    for a, b, exact in zip(ours, theirs, pull_back(expected)(*operands), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
        assert np.abs(np.asarray(a) - exact).max() > 1e-3


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_in_bfloat16_a_gradient_may_be_taken_of_many_tasks_at_once(key, dtype):
    """As of each alone, and with operands that are bfloat16 from the start."""
    x, w = jax.random.normal(key, (3, 2, 8, 8, 16), dtype), jax.random.normal(key, (3, 3, 3, 16, 4), dtype)
    convolution = functools.partial(conv, stride=2, padding=1)

    def energy(x, w):
        return jnp.sum(jnp.sin(convolution(x, w)).astype(jnp.float32))

    with jax.default_matmul_precision("bfloat16"):
        together = jax.grad(lambda x, w: jax.vmap(energy)(x, w).sum(), argnums=(0, 1))(x, w)
        alone = jax.vmap(jax.grad(energy, argnums=(0, 1)))(x, w)
    for a, b in zip(together, alone, strict=True):
        assert float(jnp.abs(a).max()) > 0.1
        np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=0.05, atol=0.05 * float(jnp.abs(b).max()))


def test_in_bfloat16_images_of_few_channels_keep_their_precision(key):
    x, w = jax.random.normal(key, (2, 8, 8, 3)), jax.random.normal(key, (3, 3, 3, 4))
    exact = conv(x, w, stride=2, padding=1)
    with jax.default_matmul_precision("bfloat16"):
        np.testing.assert_array_equal(conv(x, w, stride=2, padding=1), exact)


def test_in_bfloat16_a_native_convolution_stays_exact_and_kernels_of_tasks_are_rounded(key):
    x, w = jax.random.normal(key, (3, 2, 8, 8, 16)), jax.random.normal(key, (3, 3, 3, 16, 4))
    exact = jax.vmap(functools.partial(conv, padding=1))(x, w)
    with jax.default_matmul_precision("bfloat16"):
        alone = jnp.stack([conv(a, b, padding=1) for a, b in zip(x, w, strict=True)])
        together = jax.vmap(functools.partial(conv, padding=1))(x, w)
    scale = float(jnp.abs(exact).max())
    np.testing.assert_allclose(alone, exact, rtol=1e-4, atol=1e-4 * scale)
    np.testing.assert_allclose(together, exact, atol=2**-7 * scale)
    assert float(jnp.abs(together - exact).max()) > 1e-4 * scale


@pytest.mark.parametrize("examples", [6, 1, 0])
def test_in_bfloat16_a_wide_convolution_goes_by_blocks_of_rounded_patches(key, monkeypatch, examples):
    """And its kernel's cotangent, as a convolution of rounded operands does."""
    monkeypatch.setattr(PLAN, "BLOCK_BYTES", 2 * 36 * 9 * 16 * 2)  # patches of two images
    monkeypatch.setattr(PLAN, "KERNEL_BLOCK_BYTES", 2 * 36 * 9 * 16 * 2)
    x, w = jax.random.normal(key, (examples, 6, 6, 16)), jax.random.normal(key, (3, 3, 16, 128)) / 12
    cotangent = jax.random.normal(key, (examples, 6, 6, 128))

    run = jax.jit(pulled_back(functools.partial(conv, padding=1)))
    with jax.default_matmul_precision("bfloat16"):
        ours = run(x, w, cotangent)
    theirs, exact = run(*map(rounded, (x, w, cotangent))), run(x, w, cotangent)
    for a, b, c in zip(ours, theirs, exact, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
        assert examples == 0 or np.abs(np.asarray(a) - c).max() > 1e-3


@pytest.mark.parametrize(("stride", "precision"), [(1, "bfloat16"), (1, "float32"), (2, "bfloat16"), (2, "float32")])
def test_a_kernel_s_cotangent_by_blocks_of_images_is_that_of_all(key, monkeypatch, stride, precision):
    x, w = jax.random.normal(key, (6, 8, 8, 16)), jax.random.normal(key, (3, 3, 16, 4))
    cotangent = jax.random.normal(key, (6, 8 // stride, 8 // stride, 4))

    def by_kernel(w, x, cotangent):
        return jax.vjp(lambda w: conv(x, w, stride=stride, padding=1), w)[1](cotangent)[0]

    with jax.default_matmul_precision(precision):
        whole = jax.jit(by_kernel)(w, x, cotangent)
        monkeypatch.setattr(PLAN, "KERNEL_BLOCK_BYTES", 2 * (8 // stride) ** 2 * 9 * 16 * 4)
        monkeypatch.setattr(PLAN, "SHIFTS_BLOCK_BYTES", 2 * 10 * 8 * 3 * (16 + 4) * 4)
        program = jax.jit(lambda *arrays: by_kernel(*arrays)).lower(w, x, cotangent)
    assert "while" in program.as_text(), "blocks one after the other"
    np.testing.assert_allclose(program.compile()(w, x, cotangent), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [1, 3], ids=["im2col", "shifts"])
def test_blocks_of_bfloat16_images_are_summed_in_float32(monkeypatch, size):
    """Each block adds 1 to 256. bfloat16 has the sum, 272, but not 256 + 1, nor any sum after it."""
    for limit in ("KERNEL_BLOCK_BYTES", "BLOCK_BYTES", "SHIFTS_BLOCK_BYTES"):
        monkeypatch.setattr(PLAN, limit, 1)  # a block for each image
    side = 7 + size
    x, kernel = jnp.ones((17, side, side, 16), jnp.bfloat16), jnp.zeros((size, size, 16, 16), jnp.bfloat16)
    cotangent = jnp.zeros((17, 8, 8, 16), x.dtype).at[:, 0, 0].set(1).at[0].set(256 / 8**2)
    program = jax.jit(lambda kernel: jax.vjp(lambda kernel: conv(x, kernel), kernel)[1](cotangent)[0]).lower(kernel)
    assert "while" in program.as_text()
    np.testing.assert_array_equal(np.float32(program.compile()(kernel)), 272)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_nested_batches_of_tasks_are_those_of_lax(platform):
    """Batches inside of tasks, over images, kernels or both, and the gradient of a whole batch of tasks."""

    def lax_convolve(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (2, 2), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
        )

    def energies(convolve, inner):
        nested = jax.vmap(jax.vmap(lambda x, w: jnp.sin(convolve(x, w)).sum(), inner), (0, 0))
        return jax.jit(jax.grad(lambda x, w: jnp.sin(nested(x, w)).sum(), argnums=(0, 1)))

    with jax.enable_x64(True), plan_for(platform):
        rng = np.random.default_rng(0)
        for inner, x_shape, w_shape in [
            ((0, None), (2, 3, 4, 5, 5, 2), (2, 3, 3, 2, 3)),
            ((None, 0), (2, 4, 5, 5, 2), (2, 3, 3, 3, 2, 3)),
            ((0, 0), (2, 3, 4, 5, 5, 2), (2, 3, 3, 3, 2, 3)),
        ]:
            x, w = rng.normal(size=x_shape), rng.normal(size=w_shape)
            ours = energies(lambda x, w: conv(x, w, stride=2, padding=1), inner)(x, w)
            for a, b in zip(ours, energies(lax_convolve, inner)(x, w), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
