"""Meta-gradients against closed forms, finite differences, and each other."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import metajax as mj
from metajax.core.trainer import init_state

pytestmark = pytest.mark.usefixtures("compiled_fast")

A = np.array([[2.0, 0.5], [0.5, 1.0]])
SUPPORT, QUERY, START = np.array([0.3, 0.7]), np.array([-1.0, 0.4]), np.array([1.0, -2.0])
RATE = 0.1


def quadratic(params, target, rng):
    d = params - target
    return d @ jnp.asarray(A, params.dtype) @ d / 2, {}


def estimate(learner, params=START, state=()):
    task = mj.Task(jnp.asarray(SUPPORT), jnp.asarray(QUERY))
    return learner.gradient(jnp.asarray(params), task, jax.random.key(0), state)


def closed_form(steps: int, first_order: bool) -> np.ndarray:
    """(I − αA)ˢ A (θ_S − t_query), the factor left out at first order."""
    contraction = np.linalg.matrix_power(np.eye(2) - RATE * A, steps)
    adapted = SUPPORT + contraction @ (START - SUPPORT)
    gradient = A @ (adapted - QUERY)
    return gradient if first_order else contraction.T @ gradient


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("first_order", [False, True])
def test_maml_on_a_quadratic_has_its_closed_form(steps, first_order):
    with jax.enable_x64(True):
        learner = mj.maml(quadratic, mj.inner_loop(optax.sgd(RATE), steps, first_order=first_order))
        np.testing.assert_allclose(estimate(learner).gradient, closed_form(steps, first_order), rtol=1e-12)


@pytest.mark.parametrize("first_order", [False, True])
def test_fomaml_is_first_order_whatever_its_inner_loop_is(first_order):
    with jax.enable_x64(True):
        learner = mj.fomaml(quadratic, mj.inner_loop(optax.sgd(RATE), 3, first_order=first_order))
        np.testing.assert_allclose(estimate(learner).gradient, closed_form(3, True), rtol=1e-12)
        second = mj.maml(quadratic, mj.inner_loop(optax.sgd(RATE), 3))
        start, support = jnp.asarray(START), jnp.asarray(SUPPORT)
        adapted = [each.adapt(start, support, 0).params for each in (learner, second)]
        np.testing.assert_array_equal(*adapted)


@pytest.mark.parametrize("steps", [1, 3])
def test_first_order_differs_by_exactly_the_missing_factor(steps):
    with jax.enable_x64(True):
        second, first = (
            estimate(mj.maml(quadratic, mj.inner_loop(optax.sgd(RATE), steps, first_order=each))).gradient
            for each in (False, True)
        )
        factor = np.linalg.matrix_power(np.eye(2) - RATE * A, steps)
        np.testing.assert_allclose(second, factor.T @ first, rtol=1e-12)
        assert not np.allclose(second, first)


def test_reptile_with_one_step_is_the_support_gradient_times_the_rate():
    """Its meta-gradient is minus the delta −α∇L."""
    learner = mj.reptile(quadratic, mj.inner_loop(optax.sgd(RATE), 1))
    np.testing.assert_allclose(-estimate(learner).gradient, -RATE * A @ (START - SUPPORT), rtol=1e-6)


def test_reptile_with_the_papers_optimizer_interpolates():
    """θ ← θ + ε (φ − θ)."""
    inner = mj.inner_loop(optax.sgd(RATE), 5)
    learner = mj.reptile(quadratic, inner)
    adapted = inner.run(quadratic, jnp.asarray(START), SUPPORT, jax.random.key(0)).params
    updates, _ = optax.sgd(0.25).update(estimate(learner).gradient, optax.sgd(0.25).init(START))
    np.testing.assert_allclose(START + updates, START + 0.25 * (adapted - START), rtol=1e-6)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.sgd(0.1),
        pytest.param(optax.sgd(0.1, momentum=0.9), marks=pytest.mark.slow),
        pytest.param(optax.adam(0.05, eps_root=1e-12), marks=pytest.mark.slow),
    ],
    ids=["sgd", "momentum", "adam"],
)
def test_maml_agrees_with_finite_differences_in_float64(optimizer):
    with jax.enable_x64(True):
        apply, params = mj.functional(mj.models.MLP(1, 1, hidden=(4,), rngs=nnx.Rngs(0)))
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)

        def smooth(params, x, rng):  # tanh instead of ReLU: finite differences need it
            first, last = params["layers"][0], params["head"]
            return jnp.tanh(x @ first["kernel"] + first["bias"]) @ last["kernel"] + last["bias"]

        loss_fn = mj.regression_loss(smooth)
        learner = mj.maml(loss_fn, mj.inner_loop(optimizer, 3))
        task = jax.tree.map(lambda a: a.astype(jnp.float64), mj.sinusoid(5, 5)(jax.random.key(3)))
        gradient = jax.jit(learner.gradient)(params, task, jax.random.key(0), ()).gradient

        @jax.jit
        def after_adaptation(params):
            return loss_fn(learner.adapt(params, task.support, jax.random.key(0)).params, task.query, None)[0]

        flat, unravel = jax.flatten_util.ravel_pytree(params)
        h = 1e-6
        numeric = [
            (after_adaptation(unravel(flat + h * e)) - after_adaptation(unravel(flat - h * e))) / (2 * h)
            for e in np.eye(flat.size)
        ]
        np.testing.assert_allclose(jax.flatten_util.ravel_pytree(gradient)[0], numeric, rtol=1e-5, atol=1e-7)
        assert apply(params, task.support.x).shape == (5, 1)


def test_the_metrics_are_those_of_the_adapted_parameters():
    for learner in (
        mj.maml(quadratic, mj.inner_loop(optax.sgd(RATE), 2)),
        mj.reptile(quadratic, mj.inner_loop(optax.sgd(RATE), 2)),
    ):
        adapted = learner.adapt(jnp.asarray(START), SUPPORT, jax.random.key(0)).params
        expected = (adapted - QUERY) @ A @ (adapted - QUERY) / 2
        np.testing.assert_allclose(estimate(learner).metrics["loss"], expected, rtol=1e-6)


def test_reptile_carries_the_inner_optimizer_from_step_to_step_and_into_evaluation():
    learner = mj.reptile(quadratic, mj.inner_loop(optax.adam(RATE, b1=0.0), 2), carry_optimizer=True)
    _, state = learner.init(jnp.asarray(START))
    first = estimate(learner, state=state)
    again = estimate(learner, state=first.state)
    assert int(first.state[0].count) == 2
    assert int(again.state[0].count) == 4
    assert not np.allclose(first.gradient, again.gradient), "the second moments matter"
    carried = learner.adapt(jnp.asarray(START), SUPPORT, jax.random.key(0), state=first.state).params
    np.testing.assert_allclose(START - carried, again.gradient, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 5, 10])
def test_the_sinusoid_trains_with_any_number_of_inner_steps_at_the_published_rate(steps):
    """From the default initialisation of the perceptron, for three seeds."""
    for seed in range(3):
        apply, params = mj.functional(mj.models.MLP(1, 1, rngs=nnx.Rngs(seed)))
        learner = mj.maml(mj.regression_loss(apply), mj.inner_loop(optax.sgd(0.01), steps))
        optimizer = optax.adam(1e-3)
        train = mj.trainer(learner, optimizer, mj.sinusoid(), tasks_per_step=25, steps_per_call=300).step
        state, metrics = train(init_state(learner, optimizer, params, seed))
        assert int(state.step) == 300, "a step was not finite"
        assert metrics["loss"][-50:].mean() < 0.9 * metrics["loss"][:50].mean()
