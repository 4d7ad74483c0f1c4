"""Layers against independent computations, and the adapter on every kind of module."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.example_libraries import stax

import metajax as mj
from metajax.kernels import convolution
from metajax.kernels.convolution import convolve
from metajax.kernels.product import dot_general
from metajax.kernels.windows import Geometry, windows
from metajax.models import BatchNorm, Conv, GroupNorm, layers, max_pool
from metajax.models.layers import convolve_and_pool

pytestmark = pytest.mark.usefixtures("compiled_fast")


@settings(deadline=None, max_examples=12)
@given(
    side=st.integers(5, 12),
    kernel=st.sampled_from([1, 3, 5, 7]),
    stride=st.integers(1, 3),
    padding=st.integers(0, 3),
    channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_a_convolution_is_that_of_lax(side, kernel, stride, padding, channels):
    conv = Conv(*channels, kernel_size=kernel, stride=stride, padding=padding, use_bias=True, rngs=nnx.Rngs(0))
    conv.bias[...] = jnp.arange(float(channels[1]))
    x = jax.random.normal(jax.random.key(1), (2, side, side + 1, channels[0]))
    if kernel > side + 2 * padding:
        with pytest.raises(ValueError, match="does not fit images"):
            conv(x)
        return
    expected = jax.lax.conv_general_dilated(
        x, conv.kernel[...], (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(conv(x), expected + conv.bias[...], rtol=1e-4, atol=1e-5)


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

    with jax.enable_x64(True), mock.patch.object(jax, "default_backend", return_value=forms_of):
        rng, axes = np.random.default_rng(0), batched or (None, None)
        shapes = [(2, side, side + 1, channels), (kernel, kernel, channels, 2)]
        shapes = [s if axis is None else (*s[:axis], 3, *s[axis:]) for s, axis in zip(shapes, axes, strict=True)]
        (x, dx), (w, dw) = (rng.normal(size=(2, *shape)) for shape in shapes)
        ours = derivatives(lambda x, w: convolve(x, w, stride=stride, padding=padding), batched)(x, w, dx, dw)
        theirs = derivatives(lax_convolve, batched)(x, w, dx, dw)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@settings(deadline=None, max_examples=12)
@given(
    examples=st.integers(1, 4),
    inputs=st.integers(1, 4),
    outputs=st.integers(1, 4),
    batched=st.sampled_from([None, (0, None), (None, 0), (0, 0), (1, None), (None, 2), (2, 1)]),
    forms_of=st.sampled_from(["cpu", "gpu"]),
)
def test_derivatives_of_a_product_are_those_of_jax(examples, inputs, outputs, batched, forms_of):
    with jax.enable_x64(True), mock.patch.object(jax, "default_backend", return_value=forms_of):
        rng, axes = np.random.default_rng(0), batched or (None, None)
        shapes = [(examples, inputs), (inputs, outputs)]
        shapes = [s if axis is None else (*s[:axis], 3, *s[axis:]) for s, axis in zip(shapes, axes, strict=True)]
        (x, dx), (w, dw) = (rng.normal(size=(2, *shape)) for shape in shapes)
        ours, theirs = (derivatives(multiply, batched)(x, w, dx, dw) for multiply in (dot_general, jnp.matmul))
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("outputs", [3, 7])
def test_products_of_each_task_contract_what_lies_together(outputs):
    """The reason for `product`: on a CPU a kernel's cotangent, a product over rows, is slow for each task."""

    def products(multiply):
        gradient = jax.vmap(jax.grad(lambda w, x: jnp.sum(jnp.sin(multiply(x, w)))))
        program = jax.make_jaxpr(gradient)(jnp.ones((4, 5, outputs)), jnp.ones((4, 2, 5)))
        barriers = sum(eqn.primitive.name == "optimization_barrier" for eqn in program.eqns)
        found = [eqn for eqn in program.eqns if eqn.primitive.name == "dot_general"]
        sides = [(eqn.params["dimension_numbers"][0][0], eqn.invars[0].aval.ndim) for eqn in found]
        return [contracted == (ndim - 1,) for contracted, ndim in sides], barriers

    assert products(dot_general) == ([True, True], 1), "turned, and not turned back by the compiler"
    assert products(jnp.matmul) == ([True, False], 0), "what JAX does by itself"


