"""`train` and `run` from Python: exact resuming, validation, callbacks and failures."""

import dataclasses
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from command_line import SMALL, rows, run, small, steps

import metajax as mj
from metajax.errors import UserError
from metajax.experiment import checkpoints, loop, metrics
from metajax.experiment.config_code import load_module
from metajax.experiment.loop import NotFiniteError

pytestmark = pytest.mark.usefixtures("compiled_fast")

PARAMS = {"w": jnp.arange(3.0), "b": jnp.float32(0.5)}


def loss_fn(params, data, rng):
    x, y = data
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2), {}


def sampler(rng):
    def draw(key):
        x = jax.random.normal(key, (4, 3))
        return x, x.sum(1)

    return mj.Task(*map(draw, jax.random.split(rng)))


def streamed(sample):
    """Return a sampler whose examples come from the stream that a test passes."""
    return mj.StreamedSampler(np.ones(8), lambda rng: jnp.int32(0), sample)


def make_trainer(steps_per_call=4, **options):
    learner = mj.maml(loss_fn, mj.inner_loop(optax.sgd(0.1), steps=1))
    return mj.trainer(learner, optax.adam(0.05), sampler, tasks_per_step=2, steps_per_call=steps_per_call, **options)


def assert_equal(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(*(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
                                        for x in (a, b)))  # fmt: skip


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path):
    expected = mj.train(make_trainer(), PARAMS, tmp_path / "whole", steps=20, seed=3, checkpoint_every=6)
    mj.train(make_trainer(), PARAMS, str(tmp_path / "parts"), steps=12, seed=3, checkpoint_every=6)
    state = mj.train(make_trainer(), PARAMS, str(tmp_path / "parts"), steps=20, seed=3, checkpoint_every=6)
    assert_equal(state, expected)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    assert [row["step"] for row in rows(tmp_path / "whole")] == [4, 6, 10, 12, 16, 18, 20]


def test_the_state_does_not_depend_on_the_length_of_calls(tmp_path):
    one = make_trainer()
    state = one.init(PARAMS, 3)
    for _ in range(5):
        state, _ = one.step(state)
    assert_equal(mj.train(make_trainer(7), PARAMS, tmp_path, steps=20, seed=3, checkpoint_every=9), state)


def test_callbacks_get_each_row_and_validation_chooses_the_best_checkpoint(tmp_path):
    seen = []

    def validate(state):
        return {"validation_loss": jnp.float32(abs(int(state.step) - 8)), "validation_size": 2}

    mj.train(
        make_trainer(),
        PARAMS,
        tmp_path,
        steps=24,
        checkpoint_every=8,
        keep=1,
        validate=validate,
        callbacks=[seen.append],
    )
    assert [{**row} for row in metrics.read(tmp_path)] == [
        {name: float(value) if name == "validation_loss" else value for name, value in row.items()} for row in seen
    ]
    assert [row["validation_loss"] for row in rows(tmp_path) if "validation_loss" in row] == [0, 8, 16]
    assert checkpoints.best_step(tmp_path / "checkpoints") == 8
    assert steps(tmp_path) == [8, 24]


@pytest.mark.parametrize("bad", [float("nan"), None])
def test_a_validation_that_diverged_is_the_worst(tmp_path, bad):
    losses = iter([5.0, 1.0, bad, 3.0])

    def validate(state):
        return {"validation_loss": next(losses)}

    mj.train(make_trainer(), PARAMS, tmp_path, steps=16, checkpoint_every=4, keep=1, validate=validate)
    assert steps(tmp_path) == [8, 16]
    assert checkpoints.best_step(tmp_path / "checkpoints") == 8


def test_the_failed_step_is_named_although_an_earlier_one_was_handled(tmp_path):
    """An optimiser that replaces NaN by 0 handles the first step, but not the infinite update later."""

    def loss_fn(params, data, rng):
        return jnp.where(data < 2, jnp.nan, 1.0) * params["b"], {}

    learner = mj.maml(loss_fn, mj.inner_loop(optax.sgd(0.0), steps=1))
    examples = jnp.arange(8.0).reshape(8, 1)
    trainer = mj.trainer(
        learner,
        optax.chain(optax.zero_nans(), optax.scale_by_schedule(lambda count: jnp.where(count < 5, -1e-3, jnp.inf))),
        streamed(lambda rng, value: mj.Task(value + 0 * jax.random.normal(rng), value)),
        tasks_per_step=1,
        steps_per_call=8,
    )
    with pytest.raises(NotFiniteError, match="step 5") as error:
        mj.train(trainer, PARAMS, tmp_path, steps=8, stream=lambda state, calls: (examples for _ in calls))
    assert error.value.step == 5
    assert steps(tmp_path) == [5]


