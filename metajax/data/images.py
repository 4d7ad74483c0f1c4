"""Prepare and load data sets of TFDS as class banks, from one declaration for each data set."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from metajax.data import adopt, dataset, records
from metajax.data.dataset import Dataset, DatasetInfo
from metajax.data.download import RemoteFile, find, obtain
from metajax.errors import UserError
from metajax.system.files import expand_home

Choose = Callable[[list[str]], dict[str, list[int]]]
"""`class names -> {split: indices of the classes in this split}`."""


class Split(NamedTuple):
    """A partition of the classes into splits.

    Attributes:
        description: The author of the partition, and the number of classes in each split.
        choose: The function that assigns classes to splits.
    """

    description: str
    choose: Choose


class Contents(NamedTuple):
    """The contents of a data set's original files.

    Attributes:
        image_shape: Height, width, channels; `None` for a length that differs between images.
        class_names: One name per label.
        parts: Examples of each official part.
    """

    image_shape: tuple[int | None, int | None, int]
    class_names: list[str]
    parts: Mapping[str, Iterable[records.Example]]


class Originals(NamedTuple):
    """The original files of a data set that can be read without TensorFlow.

    Attributes:
        files: The files.
        read: `{file name: path} -> contents`.
    """

    files: tuple[RemoteFile, ...]
    read: Callable[[dict[str, Path]], Contents]


class ImageSet(NamedTuple):
    """The declaration of a data set of images.

    Attributes:
        store: Name, config and version in TFDS.
        title: Full name of the data set.
        licence: Licence of the data set.
        description: The content in one sentence.
        splits: The partitions into splits, by name; the default comes first.
        size: Default side of an image in pixels.
        channels: 1 for greyscale, 3 for colour.
        mirrors: Whether a mirror image belongs to the same class; not so for characters.
        limit: Largest number of images of a class from each official part; `None` for all images.
        transpose: Whether TFDS stores the images transposed.
        originals: The original files; `None` if only TFDS can prepare the data set.
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
    """Load a data set of images; the images are cropped to squares and resized.

    Args:
        images: The declared data set: its name, source, splits and image size.
        split: A key of the declaration's `splits`. Default: the first key.
        size: Side of an image in pixels. Default: the declaration's `size`.
        data_dir: Folder of prepared data sets; see `metajax.data.prepare`.

    Returns:
        The data set, with the images `uint8[examples, size, size, channels]` of all official parts.

    Raises:
        UserError: If the data set is not prepared or damaged, or if there is no such split.
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
    """Store a data set of images as records, from its original files or from a folder that TFDS has prepared.

    Args:
        images: The declared data set: its name, source, splits and image size.
        source: A folder with the original files, or one that TFDS prepared as ArrayRecord; `None` downloads the files.
        data_dir: Folder of prepared data sets, for the records.

    Returns:
        The records' folder. Records that are there already are kept.

    Raises:
        UserError: If a file is missing or damaged, if only TFDS can prepare the data set, or if the disk is full.
    """
    store, originals = images.store, images.originals
    folder = records.directory(store, data_dir)
    if records.is_prepared(store, data_dir):
        records.remove_leftovers(store, data_dir)
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
    """Return the description of a data set of images for the command line.

    Args:
        images: The declared data set: its name, source, splits and image size.

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
    """Return a partition by the names of classes. All other classes are for training.

    Args:
        validation: Names of the validation classes.
        test: Names of the test classes.
        separator: Separator between names. Default: white space.

    Returns:
        The function that assigns classes to splits. It raises a `UserError` if a class is missing.

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
    """Return a partition by the numbers of classes, from 0. All other classes are for training.

    Args:
        validation: Validation classes.
        test: Test classes.

    Returns:
        The function that assigns classes to splits. It raises a `UserError` if a class is missing.

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
    """Return a random partition, 64 % / 16 % / 20 %, for a data set without a published one.

    Args:
        seed: Seed of the random partition.

    Returns:
        The function that assigns classes to splits, with the same result in every call.

    >>> {split: len(chosen) for split, chosen in drawn()([str(c) for c in range(62)]).items()}
    {'train': 40, 'validation': 10, 'test': 12}
    """

    def choose(names: list[str]) -> dict[str, list[int]]:
        if len(names) < 3:
            raise UserError(f"the prepared data has {len(names)} classes, a split by class needs at least 3")
        return dataset.by_lot(dataset.proportional(len(names)), seed)

    return choose
