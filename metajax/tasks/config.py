"""The interface of tasks' settings, and the task samplers that the settings make."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

from metajax.core.checks import describe
from metajax.core.losses import classification_loss
from metajax.core.types import ApplyFn, LossFn, StreamedSampler, TaskSampler
from metajax.errors import UserError
from metajax.limits import MOST_EXAMPLES, whole
from metajax.tasks.varied import Domain


@dataclasses.dataclass(frozen=True)
class Split:
    """The task sampler of one split, and the properties of the split's data.

    Attributes:
        sampler: The sampler, `rng -> Task`.
        streamed: The same tasks with images that stay on the host, from where training prefetches them; `None` if the
            images are on the device.
        class_names: The names of the classes; empty for tasks without classes.
        bank: The class bank and the processing of its images; `None` if the split does not have one class bank on the
            device.
        domains: The sampler of each domain by name, if the tasks come from several domains.
    """

    sampler: TaskSampler
    streamed: StreamedSampler | None = None
    class_names: Sequence[str] = ()
    bank: Domain | None = None
    domains: dict[str, TaskSampler] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Tasks:
    """The tasks of an experiment by split, and the properties of the tasks that a model depends on.

    Attributes:
        splits: The splits by name (`train`, `validation`, `test`). A split may be missing.
        outputs: Number of outputs that a model needs: the number of ways, or the size of a regression target.
        loss: `apply -> loss_fn`, a function that makes the loss on a batch from a model's `apply`.
        varied_ways: Whether some tasks have fewer classes than the model has outputs; `loss` then ignores the surplus
            outputs.
        fingerprints: The number of images and a fingerprint of each part of the data by name, to detect changes of a
            data set.
        problems: The error message for each split that has too few classes or images for its tasks. `splits` does not
            have such a split, and `build` raises the error.

    >>> import metajax as mj
    >>> waves = mj.sinusoid(shots=5)
    >>> tasks = Tasks({"train": Split(waves), "test": Split(waves)}, outputs=1, loss=mj.regression_loss)
    """

    splits: dict[str, Split]
    outputs: int
    loss: Callable[[ApplyFn], LossFn]
    varied_ways: bool = False
    fingerprints: dict[str, str] = dataclasses.field(default_factory=dict)
    problems: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name, split in self.splits.items():
            if not isinstance(split, Split):
                raise UserError(f"the split {name!r} of Tasks must be Split(sampler), got {describe(split)}")


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
    loss = partial(classification_loss, varied_ways=varied)
    return dataclasses.replace(tasks, outputs=max(ways), loss=loss, varied_ways=varied)
