"""Settings of few-shot tasks from the data sets on disk.

`import metajax` does not import this module, because data sets need more packages than the library.
"""

import dataclasses
import itertools
import logging
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np

from metajax import data
from metajax.core.losses import classification_loss
from metajax.core.types import ClassBank
from metajax.data.dataset import proportional
from metajax.data.standard import standard_name
from metajax.errors import UserError
from metajax.limits import LARGEST, LARGEST_IMAGE, MOST_EXAMPLES, whole
from metajax.system.files import expand_home
from metajax.tasks import augment
from metajax.tasks.config import Shots, Split, Tasks, with_ways
from metajax.tasks.episodes import episodes
from metajax.tasks.host import host_episodes, on_demand
from metajax.tasks.varied import Domain

_LOG = logging.getLogger("metajax.data")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OmniglotConfig:
    """Handwritten characters of 50 alphabets: 1,623 classes with 20 drawings each."""

    ways: int = 5
    """Number of classes (characters) in a task."""
    train: Shots = Shots(shots=1, queries=1)
    test: Shots = Shots()
    split: Literal["random_character", "alphabet"] = "random_character"
    """Split of the characters: 1,100/100/423 at random, or 964/659 by alphabet (harder; no validation characters)."""
    rotations: Literal["all", "train", "none"] = "all"
    """Where characters rotated by 90°, 180° and 270° are additional classes: in all splits, only in training, or
    nowhere."""
    invert: bool = True
    """True: ink is 1 and the background is 0, as in MAML. False: ink is 0 and the background is 1, as in Reptile."""
    size: int = 28
    """Height and width of the images, in pixels."""

    def __post_init__(self):
        whole("task", 2, MOST_EXAMPLES, ways=self.ways)
        whole("task", 1, LARGEST_IMAGE, size=self.size)

    def tasks(self, data_dir: Path | None) -> Tasks:
        """Make the task samplers of all splits; see `TaskConfig.tasks`."""
        dataset = data.load_omniglot(split=self.split, size=self.size, data_dir=data_dir)
        transform = augment.invert if self.invert else None
        rotated = {"all": ("train", "validation", "test"), "train": ("train",), "none": ()}[self.rotations]
        return _episodes(
            dataset,
            self.ways,
            self.train,
            self.test,
            {split: {"rotations": split in rotated, "transform": transform} for split in dataset.splits},
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FashionMNISTConfig:
    """Images of ten kinds of clothing, 7,000 of each."""

    ways: int = 5
    """Number of classes in a task."""
    train: Shots = Shots()
    test: Shots = Shots()
    split: Literal["by_class", "by_example"] = "by_class"
    """Split by class (0-4 for training, 5-9 for test), or by image (all ten classes in both)."""
    flip: bool = True
    """Mirror images at random in training."""
    shift: int = 2
    """Shift images at random by up to this number of pixels in training."""

    def __post_init__(self):
        whole("task", 2, MOST_EXAMPLES, ways=self.ways)
        whole("task", 0, LARGEST_IMAGE, shift=self.shift)

    def tasks(self, data_dir: Path | None) -> Tasks:
        """Make the task samplers of all splits; see `TaskConfig.tasks`."""
        dataset = data.load_fashion_mnist(split=self.split, data_dir=data_dir)
        return _augmented(dataset, self.ways, self.train, self.test, self.flip, self.shift)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImagesConfig:
    """Tasks with the classes of a prepared data set: photographs, drawings or characters."""

    dataset: Literal[
        "cifar100", "emnist", "kmnist", "quickdraw_bitmap", "caltech_birds2011", "oxford_flowers102", "dtd"
    ] = "cifar100"
    """Name of a data set from `metajax data list`."""
    split: str | None = None
    """Name of the data set's partition of classes into training, validation and test, such as cifar_fs or fc100; None
    for the first partition of the data set."""
    ways: int = 5
    """Number of classes in a task."""
    train: Shots = Shots()
    test: Shots = Shots()
    size: int | None = None
    """Side in pixels to which square crops of the images are resized; None for the usual size of the data set."""
    flip: bool | None = None
    """Mirror images at random in training; None mirrors images only if a mirror image belongs to the same class."""
    shift: int = 4
    """Shift images at random by up to this number of pixels in training."""
    images: Literal["device", "host"] = "device"
    """Memory for the images: device, or host for images that do not fit on the device. Training prefetches images from
    the host."""

    def __post_init__(self):
        whole("task", 2, MOST_EXAMPLES, ways=self.ways)
        whole("task", 1, LARGEST_IMAGE, size=self.size)
        whole("task", 0, LARGEST_IMAGE, shift=self.shift)

    def tasks(self, data_dir: Path | None) -> Tasks:
        """Make the task samplers of all splits; see `TaskConfig.tasks`."""
        images = data.IMAGE_SETS[self.dataset]
        dataset = data.load(self.dataset, split=self.split, size=self.size, data_dir=data_dir)
        flip = images.mirrors if self.flip is None else self.flip
        return _augmented(dataset, self.ways, self.train, self.test, flip, self.shift, on_host=self.images == "host")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderConfig:
    """A folder (or zip) of the user's own images, `split/class/image` or `class/image`."""

    source: Path | None = None
    """Path of the folder or zip file with the images."""
    ways: int = 5
    """Number of classes in a task."""
    train: Shots = Shots()
    test: Shots = Shots()
    size: int = 84
    """Side in pixels to which square crops of the images are resized."""
    channels: Literal[1, 3] = 3
    """Channels of the images: 1 for greyscale, 3 for colour."""
    flip: bool = True
    """Mirror images at random in training."""
    shift: int = 4
    """Shift images at random by up to this number of pixels in training."""
    split_seed: int = 0
    """Seed of the random split of the classes, if the folder has no folders for the splits."""
    images: Literal["device", "host"] = "device"
    """Memory for the images: device, or host for images that do not fit on the device. Training prefetches images from
    the host."""
    split_lists: Path | None = None
    """A folder with published list files that define the splits, as for mini-ImageNet: train.csv, val.csv and test.csv
    with the columns filename and label, or train.txt, val.txt and test.txt with class names."""
    strict: bool = False
    """Stop with an error at a corrupt image, instead of skipping the image with a warning."""
    standard: Literal["mini-ImageNet"] | None = None
    """A published data set. If the splits, classes and numbers of images are others, a warning says so, because scores
    on other data cannot be compared with published scores."""

    def __post_init__(self):
        for name in ("source", "split_lists"):  # evaluation may run in another working directory
            path = getattr(self, name)
            if path is not None:
                object.__setattr__(self, name, expand_home(path).absolute())
        whole("task", 2, MOST_EXAMPLES, ways=self.ways)
        whole("task", 1, LARGEST_IMAGE, size=self.size)
        whole("task", 0, LARGEST_IMAGE, shift=self.shift)
        whole("task", 0, LARGEST, split_seed=self.split_seed)

    def tasks(self, data_dir: Path | None) -> Tasks:
        """Make the task samplers of all splits; see `TaskConfig.tasks`."""
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
        if self.standard is not None:
            _check_standard(dataset, self.standard)
        on_host = self.images == "host"
        return _augmented(dataset, self.ways, self.train, self.test, self.flip, self.shift, on_host=on_host)


def _check_standard(dataset: data.Dataset, expected: str) -> None:
    """Log whether a data set is the published data set `expected`."""
    name = standard_name(dataset)
    if name is not None and name.startswith(expected):
        _LOG.info("%s: the classes and numbers of images are those of %s", dataset.place, name)
        return
    sizes = ", ".join(
        f"{split} {len(bank.counts)} classes of {bank.counts.min()} to {bank.counts.max()} images"
        for split, bank in dataset.splits.items()
    )
    _LOG.warning(
        "%s is not the published %s (%s): scores cannot be compared with published scores. The published data has 64 "
        "training, 16 validation and 20 test classes with names such as n01532829, and 600 images of each class",
        dataset.place,
        expected,
        sizes,
    )


def _augmented(
    dataset: data.Dataset, ways: int, train: Shots, test: Shots, flip: bool, shift: int, *, on_host: bool = False
) -> Tasks:
    """Make the task samplers of a data set, with training images that are mirrored and shifted at random."""
    transforms = [*([augment.flip] if flip else []), *([augment.shift(shift)] if shift else [])]
    options = {"transform": augment.chain(*transforms) if transforms else None}
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
    """Make a task sampler for each split that has enough classes and images.

    `options` has the keyword arguments for each split's sampler.
    """
    rotated = {split for split in options if options[split].get("rotations")}

    def make(split: str, bank: ClassBank) -> Split:
        sizes, names = train if split == "train" else test, dataset.class_names[split]
        _check_classes(dataset, split, sizes.ways or ways, rotated)
        examples, smallest = sizes.shots + sizes.queries, int(bank.counts.argmin())
        if bank.counts[smallest] < examples:
            raise UserError(
                f"task: shots + queries = {sizes.shots} + {sizes.queries} = {examples}, but class "
                f"{names[smallest]!r} of split {split!r} of {_named(dataset)} has only "
                f"{bank.counts[smallest]} examples: set fewer --task.{_sizes_of(split)}.queries or shots, or leave the "
                "class out"
            )
        settings = {"ways": sizes.ways or ways, "shots": sizes.shots, "queries": sizes.queries}
        processing = options.get(split, {})
        try:
            if on_host:
                streamed = host_episodes(bank, **settings, **processing)
                return Split(on_demand(streamed), streamed=streamed, class_names=names)
            sampler = episodes(bank, **settings, **processing)
            return Split(sampler, class_names=names, bank=Domain(bank, **processing))
        except ValueError as error:
            raise UserError(f"task: {error} (split {split!r} of {_named(dataset)})") from error

    splits, problems = {}, {}
    for name, bank in dataset.splits.items():
        try:
            splits[name] = make(name, bank)
        except UserError as error:  # the error counts only if this split is used
            problems[name] = str(error)
    fingerprints = {name: _fingerprint(bank, dataset.class_names[name]) for name, bank in dataset.splits.items()}
    tasks = Tasks(splits, ways, classification_loss, fingerprints=fingerprints, problems=problems)
    return with_ways(tasks, train, test)


def _check_classes(dataset: data.Dataset, split: str, ways: int, rotated: set[str]) -> None:
    """Raise a `UserError` unless a split has enough classes for a task.

    In the splits `rotated`, the three rotations of each class count as additional classes.
    """
    sizes = {name: len(bank.counts) * (4 if name in rotated else 1) for name, bank in dataset.splits.items()}
    if ways <= sizes[split]:
        return
    classes = f"{sizes[split]} class{'es' if sizes[split] != 1 else ''}"
    advice = "add classes"
    if sizes == proportional(sum(sizes.values())):  # the classes were split at random, with these sizes
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


def _fingerprint(bank: ClassBank, names: list[str]) -> str:
    """Return the size of a class bank, and a fingerprint of its class names, class sizes and first images, as text."""
    checksum = zlib.crc32(repr((names, bank.counts.tolist())).encode())
    checksum = zlib.crc32(np.asarray(bank.images[bank.starts]).tobytes(), checksum)
    return f"{bank.counts.sum()} images of {len(bank.counts)} classes ({checksum:08x})"
