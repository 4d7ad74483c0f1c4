"""Operations run by the plan of the platform for which JAX lowers them, not of the machine that traces them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bilinear_checks import plan_for, pulled_back
from jax import export

from metajax.kernels import conv, conv_pool_norm, dense

OPERATIONS = {
    "winograd": (lambda x, w: conv(x, w, padding=1), (5, 40, 40, 64), (3, 3, 64, 64)),
    "shifts": (lambda x, w: conv(x, w, padding=1), (2, 8, 8, 16), (3, 3, 16, 16)),
    "pooled": (lambda x, w: conv_pool_norm(x, w, jnp.zeros(32), padding=1), (8, 84, 84, 3), (3, 3, 3, 32)),
}


def exported(fn, *shapes, platforms):
    shapes = [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes]
    return export.export(jax.jit(fn), platforms=platforms)(*shapes).mlir_module()


@pytest.mark.parametrize("platform", ["cuda", "rocm", "tpu"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_program_for_an_accelerator_has_only_convolutions_of_xla(name, platform):
    """The output, both cotangents and their derivatives."""
    fn, x, w = OPERATIONS[name]

    def derivatives(x, w):
        def norm(x, w):
            return sum(jnp.square(g).sum() for g in jax.grad(lambda *xw: jnp.square(fn(*xw)).sum(), (0, 1))(x, w))

        return jax.grad(norm, (0, 1))(x, w)

    text = exported(derivatives, x, w, platforms=[platform])
    assert "stablehlo.convolution" in text
    assert "stablehlo.dot_general" not in text, "no matrix products of Winograd tiles, shifted copies or patches"
    assert "stablehlo.while" not in text, "no blocks"
    assert "stablehlo.optimization_barrier" not in text, "no operation that keeps XLA for CPUs on its fast path"
    on_cpu = exported(derivatives, x, w, platforms=["cpu"])
    assert "stablehlo.dot_general" in on_cpu
    assert name == "shifts" or "stablehlo.while" in on_cpu


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_kernels_of_tasks_are_batched_products_on_an_accelerator(platform):
    def cotangents(x, w, along):
        return jax.vmap(pulled_back(lambda x, w: conv(x, w, padding=1)))(x, w, along)

    text = exported(cotangents, (3, 2, 8, 8, 16), (3, 3, 3, 16, 16), (3, 2, 8, 8, 16), platforms=[platform])
    assert "stablehlo.convolution" not in text
    assert "stablehlo.dot_general" in text


def test_one_program_for_two_platforms_has_both_algorithms():
    fn, x, w = OPERATIONS["winograd"]
    text = exported(fn, x, w, platforms=["cpu", "cuda"])
    assert "stablehlo.case" in text
    assert "stablehlo.convolution" in text
    assert "stablehlo.dot_general" in text


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_platform_computes_the_same(name):
    """Here all on the CPU."""
    fn, *shapes = OPERATIONS[name]
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    along = jnp.ones(jax.eval_shape(fn, x, w).shape)
    ours = jax.jit(lambda *arrays: pulled_back(fn)(*arrays))(x, w, along)
    with plan_for("gpu"):
        theirs = jax.jit(lambda *arrays: pulled_back(fn)(*arrays))(x, w, along)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(jnp.abs(b).max()))


def test_outside_of_jit_an_operation_runs_where_its_arrays_are():
    device = jax.devices("cpu")[-1]
    x, kernel = (jax.device_put(jnp.ones(shape), device) for shape in ((2, 3), (3, 4)))
    assert dense(x, kernel).devices() == {device}
    images, filters = (jax.device_put(jnp.ones(shape), device) for shape in ((2, 8, 8, 3), (3, 3, 3, 4)))
    assert conv(images, filters).devices() == {device}


def test_eager_operations_run_without_jit():
    with jax.disable_jit():
        out = conv(jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4)), padding=1)
        product = dense(jnp.ones((2, 3)), jnp.ones((3, 4)))
    assert float(out[0, 4, 4, 0]) == 27
    assert product.tolist() == [[3.0] * 4] * 2


def test_a_dense_product_without_inputs_is_zero():
    assert dense(jnp.ones((3, 0)), jnp.ones((0, 2))).tolist() == [[0.0, 0.0]] * 3
