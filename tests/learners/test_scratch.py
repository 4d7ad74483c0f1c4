"""Training from scratch learns within a task, and nothing across tasks."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import metajax as mj
from metajax.core.trainer import init_state
from metajax.learners.scratch import scratch

pytestmark = pytest.mark.usefixtures("compiled_fast")


def test_many_meta_steps_leave_the_initialisation_alone_while_a_task_is_learned():
    apply, params = mj.functional(mj.models.MLP(1, 1, hidden=(8,), rngs=nnx.Rngs(0)))
    loss_fn = mj.regression_loss(apply)
    inner = mj.inner_loop(optax.adam(0.05), 30)
    learner = scratch(loss_fn, inner)
    before = jax.tree.map(np.array, params)
    train = mj.trainer(learner, optax.adam(1e-2), mj.sinusoid(), tasks_per_step=2, steps_per_call=3).step
    state, metrics = train(init_state(learner, optax.adam(1e-2), params))
    jax.tree.map(np.testing.assert_array_equal, before, state.meta_params)
    assert np.all(metrics["gradient_norm"] == 0)

    task = mj.sinusoid()(jax.random.key(1))
    adapted = learner.adapt(state.meta_params, task.support, jax.random.key(2)).params
    expected = inner.run(loss_fn, before, task.support, jax.random.key(2)).params
    jax.tree.map(np.testing.assert_array_equal, adapted, expected)
    assert loss_fn(adapted, task.support, None)[0] < 0.5 * loss_fn(before, task.support, None)[0]
