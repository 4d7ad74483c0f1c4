"""Everything that a learner or a model makes has the dtype of the parameters that it is made from."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from marks import slow_except

import metajax as mj
from metajax.core.learner import Adaptation
from metajax.core.trees import named
from metajax.learners import (
    diagonal_preconditioner,
    learned_rates,
    only,
    prototypes,
    rates_per_layer_and_step,
    values_per_step,
)
from metajax.learners.scratch import scratch

pytestmark = pytest.mark.usefixtures("compiled_fast")

DTYPES = [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64]
SETTINGS = [(dtype, x64) for dtype in DTYPES for x64 in (True, False) if x64 or dtype != jnp.float64]
"""Dtypes, with JAX's 64-bit types on or off."""
KEY = jax.random.key(0)
STEPS = 2


def sgd(**options):
    return mj.inner_loop(optax.sgd(0.1), STEPS, **options)


def adam(**options):
    return mj.inner_loop(optax.adam(0.1, eps_root=1e-4), STEPS, **options)


def embed(apply):
    return mj.features(apply)


LEARNERS = {
    "maml": lambda loss, apply: mj.maml(loss, sgd()),
    "maml, Adam": lambda loss, apply: mj.maml(loss, adam()),
    "maml, first order": lambda loss, apply: mj.maml(loss, sgd(first_order=True)),
    "maml, minibatches": lambda loss, apply: mj.maml(loss, sgd(batch_size=2)),
    "maml, mixed mode": lambda loss, apply: mj.maml(loss, sgd(mixed_mode=True)),
    "maml, remat": lambda loss, apply: mj.maml(loss, sgd(remat=True)),
    "second order later": lambda loss, apply: mj.maml(loss, sgd(), second_order_from=1),
    "reptile": lambda loss, apply: mj.reptile(loss, sgd()),
    "reptile, carried": lambda loss, apply: mj.reptile(loss, adam(), carry_optimizer=True),
    "foml": lambda loss, apply: mj.foml(loss, sgd()),
    "scratch": lambda loss, apply: scratch(loss, adam()),
    "anil": lambda loss, apply: mj.anil(loss, sgd()),
    "boil": lambda loss, apply: mj.boil(loss, sgd()),
    "meta_sgd": lambda loss, apply: mj.meta_sgd(loss, sgd()),
    "preconditioner": lambda loss, apply: mj.maml(loss, adam(), diagonal_preconditioner()),
    "maml_plus_plus": lambda loss, apply: mj.maml_plus_plus(loss, sgd()),
    "imaml": lambda loss, apply: mj.imaml(loss, sgd(), damping=1.0),
    "imaml, pulled once": lambda loss, apply: mj.imaml(loss, sgd(), strength=np.float64(2), pull_once=True),
    "cavia": lambda loss, apply: mj.cavia(loss, sgd(), shifts=named("norms", "bias"), rng=KEY),
    "lora": lambda loss, apply: mj.lora(loss, sgd(), adapts=named("kernel"), rng=KEY, rank=1),
    "proto_maml": lambda loss, apply: mj.proto_maml(loss, sgd(), embed=embed(apply)),
    "prototypical_network": lambda loss, apply: mj.prototypical_network(loss, embed=embed(apply)),
    "parts together": lambda loss, apply: mj.maml(
        loss,
        sgd(),
        values_per_step(named("norms"), STEPS),
        prototypes(embed(apply)),
        only(named("head")),
        rates_per_layer_and_step(STEPS),
        learned_rates(),
    ),
}


def cast(tree, dtype):
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def problem(params_dtype, data_dtype):
    apply, params = mj.functional(mj.models.MLP(3, 2, hidden=(4,), normalise=True, rngs=nnx.Rngs(0)))
    x, y = jnp.arange(12.0).reshape(4, 3).astype(data_dtype), jnp.array([0, 1, 0, 1])
    return apply, cast(params, params_dtype), mj.Task(mj.Batch(x, y), mj.Batch(x, y))


def dtypes(tree) -> set:
    return {leaf.dtype for leaf in jax.tree.leaves(tree)}


