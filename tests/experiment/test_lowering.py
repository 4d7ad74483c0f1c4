"""Every preset's training step and evaluation lower for accelerators, and give the same on eight devices as on one."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from bilinear_checks import MODULES
from command_line import experiment_of
from jax import export

import metajax as mj
from benchmarks.record import records
from metajax.core.evaluator import measure_task
from metajax.core.parallel import map_tasks
from metajax.experiment import FolderConfig, build, presets
from metajax.experiment.build import evaluation_batch_size
from metajax.experiment.run import _trainer
from metajax.kernels import plan

pytestmark = pytest.mark.usefixtures("compiled_fast", "random_images")

RECORDED = {re.sub(r" --(seed|task\.\S+) \S+", "", each["command"]) for each in records().values()}
PRESETS = sorted(RECORDED.union(presets.names()))
FEW = ["omniglot", "sinusoid"]


def built(preset: str, tmp_path):
    experiment = experiment_of(preset)
    if isinstance(experiment.task, FolderConfig):
        experiment = dataclasses.replace(experiment, task=dataclasses.replace(experiment.task, source=tmp_path))
    training = dataclasses.replace(experiment.training, steps_per_call=1)
    return dataclasses.replace(experiment, training=training), build(experiment)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize(
    "preset", [*FEW, *(pytest.param(each, marks=pytest.mark.slow) for each in PRESETS if each not in FEW)]
)
def test_training_and_evaluation_lower_for_accelerators(preset, platform, tmp_path, monkeypatch):
    """No operation of an accelerator's program uses the plan of this CPU."""
    platforms = set()

    def noted(operation, shapes, dtype, platform, **options):
        platforms.add(platform)
        return plan(operation, shapes, dtype, platform, **options)

    for module in MODULES:
        monkeypatch.setattr(module, "plan", noted)
    experiment, parts = built(preset, tmp_path)
    trainer = _trainer(experiment, parts, None)
    state = jax.eval_shape(trainer.init, parts.params, jax.random.key(0))
    lowered = export.export(jax.jit(trainer.step), platforms=[platform])(state)
    assert lowered.platforms == (platform,)
    sampler = parts.tasks.splits["test"].sampler
    support = jax.eval_shape(sampler, jax.random.key(0)).support
    measure = measure_task(
        parts.learner,
        parts.loss_fn,
        steps=experiment.evaluation.steps,
        batch_size=evaluation_batch_size(experiment, support.x.shape[0]),
        non_transductive=experiment.evaluation.non_transductive,
    )

    def evaluate(meta_params, learner_state, keys):
        return map_tasks(measure, (meta_params, learner_state, jax.tree_util.Partial(sampler)), keys, chunk_size=2)

    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
    lowered = export.export(jax.jit(evaluate), platforms=[platform])(state.meta_params, state.learner_state, keys)
    assert lowered.platforms == (platform,)
    # A model of Flax layers alone, such as the vision Transformer, has no operation with a plan.
    assert platforms <= {"gpu" if platform == "cuda" else platform}
    assert platforms or "vit" in preset


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_eight_devices_train_as_one(preset, tmp_path):
    experiment, parts = built(preset, tmp_path)
    training = dataclasses.replace(experiment.training, tasks_per_step=8)
    experiment = dataclasses.replace(experiment, training=training)
    results = []
    for devices in (1, 8):
        trainer = _trainer(experiment, parts, mj.task_mesh(jax.devices()[:devices]))
        state, metrics = trainer.step(trainer.init(parts.params, 0))
        results.append(jax.device_get((state.meta_params, metrics["loss"])))
    for one, eight in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, eight, rtol=2e-3, atol=2e-3)
