"""Define data sets as class banks, one for each split, and functions that split decoded images by class."""

import contextlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metajax.core.types import ClassBank
from metajax.errors import UserError
from metajax.limits import LARGEST_IMAGE

_LOG = logging.getLogger("metajax.data")


class Dataset(NamedTuple):
    """A data set split into class banks.

    Attributes:
        name: Name of the data set and of the way it is split, e.g. `omniglot/alphabet`.
        splits: A `ClassBank` of NumPy arrays for each split: `train`, `test`, and `validation` if the data set has it.
            The images may be read-only views of a file on disk.
        class_names: For each split, the class names in the order of the classes in its `ClassBank`.
        skipped: Messages about image files that could not be read; empty unless the data set is a folder of images.
        place: Path of the images: the user's folder or archive, or the folder of the prepared data set.
    """

    name: str
    splits: dict[str, ClassBank]
    class_names: dict[str, list[str]]
    skipped: tuple[str, ...] = ()
    place: Path | None = None


class DatasetInfo(NamedTuple):
    """The description of a data set, available without loading it.

    Attributes:
        title: Full name of the data set.
        licence: Licence of the data set.
        description: One sentence about the images.
        splits: `{name: description}` of the ways to split the classes for training and test; the first is the default.
        size: Default side of an image in pixels.
        load: `(data_dir, **options) -> Dataset`, called with keyword arguments.
        prepare: `(source, data_dir) -> folder of the prepared data`.
        is_prepared: `data_dir -> bool`, whether the data set can be loaded.
    """

    title: str
    licence: str
    description: str
    splits: dict[str, str]
    size: int
    load: Callable[..., Dataset]
    prepare: Callable[[Path | None, Path | None], Path]
    is_prepared: Callable[[Path | None], bool]


class Bank(NamedTuple):
    """All decoded images of a data set, sorted by class, before the classes are split into training and test.

    Attributes:
        images: `uint8[examples, height, width, channels]`.
        counts: `int32[classes]`, the number of images of each class.
        names: The name of each class.
        skipped: Messages about image files that could not be read.
    """

    images: np.ndarray
    counts: np.ndarray
    names: list[str]
    skipped: list[str]


def select(bank: Bank, classes: Sequence[int]) -> ClassBank:
    """Return a `ClassBank` with some classes of a `Bank`, in the order of `classes`.

    Args:
        bank: The decoded images of all classes.
        classes: Indices of the classes to select; at least one.

    Returns:
        The images of these classes. If the indices are consecutive, the images are a view, not a copy.

    >>> pixels = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1)
    >>> bank = Bank(pixels, np.array([1, 2, 3], np.int32), ["a", "b", "c"], [])
    >>> taken = select(bank, [2, 0])
    >>> taken.images.ravel().tolist(), taken.starts.tolist(), taken.counts.tolist()
    ([3, 4, 5, 0], [0, 3], [3, 1])
    """
    indices = np.asarray(classes, dtype=np.int64)
    counts = bank.counts[indices].astype(np.int32)
    first = np.cumsum(bank.counts) - bank.counts
    if np.all(np.diff(indices) == 1):
        begin = int(first[indices[0]])
        images = bank.images[begin : begin + int(counts.sum())]
    else:
        pieces = [bank.images[first[c] : first[c] + bank.counts[c]] for c in indices]
        images = np.concatenate(pieces)
    starts = (np.cumsum(counts) - counts).astype(np.int32)
    return ClassBank(images=images, starts=starts, counts=counts)


def split(name: str, bank: Bank, classes: Mapping[str, Sequence[int]], place: Path) -> Dataset:
    """Split the decoded images of a data set by class. Log a warning if two splits share class names.

    Args:
        name: Name of the resulting `Dataset`.
        bank: The decoded images of all classes.
        classes: `{split: indices of the classes in this split}`.
        place: Path of the folder or archive with the images.

    Returns:
        A data set with one `ClassBank` for each key of `classes`.
    """
    names = {key: [bank.names[c] for c in chosen] for key, chosen in classes.items()}
    _warn_of_shared_classes(name, names)
    return Dataset(
        name=name,
        splits={key: select(bank, chosen) for key, chosen in classes.items()},
        class_names=names,
        skipped=tuple(bank.skipped),
        place=place,
    )


