"""Build the task samplers, model, loss, learner and outer optimiser of a run from an experiment's settings."""

import functools
import traceback
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
from metajax.learners import BuildContext, MetaLearner
from metajax.models import BatchNorm
from metajax.tasks.config import Tasks


class Parts(NamedTuple):
    """The parts of a run, which `build` makes from the settings of an experiment.

    Attributes:
        tasks: The task samplers, with the properties of the tasks.
        apply: The model as a pure function.
        params: The initial parameters of the model.
        loss_fn: The loss of the model on a batch.
        learner: The meta-learner.
        optimizer: The outer optimiser.
    """

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
        tasks: The tasks, if the caller has called `experiment.task.tasks(data_dir)` already. Default: `build` calls
            this method.

    Returns:
        The parts of the run. The experiment's seed determines the initial parameters of the model.

    Raises:
        UserError: If settings contradict each other, if a data set is missing, or if a split has too few classes or
            images for a task.
    """
    tasks = experiment.task.tasks(data_dir) if tasks is None else tasks
    for problem in tasks.problems.values():
        raise UserError(problem)
    if not tasks.splits:
        raise UserError("task has no split from which tasks can be sampled")
    support = _support(next(iter(tasks.splits.values())).sampler)
    rngs = nnx.Rngs(purpose_key(experiment.seed, "init"))
    try:
        module = experiment.model.build(support.x.shape[1:], tasks.outputs, rngs)
    except (AssertionError, ValueError) as error:
        raise UserError(f"model: {_message(error)}") from error
    if getattr(support, "mask", None) is not None:
        _check_padded(module)
    if tasks.varied_ways:
        _check_whole_support(experiment)
    apply, params = functional(module)
    _check_frozen(experiment.inner.frozen, params)
    loss_fn = tasks.loss(apply)
    context = BuildContext(loss_fn, experiment.inner.build(experiment.execution), apply, rngs.params())
    try:
        learner = experiment.learner.build(context)
        meta_params, _ = jax.eval_shape(lambda: learner.init(params))
        batch_size = None if experiment.inner.batch_size is None else 1
        adapt = functools.partial(learner.adapt, steps=1, batch_size=batch_size)
        jax.eval_shape(adapt, meta_params, support, jax.random.key(0))
        uses_mask = weighs_examples(loss_fn, params, support, jax.random.key(0))
    except (AssertionError, ValueError) as error:  # AssertionError: chex, or an assertion in the user's own code
        raise UserError(f"learner: {_message(error)}") from error
    if experiment.evaluation.non_transductive and not uses_mask:
        raise UserError(
            "evaluation.non_transductive: the loss of these tasks does not use data.mask, so it cannot ignore the "
            "support set in the batch of each query: weight the examples of the loss by data.mask, or set "
            "evaluation.non_transductive to False"
        )
    return Parts(tasks, apply, params, loss_fn, learner, experiment.outer.build(experiment.training.steps))


def purpose_key(seed: int, purpose: Literal["init", "train", "validation", "test"]) -> jax.Array:
    """Derive the random key for one purpose, such as validation, from the seed of an experiment.

    Each purpose gets another key.

    Raises:
        UserError: If the seed is not in `[0, 2**32)`.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"seed must be a whole number from 0 to 2³² − 1, got {seed}")
    return jax.random.fold_in(jax.random.key(seed), ["init", "train", "validation", "test"].index(purpose))


def evaluation_batch_size(experiment: Experiment, support_examples: int) -> int | None:
    """Return the number of support examples in each inner step of evaluation; `None` means the whole support set.

    If `evaluation.batch_size` is not set, evaluation uses `inner.batch_size`, or the size of the support set if that is
    smaller.

    Raises:
        UserError: If `evaluation.batch_size` is larger than the support set.
    """
    batch_size = experiment.evaluation.batch_size
    _check_batch_size("evaluation.batch_size", batch_size, support_examples)
    if batch_size is not None or experiment.inner.batch_size is None:
        return batch_size
    return min(experiment.inner.batch_size, support_examples)


def check_training(experiment: Experiment, tasks: Tasks) -> None:
    """Check that the settings and the tasks are sufficient for training and for the evaluation after training.

    Raises:
        UserError: If the tasks have no training split or no test split, if a batch size is larger than a support set,
            or if the best checkpoint shall be evaluated but there is no validation.
    """
    for split in ("train", "test"):
        if split not in tasks.splits:
            raise UserError(f"task has no {split} split, only {', '.join(tasks.splits)}")
    examples = _support(tasks.splits["train"].sampler).x.shape[0]
    _check_batch_size("inner.batch_size", experiment.inner.batch_size, examples)
    evaluation_batch_size(experiment, _support(tasks.splits["test"].sampler).x.shape[0])
    validates = experiment.validation.num_tasks and "validation" in tasks.splits
    if experiment.evaluation.checkpoint == "best" and not validates:
        raise UserError(
            'evaluation.checkpoint is "best", but nothing is validated: set validation.num_tasks above 0 and choose a '
            'task with a validation split, or set evaluation.checkpoint to "last"'
        )


def _support(sampler: TaskSampler) -> Any:
    """Return the shapes and dtypes of the support sets that a sampler samples."""
    return jax.eval_shape(sampler, jax.random.key(0)).support


def _message(error: Exception) -> str:
    """Return the message of an error. If the error has none, as after `assert x > 0`, return where it was raised."""
    if str(error):
        return str(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {place.filename}, line {place.lineno}: {place.line}"


def _check_padded(module: nnx.Module) -> None:
    """Raise a `UserError` if the model uses batch normalisation, because padding would change its statistics."""
    if any(isinstance(part, BatchNorm | nnx.BatchNorm) for _, part in nnx.iter_graph(module)):
        raise UserError(
            "model: batch normalisation would count the padding of tasks of varying size: choose --model.norm group, "
            "which normalises each example separately"
        )


def _check_whole_support(experiment: Experiment) -> None:
    """Raise a `UserError` if the inner loop uses minibatches, which may lack a class of the task or contain padding."""
    if experiment.inner.batch_size is not None or experiment.evaluation.batch_size is not None:
        raise UserError(
            "inner.batch_size and evaluation.batch_size must be None where ways differ, between training and test or "
            "from task to task: the loss counts the ways of a task in the support set, and a minibatch may lack a class"
        )


def _check_batch_size(field: str, batch_size: int | None, examples: int) -> None:
    if batch_size is not None and batch_size > examples:
        raise UserError(f"{field} is {batch_size}, but the support set has only {examples} examples")


def _check_frozen(frozen: tuple[str, ...], params: Params) -> None:
    try:
        named(*frozen).check(names(params), "inner.frozen")
    except ValueError as error:
        raise UserError(str(error)) from error