def test_a_product_has_the_shapes_and_the_type_of_jax():
    x, kernel = jnp.ones((3, 2, 5), jnp.bfloat16), jnp.ones((5, 4), jnp.float32)
    np.testing.assert_array_equal(dot_general(x, kernel), x @ kernel)
    assert dot_general(x, kernel).dtype == jnp.float32
    assert dot_general(x[0, 0], kernel).shape == (4,)
    with pytest.raises(ValueError, match=r"a kernel \(5, 4\) does not fit inputs of shape \(2, 5, 3\)"):
        dot_general(jnp.ones((2, 5, 3)), kernel)
    with pytest.raises(ValueError, match="does not support the options preferred_element_type"):
        dot_general(x, kernel, preferred_element_type=jnp.float32)


def test_derivatives_of_a_product_over_tasks_are_those_of_jax(key):
    """Reverse mode through `vmap`, where each task has its kernel."""
    x, kernels = jax.random.normal(key, (4, 2, 5)), jax.random.normal(key, (4, 5, 3))

    def energy(multiply):
        cubes = jax.grad(lambda kernel, x: jnp.sum(multiply(x, kernel) ** 3))
        return lambda x, kernels: jnp.sum(jnp.sin(jax.vmap(cubes)(kernels, x)))

    ours, theirs = (jax.grad(energy(multiply), argnums=(0, 1))(x, kernels) for multiply in (dot_general, jnp.matmul))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_a_product_keeps_the_precision_that_held_where_it_was_written():
    def loss(kernel, x):
        with jax.default_matmul_precision("highest"):
            return jnp.sum(jnp.sin(dot_general(x, kernel)))

    text = jax.jit(jax.grad(loss)).lower(jnp.ones((5, 3)), jnp.ones((2, 5))).as_text()
    assert text.count("precision = [HIGHEST, HIGHEST]") == text.count("dot_general") == 2


