"""Every learner through the whole machinery: settings, strategies of execution, training and evaluation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax as mj
from metajax import experiment as ex
from metajax.core.trainer import init_state

pytestmark = pytest.mark.usefixtures("compiled_fast")

LEARNERS = [
    ex.MAMLConfig(),
    ex.ReptileConfig(),
    ex.FOMLConfig(),
    ex.ANILConfig(),
    ex.BOILConfig(),
    ex.MetaSGDConfig(),
    ex.PreconditionedConfig(),
    ex.MAMLPlusPlusConfig(second_order_from=1),
    ex.IMAMLConfig(),
    ex.CAVIAConfig(shifts=("norms",)),
    ex.LoRAConfig(),
    ex.ProtoMAMLConfig(),
    ex.PrototypicalNetworkConfig(),
]


@dataclasses.dataclass(frozen=True)
class Blobs:
    """Three classes, each a normal distribution about a centre of its own."""

    def tasks(self, data_dir):
        def sample(rng):
            centre_key, *keys = jax.random.split(rng, 3)
            centres, labels = jax.random.normal(centre_key, (3, 4)), jnp.tile(jnp.arange(3), 2)
            return mj.Task(*(mj.Batch(centres[labels] + jax.random.normal(key, (6, 4)) / 4, labels) for key in keys))

        return ex.Tasks({"train": ex.Split(sample), "test": ex.Split(sample)}, 3, mj.classification_loss)


def small(learner) -> ex.Experiment:
    return ex.Experiment(
        task=Blobs(),
        model=ex.MLPConfig(hidden=(5,), normalise=True),
        learner=learner,
        inner=ex.Inner(learning_rate=0.1, steps=0 if isinstance(learner, ex.PrototypicalNetworkConfig) else 2),
        outer=ex.Outer(learning_rate=1e-2),
        training=ex.TrainingSettings(steps=2, tasks_per_step=3),
        evaluation=ex.EvaluationSettings(steps=3, num_tasks=4),
    )


@pytest.mark.slow
@pytest.mark.parametrize("learner", LEARNERS, ids=lambda learner: type(learner).__name__)
def test_a_learner_trains_and_evaluates_alike_in_every_strategy(learner):
    parts = ex.build(small(learner))
    sampler = parts.tasks.splits["test"].sampler
    states = []
    for chunk_size in (1, 3):
        options = {"tasks_per_step": 3, "steps_per_call": 2, "chunk_size": chunk_size}
        train = mj.trainer(parts.learner, parts.optimizer, sampler, **options).step
        state, metrics = train(init_state(parts.learner, parts.optimizer, parts.params))
        assert int(state.step) == 2, "a step was not finite"
        assert set(metrics) == {"loss", "accuracy", "gradient_norm", "update_norm"}
        states.append(state)
    # Not the parameters: Adam's first steps have the sign of the gradient, whatever its size.
    one, all_ = (optax.tree.get(state.opt_state, "nu") for state in states)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(all_), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * float(np.abs(a).max()) + 1e-12)
    evaluate = mj.evaluator(parts.learner, parts.loss_fn, sampler, steps=3, num_tasks=4)
    report = evaluate(states[0].meta_params, jax.random.key(0), states[0].learner_state)
    assert report.transductive.diverged == 0
    assert len(report.non_transductive["accuracy"].mean) == 4


def test_settings_that_a_learner_refuses_are_one_line():
    with pytest.raises(mj.UserError, match=r"learner\.strength must be a number above 0"):
        ex.IMAMLConfig(strength=-1.0)
    with pytest.raises(mj.UserError, match="learner: there is no linear layer 'top'"):
        ex.build(small(ex.ProtoMAMLConfig(head="top")))
    with pytest.raises(mj.UserError, match="learner: shifts: no parameter path has a part 'nothing'"):
        ex.build(small(ex.CAVIAConfig(shifts=("nothing",))))


def test_a_head_that_does_not_exist_cannot_adapt():
    with pytest.raises(mj.UserError, match=r"learner: the name of the head \(head='top'\): no parameter path has"):
        ex.build(small(ex.ANILConfig(head="top")))


@pytest.mark.parametrize(
    ("learner", "inner", "message"),
    [
        (ex.ANILConfig(), {"frozen": ("head",)}, "no parameter adapts"),
        (ex.CAVIAConfig(), {"frozen": ("bias",)}, "mask of the inner loop: no parameter path has a part 'bias'"),
        (ex.CAVIAConfig(shifts=("bias", "bais")), {}, "no parameter path has a part 'bais'; there are"),
        (ex.MAMLPlusPlusConfig(), {"steps": 0}, "an inner step"),
        (ex.FOMLConfig(), {"steps": 0}, "at least one inner step"),
        (ex.PrototypicalNetworkConfig(), {"steps": 2}, "set inner.steps to 0"),
    ],
)
def test_an_inner_loop_that_a_learner_cannot_use_is_one_line(learner, inner, message):
    experiment = small(learner)
    experiment = dataclasses.replace(experiment, inner=dataclasses.replace(experiment.inner, **inner))
    with pytest.raises(mj.UserError, match=f"learner: .*{message}"):
        ex.build(experiment)


@pytest.mark.parametrize(
    ("learner", "field"),
    [
        (ex.MAMLPlusPlusConfig, "anneal_loss"),
        (ex.CAVIAConfig, "size"),
        (ex.LoRAConfig, "rank"),
        (ex.IMAMLConfig, "cg_steps"),
    ],
)
def test_settings_out_of_range_are_one_line(learner, field):
    with pytest.raises(mj.UserError, match=f"learner.{field} must be .*, got 0"):
        learner(**{field: 0})


def test_the_seed_chooses_a_learners_initial_values():
    learner = ex.CAVIAConfig(shifts=("norms",))
    first, again, other = (ex.build(dataclasses.replace(small(learner), seed=seed)) for seed in (0, 0, 1))
    maps = [
        parts.learner.init(parts.params)[0]["context_maps"]["norms"][0]["offset"] for parts in (first, again, other)
    ]
    np.testing.assert_array_equal(maps[0], maps[1])
    assert not np.allclose(maps[0], maps[2])
