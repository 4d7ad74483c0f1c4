"""The interface of tasks' settings, and the task samplers that the settings make."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from metajax.core.losses import classification_loss
from metajax.core.types import ApplyFn, LossFn, TaskSampler
from metajax.limits import MOST_EXAMPLES, whole
from metajax.tasks.host import HostTasks
from metajax.tasks.varied import Domain


class Tasks(NamedTuple):
    """Task samplers by split, and the properties of the tasks that a model depends on.

    Attributes:
        samplers: The samplers by split (`train`, `validation`, `test`). A split may be missing.
        outputs: Number of outputs that a model needs: the number of ways, or the size of a regression target.
        loss: `apply -> loss_fn`, a function that makes the loss on a batch from a model's `apply`.
        class_names: Names of the classes of each split; empty for tasks without classes.
        banks: For each split the class bank and the processing of its images, if each split has one class bank.
        domains: For each split the samplers of its domains by name, if the tasks come from several domains.
        on_host: For each split the tasks whose images are on the host, from where training prefetches the images.
        holds: For each split the number of images and a fingerprint, to detect changes of a data set.
        varied_ways: Whether some tasks have fewer classes than the model has outputs; `loss` then ignores the surplus
            outputs.
        unusable: The error message for each split that has too few classes or images for its tasks. `samplers` does not
            have such a split, and `build` raises the error.
    """

    samplers: dict[str, TaskSampler]
    outputs: int
    loss: Callable[[ApplyFn], LossFn]
    class_names: dict[str, list[str]] = {}  # noqa: RUF012
    banks: dict[str, Domain] = {}  # noqa: RUF012
    domains: dict[str, dict[str, TaskSampler]] = {}  # noqa: RUF012
    on_host: dict[str, HostTasks] = {}  # noqa: RUF012
    holds: dict[str, str] = {}  # noqa: RUF012
    varied_ways: bool = False
    unusable: dict[str, str] = {}  # noqa: RUF012


@runtime_checkable
class TaskConfig(Protocol):
    """Settings of a family of tasks; a config file may define its own class."""

    def tasks(self, data_dir: Path | None) -> Tasks:
        """Make the task samplers of all splits; `data_dir` is the folder of prepared data sets."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shots:
    """Sizes of the support set and the query set of each task in a split."""

    shots: int = 1
    """Number of support examples; for classification, of each class."""
    queries: int = 15
    """Number of query examples; for classification, of each class."""
    ways: int | None = None
    """Number of classes in a task of this split; None for task.ways. Prototypical networks learn better if training
    tasks have more classes than test tasks. The model has one output for each class of the larger tasks; the loss
    ignores outputs without a class in the task."""

    def __post_init__(self):
        whole("task.train/test", 1, MOST_EXAMPLES, shots=self.shots, queries=self.queries)
        whole("task.train/test", 2, MOST_EXAMPLES, ways=self.ways)


def with_ways(tasks: Tasks, train: Shots, test: Shots) -> Tasks:
    """Return the tasks with the model outputs and the loss that fit the ways of training and test tasks."""
    ways = {train.ways or tasks.outputs, test.ways or tasks.outputs}
    varied = len(ways) > 1
    return tasks._replace(outputs=max(ways), loss=partial(classification_loss, varied_ways=varied), varied_ways=varied)
