"""Build the model, learner and tasks of a standard workload from metajax's public functions."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from metajax import models
from metajax.core.functional import functional
from metajax.core.inner_loop import inner_loop
from metajax.core.losses import classification_loss, regression_loss
from metajax.core.parallel import average_tasks, default_chunk_size
from metajax.core.trainer import trainer
from metajax.core.types import Batch, ClassBank, MetaParams, Params, StreamedSampler, Task, TaskSampler
from metajax.learners import MetaLearner, maml, reptile
from metajax.profiling.measure import matrix_flops
from metajax.profiling.workloads import Workload
from metajax.tasks import episodes, sinusoid
from metajax.tasks.host import prefetch

_MANY = 100_000
"""Number of training calls for which `prefetch` reads images. No measurement makes more calls."""


class Standard(NamedTuple):
    """The parts of metajax that run a standard workload.

    Attributes:
        params: Initial parameters of the model.
        learner: The meta-learner.
        sampler: The task sampler. Its tasks are sinusoids, or classification episodes with images of random noise.
    """

    params: Params
    learner: MetaLearner
    sampler: TaskSampler


def standard(workload: Workload, *, mixed_mode: bool | None = None) -> Standard:
    """Build the model, learner and task sampler of a workload.

    Args:
        workload: The settings of the workload.
        mixed_mode: As in `inner_loop`.

    >>> from metajax.profiling import WORKLOADS, standard
    >>> sorted(standard(WORKLOADS["sinusoid, 1 step"]).params)
    ['head', 'layers']
    """
    apply, params = functional(_model(workload))
    loss = regression_loss(apply) if workload.model == "mlp" else classification_loss(apply)
    first_order = workload.learner == "fomaml"
    inner = inner_loop(
        optax.sgd(workload.learning_rate), workload.steps, first_order=first_order, mixed_mode=mixed_mode
    )
    learner = reptile(loss, inner) if workload.learner == "reptile" else maml(loss, inner)
    return Standard(params, learner, _sampler(workload))


def _model(workload: Workload) -> nnx.Module:
    rngs, shape = nnx.Rngs(0), workload.image_shape
    match workload.model:
        case "mlp":
            return models.MLP(1, 1, rngs=rngs)
        case "conv4":
            return models.Conv4(workload.ways, image_shape=shape, rngs=rngs)
        case "conv4_pool":
            return models.Conv4(workload.ways, image_shape=shape, channels=32, pool=True, rngs=rngs)
        case "resnet12":
            return models.ResNet12(workload.ways, in_channels=shape[-1], image_size=shape[:2], rngs=rngs)


def _sampler(workload: Workload) -> TaskSampler:
    if workload.model == "mlp":
        return sinusoid(workload.shots, workload.queries)
    classes, examples = 64, workload.shots + workload.queries
    noise = np.random.default_rng(0).integers(0, 256, (classes * examples, *workload.image_shape), np.uint8)
    bank = ClassBank(noise, np.arange(classes) * examples, np.full(classes, examples))
    return episodes(bank, ways=workload.ways, shots=workload.shots, queries=workload.queries)


def training_call(workload: Workload, mesh: Mesh, steps_per_call: int) -> Callable[[], None]:
    """Return a function that trains a workload with Adam for `steps_per_call` meta-steps and waits for the result."""
    parts = standard(workload)
    return training_calls(
        parts.learner,
        optax.adam(1e-3),
        parts.sampler,
        parts.params,
        tasks_per_step=workload.tasks,
        steps_per_call=steps_per_call,
        mesh=mesh,
    )


def training_calls(
    learner: MetaLearner,
    optimizer: optax.GradientTransformation,
    sampler: TaskSampler | StreamedSampler,
    params: Params,
    *,
    tasks_per_step: int,
    steps_per_call: int,
    chunk_size: int | None = None,
    mesh: Mesh | None = None,
) -> Callable[[], None]:
    """Return a function that trains for the next `steps_per_call` meta-steps and waits for the result.

    Each call continues from the training state of the previous call.

    Args:
        learner: The meta-learner.
        optimizer: The outer optimiser.
        sampler: The task sampler. If it is a `StreamedSampler`, its images are prefetched.
        params: Initial parameters of the model.
        tasks_per_step: Number of tasks in a meta-step.
        steps_per_call: Number of meta-steps in a call.
        chunk_size: As in `trainer`.
        mesh: As in `trainer`.
    """
    train = trainer(
        learner,
        optimizer,
        sampler,
        tasks_per_step=tasks_per_step,
        steps_per_call=steps_per_call,
        chunk_size=chunk_size,
        mesh=mesh,
    )
    state, batches = train.init(params), itertools.repeat(None)
    if isinstance(sampler, StreamedSampler):
        sizes = {"tasks_per_step": tasks_per_step, "steps_per_call": steps_per_call}
        batches = prefetch(sampler, state, _MANY * steps_per_call, **sizes, mesh=mesh)

    def call() -> None:
        nonlocal state
        state, metrics = train.step(state, next(batches))
        jax.block_until_ready(metrics)

    return call


def meta_gradient(workload: Workload, mesh: Mesh, params: Params, tasks: dict[str, np.ndarray]) -> Params:
    """Compute the meta-gradient of a workload, averaged over given tasks.

    Args:
        workload: The settings of the workload.
        mesh: The devices over which the tasks are split.
        params: Parameters of the model.
        tasks: The tasks, as arrays from `make_tasks`.
    """
    learner = standard(workload).learner
    support, query = (
        Batch(jnp.asarray(tasks[f"{part}_x"]), jnp.asarray(tasks[f"{part}_y"])) for part in ("support", "query")
    )

    def estimate(params: Params, task: Task):
        return learner.gradient(params, task, jax.random.key(0), ()).gradient

    chunk = default_chunk_size(params, workload.tasks, mesh)
    average = jax.jit(lambda params, tasks: average_tasks(estimate, params, tasks, chunk_size=chunk, mesh=mesh))
    return average(params, Task(support, query))


def task_flops(learner: MetaLearner, sampler: TaskSampler, params: Params) -> int:
    """Count the floating-point operations of the matrix products in the meta-gradient of one task."""
    meta_params, state = learner.init(params)
    task = jax.eval_shape(sampler, jax.random.key(0))

    def gradient(meta_params: MetaParams, task: Task) -> MetaParams:
        return learner.gradient(meta_params, task, jax.random.key(0), state).gradient

    return matrix_flops(gradient, meta_params, task)
