"""Where an experiment's tasks come from, as settings."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from metajax import data, tasks
from metajax.errors import UserError
from metajax.experiment.checks import at_least
from metajax.losses import classification_loss, regression_loss
from metajax.tasks.episodes import Transform
from metajax.types import ApplyFn, LossFn, TaskSampler


class Tasks(NamedTuple):
    """Samplers by split, and what a model needs to know of them.

    Attributes:
        samplers: A sampler for each of `train`, `validation` and `test` that exists.
        outputs: Outputs of a model: the ways, or the size of a target.
        loss: From a model's `apply` to the loss on a batch.
        class_names: Names of the classes of each split; empty where there are none.
        banks: The class bank of each split and what is made of its images, where tasks are episodes of one.
        domains: For each split the samplers of its domains by name, where tasks come from several.
    """

    samplers: dict[str, TaskSampler]
    outputs: int
    loss: Callable[[ApplyFn], LossFn]
    class_names: dict[str, list[str]] = {}  # noqa: RUF012
    banks: dict[str, tasks.Domain] = {}  # noqa: RUF012
    domains: dict[str, dict[str, TaskSampler]] = {}  # noqa: RUF012


@runtime_checkable
class TaskSpec(Protocol):
    """A family of tasks as settings; a config file may bring its own."""

    def tasks(self, data_dir: Path | None) -> Tasks:
        """Make the samplers; `data_dir` is where data sets are prepared."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shots:
    """Sizes of a task's two sets."""

    shots: int = 1
    """Support examples (of each class)."""
    queries: int = 15
    """Query examples (of each class)."""

    def __post_init__(self):
        at_least("task.train and task.test", 1, shots=self.shots, queries=self.queries)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sinusoid:
    """Sinusoids of random amplitude and phase."""

    train: Shots = Shots(shots=10, queries=10)
    test: Shots = Shots(shots=5, queries=100)

    def tasks(self, data_dir: Path | None) -> Tasks:
        """Make the samplers."""
        test = tasks.sinusoid(self.test.shots, self.test.queries)
        train = tasks.sinusoid(self.train.shots, self.train.queries)
        return Tasks({"train": train, "validation": test, "test": test}, 1, regression_loss)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Glyphs:
    """Characters that the computer invents, without end."""

    ways: int = 5
    """Characters in a task."""
    train: Shots = Shots(shots=1, queries=1)
    test: Shots = Shots()
    size: int = 28
    """Side of an image, in pixels."""
    drawer: float = 1.0
    """How much drawers differ: 0 not at all, 1 about as in Omniglot."""

    def __post_init__(self):
        at_least("task", 2, ways=self.ways)
        at_least("task", 1, size=self.size)
        at_least("task", 0, drawer=self.drawer)

    def tasks(self, data_dir: Path | None) -> Tasks:
        """Make the samplers."""

        def sampler(sizes: Shots) -> TaskSampler:
            return tasks.glyphs(
                ways=self.ways, shots=sizes.shots, queries=sizes.queries, size=self.size, drawer=self.drawer
            )

        test = sampler(self.test)
        samplers = {"train": sampler(self.train), "validation": test, "test": test}
        return Tasks(samplers, self.ways, classification_loss)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Omniglot:
    """Handwritten characters of 50 alphabets, 1,623 classes of 20 drawings."""

    ways: int = 5
    """Characters in a task."""
    train: Shots = Shots(shots=1, queries=1)
    test: Shots = Shots()
    split: Literal["random_character", "alphabet"] = "random_character"
    """1,100/100/423 characters at random, or 964/659 by alphabet (harder; no validation characters)."""
    rotations: Literal["all", "train", "none"] = "all"
    """Where characters turned by 90°, 180°, 270° are classes too: at test as well, in training only, or nowhere."""
    invert: bool = True
    """Ink as 1 on a ground of 0 (MAML), or as drawn, dark on light (Reptile)."""
    size: int = 28
    """Side of an image, in pixels."""

    def __post_init__(self):
        at_least("task", 2, ways=self.ways)

    def tasks(self, data_dir: Path | None) -> Tasks:
        """Make the samplers."""
        dataset = data.load_omniglot(split=self.split, size=self.size, data_dir=data_dir)
        transform = tasks.invert if self.invert else None
        turned = {"all": ("train", "validation", "test"), "train": ("train",), "none": ()}[self.rotations]
        return _episodes(
            dataset,
            self.ways,
            self.train,
            self.test,
            {split: {"rotations": split in turned, "transform": transform} for split in dataset.splits},
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FashionMNIST:
    """Pictures of ten kinds of clothing, 7,000 of each."""

    ways: int = 5
    """Classes in a task."""
    train: Shots = Shots()
    test: Shots = Shots()
    split: Literal["by_class", "by_example"] = "by_class"
    """Classes 0-4 for training and 5-9 for test, or all ten in both and other pictures."""
    flip: bool = True
    """Mirror pictures at random in training."""
    shift: int = 2
    """Move pictures by up to so many pixels in training."""

    def __post_init__(self):
        at_least("task", 2, ways=self.ways)
        at_least("task", 0, shift=self.shift)

    def tasks(self, data_dir: Path | None) -> Tasks:
        """Make the samplers."""
        dataset = data.load_fashion_mnist(split=self.split, data_dir=data_dir)
        return _episodes(
            dataset,
            self.ways,
            self.train,
            self.test,
            {"train": {"transform": _augmentation(self.flip, self.shift)}},
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder (or zip) of the user's own images, `split/class/image` or `class/image`."""

    source: Path | None = None
    """The folder or zip file."""
    ways: int = 5
    """Classes in a task."""
    train: Shots = Shots()
    test: Shots = Shots()
    size: int = 84
    """Images are cropped to a square and resized to so many pixels."""
    channels: Literal[1, 3] = 3
    """Grey or colour."""
    flip: bool = True
    """Mirror images at random in training."""
    shift: int = 4
    """Move images by up to so many pixels in training."""
    split_seed: int = 0
    """Splits the classes, where the folder does not say which are for training and which for test."""
    strict: bool = False
    """A corrupt image is an error, and not skipped with a warning."""

    def __post_init__(self):
        at_least("task", 2, ways=self.ways)
        at_least("task", 1, size=self.size)
        at_least("task", 0, shift=self.shift)

    def tasks(self, data_dir: Path | None) -> Tasks:
        """Make the samplers."""
        if self.source is None:
            raise UserError("task.source is not set: name the folder of images with --task.source FOLDER")
        dataset = data.load_folder(
            self.source,
            size=self.size,
            channels=self.channels,
            split_seed=self.split_seed,
            strict=self.strict,
            data_dir=data_dir,
        )
        return _episodes(
            dataset,
            self.ways,
            self.train,
            self.test,
            {"train": {"transform": _augmentation(self.flip, self.shift)}},
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """One domain of `Domains`."""

    name: str
    """What reports call it."""
    task: TaskSpec
    """Its data set; ways and shots are those of `Domains`."""
    train: bool = True
    """Whether it is trained on, and validated, or kept for the test."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Domains:
    """Classes of several data sets, in episodes of random ways and random, unequal shots: Meta-Dataset's protocol."""

    sources: tuple[Source, ...]
    """The data sets; their images must be of one size, with as many channels."""
    min_ways: int = 5
    """Fewest classes in a task."""
    max_ways: int = 50
    """Most classes in a task, and outputs of the model."""
    max_support: int = 500
    """Most support examples of a task."""
    max_support_per_class: int = 100
    """What a class adds to the size of the support set, at most."""
    max_queries: int = 10
    """Most query examples of each class."""

    def __post_init__(self):
        at_least("task", 2, min_ways=self.min_ways)
        at_least("task", 1, max_support_per_class=self.max_support_per_class, max_queries=self.max_queries)
        names = [source.name for source in self.sources]
        if not names or len(set(names)) < len(names):
            raise UserError(f"task.sources must have names of their own, got {', '.join(names) or 'no source'}")

    def tasks(self, data_dir: Path | None) -> Tasks:
        """Make the samplers; a split has the domains whose data set has it."""
        banks = {source.name: _banks(source, data_dir) for source in self.sources}
        samplers, domains = {}, {}
        for split in ("train", "validation", "test"):
            taken = [each for each in self.sources if split in banks[each.name] and (each.train or split == "test")]
            if not taken:
                continue
            try:
                samplers[split] = tasks.varied_episodes(
                    [banks[source.name][split] for source in taken],
                    min_ways=self.min_ways,
                    max_ways=self.max_ways,
                    max_support=self.max_support,
                    max_support_per_class=self.max_support_per_class,
                    max_queries=self.max_queries,
                )
            except ValueError as error:
                names = ", ".join(f"{i} is {source.name}" for i, source in enumerate(taken))
                raise UserError(f"task: {error} (split {split!r}; domain {names})") from error
            domains[split] = {each.name: tasks.one_domain(samplers[split], i) for i, each in enumerate(taken)}
        if "train" not in samplers:
            raise UserError("task.sources: none is trained on: set train=True for one that has a training split")
        loss = partial(classification_loss, varied_ways=True)
        return Tasks(samplers, self.max_ways, loss, domains=domains)


def _banks(source: Source, data_dir: Path | None) -> dict[str, tasks.Domain]:
    """The banks of a source, whose own ways and shots do not count."""
    fewest = {"ways": 2, "train": Shots(shots=1, queries=1), "test": Shots(shots=1, queries=1)}
    fields = {field.name for field in dataclasses.fields(source.task)}  # pyright: ignore[reportArgumentType]
    counted = {name: value for name, value in fewest.items() if name in fields}
    spec = dataclasses.replace(source.task, **counted)  # pyright: ignore[reportArgumentType]
    banks = spec.tasks(data_dir).banks
    if not banks:
        raise UserError(f"task.sources: {source.name} is no data set of classes, so it can be no domain")
    return banks


def _augmentation(flip: bool, shift: int) -> Transform | None:
    transforms = [*([tasks.flip] if flip else []), *([tasks.shift(shift)] if shift else [])]
    return tasks.chain(*transforms) if transforms else None


def _episodes(dataset: data.Dataset, ways: int, train: Shots, test: Shots, options: dict[str, dict[str, Any]]) -> Tasks:
    """Samplers for every split of a data set, with the options of each."""

    def sampler(split: str, bank) -> TaskSampler:
        sizes = train if split == "train" else test
        examples, smallest = sizes.shots + sizes.queries, int(bank.counts.argmin())
        if bank.counts[smallest] < examples:
            raise UserError(
                f"task: shots + queries = {sizes.shots} + {sizes.queries} = {examples}, but class "
                f"{dataset.class_names[split][smallest]!r} of split {split!r} of {dataset.name} has only "
                f"{bank.counts[smallest]} examples"
            )
        try:
            return tasks.episodes(bank, ways=ways, shots=sizes.shots, queries=sizes.queries, **options.get(split, {}))
        except ValueError as error:
            raise UserError(f"task: {error} (split {split!r} of {dataset.name})") from error

    samplers = {split: sampler(split, bank) for split, bank in dataset.splits.items()}
    banks = {split: tasks.Domain(bank, **options.get(split, {})) for split, bank in dataset.splits.items()}
    return Tasks(samplers, ways, classification_loss, dataset.class_names, banks)
