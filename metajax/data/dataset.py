"""What a loader returns: class banks by split, and what the command line may say about a data set."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metajax.errors import UserError
from metajax.types import ClassBank


class Dataset(NamedTuple):
    """A data set split into class banks.

    Attributes:
        name: Which data set, and which split of it, e.g. `omniglot/alphabet`.
        splits: A `ClassBank` of numpy arrays for each of `train`, `validation`, `test` that exists. The
            images may be read-only views of a file on disk.
        class_names: For each split the names of its classes, in the order of the bank.
        skipped: Files that could not be read, each with the reason; a folder of images only.
    """

    name: str
    splits: dict[str, ClassBank]
    class_names: dict[str, list[str]]
    skipped: tuple[str, ...] = ()


class DatasetInfo(NamedTuple):
    """What is known about a data set before it is loaded.

    Attributes:
        title: Its name in prose.
        licence: Under which terms it may be used.
        description: What it holds, in a sentence.
        splits: The named ways of splitting it, each with a description; the default comes first.
        size: Default side of an image in pixels.
        load: Its loader.
        prepare: `(source, data_dir) -> where the prepared data lies`.
        is_prepared: `data_dir -> whether it can be loaded`.
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
    """All decoded images of a data set before they are split, class after class.

    Attributes:
        images: `uint8[examples, height, width, channels]`.
        counts: `int32[classes]`.
        names: A name for each class.
        skipped: Files that could not be read, each with the reason.
    """

    images: np.ndarray
    counts: np.ndarray
    names: list[str]
    skipped: list[str]


def select(bank: Bank, classes: Sequence[int]) -> ClassBank:
    """Takes some classes out of a bank, in the order given.

    Args:
        bank: Where from.
        classes: Indices of the classes; at least one.

    Returns:
        Their class bank. Neighbouring classes cost nothing (a view); others are copied.

    >>> pixels = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1)
    >>> bank = Bank(pixels, np.array([1, 2, 3], np.int32), ["a", "b", "c"], [])
    >>> taken = select(bank, [2, 0])
    >>> taken.images.ravel().tolist(), taken.starts.tolist(), taken.counts.tolist()
    ([3, 4, 5, 0], [0, 3], [3, 1])
    """
    wanted = np.asarray(classes, dtype=np.int64)
    counts = bank.counts[wanted].astype(np.int32)
    first = np.cumsum(bank.counts) - bank.counts
    if np.all(np.diff(wanted) == 1):
        begin = int(first[wanted[0]])
        images = bank.images[begin : begin + int(counts.sum())]
    else:
        pieces = [bank.images[first[c] : first[c] + bank.counts[c]] for c in wanted]
        images = np.concatenate(pieces)
    starts = (np.cumsum(counts) - counts).astype(np.int32)
    return ClassBank(images=images, starts=starts, counts=counts)


def split(name: str, bank: Bank, classes: Mapping[str, Sequence[int]]) -> Dataset:
    """Splits a bank by class.

    Args:
        name: Name of the resulting data set.
        bank: All images.
        classes: For each split the indices of its classes.

    Returns:
        The data set, whose splits are those of `classes`.
    """
    return Dataset(
        name=name,
        splits={key: select(bank, chosen) for key, chosen in classes.items()},
        class_names={key: [bank.names[c] for c in chosen] for key, chosen in classes.items()},
        skipped=tuple(bank.skipped),
    )


def check_options(name: str, splits: dict[str, str], split: str, size: int) -> None:
    """Checks what the caller of a loader chose.

    Args:
        name: The data set.
        splits: Its splits.
        split: The chosen split.
        size: The chosen side of an image.

    Raises:
        UserError: There is no such split, or the size is not a positive integer.
    """
    if split not in splits:
        raise UserError(f"{name} has no split {split!r}: choose one of {', '.join(splits)}")
    if not isinstance(size, int) or size < 1:
        raise UserError(f"{name}: the size of an image is {size!r}, it must be a positive whole number")
