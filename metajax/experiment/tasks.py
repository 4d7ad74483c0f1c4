"""Where an experiment's tasks come from, as settings."""

import dataclasses
import itertools
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

from metajax import data, tasks
from metajax.data.dataset import proportional
from metajax.errors import UserError
from metajax.experiment.checks import LARGEST, LARGEST_IMAGE, MOST_EXAMPLES, in_range, whole
from metajax.files import expand_home
from metajax.host import HostTasks, host_episodes
from metajax.losses import classification_loss, regression_loss
from metajax.types import ApplyFn, ClassBank, LossFn, TaskSampler


class Tasks(NamedTuple):
    """Samplers by split, and what a model needs to know of them.

    Attributes:
        samplers: A sampler for each of `train`, `validation` and `test` that exists.
        outputs: Outputs of a model: the ways, or the size of a target.
        loss: From a model's `apply` to the loss on a batch.
        class_names: Names of the classes of each split; empty where there are none.
        banks: The class bank of each split and what is made of its images, where tasks are episodes of one.
        domains: For each split the samplers of its domains by name, where tasks come from several.
        on_host: Those of each split whose images stay on the host, which training may fetch ahead.
        holds: How much each split has, and a fingerprint, to tell whether a data set is still the same.
        varied_ways: Whether some tasks have fewer classes than the model has outputs; `loss` then leaves out the rest.
    """

    samplers: dict[str, TaskSampler]
    outputs: int
    loss: Callable[[ApplyFn], LossFn]
    class_names: dict[str, list[str]] = {}  # noqa: RUF012
    banks: dict[str, tasks.Domain] = {}  # noqa: RUF012
    domains: dict[str, dict[str, TaskSampler]] = {}  # noqa: RUF012
    on_host: dict[str, HostTasks] = {}  # noqa: RUF012
    holds: dict[str, str] = {}  # noqa: RUF012
    varied_ways: bool = False


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
    ways: int | None = None
    """Classes of a task in this split, by default `task.ways`. Prototypes are learned better from more classes than
    they are tested with; a learned head has an output for each, and those that a task has no class for do not count."""

    def __post_init__(self):
        whole("task.train/test", 1, MOST_EXAMPLES, shots=self.shots, queries=self.queries)
        whole("task.train/test", 2, MOST_EXAMPLES, ways=self.ways)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sinusoid:
    """Sinusoids of random amplitude and phase."""

    train: Shots = Shots(shots=10, queries=10)
    test: Shots = Shots(shots=5, queries=100)
    oracle: bool = False
    """Amplitude and phase are among the inputs: a bound on what adaptation can reach."""

    def __post_init__(self):
        if self.train.ways or self.test.ways:
            raise UserError("task: sinusoids have no classes, so train and test can have no ways")

    def tasks(self, data_dir: Path | None) -> Tasks:
        """Make the samplers."""
        test = tasks.sinusoid(self.test.shots, self.test.queries, oracle=self.oracle)
        train = tasks.sinusoid(self.train.shots, self.train.queries, oracle=self.oracle)
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
        whole("task", 2, MOST_EXAMPLES, ways=self.ways)
        whole("task", 1, LARGEST_IMAGE, size=self.size)
        in_range("task", 0, 100, drawer=self.drawer)

    def tasks(self, data_dir: Path | None) -> Tasks:
        """Make the samplers."""

        def sampler(sizes: Shots) -> TaskSampler:
            return tasks.glyphs(
                ways=sizes.ways or self.ways,
                shots=sizes.shots,
                queries=sizes.queries,
                size=self.size,
                drawer=self.drawer,
            )

        test = sampler(self.test)
        samplers = {"train": sampler(self.train), "validation": test, "test": test}
        return _with_ways(Tasks(samplers, self.ways, classification_loss), self.train, self.test)


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
        whole("task", 2, MOST_EXAMPLES, ways=self.ways)
        whole("task", 1, LARGEST_IMAGE, size=self.size)

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
        whole("task", 2, MOST_EXAMPLES, ways=self.ways)
        whole("task", 0, LARGEST_IMAGE, shift=self.shift)

    def tasks(self, data_dir: Path | None) -> Tasks:
        """Make the samplers."""
        dataset = data.load_fashion_mnist(split=self.split, data_dir=data_dir)
        return _augmented(dataset, self.ways, self.train, self.test, self.flip, self.shift)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images:
    """Photographs, drawings or characters of a prepared data set, tasks made of its classes."""

    dataset: Literal[
        "cifar100", "emnist", "kmnist", "quickdraw_bitmap", "caltech_birds2011", "oxford_flowers102", "dtd"
    ] = "cifar100"
    """A data set of `metajax data list`."""
    split: str | None = None
    """Which of its splits by class, e.g. cifar_fs or fc100; by default its first."""
    ways: int = 5
    """Classes in a task."""
    train: Shots = Shots()
    test: Shots = Shots()
    size: int | None = None
    """Images are cropped to a square and resized to so many pixels; by default what is usual for the data set."""
    flip: bool | None = None
    """Mirror images at random in training; by default where the mirror image shows the same thing."""
    shift: int = 4
    """Move images by up to so many pixels in training."""
    images: Literal["device", "host"] = "device"
    """Where all images are kept: on the host, from where they are fetched ahead, if the device cannot hold them."""

    def __post_init__(self):
        whole("task", 2, MOST_EXAMPLES, ways=self.ways)
        whole("task", 1, LARGEST_IMAGE, size=self.size)
        whole("task", 0, LARGEST_IMAGE, shift=self.shift)

    def tasks(self, data_dir: Path | None) -> Tasks:
        """Make the samplers."""
        images = data.IMAGE_SETS[self.dataset]
        dataset = data.load(self.dataset, split=self.split, size=self.size, data_dir=data_dir)
        flip = images.mirrors if self.flip is None else self.flip
        return _augmented(dataset, self.ways, self.train, self.test, flip, self.shift, on_host=self.images == "host")


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
    images: Literal["device", "host"] = "device"
    """Where all images are kept: on the host, from where they are fetched ahead, if the device cannot hold them."""
    split_lists: Path | None = None
    """A folder of published lists, train/val/test.csv (filename,label) or .txt (class names): mini-ImageNet's."""
    strict: bool = False
    """A corrupt image is an error, and not skipped with a warning."""

    def __post_init__(self):
        for name in ("source", "split_lists"):  # a run may be evaluated from another folder than it began in
            path = getattr(self, name)
            if path is not None:
                object.__setattr__(self, name, expand_home(path).absolute())
        whole("task", 2, MOST_EXAMPLES, ways=self.ways)
        whole("task", 1, LARGEST_IMAGE, size=self.size)
        whole("task", 0, LARGEST_IMAGE, shift=self.shift)
        whole("task", 0, LARGEST, split_seed=self.split_seed)

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
            split_lists=self.split_lists,
        )
        on_host = self.images == "host"
        return _augmented(dataset, self.ways, self.train, self.test, self.flip, self.shift, on_host=on_host)