@pytest.mark.slow
@settings(deadline=None, max_examples=20)
@given(
    height=st.integers(4, 9),
    width=st.sampled_from([4, 7, 15, 16, 17, 30]),
    size=st.sampled_from([1, 2, 3, 5]),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    channels=st.sampled_from([3, 16]),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16]),
)
def test_windows_are_the_pixels_under_a_kernel_and_so_are_their_derivatives(
    height, width, size, stride, padding, channels, dtype
):
    """Cut from rows or pixel by pixel; exactly, for they only move values."""
    height, width = max(height, size), max(width, size)
    images = jax.random.normal(jax.random.key(0), (2, height, width, channels), dtype)
    cut = functools.partial(windows, geometry=Geometry(height, width, size, stride, padding))
    out = np.asarray(cut(images))
    around = np.pad(np.asarray(images), [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    for row, column in np.ndindex(out.shape[1:3]):
        at = around[:, row * stride : row * stride + size, column * stride : column * stride + size]
        np.testing.assert_array_equal(out[:, row, column], at.reshape(2, -1))
    assert out.shape[1:3] == tuple((side + 2 * padding - size) // stride + 1 for side in (height, width))
    np.testing.assert_array_equal(jax.jvp(cut, (images,), (images,))[1], out)


def derivatives(fn, batched):
    """First and second derivatives of an energy of `fn(x, w)`: forward over reverse and reverse over reverse."""

    def energy(x, w):
        return jnp.sum(jnp.sin(fn(x, w)))

    def run(x, w, dx, dw):
        gradient = jax.grad(energy, argnums=(0, 1))
        _, forward = jax.jvp(gradient, (x, w), (dx, dw))
        _, reverse = jax.vjp(gradient, x, w)
        return gradient(x, w), forward, reverse((dx, dw))

    return run if batched is None else jax.vmap(run, batched * 2)


def rounded(x):
    return x.astype(jnp.bfloat16).astype(jnp.float32)


def pulled_back(fn):
    """Of two arguments: the value, and the cotangents of both."""

    def run(x, w, cotangent):
        out, back = jax.vjp(fn, x, w)
        return out, *back(cotangent)

    return run


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
        ours = pull_back(lambda x, w: convolve(x, w, stride=2, padding=kernel // 2))(*operands)
    theirs = pull_back(expected)(*map(rounded, operands))
    for a, b, exact in zip(ours, theirs, pull_back(expected)(*operands), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
        assert np.abs(np.asarray(a) - exact).max() > 1e-3


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_in_bfloat16_a_gradient_may_be_taken_of_many_tasks_at_once(key, dtype):
    """As of each alone, and with operands that are bfloat16 from the start."""
    x, w = jax.random.normal(key, (3, 2, 8, 8, 16), dtype), jax.random.normal(key, (3, 3, 3, 16, 4), dtype)
    convolution = functools.partial(convolve, stride=2, padding=1)

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
    exact = convolve(x, w, stride=2, padding=1)
    with jax.default_matmul_precision("bfloat16"):
        np.testing.assert_array_equal(convolve(x, w, stride=2, padding=1), exact)


def test_in_bfloat16_a_native_convolution_stays_exact_and_kernels_of_tasks_are_rounded(key):
    x, w = jax.random.normal(key, (3, 2, 8, 8, 16)), jax.random.normal(key, (3, 3, 3, 16, 4))
    exact = jax.vmap(functools.partial(convolve, padding=1))(x, w)
    with jax.default_matmul_precision("bfloat16"):
        alone = jnp.stack([convolve(a, b, padding=1) for a, b in zip(x, w, strict=True)])
        together = jax.vmap(functools.partial(convolve, padding=1))(x, w)
    scale = float(jnp.abs(exact).max())
    np.testing.assert_allclose(alone, exact, rtol=1e-4, atol=1e-4 * scale)
    np.testing.assert_allclose(together, exact, atol=2**-7 * scale)
    assert float(jnp.abs(together - exact).max()) > 1e-4 * scale


@pytest.mark.parametrize("examples", [6, 1, 0])
def test_in_bfloat16_a_wide_convolution_goes_by_blocks_of_rounded_windows(key, monkeypatch, examples):
    """And its kernel's cotangent, as a convolution of rounded operands does."""
    monkeypatch.setattr(convolution, "_BLOCK_BYTES", 2 * 36 * 9 * 16 * 2)  # windows of two images
    monkeypatch.setattr(convolution, "_SMALL_BLOCK_BYTES", 2 * 36 * 9 * 16 * 2)
    x, w = jax.random.normal(key, (examples, 6, 6, 16)), jax.random.normal(key, (3, 3, 16, 128)) / 12
    cotangent = jax.random.normal(key, (examples, 6, 6, 128))

    run = jax.jit(pulled_back(functools.partial(convolve, padding=1)))
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
        return jax.vjp(lambda w: convolve(x, w, stride=stride, padding=1), w)[1](cotangent)[0]

    with jax.default_matmul_precision(precision):
        whole = jax.jit(by_kernel)(w, x, cotangent)
        monkeypatch.setattr(convolution, "_SMALL_BLOCK_BYTES", 2 * (8 // stride) ** 2 * 9 * 16 * 4)
        monkeypatch.setattr(convolution, "_SHIFTED_BYTES", 2 * 10 * 8 * 3 * (16 + 4) * 4)
        program = jax.jit(lambda *arrays: by_kernel(*arrays)).lower(w, x, cotangent)
    assert "while" in program.as_text(), "blocks one after the other"
    np.testing.assert_allclose(program.compile()(w, x, cotangent), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [1, 3], ids=["windows", "shifts"])
def test_blocks_of_bfloat16_images_are_summed_in_float32(monkeypatch, size):
    """Each adds 1 to 256, and the sum 272 is of bfloat16; 256 + 1 is not, nor is any sum after it."""
    for limit in ("_SMALL_BLOCK_BYTES", "_BLOCK_BYTES", "_SHIFTED_BYTES"):
        monkeypatch.setattr(convolution, limit, 1)  # a block for each image
    side = 7 + size
    x = jnp.ones((17, side, side, 16), jnp.bfloat16)
    cotangent = jnp.zeros((17, 8, 8, 16), x.dtype).at[:, 0, 0].set(1).at[0].set(256 / 8**2)
    geometry = Geometry(side, side, size, stride=1, padding=0)
    np.testing.assert_array_equal(np.float32(convolution._kernel_in_blocks(x, cotangent, geometry)), 272)


def test_pooling_before_normalisation_is_pooling_after(key):
    """Of the mini-ImageNet form: pooled first where the line of the normalisation is sure to rise."""
    model = mj.models.Conv4(5, image_shape=(16, 16, 3), channels=4, pool=True, rngs=nnx.Rngs(0))
    x = jax.random.normal(key, (6, 16, 16, 3))
    out = x
    for conv, norm in zip(model.convs, model.norms, strict=True):
        out = linen.max_pool(nnx.relu(norm(conv(out))), (2, 2), (2, 2))
    np.testing.assert_allclose(model(x), model.head(out.reshape(6, -1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("own_kernels", [False, True])
@pytest.mark.parametrize("channels", [3, 16])
def test_blocks_of_examples_change_nothing(monkeypatch, channels, own_kernels):
    """The value, its gradient and that gradient's derivative, for one kernel or one for each of two tasks.

    Of few channels outputs are computed again in the backward pass; of many they are kept.
    """
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        kernels, along = rng.normal(size=(2, 2, 3, 3, channels, 4))
        images = rng.normal(size=(2, 6, 9, 8, channels))

        def energy(kernel, x):
            conv = Conv(channels, 4, rngs=nnx.Rngs(0))
            conv.kernel = nnx.Param(kernel)
            pooled, (mean, mean_square) = convolve_and_pool(conv, x)
            return jnp.sin(pooled).sum() * jnp.sin(mean).sum() + jnp.cos(mean_square).sum()

        def derivatives(kernel, along, x):
            gradient = jax.grad(energy, argnums=(0, 1))
            return gradient(kernel, x), jax.jvp(lambda kernel: gradient(kernel, x), (kernel,), (along,))[1]

        run = jax.vmap(derivatives) if own_kernels else lambda *arrays: derivatives(*(a[0] for a in arrays))
        whole = run(kernels, along, images)
        monkeypatch.setattr(layers, "_BLOCK_BYTES", 2 * 9 * 8 * 4 * 8)
        assert "while" in jax.jit(run).lower(kernels, along, images).as_text(), "blocks one after the other"
        assert ("remat" in str(jax.make_jaxpr(energy)(kernels[0], images[0]))) == (channels == 3)
        for a, b in zip(jax.tree.leaves(run(kernels, along, images)), jax.tree.leaves(whole), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_outside_of_jit_a_pooled_convolution_is_compiled_once(key, monkeypatch):
    traced = []
    layers._pooled_sums_by_blocks.clear_cache()
    monkeypatch.setattr(layers, "_BLOCK_BYTES", 1)  # a block for each image
    monkeypatch.setattr(layers, "max_pool", lambda x: traced.append(x.shape) or max_pool(x))
    conv, x = Conv(3, 5, rngs=nnx.Rngs(0)), jax.random.normal(key, (4, 6, 6, 3))
    first, _ = convolve_and_pool(conv, x)
    assert set(traced) == {(1, 6, 6, 5)}
    traced.clear()
    again, _ = convolve_and_pool(conv, x)
    assert not traced
    np.testing.assert_array_equal(again, first)
    np.testing.assert_allclose(first, max_pool(conv(x)), rtol=1e-5, atol=1e-5)


def test_batch_norm_uses_the_batch_at_hand():
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (6, 4, 4, 5))
    norm = BatchNorm(5, rngs=nnx.Rngs(0))
    norm.offset[...] = jnp.arange(5.0)
    out = np.asarray(norm(x)) - np.arange(5.0)
    np.testing.assert_allclose(out.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(out.std((0, 1, 2)), 1, atol=1e-3)
    assert not np.allclose(norm(x[:3]), norm(x)[:3]), "an example sees the others"


def test_group_norm_sees_each_example_alone():
    x = jax.random.normal(jax.random.key(0), (6, 4, 4, 6))
    norm = GroupNorm(6, groups=4, rngs=nnx.Rngs(0))
    assert norm.groups == 3, "the largest divisor"
    np.testing.assert_allclose(norm(x[:2]), norm(x)[:2], atol=1e-6)
    expected = nnx.GroupNorm(6, num_groups=3, epsilon=1e-3, rngs=nnx.Rngs(0))(x)
    np.testing.assert_allclose(norm(x), expected, atol=1e-4)


def test_pooling_is_the_window_maximum():
    x = jax.random.normal(jax.random.key(0), (2, 7, 9, 3))
    np.testing.assert_array_equal(max_pool(x), linen.max_pool(x, (2, 2), (2, 2)))


MODELS = {
    "mlp": (lambda rngs: mj.models.MLP(28 * 28, 5, rngs=rngs), (28, 28, 1), 28 * 28 * 40 + 40 + 40 * 40 + 40 + 205),
    "mlp, fully connected Omniglot": (
        lambda rngs: mj.models.MLP(784, 5, hidden=(256, 128, 64, 64), normalise=True, rngs=rngs),
        (28, 28, 1),
        784 * 256 + 256 * 128 + 128 * 64 + 64 * 64 + 64 * 5 + 2 * (256 + 128 + 64 + 64) + 5,
    ),
    "conv4 Omniglot": (
        lambda rngs: mj.models.Conv4(5, rngs=rngs),
        (28, 28, 1),
        9 * 64 + 3 * 9 * 64 * 64 + 4 * 64 + 325,
    ),
    "conv4 mini-ImageNet": (
        lambda rngs: mj.models.Conv4(5, image_shape=(84, 84, 3), channels=32, pool=True, rngs=rngs),
        (84, 84, 3),
        9 * 3 * 32 + 3 * 9 * 32 * 32 + 4 * 32 + 25 * 32 * 5 + 5,
    ),
    "resnet12": (lambda rngs: mj.models.ResNet12(5, rngs=rngs), (84, 84, 3), 12_427_525),
    "resnet18": (lambda rngs: mj.models.ResNet18(5, rngs=rngs), (32, 32, 3), 11_171_397),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_have_the_published_sizes(name):
    make, shape, size = MODELS[name]
    apply, params = mj.functional(make(nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == size
    out = jax.eval_shape(apply, params, jax.ShapeDtypeStruct((2, *shape), jnp.float32))
    assert out.shape == (2, 5)


def test_the_head_of_every_model_is_called_head():
    """`anil`, `boil` and the prototypes look for that name."""
    small = [
        mj.models.MLP(4, 3, rngs=nnx.Rngs(0)),
        mj.models.MLP(4, 3, hidden=(), rngs=nnx.Rngs(0)),
        mj.models.MLP(4, 3, normalise=True, rngs=nnx.Rngs(0)),
        mj.models.Conv4(3, channels=4, rngs=nnx.Rngs(0)),
        mj.models.ResNet12(3, widths=(4, 4, 4, 4), rngs=nnx.Rngs(0)),
        mj.models.ResNet18(3, width=4, rngs=nnx.Rngs(0)),
        mj.models.ViT(3, width=8, layers=1, rngs=nnx.Rngs(0)),
    ]
    for model in small:
        _, params = mj.functional(model)
        assert params["head"]["kernel"].shape[-1] == 3


def test_a_perceptron_takes_another_initialiser():
    _, params = mj.functional(mj.models.MLP(2, 3, kernel_init=nnx.initializers.ones_init(), rngs=nnx.Rngs(0)))
    kernels = [params["layers"][0]["kernel"], params["layers"][1]["kernel"], params["head"]["kernel"]]
    for kernel in kernels:
        np.testing.assert_array_equal(kernel, 1)


@pytest.mark.parametrize("kind", ["batch", "group"])
def test_models_take_either_normalisation(kind):
    small = [
        mj.models.Conv4(3, channels=4, norm=kind, rngs=nnx.Rngs(0)),
        mj.models.ResNet12(3, in_channels=1, widths=(4, 4, 4, 4), norm=kind, rngs=nnx.Rngs(0)),
        mj.models.ResNet18(3, in_channels=1, width=4, stem="large", norm=kind, rngs=nnx.Rngs(0)),
    ]
    x = jax.random.normal(jax.random.key(0), (6, 28, 28, 1))
    for model in small:
        whole, part = model(x), model(x[:3])
        assert np.isfinite(whole).all()
        assert np.allclose(whole[:3], part, atol=1e-4) == (kind == "group")


def test_images_too_small_to_pool_are_named():
    with pytest.raises(ValueError, match="at least 16×16 pixels, got 8×8"):
        mj.models.Conv4(5, image_shape=(8, 8, 1), pool=True, rngs=nnx.Rngs(0))


def test_images_of_another_shape_are_named():
    rngs = nnx.Rngs(0)
    of_one_size = [
        mj.models.Conv4(5, image_shape=(16, 16, 1), channels=4, rngs=rngs),
        mj.models.Conv4(5, image_shape=(16, 16, 1), channels=4, pool=True, rngs=rngs),
        mj.models.ViT(5, image_shape=(16, 16, 1), patch=4, width=8, layers=1, rngs=rngs),
        mj.models.ResNet12(5, in_channels=1, image_size=(16, 16), widths=(2, 2, 2, 2), rngs=rngs),
        mj.models.ResNet18(5, in_channels=1, image_size=(16, 16), width=2, rngs=rngs),
    ]
    for model in of_one_size:
        assert model(jnp.ones((2, 16, 16, 1))).shape == (2, 5)
        apply, params = mj.functional(model)
        for shape in [(32, 32, 1), (17, 31, 1), (8, 32, 1), (16, 16, 3)]:
            said = f"made for images of shape 16×16×1, got images of shape {'×'.join(map(str, shape))}"
            for call in (model, functools.partial(apply, params), jax.vmap(functools.partial(apply, params))):
                with pytest.raises(ValueError, match=said):
                    call(jnp.ones((*([2] if isinstance(call, functools.partial | nnx.Module) else [3, 2]), *shape)))
    of_any_size = [
        mj.models.ResNet12(5, in_channels=1, widths=(2, 2, 2, 2), rngs=rngs),
        mj.models.ResNet18(5, in_channels=1, width=2, rngs=rngs),
    ]
    for model in of_any_size:
        assert model(jnp.ones((2, 17, 31, 1))).shape == (2, 5)
        with pytest.raises(ValueError, match="shape any×any×1, got images of shape 16×16×3"):
            model(jnp.ones((2, 16, 16, 3)))
    with pytest.raises(ValueError, match="sequences have 6 tokens, but the network was made for at most 4"):
        mj.models.Transformer(8, length=4, width=8, heads=2, layers=1, rngs=rngs)(jnp.zeros((2, 6), jnp.int32))
    with pytest.raises(ValueError, match=r"examples, height, width, channels\], got \(28, 28, 1\)"):
        mj.models.Conv4(5, rngs=nnx.Rngs(0))(jnp.ones((28, 28, 1)))
    with pytest.raises(ValueError, match=r"of shape 28×28×1, got images of shape 28×28×3"):
        mj.models.Conv4(5, rngs=nnx.Rngs(0))(jnp.ones((2, 28, 28, 3)))


class LinenModel(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.BatchNorm(use_running_average=False)(linen.Dense(4)(x))
        return linen.Dense(2)(linen.Dropout(0.5, deterministic=False)(x))


class NnxModel(nnx.Module):
    def __init__(self, rngs):
        self.first, self.norm = nnx.Linear(3, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
        self.dropout, self.last = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(self.norm(self.first(x))))


def pair():
    def init(rng):
        return {"w": jax.random.normal(rng, (3, 2))}

    def apply(params, x, rng=None):
        noise = 0 if rng is None else jax.random.normal(rng, (2,))
        return x @ params["w"] + noise

    return init, apply


KINDS = {
    "nnx": lambda: mj.functional(NnxModel(nnx.Rngs(0))),
    "linen": lambda: mj.functional(
        LinenModel(), {"params": jax.random.key(0), "dropout": jax.random.key(1)}, jnp.ones((1, 3))
    ),
    "pair": lambda: mj.functional(pair(), jax.random.key(0)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_any_module_becomes_a_pure_function(kind):
    apply, params = KINDS[kind]()
    x = jax.random.normal(jax.random.key(2), (8, 3))
    run = jax.jit(apply)
    a, b = run(params, x, jax.random.key(0)), run(params, x, jax.random.key(1))
    np.testing.assert_array_equal(a, run(params, x, jax.random.key(0)), "pure: nothing is remembered")
    assert not np.allclose(a, b), "the key feeds the noise"
    zeros = jax.tree.map(jnp.zeros_like, params)
    if kind != "pair":
        np.testing.assert_allclose(
            run(zeros, x, jax.random.key(0)), 0, atol=1e-6, err_msg="all parameters are arguments"
        )
    gradient = jax.grad(lambda p: apply(p, x, jax.random.key(0))[:, 0].sum())(params)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("kind", KINDS)
def test_any_module_can_be_meta_trained(kind):
    import optax

    apply, params = KINDS[kind]()
    learner = mj.maml(mj.classification_loss(apply), mj.inner_loop(optax.sgd(0.1), 2))
    x, y = jax.random.normal(jax.random.key(2), (4, 3)), jnp.array([0, 1, 0, 1])
    estimate = learner.gradient(params, mj.Task(mj.Batch(x, y), mj.Batch(x, y)), jax.random.key(0), ())
    assert jax.tree.structure(estimate.gradient) == jax.tree.structure(params)
    assert np.isfinite(estimate.metrics["loss"])


def test_linen_without_other_collections_or_keys():
    apply, params = mj.functional(linen.Dense(2), jax.random.key(0), jnp.ones((1, 3)))
    np.testing.assert_allclose(apply(params, jnp.ones((4, 3))), jnp.ones((4, 3)) @ params["kernel"], rtol=1e-6)


class Flagged(linen.Module):
    """As Flax's tutorials write it: a flag behind the input."""

    @linen.compact
    def __call__(self, x, train, scale=1.0):
        x = linen.BatchNorm(use_running_average=not train)(linen.Dense(4)(x))
        return scale * linen.Dropout(0.5, deterministic=not train)(linen.Dense(2)(x))


class DropoutFlag(linen.Module):
    @linen.compact
    def __call__(self, x, train):
        return linen.Dropout(0.5, deterministic=not train)(linen.Dense(2)(x))


class NnxFlag(nnx.Module):
    def __init__(self, rngs):
        self.linear, self.dropout = nnx.Linear(3, 2, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x, *, train):
        return self.dropout(self.linear(x), deterministic=not train)


@pytest.mark.parametrize("given", ["position", "keyword"])
@pytest.mark.parametrize("train", [True, False])
def test_arguments_behind_the_input_are_passed_on_at_each_call(given, train):
    arguments, options = ((train,), {}) if given == "position" else ((), {"train": train})
    apply, params = mj.functional(DropoutFlag(), jax.random.key(0), jnp.ones((1, 3)), *arguments, **options)
    a, b = (apply(params, jnp.ones((20, 3)), jax.random.key(seed)) for seed in (1, 2))
    assert np.array_equal(a, b) != train, "the flag decides whether there is noise"


@pytest.mark.parametrize("train", [True, False])
def test_an_nnx_module_gets_its_flags_by_keyword(train):
    apply, params = mj.functional(NnxFlag(nnx.Rngs(0)), train=train)
    a, b = (apply(params, jnp.ones((20, 3)), jax.random.key(seed)) for seed in (1, 2))
    assert np.array_equal(a, b) != train


def test_more_arguments_reach_a_linen_module_with_other_collections():
    x = jax.random.normal(jax.random.key(1), (8, 3))
    one, two = (mj.functional(Flagged(), jax.random.key(0), x, True, scale=scale) for scale in (1.0, 2.0))
    key = jax.random.key(2)
    np.testing.assert_allclose(2 * one[0](one[1], x, key), two[0](one[1], x, key), rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3,), TypeError, r"an NNX module, a Linen module or a pair .* got int"),
        ((linen.Dense,), TypeError, "got the class Dense: make an instance"),
        ((linen.Dense(1),), TypeError, "needs a key and an example input.* got 0 arguments"),
        ((linen.Dense(1), jax.random.key(0)), TypeError, "needs a key and an example input.* got 1 argument "),
        ((linen.Dense(1), "0", jnp.ones((1, 3))), TypeError, r"a key .* is expected, got '0'"),
        (
            (linen.Dense(1), jnp.ones((1, 3)), jax.random.key(0)),
            TypeError,
            r"a key .* is expected, got float32\[1, 3\]",
        ),
        ((linen.Dropout(0.5, deterministic=True), jax.random.key(0), jnp.ones(3)), ValueError, "has no parameters"),
        ((nnx.Dropout(0.5),), ValueError, "Dropout has no parameters"),
        ((nnx.Linear(3, 1, rngs=nnx.Rngs(0)), jax.random.key(0)), TypeError, "has its parameters already"),
        (((dict, lambda params, x, rng: x),), ValueError, "the pair has no parameters"),
        (((lambda: {"n": 3}, lambda params, x, rng: x),), ValueError, "parameter 'n' of the pair is 3"),
        (((lambda: {"n": jnp.arange(2)}, lambda params, x, rng: x),), ValueError, r"'n' of the pair is int32\[2\]"),
        ((stax.Dense(1), jax.random.key(0), (-1, 3)), TypeError, r"apply\(params, x, rng\), but it takes \(params, in"),
        (
            (((stax.Dense(1)[0]), lambda params, x, rng: x), jax.random.key(0), (-1, 3)),
            ValueError,
            "parameter '0/0' of the pair is -1",
        ),
        (((lambda: {"w": 1.0}, lambda params, rng, x: x),), TypeError, "change the order"),
        (((lambda: {"w": 1.0}, lambda params, x: x),), TypeError, r"but it takes \(params, x\): wrap it"),
    ],
)
def test_what_makes_no_model_is_refused_by_name(arguments, error, message):
    with pytest.raises(error, match=message):
        mj.functional(*arguments)


def test_an_error_of_a_pair_says_what_it_was_called_with():
    """For example a Haiku model whose arguments hide that `rng` comes second."""
    apply, params = mj.functional((lambda: {"w": jnp.ones((3, 1))}, lambda params, *others: others[1] @ params["w"]))
    with pytest.raises(Exception) as caught:  # noqa: PT011
        apply(params, jnp.ones((2, 3)), jax.random.key(0))
    expected = "with params = {w: float32[3, 1]}, x = float32[2, 3], rng = key<fry>[]"
    assert any(expected in note for note in caught.value.__notes__)


def test_pairs_of_haiku_and_stax_run_as_the_docstring_says():
    haiku = (lambda rng, x: {"w": jnp.ones((3, 1))}, lambda params, rng, x: x @ params["w"])
    stax_pair = stax.Dense(1)
    pairs = [
        ((haiku[0], lambda params, x, rng: haiku[1](params, rng, x)), jnp.ones((2, 3))),
        ((lambda *a: stax_pair[0](*a)[1], lambda params, x, rng: stax_pair[1](params, x, rng=rng)), (-1, 3)),
    ]
    for pair_, example in pairs:
        apply, params = mj.functional(pair_, jax.random.key(0), example)
        assert apply(params, jnp.ones((2, 3)), jax.random.key(1)).shape == (2, 1)


class StackedBlock(nnx.Module):
    def __init__(self, rngs):
        self.linear, self.dropout = nnx.Linear(4, 4, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return x + self.dropout(jax.nn.relu(self.linear(x)))


class Stacked(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.split_rngs(splits=3)(nnx.vmap(StackedBlock, in_axes=(0,), out_axes=0))(rngs)

    def __call__(self, x):
        return nnx.scan(lambda block, x: block(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(self.blocks, x)


def test_stacked_layers_have_noise_of_their_own():
    apply, params = mj.functional(Stacked(nnx.Rngs(0)))
    params = jax.tree.map(jnp.zeros_like, params)
    params["blocks"]["linear"]["bias"] += 1.0  # each block adds 2 where its mask lets it
    x = jnp.zeros((500, 4))
    a, b = (apply(params, x, jax.random.key(seed)) for seed in (0, 1))
    np.testing.assert_array_equal(a, apply(params, x, jax.random.key(0)))
    assert not np.array_equal(a, b)
    shares = [float((a == value).mean()) for value in (0.0, 2.0, 4.0, 6.0)]
    np.testing.assert_allclose(shares, [1 / 8, 3 / 8, 3 / 8, 1 / 8], atol=0.05)


def test_dropout_alone_is_switched_off_as_the_docstring_says():
    net = NnxModel(nnx.Rngs(0))
    noisy, params = mj.functional(net)
    net.set_attributes(nnx.Dropout, deterministic=True)
    still, _ = mj.functional(net)
    x = jax.random.normal(jax.random.key(2), (8, 3))
    a, b = jax.random.split(jax.random.key(0))
    np.testing.assert_array_equal(still(params, x, a), still(params, x, b))
    assert not np.allclose(noisy(params, x, a), noisy(params, x, b)), "the first pair stays as it was"
    hidden = net.first(x)
    hidden = (hidden - hidden.mean(0)) / jnp.sqrt(hidden.var(0) + 1e-5)
    np.testing.assert_allclose(still(params, x, a), net.last(hidden), rtol=1e-4, atol=1e-5)


def evaluated() -> nnx.Module:
    net = NnxModel(nnx.Rngs(0))
    net.eval()
    return net


@pytest.mark.parametrize("make", [
    lambda: mj.functional(evaluated()),
    lambda: mj.functional(Flagged(), jax.random.key(0), jnp.ones((1, 3)), False),
    lambda: mj.functional(Flagged(), jax.random.key(0), jnp.ones((1, 3)), train=False),
], ids=["nnx", "linen", "linen by keyword"])  # fmt: skip
def test_running_statistics_that_were_never_updated_are_refused(make):
    apply, params = make()
    x = jnp.ones((4, 3))
    for run in (apply, jax.jit(apply)):
        with pytest.raises(ValueError, match=r"\((norm|BatchNorm_0)\) would use running statistics, which still have"):
            run(params, x)


def test_running_statistics_that_were_updated_are_a_warning():
    net = NnxModel(nnx.Rngs(0))
    net(jax.random.normal(jax.random.key(1), (8, 3)))
    net.eval()
    apply, params = mj.functional(net)
    with pytest.warns(UserWarning, match=r"\(norm\) uses running statistics, which metajax holds constant"):
        out = apply(params, jnp.ones((4, 3)))
    np.testing.assert_allclose(out, net(jnp.ones((4, 3))), rtol=1e-5)


def test_streams_of_noise_are_independent():
    class TwoStreams(nnx.Module):
        def __init__(self, rngs):
            self.scale = nnx.Param(jnp.ones(()))
            self.a = nnx.Dropout(0.5, rngs=rngs, rng_collection="a")
            self.b = nnx.Dropout(0.5, rngs=rngs, rng_collection="b")

        def __call__(self, x):
            return jnp.stack([self.a(x), self.b(x)])

    apply, params = mj.functional(TwoStreams(nnx.Rngs(params=0, a=1, b=2)))
    a, b = apply(params, jnp.ones(1000), jax.random.key(0))
    assert 0.4 < float((a == b).mean()) < 0.6


def test_a_vit_sees_each_example_alone_and_the_order_of_its_patches():
    module = mj.models.ViT(3, image_shape=(8, 8, 1), patch=4, width=16, layers=1, heads=2, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
    np.testing.assert_allclose(module(x)[2:3], module(x[2:3]), rtol=1e-4, atol=1e-5)
    swapped = jnp.concatenate([x[:, :, 4:], x[:, :, :4]], axis=2)
    assert not np.allclose(module(x), module(swapped), atol=1e-3)


@pytest.mark.parametrize(("options", "message"), [({"heads": 3}, "heads"), ({"patch": 3}, "patch")])
def test_a_vit_that_does_not_divide_its_image_or_width_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        mj.models.ViT(3, image_shape=(8, 8, 1), width=16, **{"patch": 4, "heads": 2, **options}, rngs=nnx.Rngs(0))