def _warn_of_shared_classes(name: str, names: Mapping[str, Sequence[str]]) -> None:
    train, validation, test = (set(names.get(split, ())) for split in ("train", "validation", "test"))
    for split, classes, word, shared in (
        ("validation", validation, "training", validation & train),
        ("test", test, "training", test & train),
        ("test", test, "validation", test & validation - train),
    ):
        if shared:
            _LOG.warning(
                "%s: %d of the %d %s classes %s too (%s): scores are for known classes, not for new ones",
                name,
                len(shared),
                len(classes),
                split,
                f"are {word} classes" if len(shared) > 1 else f"is a {word} class",
                ", ".join(sorted(shared)[:3]) + (", …" if len(shared) > 3 else ""),
            )


def pool(bank: Bank, parts: int) -> Bank:
    """Merge every `parts` consecutive classes into one class, without copying the images.

    Args:
        bank: Decoded images in which `parts` consecutive entries of `counts` and `names` belong to one true class.
        parts: Number of consecutive entries of `bank` that become one class.

    Returns:
        A `Bank` with the same images and fewer classes. A merged class has the name of its first entry.

    >>> bank = Bank(np.zeros((6, 1, 1, 1), np.uint8), np.array([1, 2, 3, 0], np.int32), ["a", "a", "b", "b"], [])
    >>> pool(bank, 2).counts.tolist(), pool(bank, 2).names
    ([3, 3], ['a', 'b'])
    """
    counts = bank.counts.reshape(-1, parts).sum(axis=1).astype(np.int32)
    return bank._replace(counts=counts, names=bank.names[::parts])


def split_at_random(sizes: Mapping[str, int], seed: int) -> dict[str, list[int]]:
    """Split classes at random, with the same result in every call.

    Args:
        sizes: `{split: number of classes}`.
        seed: Seed of NumPy's `RandomState`, which gives the same numbers in every version of NumPy.

    Returns:
        `{split: indices of its classes}`, sorted for readability.

    >>> split_at_random({"train": 3, "test": 2}, seed=0)
    {'train': [0, 1, 2], 'test': [3, 4]}
    """
    order = np.random.RandomState(seed).permutation(sum(sizes.values()))
    parts = np.split(order, np.cumsum(list(sizes.values()))[:-1])
    return {split: np.sort(part).tolist() for split, part in zip(sizes, parts, strict=True)}


def proportional(classes: int) -> dict[str, int]:
    """Divide a number of classes into 64 % for training, 16 % for validation and 20 % for the test, as mini-ImageNet.

    Args:
        classes: Number of classes; at least three.

    Returns:
        `{split: number of classes}`. Each split has at least one class.

    >>> proportional(50)
    {'train': 32, 'validation': 8, 'test': 10}
    """
    validation, test = max(1, round(0.16 * classes)), max(1, round(0.20 * classes))
    return {"train": classes - validation - test, "validation": validation, "test": test}


def check_options(name: str, splits: dict[str, str], split: str, size: int) -> None:
    """Raise a `UserError` unless a data set has the requested split and the requested image size is possible.

    Args:
        name: Name of the data set.
        splits: `{name: description}` of the ways to split the classes of the data set.
        split: The option `split`, a key of `splits`.
        size: The option `size`, the side of an image in pixels.

    Raises:
        UserError: If `splits` has no key `split`, or if `size` is not an integer in `[1, LARGEST_IMAGE]`.
    """
    if split not in splits:
        raise UserError(f"{name} has no split {split!r}: choose one of {', '.join(splits)}")
    if not isinstance(size, int) or not 1 <= size <= LARGEST_IMAGE:
        raise UserError(
            f"{name}: the size of an image is {size!r}, it must be a positive whole number of at most {LARGEST_IMAGE}"
        )


def check_memory(place: Path, images: int, size: int, channels: int) -> None:
    """Check, before any image is decoded, that all decoded images fit in the memory of this machine.

    Args:
        place: Path of the images, for the error message.
        images: Number of images.
        size: Side of a decoded image in pixels.
        channels: Channels of a decoded image.

    Raises:
        UserError: If the decoded images need more bytes than the physical memory has.
    """
    needed, memory = images * size * size * channels, _physical_memory()
    if memory is not None and needed > memory:
        raise UserError(
            f"{place}: {images:,} images of {size}×{size}×{channels} need {needed / 2**30:,.1f} GiB, this machine has "
            f"{memory / 2**30:,.1f} GiB of memory: choose a smaller size (--task.size, or --size of `metajax data`)"
        )


def _physical_memory() -> int | None:
    with contextlib.suppress(AttributeError, OSError, ValueError):  # Windows has no sysconf
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return memory if memory > 0 else None
    return None