def test_a_stream_of_the_wrong_length_is_refused(tmp_path):
    learner = mj.maml(lambda p, x, rng: (p["b"] * x, {}), mj.inner_loop(optax.sgd(0.0), steps=1))
    sampler = streamed(lambda rng, value: mj.Task(value + jax.random.normal(rng), value))
    trainer = mj.trainer(learner, optax.sgd(0.1), sampler, tasks_per_step=1, steps_per_call=4)
    with pytest.raises(ValueError, match=r"here \[4, 1, ...\], got \(3, 1\)"):
        trainer.step(trainer.init(PARAMS), jnp.ones((3, 1)))
    with pytest.raises(ValueError, match="the stream ended at step 4"):
        mj.train(trainer, PARAMS, tmp_path, steps=8, stream=lambda state, calls: iter([jnp.ones((4, 1))]))


def test_a_trainer_can_start_again_after_a_failure(tmp_path):
    trainer = make_trainer()
    with pytest.raises(NotFiniteError):
        mj.train(trainer, jax.tree.map(lambda leaf: leaf * jnp.nan, PARAMS), tmp_path / "bad", steps=4)
    assert int(mj.train(trainer, PARAMS, tmp_path / "good", steps=4).step) == 4


def test_keys_of_other_implementations_resume(tmp_path):
    key = jax.random.key(0, impl="rbg")
    mj.train(make_trainer(), PARAMS, tmp_path, steps=4, seed=key)
    assert int(mj.train(make_trainer(), PARAMS, tmp_path, steps=8, seed=key).step) == 8


def noisy_trainer(impl="threefry2x32"):
    """A trainer whose optimiser has a random key in its state."""
    learner = mj.maml(loss_fn, mj.inner_loop(optax.sgd(0.1), steps=1))
    noise = optax.add_noise(0.1, 0.55, jax.random.key(7, impl=impl))
    return mj.trainer(learner, optax.chain(noise, optax.adam(0.05)), sampler, tasks_per_step=2, steps_per_call=4)


def test_a_key_in_the_state_of_an_optimizer_resumes_bit_for_bit(tmp_path):
    expected = mj.train(noisy_trainer(), PARAMS, tmp_path / "whole", steps=16)
    keys = [leaf for leaf in jax.tree.leaves(expected.opt_state) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    assert len(keys) == 1
    mj.train(noisy_trainer(), PARAMS, tmp_path / "parts", steps=8)
    assert_equal(mj.train(noisy_trainer(), PARAMS, tmp_path / "parts", steps=16), expected)


def test_a_key_of_another_implementation_is_named(tmp_path):
    mj.train(noisy_trainer("rbg"), PARAMS, tmp_path, steps=4)
    with pytest.raises(UserError, match=r"differ from the checkpoint: .* at opt_state.*/(unsafe_)?rbg"):
        mj.train(noisy_trainer("unsafe_rbg"), PARAMS, tmp_path, steps=8)


def test_a_run_keeps_the_precision_of_the_caller(tmp_path):
    experiment = load_module(small(tmp_path, text=SMALL)).config
    execution = dataclasses.replace(experiment.execution, precision="float32")
    mj.run(dataclasses.replace(experiment, execution=execution), tmp_path / "run", devices=1)
    assert jax.config.jax_default_matmul_precision is None
    with pytest.raises(TypeError, match=r"run takes a metajax\.experiment\.Experiment, got"):
        mj.run("sinusoid", tmp_path / "other")


def test_settings_that_cannot_train_leave_no_work_directory(tmp_path):
    experiment = load_module(small(tmp_path, text=SMALL)).config
    outer = dataclasses.replace(experiment.outer, optimizer="rprop")
    with pytest.raises(UserError, match=r"outer\.optimizer: rprop does not work with these settings"):
        mj.run(dataclasses.replace(experiment, outer=outer), tmp_path / "run", devices=1)
    assert not (tmp_path / "run").exists()


def test_a_failed_meta_step_keeps_the_state_before_it(tmp_path):
    def fails_at_five(params, data, rng):
        loss, _ = loss_fn(params, data, rng)
        return jnp.where(params["b"] > 0.6, jnp.nan, loss), {}

    learner = mj.maml(fails_at_five, mj.inner_loop(optax.sgd(0.0), steps=1))
    trainer = mj.trainer(learner, optax.sgd(-1e-2), sampler, tasks_per_step=2, steps_per_call=4)
    with pytest.raises(NotFiniteError, match=r"training stopped at step \d+: loss is not finite") as error:
        mj.train(trainer, PARAMS, tmp_path, steps=400, checkpoint_every=8)
    assert steps(tmp_path)[-1] == error.value.step
    assert all(row["loss"] is not None for row in rows(tmp_path))


def test_skipped_meta_steps_do_not_end_the_training(tmp_path):
    def some_fail(params, data, rng):
        loss, _ = loss_fn(params, data, rng)
        return jnp.where(data[0][0, 0] > 1.0, jnp.nan, loss), {}

    learner = mj.maml(some_fail, mj.inner_loop(optax.sgd(0.0), steps=1))
    trainer = mj.trainer(learner, optax.sgd(1e-2), sampler, tasks_per_step=1, steps_per_call=8, skip_non_finite=True)
    state = mj.train(trainer, PARAMS, tmp_path, steps=32)
    assert int(state.step) == 32
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.meta_params))
    assert all(np.isfinite(row["loss"]) for row in rows(tmp_path)), "means of the steps that did not fail"


