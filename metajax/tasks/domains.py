"""Settings for tasks from several data sets, the domains of one experiment."""

import dataclasses
from functools import partial
from pathlib import Path

from metajax.core.losses import classification_loss
from metajax.errors import UserError
from metajax.limits import MOST_EXAMPLES, whole
from metajax.tasks.config import Shots, TaskConfig, Tasks
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
        by_source = {source.name: _source_tasks(source, data_dir) for source in self.sources}
        banks = {name: each.banks for name, each in by_source.items()}
        holds = {f"{name}, {split}": text for name, each in by_source.items() for split, text in each.holds.items()}
        samplers, domains, unusable = {}, {}, {}
        for split in ("train", "validation", "test"):
            taken = [each for each in self.sources if split in banks[each.name] and (each.train or split == "test")]
            if not taken:
                continue
            unusable_by_source = [by_source[source.name].unusable for source in taken]
            problems = [messages[split] for messages in unusable_by_source if split in messages]
            if problems:
                unusable[split] = problems[0]
                continue
            try:
                samplers[split] = varied_episodes(
                    [banks[source.name][split] for source in taken],
                    min_ways=self.min_ways,
                    max_ways=self.max_ways,
                    max_support=self.max_support,
                    max_support_per_class=self.max_support_per_class,
                    max_queries=self.max_queries,
                )
            except ValueError as error:
                names = ", ".join(f"{i} is {source.name}" for i, source in enumerate(taken))
                unusable[split] = f"task: {error} (split {split!r}; domain {names})"
                continue
            domains[split] = {each.name: one_domain(samplers[split], i) for i, each in enumerate(taken)}
        if "train" not in {**samplers, **unusable}:
            unusable["train"] = (
                "task.sources: no source is for training: set train=True for a source with a training split"
            )
        loss = partial(classification_loss, varied_ways=True)
        parts = {"domains": domains, "holds": holds, "unusable": unusable}
        return Tasks(samplers, self.max_ways, loss, varied_ways=True, **parts)


def _source_tasks(source: SourceConfig, data_dir: Path | None) -> Tasks:
    """Return the tasks of one source, with the smallest ways and shots, because only the class banks are used."""
    fewest = {"ways": 2, "train": Shots(shots=1, queries=1), "test": Shots(shots=1, queries=1)}
    fields = {field.name for field in dataclasses.fields(source.task)}  # pyright: ignore[reportArgumentType]
    counted = {name: value for name, value in fewest.items() if name in fields}
    spec = dataclasses.replace(source.task, **counted)  # pyright: ignore[reportArgumentType]
    made = spec.tasks(data_dir)
    if getattr(spec, "images", None) == "host":
        raise UserError(f"task.sources: the images of {source.name} must be on the device: set images='device'")
    if not made.banks:
        raise UserError(f"task.sources: {source.name} has no classes, so it cannot be a domain")
    return made
