"""Data sets of TFDS as class banks: one declaration each, the same preparation and loading for all."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from metajax.data import adopt, dataset, records
from metajax.data.dataset import Dataset, DatasetInfo
from metajax.data.download import RemoteFile, find, obtain
from metajax.errors import UserError
from metajax.files import expand_home

Choose = Callable[[list[str]], dict[str, list[int]]]
"""From the names of all classes to the indices of those of each split."""


class Split(NamedTuple):
    """A way of splitting the classes.

    Attributes:
        description: Who published it, and how many classes each part has.
        choose: Picks them.
    """

    description: str
    choose: Choose


class Contents(NamedTuple):
    """What is in a data set's original files.

    Attributes:
        image_shape: Height, width, channels; `None` where they differ.
        class_names: One name per label.
        parts: Examples of each official part.
    """

    image_shape: tuple[int | None, int | None, int]
    class_names: list[str]
    parts: Mapping[str, Iterable[records.Example]]


class Originals(NamedTuple):
    """A data set's original files, where they can be read without TensorFlow.

    Attributes:
        files: The files.
        read: From their names to where they lie, and on to the contents.
    """

    files: tuple[RemoteFile, ...]
    read: Callable[[dict[str, Path]], Contents]


class ImageSet(NamedTuple):
    """All that tells one data set of images from another.

    Attributes:
        store: Its name, form and version in TFDS.
        title: Its name in prose.
        licence: Under which terms it may be used.
        description: What it holds, in a sentence.
        splits: The ways of splitting it; the default comes first.
        size: Default side of an image in pixels.
        channels: 1 for greyscale, 3 for colour.
        mirrors: Whether a mirror image shows the same class: not so for characters.
        limit: Images of a class that are taken from each official part; `None` takes all.
        transpose: Whether TFDS has its rows as columns.
        originals: Its files; `None` where TFDS must prepare it.
    """

    store: records.Store
    title: str
    licence: str
    description: str
    splits: dict[str, Split]
    size: int
    channels: int
    mirrors: bool = True
    limit: int | None = None
    transpose: bool = False
    originals: Originals | None = None


def load_images(
    images: ImageSet, split: str | None = None, size: int | None = None, data_dir: Path | None = None
) -> Dataset:
    """Loads a data set of images, which are cropped to a square and resized.

    Args:
        images: Its declaration.
        split: A key of its `splits`; by default the first.
        size: Side of an image in pixels; by default its own.
        data_dir: Where it was prepared; see `metajax.data.prepare`.

    Returns:
        The data set; its images are `uint8[examples, size, size, channels]`, those of all official parts.

    Raises:
        UserError: It is not prepared or damaged, or there is no such split.
    """
    name = images.store.name
    split = next(iter(images.splits)) if split is None else split
    size = images.size if size is None else size
    dataset.check_options(name, {key: way.description for key, way in images.splits.items()}, split, size)
    bank = records.load_bank(
        images.store, data_dir, size, images.channels, limit=images.limit, transpose=images.transpose
    )
    folder = records.directory(images.store, data_dir)
    try:
        classes = images.splits[split].choose(bank.names)
    except UserError as error:
        raise UserError(f"{name}, split {split}: {error} (in {folder})") from error
    return dataset.split(f"{name}/{split}", bank, classes, folder)


def prepare_images(images: ImageSet, source: Path | None = None, data_dir: Path | None = None) -> Path:
    """Stores a data set of images as records: from its original files, or from what TFDS prepared elsewhere.

    Args:
        images: Its declaration.
        source: A folder with the original files, or one that TFDS prepared as ArrayRecord; `None` downloads.
        data_dir: Where to store the records.

    Returns:
        The records' folder. If it is there already nothing is done.

    Raises:
        UserError: A file is missing or damaged, only TFDS can prepare it, or the disk is full.
    """
    store, originals = images.store, images.originals
    folder = records.directory(store, data_dir)
    if records.is_prepared(store, data_dir):
        return folder
    source = None if source is None else expand_home(source)
    if source is not None:
        held = originals is not None and any(find(source, file) for file in originals.files)
        if originals is None or (adopt.is_tfds(source) and not held):
            return adopt.adopt(store, data_dir, source)
    if originals is None:
        form = "/".join(filter(None, (store.name, store.config)))
        raise UserError(
            f"{store.name} is prepared by TFDS, with TensorFlow: where that is installed run `tfds build {form} "
            f"--file_format=array_record`, then here `metajax data prepare {store.name} --source DIR`, DIR being "
            "TFDS' data directory (~/tensorflow_datasets)"
        )
    contents = originals.read(obtain(store.name, originals.files, source, data_dir))
    records.write(store, data_dir, contents.image_shape, contents.class_names, contents.parts)
    return folder


def info(images: ImageSet) -> DatasetInfo:
    """Describes a data set of images to the command line.

    Args:
        images: Its declaration.

    Returns:
        The description.
    """
    return DatasetInfo(
        title=images.title,
        licence=images.licence,
        description=images.description,
        splits={name: way.description for name, way in images.splits.items()},
        size=images.size,
        load=partial(load_images, images),
        prepare=partial(prepare_images, images),
        is_prepared=partial(records.is_prepared, images.store),
    )


def named(validation: str = "", test: str = "", separator: str | None = None) -> Choose:
    """Splits by the names of classes; those that are not named are for training.

    Args:
        validation: Names of the classes to validate on.
        test: Names of the classes to test on.
        separator: What stands between names; by default white space.

    Returns:
        Picks the classes; raises `UserError` if one of them is not there.

    >>> named(test="a c")(["a", "b", "c"])
    {'train': [1], 'test': [0, 2]}
    """
    lists = {"validation": validation, "test": test}
    wanted = {split: {name.strip() for name in names.split(separator)} for split, names in lists.items() if names}

    def choose(names: list[str]) -> dict[str, list[int]]:
        if missing := sorted(set().union(*wanted.values()) - set(names)):
            raise UserError(f"the prepared data has no class {missing[0]!r} ({len(missing)} such classes in all)")
        indices = {split: [names.index(name) for name in names if name in chosen] for split, chosen in wanted.items()}
        return numbered(**indices)(names)

    return choose


def numbered(validation: Iterable[int] = (), test: Iterable[int] = ()) -> Choose:
    """Splits by the numbers of classes, from 0; those that are not listed are for training.

    Args:
        validation: Classes to validate on.
        test: Classes to test on.

    Returns:
        Picks the classes; raises `UserError` if one of them is not there.

    >>> numbered(validation=[1], test=[0])(["a", "b", "c"])
    {'train': [2], 'validation': [1], 'test': [0]}
    """
    listed = {"validation": sorted(validation), "test": sorted(test)}
    held_out = {c for chosen in listed.values() for c in chosen}

    def choose(names: list[str]) -> dict[str, list[int]]:
        if held_out and max(held_out) >= len(names):
            raise UserError(f"the prepared data has {len(names)} classes, its split by class needs {max(held_out) + 1}")
        train = [c for c in range(len(names)) if c not in held_out]
        return {"train": train, **{split: chosen for split, chosen in listed.items() if chosen}}

    return choose


def drawn(seed: int = 0) -> Choose:
    """Split at random, 64 % / 16 % / 20 %, where nobody has published a split.

    Args:
        seed: Of the random split.

    Returns:
        Picks the classes, the same ones every time.

    >>> {split: len(chosen) for split, chosen in drawn()([str(c) for c in range(62)]).items()}
    {'train': 40, 'validation': 10, 'test': 12}
    """

    def choose(names: list[str]) -> dict[str, list[int]]:
        if len(names) < 3:
            raise UserError(f"the prepared data has {len(names)} classes, a split by class needs at least 3")
        return dataset.by_lot(dataset.proportional(len(names)), seed)

    return choose