def assert_dtypes(make, params_dtype, data_dtype):
    """By shapes alone, which compiles nothing."""
    apply, params, task = problem(params_dtype, data_dtype)
    learner = make(mj.classification_loss(apply), apply)
    meta_params, state = jax.eval_shape(learner.init, params)
    outputs = lambda params: apply(params, task.query.x)  # noqa: E731
    adapt = lambda meta_params, state: learner.adapt(  # noqa: E731
        meta_params, task.support, KEY, state=state, steps=3, observe=outputs
    )
    adapted = jax.eval_shape(adapt, meta_params, state)
    estimate = jax.eval_shape(lambda *args: learner.gradient(args[0], task, KEY, args[1]), meta_params, state)
    assert dtypes(meta_params) == {jnp.dtype(params_dtype)}
    assert dtypes(adapted.params) == {jnp.dtype(params_dtype)}
    assert adapted.trace.dtype == jnp.promote_types(params_dtype, data_dtype)
    assert jax.tree.map(lambda leaf: leaf.dtype, estimate.gradient) == jax.tree.map(
        lambda leaf: leaf.dtype, meta_params
    )
    assert jax.tree.map(lambda leaf: leaf.dtype, estimate.state) == jax.tree.map(lambda leaf: leaf.dtype, state)


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize(
    ("dtype", "x64"), slow_except(SETTINGS, [0, 1]), ids=lambda each: getattr(each, "__name__", None)
)
def test_a_learner_keeps_the_dtype_of_the_parameters(name, dtype, x64):
    """With JAX's 64-bit types on, where JAX's own defaults are float64, and off, where they are float32.

    Neither default is bfloat16, so bfloat16 shows every array that has the dtype of a default.
    """
    with jax.enable_x64(x64):
        assert_dtypes(LEARNERS[name], dtype, dtype)


@pytest.mark.parametrize("name", LEARNERS)
def test_half_precision_parameters_stay_so_on_data_of_full_precision(name):
    assert_dtypes(LEARNERS[name], jnp.bfloat16, jnp.float32)


@pytest.mark.parametrize("name", LEARNERS)
def test_no_array_of_a_float32_learner_is_of_64_bits(name):
    """Not even on the way: neither activations nor anything of the inner loop."""
    with jax.enable_x64(True):
        apply, params, task = problem(jnp.float32, jnp.float32)
        learner = LEARNERS[name](mj.classification_loss(apply), apply)
        meta_params, state = learner.init(params)
        program = jax.make_jaxpr(lambda *args: learner.gradient(args[0], task, KEY, args[1]))(meta_params, state)
    assert not re.search(r"f64\[\d", str(program))


@pytest.mark.parametrize(
    "name", slow_except(["imaml", "cavia", "lora", "maml_plus_plus", "proto_maml", "meta_sgd"], [0, 4])
)
def test_a_gradient_in_half_precision_is_that_of_full_precision_up_to_rounding(name):
    apply, params, task = problem(jnp.float32, jnp.float32)
    params = jax.tree.map(lambda leaf: jax.random.normal(KEY, leaf.shape).astype(jnp.bfloat16), params)
    learner = LEARNERS[name](mj.classification_loss(apply), apply)

    def gradient(dtype):
        meta_params, state = learner.init(params)
        return jax.jit(learner.gradient)(cast(meta_params, dtype), task, KEY, state).gradient

    half, full = (jax.flatten_util.ravel_pytree(cast(gradient(d), jnp.float32))[0] for d in (jnp.bfloat16, jnp.float32))
    assert jnp.linalg.norm(half - full) <= 0.2 * jnp.linalg.norm(full) + 1e-6


def test_imaml_solves_for_leaves_of_several_dtypes():
    apply, params, task = problem(jnp.float32, jnp.float32)
    params["norms"] = cast(params["norms"], jnp.bfloat16)
    learner = mj.imaml(mj.classification_loss(apply), sgd())
    gradient = jax.eval_shape(lambda params: learner.gradient(params, task, KEY, ()), params).gradient
    assert jax.tree.map(lambda leaf: leaf.dtype, gradient) == jax.tree.map(lambda leaf: leaf.dtype, params)


def test_a_context_of_leaves_of_several_dtypes_leaves_each_its_own():
    apply, params, task = problem(jnp.float32, jnp.float32)
    params["norms"] = cast(params["norms"], jnp.bfloat16)
    learner = mj.cavia(mj.classification_loss(apply), sgd(), shifts=named("norms", "bias"), rng=KEY)
    adapted = learner.adapt(learner.init(params)[0], task.support, KEY).params
    assert jax.tree.map(lambda leaf: leaf.dtype, adapted) == jax.tree.map(lambda leaf: leaf.dtype, params)


