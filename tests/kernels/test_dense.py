"""Matrix products of fully connected layers and their derivatives against those of JAX."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bilinear_checks import derivatives, plan_for
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export

from metajax.kernels import dense

pytestmark = pytest.mark.usefixtures("compiled_fast")


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
    with jax.enable_x64(True), plan_for(forms_of):
        rng, axes = np.random.default_rng(0), batched or (None, None)
        shapes = [(examples, inputs), (inputs, outputs)]
        shapes = [s if axis is None else (*s[:axis], 3, *s[axis:]) for s, axis in zip(shapes, axes, strict=True)]
        (x, dx), (w, dw) = (rng.normal(size=(2, *shape)) for shape in shapes)
        ours, theirs = (derivatives(multiply, batched)(x, w, dx, dw) for multiply in (dense, jnp.matmul))
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("outputs", [3, 7])
def test_on_a_cpu_products_of_each_task_contract_adjacent_values(outputs):
    """XLA for CPUs is slow at the cotangent of a kernel, a product over rows, for each task."""

    def operations(multiply, platform):
        gradient = jax.jit(jax.vmap(jax.grad(lambda w, x: jnp.sum(jnp.sin(multiply(x, w))))))
        shapes = jax.ShapeDtypeStruct((4, 5, outputs), "float32"), jax.ShapeDtypeStruct((4, 2, 5), "float32")
        text = export.export(gradient, platforms=[platform])(*shapes).mlir_module()
        contracted = re.findall(r"contracting_dims = \[(\d)\] x \[(\d)\]", text)
        return contracted, "optimization_barrier" in text

    on_rows, on_columns = ("1", "1"), ("2", "1")
    assert operations(dense, "cpu") == ([on_columns, on_columns], True), "transposed, and kept so by the compiler"
    assert operations(dense, "cuda") == operations(dense, "tpu") == ([on_columns, on_rows], False)
    assert operations(jnp.matmul, "cpu") == ([on_columns, on_rows], False), "the cotangent that JAX defines"


def test_a_product_has_the_shapes_and_the_type_of_jax():
    x, kernel = jnp.ones((3, 2, 5), jnp.bfloat16), jnp.ones((5, 4), jnp.float32)
    np.testing.assert_array_equal(dense(x, kernel), x @ kernel)
    assert dense(x, kernel).dtype == jnp.float32
    assert dense(x[0, 0], kernel).shape == (4,)
    with pytest.raises(ValueError, match=r"a kernel \(5, 4\) does not fit inputs of shape \(2, 5, 3\)"):
        dense(jnp.ones((2, 5, 3)), kernel)
    with pytest.raises(ValueError, match="does not support the options preferred_element_type"):
        dense(x, kernel, preferred_element_type=jnp.float32)


def test_derivatives_of_a_product_over_tasks_are_those_of_jax(key):
    """Reverse mode through `vmap`, where each task has its kernel."""
    x, kernels = jax.random.normal(key, (4, 2, 5)), jax.random.normal(key, (4, 5, 3))

    def energy(multiply):
        cubes = jax.grad(lambda kernel, x: jnp.sum(multiply(x, kernel) ** 3))
        return lambda x, kernels: jnp.sum(jnp.sin(jax.vmap(cubes)(kernels, x)))

    ours, theirs = (jax.grad(energy(multiply), argnums=(0, 1))(x, kernels) for multiply in (dense, jnp.matmul))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_a_product_keeps_the_precision_that_held_where_it_was_written():
    def loss(kernel, x):
        with jax.default_matmul_precision("highest"):
            return jnp.sum(jnp.sin(dense(x, kernel)))

    text = jax.jit(jax.grad(loss)).lower(jnp.ones((5, 3)), jnp.ones((2, 5))).as_text()
    assert text.count("precision = [HIGHEST, HIGHEST]") == text.count("dot_general") == 2
