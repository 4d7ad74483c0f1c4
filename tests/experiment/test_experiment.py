"""Settings become what they say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import metajax as mj
from metajax.cli import configs, train
from metajax.errors import UserError
from metajax.experiment import Execution, GlyphsConfig, Inner, Outer, Shots, SinusoidConfig, Tasks, build, presets
from metajax.experiment.build import check_training, purpose_key

pytestmark = pytest.mark.usefixtures("compiled_fast")


def rates(outer: Outer, steps: int) -> np.ndarray:
    """Sizes of the updates of plain SGD for a gradient of 1."""
    optimizer = outer.build(steps)
    state, sizes = optimizer.init(jnp.float32(0.0)), []
    for _ in range(steps + 2):
        update, state = optimizer.update(jnp.float32(1.0), state, jnp.float32(0.0))
        sizes.append(-float(update))
    return np.array(sizes)


def test_schedules_go_from_the_peak_to_the_last_rate_over_the_training():
    options = {"learning_rate": 0.5, "optimizer": "sgd", "final_fraction": 0.1}
    np.testing.assert_allclose(rates(Outer(schedule="constant", **options), 10), 0.5)
    linear, cosine = (rates(Outer(schedule=each, **options), 10) for each in ("linear", "cosine"))
    for sizes in (linear, cosine):
        np.testing.assert_allclose(sizes[[0, 10, 11]], [0.5, 0.05, 0.05], rtol=1e-5)
    np.testing.assert_allclose(linear[5], 0.275, rtol=1e-5)
    np.testing.assert_allclose(cosine[5], 0.275, rtol=1e-5)
    assert cosine[1] > linear[1]


def test_clipping_comes_before_the_rate():
    outer = Outer(learning_rate=0.5, optimizer="sgd", clip_value=1.0, clip_norm=1.0)
    optimizer = outer.build(1)
    update, _ = optimizer.update(jnp.array([9.0, -9.0]), optimizer.init(jnp.zeros(2)))
    np.testing.assert_allclose(update, np.array([-0.5, 0.5]) / np.sqrt(2), rtol=1e-5)


@pytest.mark.parametrize("name", ["sgd", "adamw", "rmsprop", "lion", "yogi", "signum"])
@pytest.mark.parametrize("part", [Inner, Outer])
def test_an_optimizer_has_its_name_and_arguments_in_optax(name, part):
    options = {"sgd": {"momentum": 0.5}, "rmsprop": {"decay": 0.95}, "adamw": {"weight_decay": 0.5}}.get(name, {})
    settings = part(learning_rate=0.1, optimizer=name, options=options)
    expected = getattr(optax, name)(0.1, **options)
    params, gradient = jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0])
    if part is Outer:
        updates, _ = settings.build(10).update(gradient, settings.build(10).init(params), params)
    else:
        loss = lambda p, data, rng: (p @ gradient, {})  # noqa: E731
        updates = settings.build(Execution()).run(loss, params, None, jax.random.key(0)).params - params
    wanted, _ = expected.update(gradient, expected.init(params), params)
    np.testing.assert_allclose(updates, wanted, rtol=1e-5, atol=1e-6)


def test_options_of_optimizers_are_set_on_the_command_line():
    words = ["sinusoid", "--inner.optimizer", "rmsprop", "--inner.options.decay", "0.95"]
    words += ["--outer.options.b1=0.5", "--outer.options.nesterov", "true"]
    *_, experiment = configs.override("train", train.Options, words)
    assert (experiment.inner.optimizer, experiment.inner.options) == ("rmsprop", {"decay": 0.95})
    assert experiment.outer.options == {"b1": 0.5, "nesterov": True}


def test_another_optimizer_drops_the_options_of_the_config():
    *_, reptile = configs.override("train", train.Options, ["omniglot", "--learner", "reptile"])
    assert (reptile.inner.optimizer, reptile.inner.options) == ("adam", {"b1": 0.0})
    words = ["omniglot", "--learner", "reptile", "--inner.optimizer", "sgd", "--inner.options.momentum", "0.9"]
    *_, other = configs.override("train", train.Options, words)
    assert other.inner.options == {"momentum": 0.9}


def test_a_meta_gradient_through_adam_is_finite_where_a_gradient_is_zero():
    """A dead unit's gradient is exactly 0; √ has no derivative there."""
    inner = Inner(learning_rate=0.1, optimizer="adam", steps=2).build(Execution())
    learner = mj.maml(lambda p, t, rng: ((p[0] - t) ** 2 + 0 * p[1], {}), inner)
    gradient = learner.gradient(jnp.ones(2), mj.Task(0.0, 0.5), jax.random.key(0), ()).gradient
    assert np.isfinite(gradient).all()


def test_frozen_parts_do_not_adapt():
    params = {"norms": {0: {"offset": jnp.ones(2)}}, "head": {"kernel": jnp.ones(2)}}
    inner = Inner(learning_rate=0.1, frozen=("norms",)).build(Execution())
    loss = lambda p, data, rng: (optax.tree.norm(p, squared=True), {})  # noqa: E731
    adapted = inner.run(loss, params, None, jax.random.key(0)).params
    np.testing.assert_array_equal(adapted["norms"][0]["offset"], 1)
    np.testing.assert_allclose(adapted["head"]["kernel"], 0.8, rtol=1e-6)


