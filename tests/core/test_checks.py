"""Arguments of another form: one error that says what is expected, what came, and what to do."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import metajax as mj
from metajax.core.checks import as_key
from metajax.core.trainer import init_state
from metajax.learners.scratch import scratch

pytestmark = pytest.mark.usefixtures("compiled_fast")

DATA = mj.Batch(jnp.ones((4, 1)), jnp.ones((4, 1)))
TASK, PARAMS = mj.Task(DATA, DATA), {"w": jnp.ones((1, 1))}
INNER = mj.inner_loop(optax.sgd(0.1), 1)


def error(params, data):
    return ((data.x @ params["w"] - data.y) ** 2).mean()


def good(params, data, rng):
    return error(params, data), {}


LEARNERS = {
    "maml": mj.maml,
    "reptile": mj.reptile,
    "foml": mj.foml,
    "imaml": mj.imaml,
    "meta_sgd": mj.meta_sgd,
    "maml_plus_plus": mj.maml_plus_plus,
    "scratch": scratch,
}

LOSSES = {
    "a scalar alone": (lambda p, d, r: error(p, d), r"a loss returns \(scalar, metrics\).* returned float32\[\]"),
    "metrics None": (lambda p, d, r: (error(p, d), None), "the metrics of the loss are None"),
    "metrics an array": (lambda p, d, r: (error(p, d), d.y), r"the metrics of the loss are float32\[4, 1\]"),
    "three values": (lambda p, d, r: (error(p, d), {}, {}), "returned a tuple of 3"),
    "nothing": (lambda p, d, r: None, "returned None"),
    "a loss for each example": (lambda p, d, r: ((d.x @ p["w"] - d.y)[:, 0], {}), r"float32\[4\], and not one real"),
    "an integer loss": (lambda p, d, r: (jnp.int32(error(p, d)), {}), r"int32\[\], and not one real number"),
    "a metric for each example": (
        lambda p, d, r: (error(p, d), {"each": d.x - d.y}),
        r"metrics are scalars: 'each' of the loss is float32\[4, 1\]; return its mean",
    ),
    "a metric that is a text": (lambda p, d, r: (error(p, d), {"name": "x"}), "'name' of the loss is 'x'"),
}


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_of_another_form_is_named(learner, name):
    loss, said = LOSSES[name]
    made = LEARNERS[learner](loss, INNER)
    meta_params, state = made.init(PARAMS)
    with pytest.raises(TypeError, match=said):
        made.gradient(meta_params, TASK, jax.random.key(0), state)
    if "metric" not in name:  # the inner loop looks at the loss alone
        with pytest.raises(TypeError, match=said):
            made.adapt(meta_params, DATA, jax.random.key(0))


@pytest.mark.parametrize("name", LOSSES)
def test_an_evaluation_names_a_loss_of_another_form(name):
    loss, said = LOSSES[name]
    evaluate = mj.evaluator(
        mj.maml(good, INNER), loss, mj.constant_task(TASK), steps=1, num_tasks=2, non_transductive=False
    )
    with pytest.raises(TypeError, match=said):
        evaluate(PARAMS, 0)


@pytest.mark.parametrize("learner", LEARNERS)
def test_other_arguments_of_a_learner_are_named(learner):
    made, key = LEARNERS[learner](good, INNER), jax.random.key(0)
    meta_params, state = made.init(PARAMS)
    for task in [(DATA, DATA), DATA, None, {"support": DATA, "query": DATA}]:
        with pytest.raises(TypeError, match=r"a task is metajax.Task\(support, query\), got "):
            made.gradient(meta_params, task, key, state)
    for rng in [None, 0.5, "0", jnp.ones(3), True, [0, 1]]:
        with pytest.raises(TypeError, match=r"a key from .* or an integer seed is expected"):
            made.adapt(meta_params, DATA, rng)
    with pytest.raises(ValueError, match="one key is expected"):
        made.adapt(meta_params, DATA, jax.random.split(key))
    state = init_state(made, optax.sgd(0.1), PARAMS)
    with pytest.raises(TypeError, match=r"got a TrainState: pass its field, state\.meta_params"):
        made.adapt(state, DATA, key)
    with pytest.raises(TypeError, match="got int32"):
        made.init({"w": jnp.ones((1, 1), jnp.int32)})
    with pytest.raises(TypeError, match="got the function good"):
        made.init(good)
    for first, said in [(made, "a loss is a function"), (PARAMS, "a loss is a function")]:
        with pytest.raises(TypeError, match=said):
            LEARNERS[learner](first, INNER)


def test_an_integer_is_a_seed_wherever_a_key_is():
    learner, key = mj.maml(good, INNER), jax.random.key(7)
    for seed in (7, np.int64(7), jnp.int32(7)):
        assert as_key(seed) == key
        jax.tree.map(np.testing.assert_array_equal, learner.adapt(PARAMS, DATA, seed), learner.adapt(PARAMS, DATA, key))
        assert init_state(learner, optax.sgd(0.1), PARAMS, seed).key == key
    evaluate = mj.evaluator(learner, good, mj.sinusoid(), steps=1, num_tasks=3, non_transductive=False)
    assert evaluate(PARAMS, 7) == evaluate(PARAMS, key)
    raw = jax.random.PRNGKey(7)
    assert learner.adapt(PARAMS, DATA, raw).params["w"].shape == (1, 1)


@pytest.mark.parametrize(
    ("learner", "entries"),
    [("meta_sgd", "init, rates"), ("maml_plus_plus", "init, step_rates, per_step")],
)
def test_the_models_parameters_are_no_meta_parameters(learner, entries):
    made = LEARNERS[learner](good, INNER)
    for call in (
        lambda: made.adapt(PARAMS, DATA, 0),
        lambda: made.gradient(PARAMS, TASK, 0, made.init(PARAMS)[1]),
    ):
        with pytest.raises(TypeError, match=f"a dict with {entries}, from .*; got a dict with the keys w"):
            call()


def test_a_count_of_meta_steps_is_not_nothing():
    learner = LEARNERS["maml_plus_plus"](good, INNER)
    with pytest.raises(TypeError, match=r"counts meta-steps.* got a tuple of 0"):
        learner.gradient(learner.init(PARAMS)[0], TASK, 0, ())


def test_the_parts_of_a_training_step_are_told_apart():
    learner, sampler = mj.maml(good, INNER), mj.sinusoid()
    for learn, said in [(good, "the function good"), (INNER, "a InnerLoop"), (PARAMS, "keys w")]:
        with pytest.raises(TypeError, match=f"a learner from .* is expected, got .*{said}"):
            mj.trainer(learn, optax.sgd(0.1), sampler, tasks_per_step=1)
        with pytest.raises(TypeError, match=r"a learner from .* is expected"):
            init_state(learn, optax.sgd(0.1), PARAMS)
        with pytest.raises(TypeError, match=r"a learner from .* is expected"):
            mj.evaluator(learn, good, sampler, steps=1)
    for optimizer in (optax.sgd, 0.1, None):
        with pytest.raises(TypeError, match="the outer optimiser must be an optax optimiser"):
            mj.trainer(learner, optimizer, sampler, tasks_per_step=1)
        with pytest.raises(TypeError, match="the inner optimiser must be an optax optimiser"):
            mj.inner_loop(optimizer, 1)
    for count in (2.0, "2", None):
        with pytest.raises(TypeError, match="tasks_per_step must be a whole number"):
            mj.trainer(learner, optax.sgd(0.1), sampler, tasks_per_step=count)
        with pytest.raises(TypeError, match="num_tasks must be a whole number"):
            mj.evaluator(learner, good, sampler, steps=1, num_tasks=count)
    with pytest.raises(TypeError, match=r"a modification of MAML is a metajax.Modifier, got an empty dict"):
        mj.maml(good, INNER, {})


def test_a_training_state_is_told_from_others_and_is_used_once():
    learner = mj.maml(good, INNER)
    train = mj.trainer(learner, optax.adam(0.1), mj.sinusoid(), tasks_per_step=2).step
    for other in (PARAMS, None, (PARAMS, ())):
        with pytest.raises(TypeError, match=r"a TrainState from .* is expected"):
            train(other)
    first = init_state(learner, optax.adam(0.1), PARAMS)
    second, _ = train(first)
    with pytest.raises(ValueError, match="this state was donated to an earlier training step"):
        train(first)
    evaluate = mj.evaluator(learner, good, mj.sinusoid(), steps=1, num_tasks=2, non_transductive=False)
    for use in (lambda: evaluate(first.meta_params, 0), lambda: learner.adapt(first.meta_params, DATA, 0)):
        with pytest.raises(ValueError, match="donated"):
            use()
    with pytest.raises(TypeError, match=r"pass its field, state\.meta_params"):
        evaluate(second, 0)
    assert int(train(second)[0].step) == 2


def test_an_estimate_of_another_form_is_named():
    def made(gradient):
        return mj.trainer(
            mj.maml(good, INNER)._replace(gradient=gradient), optax.sgd(0.1), mj.sinusoid(), tasks_per_step=2
        ).step

    state = init_state(mj.maml(good, INNER), optax.sgd(0.1), PARAMS)
    with pytest.raises(TypeError, match=r"returns metajax.MetaGradient.*, got a dict"):
        made(lambda params, task, rng, state: params)(state)
    with pytest.raises(TypeError, match="but the two differ in 'w'"):
        made(lambda params, task, rng, state: mj.MetaGradient({"w": jnp.ones(3)}, {}, ()))(state)
    with pytest.raises(TypeError, match="'all' is float32"):
        made(lambda params, task, rng, state: mj.MetaGradient(params, {"all": jnp.ones(3)}, ()))(state)


def by_numpy(rng):
    x = np.random.normal(size=(10, 1))
    return mj.Task(mj.Batch(x[:5], x[:5]), mj.Batch(x[5:], x[5:]))


def by_random(rng):
    x = jax.random.normal(rng, (10, 1))
    return mj.Task(mj.Batch(x[:5], random.random() * x[:5]), mj.Batch(x[5:], x[5:]))


def by_seeded_numpy(rng):
    x = np.random.default_rng(0).normal(size=(10, 1))
    return mj.Task(mj.Batch(x[:5], x[:5]), mj.Batch(x[5:], x[5:]))


@pytest.mark.parametrize(
    ("sampler", "said"),
    [
        (by_numpy, "draws numbers with NumPy"),
        (by_random, "draws numbers with NumPy or Python's random"),
        (by_seeded_numpy, "ignores its key"),
        (jax.jit(by_numpy), "draws numbers with NumPy"),
        (jax.jit(by_random), "draws numbers with NumPy or Python's random"),
        (lambda rng: TASK, r"ignores its key.*metajax.constant_task\(task\)"),
    ],
)
def test_a_sampler_that_does_not_draw_with_its_key_is_refused(sampler, said):
    learner = mj.maml(good, INNER)
    train = mj.trainer(learner, optax.sgd(0.1), sampler, tasks_per_step=2).step
    evaluate = mj.evaluator(learner, good, sampler, steps=1, num_tasks=2, non_transductive=False)
    with pytest.raises(ValueError, match=said):
        train(init_state(learner, optax.sgd(0.1), PARAMS))
    with pytest.raises(ValueError, match=said):
        evaluate(PARAMS, 0)
    other = mj.evaluator(learner, good, mj.sinusoid(), steps=1, num_tasks=2, non_transductive=False)
    with pytest.raises(ValueError, match=said):
        other(PARAMS, 0, sampler=sampler)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray, lambda x: jnp.asarray(x, jnp.bfloat16), np.float16])
def test_a_constant_task_with_values_that_are_not_finite_is_refused_by_name(kind, bad):
    x = kind(np.array([[1.0], [bad]], np.float32))
    with pytest.raises(ValueError, match=r"^query\.y of the task has NaN or infinite values: remove or replace them$"):
        mj.constant_task(TASK._replace(query=DATA._replace(y=x)))
    with pytest.raises(ValueError, match=r"^support\.a\.b of the task has NaN or infinite values"):
        mj.constant_task(mj.Task({"a": {"b": x}}, 1))
    with pytest.raises(ValueError, match=r"^support of the task has NaN or infinite values"):
        mj.constant_task(mj.Task(float(bad), 1))


def test_a_constant_task_of_traced_arrays_integers_and_keys_is_taken():
    task = mj.Task((jnp.arange(3), np.array([True]), jax.random.key(0), None), 1.0)
    assert mj.constant_task(task)(jax.random.key(1)) is task
    traced = jax.jit(lambda x: mj.constant_task(mj.Task(x, x))(jax.random.key(0)).query)
    assert jnp.isnan(traced(jnp.nan))


def test_samplers_that_draw_are_taken():
    def on_the_host(rng):
        x = jax.experimental.io_callback(
            lambda: np.random.normal(size=(10, 1)).astype(np.float32), jax.ShapeDtypeStruct((10, 1), jnp.float32)
        )
        return mj.Task(mj.Batch(x[:5], x[:5]), mj.Batch(x[5:], x[5:]))

    mj.tasks.check_sampler(on_the_host)
    mj.tasks.check_sampler(mj.constant_task(TASK))
    mj.tasks.check_sampler(mj.glyphs(ways=2, shots=1, queries=1))
    streamed = mj.StreamedSampler(
        np.ones((9, 1)), lambda rng: jnp.arange(5), lambda rng, x: mj.Task(mj.Batch(x, x), mj.Batch(x, x))
    )
    learner = mj.maml(good, INNER)
    train = mj.trainer(learner, optax.sgd(0.1), streamed, tasks_per_step=2).step
    state, _ = train(init_state(learner, optax.sgd(0.1), PARAMS), jnp.ones((1, 2, 5, 1)))
    assert int(state.step) == 1


def test_a_sampler_of_another_form_is_named():
    learner = mj.maml(good, INNER)
    state = init_state(learner, optax.sgd(0.1), PARAMS)
    with pytest.raises(TypeError, match=r"a task is metajax.Task.*, got a tuple of 2"):
        mj.trainer(learner, optax.sgd(0.1), lambda rng: (rng, rng), tasks_per_step=1).step(state)
    with pytest.raises(TypeError, match="a sampler is a function"):
        mj.trainer(learner, optax.sgd(0.1), TASK, tasks_per_step=1)
    with pytest.raises(TypeError, match="a sampler is a function"):
        mj.evaluator(learner, good, [TASK], steps=1)


def test_a_sampler_for_keys_of_another_kind_is_taken():
    def sampler(rng):
        x = jax.random.normal(jax.random.wrap_key_data(rng), (10, 1))
        return mj.Task(mj.Batch(x[:5], x[:5]), mj.Batch(x[5:], x[5:]))

    learner, raw = mj.maml(good, INNER), jax.random.PRNGKey(0)
    train = mj.trainer(learner, optax.sgd(0.1), sampler, tasks_per_step=2).step
    state, _ = train(init_state(learner, optax.sgd(0.1), PARAMS, raw))
    assert int(state.step) == 1


def test_an_evaluations_own_sampler_is_checked_after_another_one():
    learner = mj.maml(good, INNER)
    evaluate = mj.evaluator(learner, good, by_seeded_numpy, steps=1, num_tasks=2, non_transductive=False)
    evaluate(PARAMS, 0, sampler=mj.sinusoid())
    with pytest.raises(ValueError, match="ignores its key"):
        evaluate(PARAMS, 0)


@jax.tree_util.register_pytree_node_class
class Callable:
    """A model that is a pytree and a function, as Equinox makes them."""

    def __init__(self, w):
        self.w = w

    def __call__(self, x):
        return x @ self.w

    def tree_flatten(self):
        return (self.w,), None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls(*leaves)


def test_parameters_may_be_any_pytree_of_arrays():
    def loss(model, data, rng):
        return ((model(data.x) - data.y) ** 2).mean(), {}

    learner = mj.maml(loss, INNER)
    model, state = learner.init(Callable(jnp.ones((1, 1))))
    assert learner.gradient(model, TASK, 0, state).gradient.w.shape == (1, 1)


def test_counts_of_tasks_are_whole_numbers():
    for make in (lambda n: mj.sinusoid(shots=n), lambda n: mj.glyphs(ways=n, shots=1, queries=1)):
        with pytest.raises(TypeError, match="must be a whole number"):
            make("5")
        with pytest.raises(TypeError, match="must be a whole number"):
            make(2.5)
    for make in (mj.maml_plus_plus, lambda loss, inner: mj.prototypical_network(loss, embed=good, inner=inner)):
        with pytest.raises(TypeError, match="inner must be made by inner_loop"):
            make(good, optax.sgd(0.1))


@pytest.mark.parametrize("kind", ["nnx", "linen", "pair"])
def test_a_state_in_the_place_of_parameters_is_named(key, kind):
    x = jnp.ones((4, 1))
    apply, params = {
        "nnx": lambda: mj.functional(nnx.Linear(1, 1, rngs=nnx.Rngs(0))),
        "linen": lambda: mj.functional(linen.Dense(1), key, x),
        "pair": lambda: mj.functional((lambda: {"w": jnp.ones((1, 1))}, lambda params, x, rng: x @ params["w"])),
    }[kind]()
    learner = mj.maml(mj.regression_loss(apply), INNER)
    state = init_state(learner, optax.sgd(0.1), params)
    adapted = learner.adapt(params, mj.Batch(x, x), key)
    assert apply(adapted.params, x).shape == (4, 1)
    for value, field in [
        (state, "TrainState: pass its field, state.meta_params"),
        (adapted, "Adapted: pass its field, adapted.params"),
    ]:
        for call in [
            lambda value: apply(value, x),
            lambda value: jax.jit(apply)(value, x),
            lambda value: learner.adapt(value, mj.Batch(x, x), key),
            lambda value: learner.init(value),
        ]:
            with pytest.raises(TypeError, match=field):
                call(value)