def test_prototypes_of_many_examples_are_exact_means_in_half_precision():
    """bfloat16 has no 257: counted so, every class of more examples would have prototypes too far out."""
    part = prototypes(lambda params, x, rng: x)
    params = {"head": {"kernel": jnp.zeros((1, 2), jnp.bfloat16), "bias": jnp.zeros(2, jnp.bfloat16)}}
    support = mj.Batch(jnp.ones((700, 1), jnp.bfloat16), jnp.array([0, 1] * 350))
    start = part.change((), Adaptation(params), support).params["head"]
    np.testing.assert_array_equal(start["kernel"].astype(jnp.float32), [[2.0, 2.0]])
    np.testing.assert_array_equal(start["bias"].astype(jnp.float32), [-1.0, -1.0])


# Models

MODELS = {
    "mlp": (lambda rngs: mj.models.MLP(3, 2, hidden=(4,), rngs=rngs), (3,)),
    "mlp, normalised": (lambda rngs: mj.models.MLP(3, 2, hidden=(4,), normalise=True, rngs=rngs), (3,)),
    "conv4": (lambda rngs: mj.models.Conv4(2, channels=4, rngs=rngs), (28, 28, 1)),
    "conv4, pooled": (
        lambda rngs: mj.models.Conv4(2, image_shape=(16, 16, 3), channels=4, pool=True, rngs=rngs),
        (16, 16, 3),
    ),
    "conv4, scaled": (
        lambda rngs: mj.models.Conv4(2, image_shape=(16, 16, 3), channels=4, pool=True, use_scale=True, rngs=rngs),
        (16, 16, 3),
    ),
    "conv4, group": (lambda rngs: mj.models.Conv4(2, channels=4, norm="group", rngs=rngs), (28, 28, 1)),
    "resnet12": (lambda rngs: mj.models.ResNet12(2, widths=(4, 4, 4, 4), rngs=rngs), (16, 16, 3)),
    "resnet18": (lambda rngs: mj.models.ResNet18(2, width=4, stem="large", rngs=rngs), (16, 16, 3)),
    "vit": (lambda rngs: mj.models.ViT(2, width=8, layers=1, heads=2, rngs=rngs), (28, 28, 1)),
    "transformer": (lambda rngs: mj.models.Transformer(5, length=4, width=8, layers=1, heads=2, rngs=rngs), None),
    "convolution with bias": (lambda rngs: mj.models.Conv(3, 4, use_bias=True, rngs=rngs), (8, 8, 3)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
def test_a_model_computes_in_the_dtype_of_its_parameters(name, dtype):
    make, shape = MODELS[name]

    def run(x):
        apply, params = mj.functional(make(nnx.Rngs(0)))
        return params, apply(cast(params, dtype), x)

    with jax.enable_x64(True):
        x = jnp.zeros((2, 4), jnp.int32) if shape is None else jnp.ones((2, *shape), dtype)
        params, outputs = jax.eval_shape(run, x)
        assert dtypes(params) == {jnp.dtype(jnp.float32)}
        assert outputs.dtype == dtype
        if dtype == jnp.float32:
            assert not re.search(r"f64\[\d", str(jax.make_jaxpr(run)(x)))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_normalisation_in_half_precision_takes_moments_in_float32(dtype):
    """The mean is eight times the deviation: in bfloat16 the square of it would hide the variance."""
    x = (8 + jax.random.normal(KEY, (64, 2, 2, 4))).astype(dtype)
    for norm in (mj.models.BatchNorm(4, rngs=nnx.Rngs(0)), mj.models.GroupNorm(4, groups=1, rngs=nnx.Rngs(0))):
        apply, params = mj.functional(norm)
        out = apply(cast(params, dtype), x)
        assert out.dtype == dtype
        np.testing.assert_allclose(out.astype(jnp.float32), apply(params, x.astype(jnp.float32)), atol=0.02)


def test_moments_of_large_half_precision_images_do_not_overflow():
    """65,536 values of 2: float16 has no such sum."""
    model = mj.models.Conv4(2, image_shape=(64, 64, 1), channels=4, pool=True, rngs=nnx.Rngs(0))
    apply, params = mj.functional(model)
    x = 10 * jax.random.normal(KEY, (32, 64, 64, 1), jnp.float16)
    assert np.isfinite(apply(cast(params, jnp.float16), x)).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_losses_in_half_precision_are_means_of_many_examples(dtype):
    """Neither counts nor sums are rounded before they are divided."""
    loss = mj.regression_loss(lambda params, x, rng: x)
    x = jnp.full((1001, 1), 100, dtype)
    for mask in (None, jnp.ones(1001), jnp.ones(1001).at[700:].set(0)):
        value, _ = loss(None, mj.Batch(x, jnp.zeros_like(x), mask), KEY)
        assert value.dtype == jnp.float32, "the loss is rounded once less than the outputs"
        assert float(value) == 10_000