def test_each_use_of_a_seed_has_a_key_of_its_own():
    keys = [purpose_key(0, each) for each in ("init", "train", "validation", "test")]
    rngs = nnx.Rngs(purpose_key(0, "init"))
    keys += [rngs.params() for _ in range(8)]
    assert len({np.asarray(jax.random.key_data(each)).tobytes() for each in keys}) == len(keys)


SMALL = dataclasses.replace(presets.load("sinusoid"), seed=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation": dataclasses.replace(SMALL.validation, num_tasks=0)}, "nothing is validated"),
        ({"inner": dataclasses.replace(SMALL.inner, frozen=("nose",))}, "no parameter path has a part 'nose'"),
        ({"inner": dataclasses.replace(SMALL.inner, batch_size=11)}, "the support set has only 10 examples"),
        ({"evaluation": dataclasses.replace(SMALL.evaluation, batch_size=6)}, "the support set has only 5 examples"),
    ],
)
def test_what_does_not_go_together_is_said_before_training(changes, message):
    experiment = dataclasses.replace(SMALL, **changes)
    with pytest.raises(UserError, match=message):
        check_training(experiment, build(experiment).tasks)


@pytest.mark.parametrize(("split", "said"), [("test", "no train split, only test"), ("train", "no test split")])
def test_tasks_for_half_an_experiment_are_built_but_not_trained_on(split, said):
    @dataclasses.dataclass(frozen=True)
    class Half:
        def tasks(self, data_dir):
            tasks = SMALL.task.tasks(data_dir)
            return dataclasses.replace(tasks, splits={split: tasks.splits[split]})

    experiment = dataclasses.replace(SMALL, task=Half(), inner=dataclasses.replace(SMALL.inner, batch_size=99))
    tasks = build(experiment).tasks  # whose minibatches are for training
    with pytest.raises(UserError, match=said):
        check_training(experiment, tasks)


def test_a_loss_that_does_not_look_at_the_mask_is_found_before_training():
    @dataclasses.dataclass(frozen=True)
    class Unweighted:
        def tasks(self, data_dir):
            tasks = SMALL.task.tasks(data_dir)
            loss = lambda apply: lambda p, data, rng: (jnp.square(apply(p, data.x) - data.y).mean(), {})  # noqa: E731
            return dataclasses.replace(tasks, loss=loss)

    alone = dataclasses.replace(SMALL.evaluation, non_transductive=True)
    together = dataclasses.replace(SMALL.evaluation, non_transductive=False)
    with pytest.raises(UserError, match=r"evaluation\.non_transductive: the loss .* does not use data\.mask"):
        build(dataclasses.replace(SMALL, task=Unweighted(), evaluation=alone))
    build(dataclasses.replace(SMALL, task=Unweighted(), evaluation=together))


def test_tasks_of_no_split_are_named():
    @dataclasses.dataclass(frozen=True)
    class Nothing:
        def tasks(self, data_dir):
            return dataclasses.replace(SMALL.task.tasks(data_dir), splits={})

    with pytest.raises(UserError, match="task has no split"):
        build(dataclasses.replace(SMALL, task=Nothing()))


def test_a_sampler_that_is_not_in_a_split_is_named():
    with pytest.raises(UserError, match=r"the split 'train' of Tasks must be Split\(sampler\), got "):
        Tasks({"train": mj.sinusoid()}, 1, mj.regression_loss)


def test_the_seed_determines_the_initial_values():
    a, b, c = (jax.tree.leaves(build(dataclasses.replace(SMALL, seed=s)).params)[1] for s in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert not np.allclose(a, c)


@pytest.mark.slow
def test_more_ways_in_training_than_in_test():
    """The model has outputs for the most, and a task of fewer neither chooses nor moves the others."""
    task = GlyphsConfig(ways=2, train=Shots(ways=4, shots=2, queries=1), test=Shots(shots=2, queries=3), size=16)
    experiment = dataclasses.replace(presets.load("glyphs"), task=task)
    parts = build(experiment)
    train, test = (parts.tasks.splits[split].sampler(jax.random.key(0)) for split in ("train", "test"))
    assert sorted(set(train.support.y.tolist())) == [0, 1, 2, 3]
    assert sorted(set(test.support.y.tolist())) == [0, 1]
    favoured = {**parts.params, "head": {**parts.params["head"], "bias": jnp.array([0.0, 0.0, 50.0, 50.0])}}
    (loss, _), gradient = jax.value_and_grad(parts.loss_fn, has_aux=True)(favoured, test.query, None)
    assert float(loss) < 10
    np.testing.assert_array_equal(gradient["head"]["bias"][2:], 0)
    assert np.all(np.asarray(gradient["head"]["bias"][:2]) != 0)


def test_minibatches_do_not_go_with_more_ways_in_training_than_in_test():
    """A minibatch without a task's last class would look like a task of fewer."""
    task = GlyphsConfig(ways=2, train=Shots(ways=4, shots=2, queries=1), test=Shots(shots=2, queries=3), size=16)
    experiment = presets.load("glyphs")
    inner = dataclasses.replace(experiment.inner, batch_size=2)
    with pytest.raises(UserError, match=r"batch_size .* must be None where ways differ"):
        build(dataclasses.replace(experiment, task=task, inner=inner))


def test_sinusoids_have_no_ways():
    with pytest.raises(UserError, match="no ways"):
        SinusoidConfig(train=Shots(ways=5))
