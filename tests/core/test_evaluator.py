"""Evaluation: intervals, transduction, determinism, and no label leaks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from marks import slow_except

import metajax as mj
from metajax.core import evaluator as evaluation
from metajax.core.losses import weighted_mean

pytestmark = pytest.mark.usefixtures("compiled_fast")


@pytest.fixture(scope="module")
def images():
    apply, params = mj.functional(mj.models.Conv4(5, image_shape=(16, 16, 1), channels=8, rngs=nnx.Rngs(0)))
    loss_fn = mj.classification_loss(apply)
    return apply, params, loss_fn, mj.maml(loss_fn, mj.inner_loop(optax.sgd(0.5), 1))


@pytest.fixture(scope="module")
def points():
    apply, params = mj.functional(mj.models.MLP(4, 5, hidden=(8,), normalise=True, rngs=nnx.Rngs(0)))
    loss_fn = mj.classification_loss(apply)
    return apply, params, loss_fn, mj.maml(loss_fn, mj.inner_loop(optax.sgd(0.5), 1))


def sample_points(queries: int):
    """Return a sampler of tasks with five classes of points around random means."""
    labels = jnp.concatenate([jnp.arange(5), jnp.arange(5 * queries) % 5])

    def sample(rng):
        means_key, noise_key = jax.random.split(rng)
        noise = jax.random.normal(noise_key, (len(labels), 4))
        x = jax.random.normal(means_key, (5, 4))[labels] + 0.3 * noise
        return mj.Task(mj.Batch(x[:5], labels[:5]), mj.Batch(x[5:], labels[5:]))

    return sample


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
def test_mean_and_interval_are_those_of_the_tasks(make_key):
    def loss_fn(params, data, rng):
        return (params - data) ** 2, {}

    learner = mj.maml(loss_fn, mj.inner_loop(optax.sgd(0.25), 1))

    def sampler(rng):
        target = jax.random.normal(rng)
        return mj.Task(target, target)

    evaluate = mj.evaluator(learner, loss_fn, sampler, steps=2, num_tasks=50, non_transductive=False)
    report = evaluate(0.0, make_key(1)).transductive
    keys = jax.vmap(lambda k: jax.random.split(k, 3)[0])(mj.task_keys(make_key(1), 50))
    targets = np.asarray(jax.vmap(jax.random.normal)(keys), np.float64)
    for step in range(3):  # each step halves the distance
        losses = (targets * 0.5**step) ** 2
        np.testing.assert_allclose(report["loss"].mean[step], losses.mean(), rtol=1e-5)
        np.testing.assert_allclose(report["loss"].ci95[step], 1.96 * losses.std(ddof=1) / np.sqrt(50), rtol=1e-5)
        np.testing.assert_allclose(report["loss"].median[step], np.median(losses), rtol=1e-5)


@pytest.mark.parametrize(("devices", "chunk"), slow_except([(1, 4), (2, 1), (8, None)], [1]))
def test_the_same_seed_gives_the_same_tasks_on_any_devices(points, devices, chunk):
    _, params, loss_fn, learner = points
    sampler = sample_points(2)
    options = {"steps": 1, "num_tasks": 10}
    expected = mj.evaluator(learner, loss_fn, sampler, **options)(params, jax.random.key(0))
    mesh = mj.task_mesh(jax.devices()[:devices])
    report = mj.evaluator(learner, loss_fn, sampler, chunk_size=chunk, mesh=mesh, **options)(params, jax.random.key(0))
    for kind in ("transductive", "non_transductive"):
        np.testing.assert_allclose(getattr(report, kind)["loss"].mean, getattr(expected, kind)["loss"].mean, rtol=1e-4)
        np.testing.assert_allclose(
            getattr(report, kind)["accuracy"].mean, getattr(expected, kind)["accuracy"].mean, atol=0.011
        )


@pytest.mark.parametrize(
    ("num_tasks", "chunks", "each"), slow_except([(7, 1, 2), (7, 3, 4), (7, 100, 7), (1, 2, 1)], [1])
)
def test_few_tasks_go_in_a_call_and_the_report_does_not_depend_on_it(points, monkeypatch, num_tasks, chunks, each):
    _, params, loss_fn, learner = points
    sampler = sample_points(1)
    options = {"steps": 1, "num_tasks": num_tasks, "chunk_size": 2}
    expected = mj.evaluator(learner, loss_fn, sampler, **options)(params, jax.random.key(0))
    together = []

    def map_tasks(fn, shared, keys, **options):
        together.append(len(keys))
        return mj.map_tasks(fn, shared, keys, **options)

    monkeypatch.setattr(evaluation, "map_tasks", map_tasks)
    monkeypatch.setattr(evaluation, "_CHUNKS_IN_A_CALL", chunks)
    report = mj.evaluator(learner, loss_fn, sampler, **options)(params, jax.random.key(0))
    for kind in ("transductive", "non_transductive"):
        np.testing.assert_allclose(getattr(report, kind)["loss"].mean, getattr(expected, kind)["loss"].mean, rtol=1e-4)
    assert together == [each], "one program for all calls"


def test_chunks_of_no_task_are_refused(images):
    _, _, loss_fn, learner = images
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        mj.evaluator(learner, loss_fn, mj.glyphs(ways=5, shots=1, queries=1), steps=1, chunk_size=0)


@pytest.mark.parametrize("most", slow_except([1, 5 * 4 * 2, 400], [1]))
def test_on_an_accelerator_queries_alone_are_predicted_some_at_a_time(points, monkeypatch, most):
    _, params, loss_fn, learner = points
    sampler = sample_points(2)
    options = {"steps": 1, "num_tasks": 2}
    expected = mj.evaluator(learner, loss_fn, sampler, **options)(params, jax.random.key(0))
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, cpu, default: default(*args))
    monkeypatch.setattr(evaluation, "_ACCELERATED_VALUES", most)
    report = mj.evaluator(learner, loss_fn, sampler, **options)(params, jax.random.key(0))
    alone, expected = (each.non_transductive["loss"].mean for each in (report, expected))
    np.testing.assert_allclose(alone, expected, rtol=1e-4)


def test_each_query_alone_is_blind_to_the_other_queries(points):
    """Change all queries but one: its own non-transductive loss stays, the transductive one does not."""
    apply, params, loss_fn, learner = points
    task = sample_points(1)(jax.random.key(0))

    def report(query_x):
        changed = task._replace(query=task.query._replace(x=query_x))
        evaluate = mj.evaluator(learner, loss_fn, mj.constant_task(changed), steps=1, num_tasks=1)
        return evaluate(params, jax.random.key(0))

    def alone(x, y):
        adapted = learner.adapt(params, task.support, jax.random.key(0)).params
        logits = apply(adapted, jnp.concatenate([task.support.x, x[None]]))[-1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y)

    noise = task.query.x.at[1:].set(jax.random.normal(jax.random.key(1), task.query.x[1:].shape))
    for x in (task.query.x, noise):
        expected = np.mean([alone(a, b) for a, b in zip(x, task.query.y, strict=True)])
        np.testing.assert_allclose(report(x).non_transductive["loss"].mean[1], expected, rtol=1e-4)
    transductive = apply(params, noise)[0], apply(params, task.query.x)[0]
    assert not np.allclose(*transductive)


@pytest.mark.slow
def test_before_adaptation_accuracy_is_chance(images):
    """Or labels leak: five ways, so 20 % within the interval."""
    _, params, loss_fn, learner = images
    rng = np.random.default_rng(0)
    prototypes = rng.integers(0, 200, (20, 1, 16, 16, 1))
    bank = (prototypes + rng.integers(0, 50, (20, 6, 16, 16, 1))).astype(np.uint8).reshape(-1, 16, 16, 1)
    sampler = mj.episodes(mj.ClassBank(bank, np.arange(20) * 6, np.full(20, 6)), ways=5, shots=1, queries=3)
    report = mj.evaluator(learner, loss_fn, sampler, steps=3, num_tasks=600)(params, jax.random.key(0))
    for kind in ("transductive", "non_transductive"):
        accuracy = getattr(report, kind)["accuracy"]
        assert abs(accuracy.mean[0] - 0.2) < 1.5 * accuracy.ci95[0]
        assert accuracy.mean[-1] > 0.5, "and afterwards it is not"


def test_diverged_tasks_are_counted_and_not_dropped():
    def loss_fn(params, data, rng):
        return jnp.where(data > 0, params, jnp.nan), {}

    learner = mj.maml(loss_fn, mj.inner_loop(optax.sgd(0.0), 1))

    def sampler(rng):
        draw = jax.random.normal(rng)
        return mj.Task(draw, draw)

    evaluate = mj.evaluator(learner, loss_fn, sampler, steps=1, num_tasks=40, non_transductive=False)
    report = evaluate(jnp.float32(1.0), jax.random.key(0)).transductive
    assert 5 < report.diverged < 35
    assert report["loss"].mean == [None, None]


@pytest.mark.slow
def test_more_steps_than_in_training_are_reported(images):
    _, params, loss_fn, learner = images
    sampler = mj.glyphs(ways=5, shots=1, queries=1, size=16)
    report = mj.evaluator(learner, loss_fn, sampler, steps=4, num_tasks=3)(params, jax.random.key(0))
    assert report.inner_steps == 4
    assert len(report.non_transductive["accuracy"].mean) == 5


def test_weights_of_queries_count_in_both_kinds(points):
    """A query of weight 0 is as if it were not asked."""
    _, params, loss_fn, learner = points
    task = sample_points(1)(jax.random.key(0))
    mask = jnp.array([1.0, 0, 0, 0, 0])

    def evaluate(query):
        sampled = task._replace(query=query)
        evaluate = mj.evaluator(learner, loss_fn, mj.constant_task(sampled), steps=0, num_tasks=1)
        return evaluate(params, jax.random.key(0))

    masked = evaluate(task.query._replace(mask=mask))
    only = evaluate(mj.Batch(task.query.x[:1], task.query.y[:1]))
    np.testing.assert_allclose(masked.non_transductive["loss"].mean, only.non_transductive["loss"].mean, rtol=1e-5)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("weighs", [True, False])
def test_a_loss_that_does_not_look_at_the_mask_cannot_predict_queries_alone(weighs, compiled):
    """It would count the support set that each query is joined with."""

    def loss_fn(params, data, rng):
        errors = jnp.square(params * data.x - data.y).mean(-1)
        return (weighted_mean(errors, data.mask) if weighs else errors.mean()), {}

    loss_fn = jax.jit(loss_fn) if compiled else loss_fn
    learner = mj.maml(loss_fn, mj.inner_loop(optax.sgd(0.1), 1))
    evaluate = mj.evaluator(learner, loss_fn, mj.sinusoid(3, 4), steps=1, num_tasks=2)
    if weighs:
        report = evaluate(jnp.float32(1.0), jax.random.key(0))
        kinds = [getattr(report, kind)["loss"].mean for kind in ("transductive", "non_transductive")]
        np.testing.assert_allclose(*kinds, rtol=1e-5)
    else:
        with pytest.raises(ValueError, match=r"does not use data\.mask"):
            evaluate(jnp.float32(1.0), jax.random.key(0))


def test_targets_may_be_a_tree():
    """Two targets of one example; without normalisation each query alone has the same loss as all together."""

    def loss_fn(params, data, rng):
        errors = sum(jnp.square(params * data.x - target).mean(-1) for target in data.y.values())
        return weighted_mean(errors, data.mask), {}

    def sampler(rng):
        task = mj.sinusoid(3, 4)(rng)
        return mj.Task(*(mj.Batch(each.x, {"y": each.y, "half": each.y / 2}) for each in task))

    learner = mj.maml(loss_fn, mj.inner_loop(optax.sgd(0.01), 1))
    report = mj.evaluator(learner, loss_fn, sampler, steps=1, num_tasks=2)(jnp.float32(1.0), jax.random.key(0))
    kinds = [getattr(report, kind)["loss"].mean for kind in ("transductive", "non_transductive")]
    np.testing.assert_allclose(*kinds, rtol=1e-5)


def test_queries_of_another_shape_than_the_support_set_are_named():
    loss_fn = mj.regression_loss(lambda params, x, rng: params * x.reshape(x.shape[0], -1).sum(1))
    task = mj.Task(mj.Batch(jnp.ones((3, 2)), jnp.ones(3)), mj.Batch(jnp.ones((4, 2, 1)), jnp.ones(4)))
    learner = mj.maml(loss_fn, mj.inner_loop(optax.sgd(0.1), 1))
    evaluate = mj.evaluator(learner, loss_fn, mj.constant_task(task), steps=1, num_tasks=2)
    with pytest.raises(AssertionError, match=r"query\.x must have examples of the shape of the examples of support\.x"):
        evaluate(jnp.float32(1), 0)