def _augmented(
    dataset: data.Dataset, ways: int, train: Shots, test: Shots, flip: bool, shift: int, *, on_host: bool = False
) -> Tasks:
    """Samplers for every split of a data set, whose images are mirrored and moved in training."""
    transforms = [*([tasks.flip] if flip else []), *([tasks.shift(shift)] if shift else [])]
    options = {"transform": tasks.chain(*transforms) if transforms else None}
    return _episodes(dataset, ways, train, test, {"train": options}, on_host=on_host)


def _episodes(
    dataset: data.Dataset,
    ways: int,
    train: Shots,
    test: Shots,
    options: dict[str, dict[str, Any]],
    *,
    on_host: bool = False,
) -> Tasks:
    """Samplers for every split of a data set, with the options of each."""
    make = host_episodes if on_host else tasks.episodes

    def episodes(split: str, bank: ClassBank) -> Any:
        sizes = train if split == "train" else test
        _check_classes(dataset, split, sizes.ways or ways, turned={s for s in options if options[s].get("rotations")})
        examples, smallest = sizes.shots + sizes.queries, int(bank.counts.argmin())
        if bank.counts[smallest] < examples:
            raise UserError(
                f"task: shots + queries = {sizes.shots} + {sizes.queries} = {examples}, but class "
                f"{dataset.class_names[split][smallest]!r} of split {split!r} of {_named(dataset)} has only "
                f"{bank.counts[smallest]} examples: set fewer --task.{_sizes_of(split)}.queries or shots, or leave the "
                "class out"
            )
        try:
            return make(
                bank, ways=sizes.ways or ways, shots=sizes.shots, queries=sizes.queries, **options.get(split, {})
            )
        except ValueError as error:
            raise UserError(f"task: {error} (split {split!r} of {_named(dataset)})") from error

    made = {split: episodes(split, bank) for split, bank in dataset.splits.items()}
    holds = {split: _held(bank, dataset.class_names[split]) for split, bank in dataset.splits.items()}
    if on_host:
        samplers = {split: each.sampler for split, each in made.items()}
        whole = Tasks(samplers, ways, classification_loss, dataset.class_names, on_host=made, holds=holds)
    else:
        banks = {split: tasks.Domain(bank, **options.get(split, {})) for split, bank in dataset.splits.items()}
        whole = Tasks(made, ways, classification_loss, dataset.class_names, banks, holds=holds)
    return _with_ways(whole, train, test)


def _check_classes(dataset: data.Dataset, split: str, ways: int, turned: set[str]) -> None:
    """Raise a `UserError` unless a split has the classes of a task; those `turned` count each class four times."""
    sizes = {name: len(bank.counts) * (4 if name in turned else 1) for name, bank in dataset.splits.items()}
    if ways <= sizes[split]:
        return
    classes = f"{sizes[split]} class{'es' if sizes[split] != 1 else ''}"
    advice = "add classes"
    if sizes == proportional(sum(sizes.values())):  # the sizes of a random split
        needed = next(n for n in itertools.count(3) if min(proportional(n).values()) >= ways)
        advice += f" (a random split needs about {needed} in all)"
    if min(sizes.values()) >= 2:
        advice += f", or set --task.ways {min(sizes.values())}"
    raise UserError(
        f"task: {_named(dataset)} has only {classes} in its split {split!r}, and a task has {ways} ways: {advice}"
    )


def _sizes_of(split: str) -> str:
    return "train" if split == "train" else "test"


def _named(dataset: data.Dataset) -> str:
    return f"{dataset.name} ({dataset.place})" if dataset.place else dataset.name


def _held(bank: ClassBank, names: list[str]) -> str:
    """How much, and a fingerprint: of the names and sizes of classes, and of an image of each."""
    said = zlib.crc32(repr((names, bank.counts.tolist())).encode())
    said = zlib.crc32(np.asarray(bank.images[bank.starts]).tobytes(), said)
    return f"{bank.counts.sum()} images of {len(bank.counts)} classes ({said:08x})"


def _with_ways(tasks: Tasks, train: Shots, test: Shots) -> Tasks:
    """Tasks whose training and test have the ways of their own that they ask for."""
    ways = {train.ways or tasks.outputs, test.ways or tasks.outputs}
    varied = len(ways) > 1
    return tasks._replace(outputs=max(ways), loss=partial(classification_loss, varied_ways=varied), varied_ways=varied)
