"""The compiled training step: determinism, restarts, failure."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from marks import slow_except

import metajax as mj
from metajax.core import trainer as training
from metajax.core.trainer import init_state

pytestmark = pytest.mark.usefixtures("compiled_fast")

OPTIMIZER = optax.adam(1e-2)


def setting(**options):
    apply, params = mj.functional(mj.models.MLP(1, 1, hidden=(8,), rngs=nnx.Rngs(0)))
    learner = mj.maml(mj.regression_loss(apply), mj.inner_loop(optax.sgd(0.01), 1))
    train = mj.trainer(learner, OPTIMIZER, mj.sinusoid(5, 5), **{"tasks_per_step": 6, **options}).step
    return train, init_state(learner, OPTIMIZER, params, seed=3)


def advance(train, state, calls):
    metrics = []
    for _ in range(calls):
        state, each = train(state)
        metrics.append(each)
    return state, jax.tree.map(lambda *leaves: np.concatenate(leaves), *metrics)


def assert_equal(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a._replace(key=0)), jax.tree.leaves(b._replace(key=0)), strict=True):
        np.testing.assert_allclose(x, y, **{"rtol": 0, **tolerance})


def test_steps_in_a_call_change_nothing():
    a, losses_a = advance(*setting(steps_per_call=1), calls=12)
    b, losses_b = advance(*setting(steps_per_call=6), calls=2)
    assert_equal(a, b, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(losses_a["loss"], losses_b["loss"], rtol=1e-5)


@pytest.mark.parametrize(
    ("small", "chunk_size", "before"), [(True, None, True), (False, None, False), (True, 1, False)]
)
def test_small_tasks_that_go_together_are_drawn_before_the_loop_and_are_the_same(
    monkeypatch, small, chunk_size, before
):
    if not small:
        monkeypatch.setattr(training, "_SMALL_BYTES", 0)
    train, state = setting(steps_per_call=6, chunk_size=chunk_size)
    (call,) = [each for each in jax.make_jaxpr(train)(state).eqns if each.params.get("name") == "run"]
    (loop,) = [each for each in call.params["jaxpr"].eqns if each.primitive.name == "scan"]
    drawn = "random_bits" in str(loop.params["jaxpr"])
    assert drawn != before
    monkeypatch.setattr(training, "_SMALL_BYTES", 0)
    expected, losses = advance(*setting(steps_per_call=6, chunk_size=chunk_size), calls=2)
    after, more = advance(train, state, calls=2)
    assert_equal(after, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(more["loss"], losses["loss"], rtol=1e-5)


def test_the_same_seed_is_the_same_run_bit_for_bit_and_another_is_not():
    train, state = setting(steps_per_call=3)
    again = jax.tree.map(jnp.copy, state)
    other = state._replace(key=jax.random.key(4))
    other = jax.tree.map(jnp.copy, other)
    a, _ = advance(train, state, 2)
    b, _ = advance(train, again, 2)
    c, _ = advance(train, other, 2)
    assert_equal(a, b)
    assert not np.allclose(jax.tree.leaves(a.meta_params)[0], jax.tree.leaves(c.meta_params)[0])


@pytest.mark.parametrize("devices", slow_except([2, 8], [0]))
def test_devices_and_chunks_give_the_same_run(devices):
    expected, losses = advance(*setting(steps_per_call=5), calls=2)
    mesh = mj.task_mesh(jax.devices()[:devices])
    state, more = advance(*setting(steps_per_call=5, mesh=mesh, chunk_size=1), calls=2)
    assert_equal(state, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(more["loss"], losses["loss"], rtol=1e-4)


@pytest.mark.parametrize("devices", [None, 2])
def test_it_compiles_once(devices):
    mesh = devices and mj.task_mesh(jax.devices()[:devices])
    train, state = setting(mesh=mesh)
    state, _ = train(state)
    compiled = []

    def listen(event, seconds, **kwargs):
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    advance(train, state, 3)
    jax.jit(lambda x: x + len(compiled))(1.0)  # the listener works
    assert len(compiled) == 1


def failing_at(step: int, what: str):
    """A learner, an optimiser and tasks with which one meta-step fails in one particular way."""

    def loss_fn(params, data, rng):
        value = (params - data["target"]) ** 2
        if what == "loss":
            return jnp.where(data["bad"], jnp.nan, value), {}
        if what == "gradient_norm":  # √ of 0 is finite, its derivative is not
            return value + jnp.sqrt(jnp.where(data["bad"], 0.0, 1.0) + 0 * params), {}
        return value, {}

    learner = mj.maml(loss_fn, mj.inner_loop(optax.sgd(0.1), 0))
    rate = (lambda count: jnp.where(count == step, jnp.inf, 0.1)) if what == "update_norm" else 0.1
    root = jax.random.key(0)
    first_task = mj.task_keys(jax.random.fold_in(root, step), 2)[0]
    bad_key = jax.random.key_data(jax.random.split(first_task)[0])

    def sampler(rng):
        data = {"bad": (jax.random.key_data(rng) == bad_key).all(), "target": jax.random.normal(rng)}
        return mj.Task(data, data)

    return learner, optax.sgd(rate), sampler, root


@pytest.mark.parametrize("what", ["loss", "gradient_norm", "update_norm"])
def test_a_failure_keeps_the_last_good_state(what):
    learner, optimizer, sampler, root = failing_at(7, what)
    train = mj.trainer(learner, optimizer, sampler, tasks_per_step=2, steps_per_call=5).step
    state, metrics = train(init_state(learner, optimizer, jnp.float32(0.0), root))
    assert mj.first_non_finite(metrics) is None
    state, metrics = train(state)
    assert mj.first_non_finite(metrics) == (2, what)
    assert int(state.step) == 7
    one = mj.trainer(learner, optimizer, sampler, tasks_per_step=2).step
    expected, _ = advance(one, init_state(learner, optimizer, jnp.float32(0.0), root), 7)
    np.testing.assert_allclose(state.meta_params, expected.meta_params, rtol=1e-6, atol=1e-7)


def test_optimizers_that_keep_the_first_parameters_work():
    """Training donates its state: no buffer may be in it twice."""
    learner = mj.maml(lambda p, t, rng: ((p - t) ** 2, {}), mj.inner_loop(optax.sgd(0.1), 1))
    optimizer = optax.contrib.dowg()
    sampler = mj.constant_task(mj.Task(1.0, 1.0))
    train = mj.trainer(learner, optimizer, sampler, tasks_per_step=2, steps_per_call=50).step
    _, metrics = train(init_state(learner, optimizer, jnp.float32(0.0)))
    assert metrics["loss"][-1] < metrics["loss"][0]


def test_first_non_finite_names_the_earliest_and_the_loss_first():
    bad = jnp.array([0.0, jnp.nan, 0.0])
    assert mj.first_non_finite({"a": bad, "loss": bad}) == (1, "loss")
    assert mj.first_non_finite({"a": jnp.array([jnp.inf, 0]), "loss": bad}) == (0, "a")
    assert mj.first_non_finite({"loss": jnp.zeros(3)}) is None


def test_a_bank_is_an_argument_and_no_constant():
    """Or its images would be compiled into the program."""
    bank = mj.ClassBank(np.zeros((400, 20, 20, 1), np.uint8), np.array([0, 200]), np.array([200, 200]))
    sampler = mj.episodes(bank, ways=2, shots=1, queries=1)
    assert sum(leaf.size for leaf in jax.tree.leaves(sampler)) > 400 * 400
    text = jax.jit(lambda sample, rng: sample(rng)).lower(sampler, jax.random.key(0)).as_text()
    assert len(text) < 100_000


@pytest.mark.slow
def test_meta_training_learns_sinusoids():
    """The whole, small: adaptation gets better, and before adaptation nothing can be known."""
    apply, params = mj.functional(mj.models.MLP(1, 1, rngs=nnx.Rngs(0)))
    loss_fn = mj.regression_loss(apply)
    learner = mj.maml(loss_fn, mj.inner_loop(optax.sgd(0.01), 1))
    optimizer = optax.adam(3e-3)
    train = mj.trainer(learner, optimizer, mj.sinusoid(), tasks_per_step=25, steps_per_call=8000).step
    state, _ = train(init_state(learner, optimizer, params))
    evaluate = mj.evaluator(learner, loss_fn, mj.sinusoid(10, 50), steps=1, num_tasks=200, non_transductive=False)
    before, after = evaluate(state.meta_params, jax.random.key(1)).transductive["loss"].mean
    assert after < 0.6 * before


@pytest.mark.parametrize("name", ["tasks_per_step", "steps_per_call", "chunk_size"])
def test_counts_below_one_are_named(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        setting(**{name: 0})


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
def test_a_task_is_drawn_from_the_first_half_of_its_steps_key(make_key):
    """With keys of either kind, and whatever the number of steps in a call."""
    key = make_key(3)
    learner = mj.MetaLearner(
        init=lambda params: (params, ()),
        adapt=None,
        gradient=lambda params, task, rng, state: mj.MetaGradient(
            params * 0, {"drawn": task.support, "rng": bits(rng)}, ()
        ),
    )
    train = mj.trainer(
        learner, optax.sgd(1.0), lambda rng: mj.Task(bits(rng), 0.0), tasks_per_step=2, steps_per_call=3
    ).step
    _, metrics = train(init_state(learner, optax.sgd(1.0), jnp.float32(0.0), seed=key))
    for step in range(3):
        halves = jax.vmap(jax.random.split)(mj.task_keys(jax.random.fold_in(key, step), 2))
        assert np.isclose(metrics["drawn"][step], np.mean([bits(each[0]) for each in halves]), rtol=1e-6)
        assert np.isclose(metrics["rng"][step], np.mean([bits(each[1]) for each in halves]), rtol=1e-6)


def bits(key):
    return jax.random.uniform(key)


def test_counts_and_truth_values_are_averaged_like_other_metrics():
    def loss_fn(params, task, rng):
        return params * task, {"count": task.astype(int), "large": task > 2}

    learner = mj.maml(loss_fn, mj.inner_loop(optax.sgd(0.1), 0))
    sampler = mj.StreamedSampler(np.ones(4), lambda rng: jnp.int32(0), lambda rng, x: mj.Task(x, x))
    train = mj.trainer(learner, OPTIMIZER, sampler, tasks_per_step=4, steps_per_call=1).step
    _, metrics = train(init_state(learner, OPTIMIZER, jnp.float32(1.0)), jnp.array([[1.0, 2.0, 3.0, 4.0]]))
    assert [float(metrics[name][0]) for name in ("loss", "count", "large")] == [2.5, 2.5, 0.5]


def diverging_at(*steps: int):
    """A learner whose loss is NaN at some meta-steps; the parameter follows the targets, which are 1."""
    root = jax.random.key(0)
    bad = [
        jax.random.key_data(jax.random.split(mj.task_keys(jax.random.fold_in(root, step), 1)[0])[0]) for step in steps
    ]

    def sampler(rng):
        is_bad = (jax.random.key_data(rng) == jnp.stack(bad)).all(1).any()
        return mj.Task(0.0, jnp.where(is_bad, jnp.nan, 1.0))

    def loss_fn(params, target, rng):
        return (params - target) ** 2, {}

    return mj.maml(loss_fn, mj.inner_loop(optax.sgd(0.0), 1)), sampler, root


def test_the_call_after_a_failure_raises():
    learner, sampler, root = diverging_at(3)
    train = mj.trainer(learner, optax.sgd(0.1), sampler, tasks_per_step=1, steps_per_call=2).step
    state = init_state(learner, optax.sgd(0.1), jnp.float32(0.0), root)
    for _ in range(2):
        state, _ = train(state)
    assert int(state.step) == 3
    with pytest.raises(FloatingPointError, match=r"meta-step 3 failed: loss is nan.*skip_non_finite=True"):
        train(state)
    assert np.isfinite(state.meta_params), "the state is not donated to a call that raises"
    with pytest.raises(FloatingPointError):
        train(state)


@pytest.mark.parametrize("steps_per_call", [1, 4, 12])
def test_failed_steps_are_skipped_on_request(steps_per_call):
    learner, sampler, root = diverging_at(0, 3, 4)
    train = mj.trainer(
        learner, optax.sgd(0.1), sampler, tasks_per_step=1, steps_per_call=steps_per_call, skip_non_finite=True
    ).step
    state, metrics = advance(train, init_state(learner, optax.sgd(0.1), jnp.float32(0.0), root), 12 // steps_per_call)
    assert int(state.step) == 12
    assert np.flatnonzero(~np.isfinite(metrics["loss"])).tolist() == [0, 3, 4]
    np.testing.assert_allclose(state.meta_params, 1 - 0.8**9, rtol=1e-5)


@pytest.mark.parametrize(
    ("optimizer", "applied"),
    [
        (optax.apply_if_finite(optax.sgd(0.1), 100), 10),
        (optax.chain(optax.zero_nans(), optax.sgd(0.1)), 10),
        (optax.chain(optax.trace(0.5), optax.zero_nans(), optax.sgd(0.1)), None),  # NaN stays in the momentum
    ],
    ids=["apply_if_finite", "zero_nans", "zero_nans too late"],
)
def test_an_optimizer_may_handle_a_gradient_that_is_not_finite(optimizer, applied):
    learner, sampler, root = diverging_at(3, 4)
    train = mj.trainer(learner, optimizer, sampler, tasks_per_step=1, steps_per_call=6).step
    state = init_state(learner, optimizer, jnp.float32(0.0), root)
    if applied is None:
        state, _ = train(state)
        assert int(state.step) == 3
        return
    state, _ = advance(train, state, 2)
    assert int(state.step) == 12
    np.testing.assert_allclose(state.meta_params, 1 - 0.8**applied, rtol=1e-5)


def test_an_optimizer_gets_the_loss_if_it_asks_for_it():
    def loss(params, target, rng):
        return (params - target) ** 2, {}

    learner, sampler = mj.maml(loss, mj.inner_loop(optax.sgd(0.0), 1)), mj.constant_task(mj.Task(1.0, 1.0))
    plateau = optax.chain(optax.sgd(0.0), optax.contrib.reduce_on_plateau(factor=0.5, patience=3, rtol=1e-4))
    train = mj.trainer(learner, plateau, sampler, tasks_per_step=2, steps_per_call=12).step
    state, _ = train(init_state(learner, plateau, jnp.float32(0.0)))
    assert float(optax.tree.get(state.opt_state, "scale")) < 1, "the loss stays at 1"
    polyak = optax.polyak_sgd(max_learning_rate=10.0, f_min=0.0)  # the step (loss - 0) / gradient²: half of the way
    train = mj.trainer(learner, polyak, sampler, tasks_per_step=2).step
    state, _ = train(init_state(learner, polyak, jnp.float32(0.0)))
    np.testing.assert_allclose(state.meta_params, 0.5)
    train = mj.trainer(learner, optax.lbfgs(), sampler, tasks_per_step=2).step
    with pytest.raises(TypeError, match=r"value_fn \(a line search.*, which metajax does not offer"):
        train(init_state(learner, optax.lbfgs(), jnp.float32(0.0)))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_meta_gradient_in_half_precision_is_the_average_rounded_once(dtype):
    learner = mj.maml(lambda p, d, rng: (p * 1.0, {}), mj.inner_loop(optax.sgd(0.0), 1))
    sampler = mj.constant_task(mj.Task(0.0, 0.0))
    train = mj.trainer(learner, optax.sgd(1.0), sampler, tasks_per_step=1024, chunk_size=1).step
    state, _ = train(init_state(learner, optax.sgd(1.0), dtype(0.0)))
    assert state.meta_params.dtype == dtype
    assert float(state.meta_params) == -1


def test_norms_of_half_precision_do_not_overflow():
    learner = mj.maml(lambda p, d, rng: ((p * 300).sum(), {}), mj.inner_loop(optax.sgd(0.0), 1))
    train = mj.trainer(learner, optax.sgd(1e-3), mj.constant_task(mj.Task(0.0, 0.0)), tasks_per_step=1).step
    state, metrics = train(init_state(learner, optax.sgd(1e-3), jnp.zeros(4, jnp.float16)))
    assert float(metrics["gradient_norm"][0]) == 600
    assert int(state.step) == 1


def test_first_non_finite_looks_at_every_entry_of_a_step():
    assert mj.first_non_finite({"each": jnp.array([[1.0, 2.0], [3.0, jnp.nan]])}) == (1, "each")


def test_a_failure_is_noticed_through_a_copy_and_by_another_call_length():
    learner, sampler, root = diverging_at(0)
    trains = [
        mj.trainer(learner, optax.sgd(0.1), sampler, tasks_per_step=1, steps_per_call=steps).step for steps in (1, 2)
    ]
    state, _ = trains[0](init_state(learner, optax.sgd(0.1), jnp.float32(0.0), root))
    with pytest.raises(FloatingPointError):
        trains[0](jax.tree.map(jnp.copy, state))
    state, _ = trains[1](state)
    with pytest.raises(FloatingPointError):
        trains[0](state)
    other = init_state(learner, optax.sgd(0.1), jnp.float32(0.0), seed=5)
    state, _ = trains[0](other)
    assert int(state.step) == 1, "another run may begin"


def test_an_infinite_gradient_does_not_spoil_the_state():
    """Lion's update is a sign, finite for an infinite gradient; its momentum is not."""
    learner, sampler, root = diverging_at(1)
    infinite = learner._replace(
        gradient=lambda *args: jax.tree.map(lambda x: jnp.where(jnp.isnan(x), jnp.inf, x), learner.gradient(*args))
    )
    optimizer = optax.lion(0.1)
    train = mj.trainer(infinite, optimizer, sampler, tasks_per_step=1, steps_per_call=3).step
    state, _ = train(init_state(infinite, optimizer, jnp.float32(0.0), root))
    assert int(state.step) == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.opt_state))