@pytest.mark.parametrize("option", ["steps", "keep", "checkpoint_every"])
def test_counts_are_checked_before_the_folder_is_made(tmp_path, option):
    options = {"steps": 4, "keep": 1, "checkpoint_every": 2, option: -1}
    with pytest.raises(ValueError, match=f"{option} must be at least 1"):
        mj.train(make_trainer(), PARAMS, tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_fewer_steps_than_are_trained_are_refused(tmp_path):
    mj.train(make_trainer(), PARAMS, tmp_path, steps=8)
    with pytest.raises(UserError, match="is trained to step 8, more than 4"):
        mj.train(make_trainer(), PARAMS, tmp_path, steps=4)


def test_other_parameters_do_not_resume(tmp_path):
    mj.train(make_trainer(), PARAMS, tmp_path, steps=4)
    with pytest.raises(UserError, match=r"w.*differ|differ.*w"):
        mj.train(make_trainer(), {"w": jnp.ones(4), "b": jnp.float32(0)}, tmp_path, steps=8)


def test_run_equals_the_command(tmp_path):
    config = small(tmp_path, text=SMALL)
    assert run("train", config, "--workdir", tmp_path / "command", "--devices", 1).code == 0
    experiment, seen = load_module(config).config, []
    report = mj.run(experiment, str(tmp_path / "python"), callbacks=[seen.append], devices=1)
    assert [row["step"] for row in seen] == [5, 10, 15, 20, 25, 30, 35, 40]
    written = json.loads((tmp_path / "python" / "evaluation.json").read_text())
    assert {**report.to_json(), "checkpoint": written["checkpoint"]} == written
    losses = [[row["loss"] for row in rows(tmp_path / name)] for name in ("python", "command")]
    np.testing.assert_allclose(*losses, rtol=1e-4)  # the command of the tests compiles without optimisations
    assert run("evaluate", tmp_path / "python").code == 0, "the command line reads the run"
    again = mj.run(experiment, str(tmp_path / "python"), devices=1)
    assert again == report
    with pytest.raises(UserError, match="seed is 0 in the run and 1 now"):
        mj.run(dataclasses.replace(experiment, seed=1), tmp_path / "python")


def test_a_long_compilation_is_a_message(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(loop, "_SILENT_SECONDS", 0.0)
    with caplog.at_level(logging.INFO, "metajax"):
        mj.train(make_trainer(), PARAMS, tmp_path, steps=4)
    assert "compiling (a minute or more on a CPU the first time)" in caplog.messages
