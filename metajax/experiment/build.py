"""Build the pure functions of a run from the settings of an experiment."""

import functools
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import optax
from flax import nnx

from metajax.core.evaluator import weighs_examples
from metajax.core.functional import functional
from metajax.core.trees import named, names
from metajax.core.types import ApplyFn, LossFn, Params, TaskSampler
from metajax.errors import UserError
from metajax.experiment.settings import Experiment
from metajax.experiment.tasks import Tasks
from metajax.learners import BuildContext, MetaLearner
from metajax.models import BatchNorm


class Parts(NamedTuple):
    """The result of `build`."""

    tasks: Tasks
    apply: ApplyFn
    params: Params
    loss_fn: LossFn
    learner: MetaLearner
    optimizer: optax.GradientTransformation


def build(experiment: Experiment, data_dir: Path | None = None, *, tasks: Tasks | None = None) -> Parts:
    """Build the tasks, model, loss, learner and outer optimiser of an experiment.

    Args:
        experiment: The settings.
        data_dir: Folder of prepared data sets. Default: the default folder of `metajax data prepare`.
        tasks: The result of `experiment.task.tasks(data_dir)`, if the caller has it. Default: call it.

    Returns:
        The parts of the run. The model is initialised from the seed.

    Raises:
        UserError: If settings contradict each other, if a data set is missing, or if one of its splits has too few
            classes or images.
    """
    tasks = experiment.task.tasks(data_dir) if tasks is None else tasks
    for problem in tasks.unusable.values():
        raise UserError(problem)
    if not tasks.samplers:
        raise UserError("task has no split from which tasks can be sampled")
    support = _support(next(iter(tasks.samplers.values())))
    rngs = nnx.Rngs(purpose_key(experiment.seed, "init"))
    module = experiment.model.build(support.x.shape[1:], tasks.outputs, rngs)
    if getattr(support, "mask", None) is not None:
        _check_padded(module)
    if tasks.varied_ways:
        _check_whole_support(experiment)
    apply, params = functional(module)
    _check_frozen(experiment.inner.frozen, params)
    loss_fn = tasks.loss(apply)
    given = BuildContext(loss_fn, experiment.inner.build(experiment.execution), apply, rngs.params())
    try:
        learner = experiment.learner.build(given)
        meta_params, _ = jax.eval_shape(lambda: learner.init(params))
        batch_size = None if experiment.inner.batch_size is None else 1
        adapt = functools.partial(learner.adapt, steps=1, batch_size=batch_size)
        jax.eval_shape(adapt, meta_params, support, jax.random.key(0))
        weighs = weighs_examples(loss_fn, params, support, jax.random.key(0))
    except ValueError as error:
        raise UserError(f"learner: {error}") from error
    if experiment.evaluation.non_transductive and not weighs:
        raise UserError(
            "evaluation.non_transductive: the loss of these tasks does not use data.mask, so it cannot ignore the "
            "support set in the batch of each query: weight examples by data.mask, or set it to False"
        )
    return Parts(tasks, apply, params, loss_fn, learner, experiment.outer.build(experiment.training.steps))


def purpose_key(seed: int, purpose: Literal["init", "train", "validation", "test"]) -> jax.Array:
    """Return a separate key for each purpose of a seed.

    Raises:
        UserError: If the seed is out of range.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"seed must be a whole number from 0 to 2³² − 1, got {seed}")
    return jax.random.fold_in(jax.random.key(seed), ["init", "train", "validation", "test"].index(purpose))


def evaluation_batch_size(experiment: Experiment, support_examples: int) -> int | None:
    """Return the size of an inner minibatch in evaluation; the support set may be smaller than in training."""
    chosen = experiment.evaluation.batch_size
    _check_batch_size("evaluation.batch_size", chosen, support_examples)
    if chosen is not None or experiment.inner.batch_size is None:
        return chosen
    return min(experiment.inner.batch_size, support_examples)


def check_training(experiment: Experiment, tasks: Tasks) -> None:
    """Check the requirements of training, and those of the evaluation that follows training.

    Raises:
        UserError: If the tasks lack a split, or if a setting does not fit the tasks of a split.
    """
    for split in ("train", "test"):
        if split not in tasks.samplers:
            raise UserError(f"task has no {split} split, only {', '.join(tasks.samplers)}")
    examples = _support(tasks.samplers["train"]).x.shape[0]
    _check_batch_size("inner.batch_size", experiment.inner.batch_size, examples)
    evaluation_batch_size(experiment, _support(tasks.samplers["test"]).x.shape[0])
    validates = experiment.validation.num_tasks and "validation" in tasks.samplers
    if experiment.evaluation.checkpoint == "best" and not validates:
        raise UserError(
            'evaluation.checkpoint is "best", but nothing is validated: set validation.num_tasks above 0, with a task '
            "that has validation classes, or choose last"
        )


def _support(sampler: TaskSampler) -> Any:
    """Return the shapes of a support set."""
    return jax.eval_shape(sampler, jax.random.key(0)).support


def _check_padded(module: nnx.Module) -> None:
    """Raise a `UserError` if the model uses batch normalisation, because padding would change its statistics."""
    if any(isinstance(part, BatchNorm | nnx.BatchNorm) for _, part in nnx.iter_graph(module)):
        raise UserError(
            "model: batch normalisation would count the padding of tasks of varying size: choose --model.norm group, "
            "which normalises each example separately"
        )


def _check_whole_support(experiment: Experiment) -> None:
    """Raise a `UserError` if a batch size is set: a minibatch may lack a class of the task, or contain padding."""
    if experiment.inner.batch_size is not None or experiment.evaluation.batch_size is not None:
        raise UserError(
            "inner.batch_size and evaluation.batch_size must be None where ways differ, between training and test or "
            "from task to task: a minibatch does not show the number of ways of its task"
        )


def _check_batch_size(field: str, batch_size: int | None, examples: int) -> None:
    if batch_size is not None and batch_size > examples:
        raise UserError(f"{field} is {batch_size}, but the support set has only {examples} examples")


def _check_frozen(frozen: tuple[str, ...], params: Params) -> None:
    try:
        named(*frozen).check(names(params), "inner.frozen")
    except ValueError as error:
        raise UserError(str(error)) from error
