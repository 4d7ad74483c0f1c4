"""The public names of `metajax`. The package imports this module when one of the names is first used."""

from metajax import learners, models, tasks
from metajax.analysis.ranks import mean_ranks
from metajax.core.evaluator import Report, evaluator
from metajax.core.functional import features, functional
from metajax.core.inner_loop import Adapted, InnerLoop, inner_loop
from metajax.core.losses import classification_loss, regression_loss, weighted_mean
from metajax.core.parallel import average_tasks, map_tasks, task_keys, task_mesh
from metajax.core.trainer import Trainer, TrainState, first_non_finite, trainer
from metajax.core.trees import invert, named
from metajax.core.types import ApplyFn, Batch, ClassBank, LossFn, MetaParams, Params, StreamedSampler, Task, TaskSampler
from metajax.errors import UserError
from metajax.learners import (
    MetaGradient,
    MetaLearner,
    Modifier,
    anil,
    boil,
    cavia,
    fomaml,
    foml,
    imaml,
    lora,
    maml,
    maml_plus_plus,
    meta_sgd,
    proto_maml,
    prototypical_network,
    reptile,
)
from metajax.tasks import constant_task, episodes, glyphs, sinusoid, varied_episodes
from metajax.tasks.host import host_episodes, on_demand, prefetch

__all__ = [
    "Adapted",
    "ApplyFn",
    "Batch",
    "ClassBank",
    "InnerLoop",
    "LossFn",
    "MetaGradient",
    "MetaLearner",
    "MetaParams",
    "Modifier",
    "Params",
    "Report",
    "StreamedSampler",
    "Task",
    "TaskSampler",
    "TrainState",
    "Trainer",
    "UserError",
    "anil",
    "average_tasks",
    "boil",
    "cavia",
    "classification_loss",
    "constant_task",
    "episodes",
    "evaluator",
    "features",
    "first_non_finite",
    "fomaml",
    "foml",
    "functional",
    "glyphs",
    "host_episodes",
    "imaml",
    "inner_loop",
    "invert",
    "learners",
    "lora",
    "maml",
    "maml_plus_plus",
    "map_tasks",
    "mean_ranks",
    "meta_sgd",
    "models",
    "named",
    "on_demand",
    "prefetch",
    "proto_maml",
    "prototypical_network",
    "regression_loss",
    "reptile",
    "sinusoid",
    "task_keys",
    "task_mesh",
    "tasks",
    "trainer",
    "varied_episodes",
    "weighted_mean",
]
