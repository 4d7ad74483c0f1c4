"""Settings for tasks from several data sets, the domains of one experiment."""

import dataclasses
from functools import partial
from pathlib import Path

from metajax.core.losses import classification_loss
from metajax.errors import UserError
from metajax.limits import MOST_EXAMPLES, whole
from metajax.tasks.config import Shots, Split, TaskConfig, Tasks
from metajax.tasks.varied import one_domain, varied_episodes


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """A data set that is one of the domains of `DomainsConfig`."""

    name: str
    """Name of the domain in reports."""
    task: TaskConfig
    """Data set of the domain. Its ways and shots are ignored; `DomainsConfig` sets the sizes of tasks."""
    train: bool = True
    """True: use the domain for training, validation and test. False: use the domain only for the test."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DomainsConfig:
    """Few-shot tasks from several data sets, with random ways and random, unequal shots, as in Meta-Dataset."""

    sources: tuple[SourceConfig, ...]
    """The data sets. All images must have the same size and number of channels."""
    min_ways: int = 5
    """Smallest number of classes in a task."""
    max_ways: int = 50
    """Largest number of classes in a task; also the number of the model's outputs."""
    max_support: int = 500
    """Largest number of support examples in a task."""
    max_support_per_class: int = 100
    """Largest number of examples that one class adds to the size of a support set, when this size is sampled."""
    max_queries: int = 10
    """Largest number of query examples of each class."""

    def __post_init__(self):
        whole("task", 2, MOST_EXAMPLES, min_ways=self.min_ways, max_ways=self.max_ways)
        whole("task", 1, MOST_EXAMPLES, max_support=self.max_support, max_queries=self.max_queries)
        whole("task", 1, MOST_EXAMPLES, max_support_per_class=self.max_support_per_class)
        names = [source.name for source in self.sources]
        if not names or len(set(names)) < len(names):
            raise UserError(f"task.sources must have different names, got {', '.join(names) or 'no source'}")

    def tasks(self, data_dir: Path | None) -> Tasks:
        """Make the task samplers of all splits. A split contains the domains whose data set has this split."""
        sources = {source.name: _source_tasks(source, data_dir) for source in self.sources}
        splits, problems = {}, {}
        for split in ("train", "validation", "test"):
            used = {
                source.name: sources[source.name]
                for source in self.sources
                if _has(sources[source.name], split) and (source.train or split == "test")
            }
            if not used:
                continue
            try:
                splits[split] = self._split(split, used)
            except UserError as error:
                problems[split] = str(error)
        if "train" not in {**splits, **problems}:
            problems["train"] = (
                "task.sources: no source is for training: set train=True for a source with a training split"
            )
        return Tasks(
            splits,
            self.max_ways,
            partial(classification_loss, varied_ways=True),
            varied_ways=True,
            fingerprints={
                f"{name}, {split}": text
                for name, tasks in sources.items()
                for split, text in tasks.fingerprints.items()
            },
            problems=problems,
        )

    def _split(self, split: str, sources: dict[str, Tasks]) -> Split:
        """Make a split of the tasks of several sources by name."""
        for tasks in sources.values():
            if split in tasks.problems:
                raise UserError(tasks.problems[split])
        try:
            sampler = varied_episodes(
                [tasks.splits[split].bank for tasks in sources.values()],  # pyright: ignore[reportArgumentType]
                min_ways=self.min_ways,
                max_ways=self.max_ways,
                max_support=self.max_support,
                max_support_per_class=self.max_support_per_class,
                max_queries=self.max_queries,
            )
        except ValueError as error:
            names = ", ".join(f"{i} is {name}" for i, name in enumerate(sources))
            raise UserError(f"task: {error} (split {split!r}; domain {names})") from error
        return Split(sampler, domains={name: one_domain(sampler, i) for i, name in enumerate(sources)})


def _has(tasks: Tasks, split: str) -> bool:
    return split in tasks.splits or split in tasks.problems


def _source_tasks(source: SourceConfig, data_dir: Path | None) -> Tasks:
    """Return the tasks of one source, with the smallest ways and shots, because only the class banks are used."""
    fewest = {"ways": 2, "train": Shots(shots=1, queries=1), "test": Shots(shots=1, queries=1)}
    fields = {field.name for field in dataclasses.fields(source.task)}  # pyright: ignore[reportArgumentType]
    sizes = {name: value for name, value in fewest.items() if name in fields}
    config = dataclasses.replace(source.task, **sizes)  # pyright: ignore[reportArgumentType]
    tasks = config.tasks(data_dir)
    if getattr(config, "images", None) == "host":
        raise UserError(f"task.sources: the images of {source.name} must be on the device: set images='device'")
    if any(split.bank is None for split in tasks.splits.values()):
        raise UserError(f"task.sources: {source.name} has no classes, so it cannot be a domain")
    return tasks
