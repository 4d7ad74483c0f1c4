"""Every way of running the tasks of a step gives the same."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import slow_except

import metajax as mj

pytestmark = pytest.mark.usefixtures("compiled_fast")

TASKS = 16


@pytest.fixture(scope="module", autouse=True)
def double_precision():
    """In float64 rounding is far below any mistake."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def problem(double_precision):
    apply, params = mj.functional(mj.models.MLP(4, 3, hidden=(6,), normalise=True, rngs=nnx.Rngs(0)))
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    learner = mj.maml(mj.classification_loss(apply), mj.inner_loop(optax.sgd(0.5), 2))
    labels = jnp.arange(9) % 3

    def sampler(rng):
        means_key, noise_key = jax.random.split(rng)
        means, noise = jax.random.normal(means_key, (3, 4)), jax.random.normal(noise_key, (9, 4))
        x = means[labels] + 0.3 * noise
        return mj.Task(mj.Batch(x[:3], labels[:3]), mj.Batch(x[3:], labels[3:]))

    def estimate(params, key):
        task_key, learn_key = jax.random.split(key)
        return learner.gradient(params, sampler(task_key), learn_key, ())

    keys = mj.task_keys(jax.random.key(1), TASKS)
    one = jax.jit(estimate)
    one_by_one = [one(params, each) for each in keys]
    return estimate, params, keys, jax.tree.map(lambda *leaves: np.mean(leaves, 0), *one_by_one)


def assert_close(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(("devices", "chunk"), slow_except([*itertools.product([None, 1, 2, 8], [1, 4, None])], [0]))
def test_strategies_and_devices_agree(problem, devices, chunk):
    estimate, params, keys, expected = problem
    mesh = None if devices is None else mj.task_mesh(jax.devices()[:devices])
    average = jax.jit(lambda params, keys: mj.average_tasks(estimate, params, keys, chunk_size=chunk, mesh=mesh))
    assert_close(average(params, keys), expected)


def test_devices_wait_for_each_other_once_for_each_type():
    def values(shared, x):
        return {
            "a": x * shared,
            "b": (x**2)[None].repeat(3, 0),
            "n": jnp.int32(7) * (x > 2),
            "c": x.astype(jnp.float32),
        }

    average = jax.jit(lambda x: mj.average_tasks(values, 2.0, x, mesh=mj.task_mesh(jax.devices()[:2])))
    x = jnp.arange(6.0)
    assert average.lower(x).as_text().count("stablehlo.all_reduce") == 3, "float64, int32, float32"
    expected = {"a": 5.0, "b": np.full(3, 55 / 6), "n": 3, "c": 2.5}
    assert_close(average(x), expected)
    assert {name: str(value.dtype) for name, value in average(x).items()} == {
        "a": "float64",
        "b": "float64",
        "n": "int32",
        "c": "float32",
    }


@pytest.mark.slow
def test_shuffling_tasks_changes_nothing(problem):
    estimate, params, keys, expected = problem
    shuffled = keys[np.random.default_rng(0).permutation(TASKS)]
    assert_close(jax.jit(lambda p, k: mj.average_tasks(estimate, p, k, chunk_size=4))(params, shuffled), expected)


@pytest.mark.slow
@settings(deadline=None, max_examples=15)
@given(num_tasks=st.integers(1, 20), devices=st.sampled_from([1, 2, 3, 8]), chunk=st.integers(1, 7))
def test_any_number_of_tasks_on_any_devices(num_tasks, devices, chunk):
    """Padded tasks count for nothing."""
    x = jnp.arange(1.0, num_tasks + 1)
    mesh = mj.task_mesh(jax.devices()[:devices])

    def fn(scale, x):
        return {"value": scale * x, "count": jnp.int32(3), "last": x == num_tasks, "none": x < 0}

    mean = mj.average_tasks(fn, 2.0, x, chunk_size=chunk, mesh=mesh)
    np.testing.assert_allclose(mean["value"], x.mean() * 2, rtol=1e-12)
    assert int(mean["count"]) == 3
    assert mean["last"].dtype == mean["none"].dtype == bool
    assert mean["last"], "of one task"
    assert not mean["none"]
    stacked = mj.map_tasks(fn, 2.0, x, chunk_size=chunk, mesh=mesh)
    np.testing.assert_array_equal(stacked["value"], 2 * x)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_tasks(problem):
    estimate, params, _, _ = problem

    def temporary_bytes(num_tasks):
        run = jax.jit(lambda p, k: mj.average_tasks(estimate, p, k, chunk_size=1))
        keys = mj.task_keys(jax.random.key(1), num_tasks)
        return run.lower(params, keys).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(64) <= temporary_bytes(2) * 1.05


def test_a_chunk_below_one_is_refused(key):
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        mj.average_tasks(lambda a, x: x, 0, jnp.arange(3.0), chunk_size=0)


@pytest.mark.parametrize("mesh", [None, 2])
@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (jnp.bfloat16, 1.0),
        (jnp.float16, 20_000.0),
        (jnp.float32, 3.0),
        (jnp.uint8, 200),
        (jnp.int8, -100),
        (jnp.int16, 30_000),
        (jnp.uint16, 60_000),
        (jnp.uint32, 4_000_000),
    ],
)
def test_the_average_of_equal_values_is_the_value_in_every_type(dtype, value, mesh):
    mesh = mesh and mj.task_mesh(jax.devices()[:mesh])
    mean = mj.average_tasks(lambda a, x: x, 0, jnp.full(1024, value, dtype), chunk_size=1, mesh=mesh)
    assert mean.dtype == dtype
    assert float(mean) == value


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_an_average_is_rounded_once(dtype, key):
    values = jax.random.uniform(key, (37, 5), minval=0.5, maxval=1.5).astype(dtype)
    exact = np.asarray(values, np.float64).mean(0)
    for chunk_size in (1, 4, None):
        mean = mj.average_tasks(lambda a, x: x, 0, values, chunk_size=chunk_size)
        np.testing.assert_array_equal(mean, jnp.asarray(exact, jnp.float32).astype(dtype))


def test_no_tasks_have_no_average():
    for average in (mj.average_tasks, mj.map_tasks):
        with pytest.raises(ValueError, match="no task"):
            average(lambda a, x: x, 0, jnp.ones((0, 2)))
        with pytest.raises(ValueError, match="no task"):
            average(lambda a, x: x, 0, {})
        with pytest.raises(ValueError, match="leading task axis"):
            average(lambda a, x: x, 0, {"a": jnp.ones(3), "b": jnp.ones(2)})


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
def test_the_keys_of_tasks_come_from_one_key(make_key):
    assert mj.task_keys(make_key(0), 3).shape[0] == 3
    with pytest.raises(AssertionError, match="rng must be one key"):
        mj.task_keys(jax.random.split(make_key(0)), 3)
