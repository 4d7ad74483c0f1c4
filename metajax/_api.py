"""The public names of `metajax`. The package imports this module when one of the names is first used."""

from metajax import learners, models, tasks
from metajax.errors import UserError
from metajax.evaluation import make_evaluation
from metajax.host import HostTasks, feed, host_episodes
from metajax.inner import Adapted, InnerLoop, inner_loop
from metajax.learners import (
    Estimate,
    MetaLearner,
    Part,
    anil,
    boil,
    cavia,
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
from metajax.losses import classification_loss, regression_loss
from metajax.models import functional
from metajax.parallel import average_tasks, map_tasks, task_keys, task_mesh
from metajax.partition import named, opposite
from metajax.ranks import mean_ranks
from metajax.tasks import constant_task, episodes, glyphs, sinusoid, varied_episodes
from metajax.training import TrainState, first_non_finite, init_train_state, make_train_step
from metajax.types import ApplyFn, Batch, ClassBank, LossFn, MetaParams, Params, Task, TaskSampler

__all__ = [
    "Adapted",
    "ApplyFn",
    "Batch",
    "ClassBank",
    "Estimate",
    "HostTasks",
    "InnerLoop",
    "LossFn",
    "MetaLearner",
    "MetaParams",
    "Params",
    "Part",
    "Task",
    "TaskSampler",
    "TrainState",
    "UserError",
    "anil",
    "average_tasks",
    "boil",
    "cavia",
    "classification_loss",
    "constant_task",
    "episodes",
    "feed",
    "first_non_finite",
    "foml",
    "functional",
    "glyphs",
    "host_episodes",
    "imaml",
    "init_train_state",
    "inner_loop",
    "learners",
    "lora",
    "make_evaluation",
    "make_train_step",
    "maml",
    "maml_plus_plus",
    "map_tasks",
    "mean_ranks",
    "meta_sgd",
    "models",
    "named",
    "opposite",
    "proto_maml",
    "prototypical_network",
    "regression_loss",
    "reptile",
    "sinusoid",
    "task_keys",
    "task_mesh",
    "tasks",
    "varied_episodes",
]
