"""Prepare and load the data sets that TFDS provides. Each data set is declared by one `ImageSet`."""

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
    """A way to split the classes of a data set for training, validation and test.

    Attributes:
        description: The number of classes in each split, as text for the command line.
        choose: `class names -> {split: indices of the classes in this split}`.
    """

    description: str
    choose: Choose


class Contents(NamedTuple):
    """The contents of a data set's original files.

    Attributes:
        image_shape: `(height, width, channels)`. Height and width are `None` if they differ between images.
        class_names: The name of each class, in the order of the labels.
        parts: The examples of each official part, `{"train": examples, "test": examples}` for most data sets.
    """

    image_shape: tuple[int | None, int | None, int]
    class_names: list[str]
    parts: Mapping[str, Iterable[records.Example]]


class Originals(NamedTuple):
    """The original files of a data set, and the function that reads these files without TensorFlow.

    Attributes:
        files: Address, size and checksum of each file.
        read: `{file name: path} -> Contents`.
    """

    files: tuple[RemoteFile, ...]
    read: Callable[[dict[str, Path]], Contents]


class ImageSet(NamedTuple):
    """The declaration of an image data set: its names, files, splits and image size.

    Attributes:
        store: Name, config and version of the data set in TFDS.
        title: Full name of the data set.
        licence: Licence of the data set.
        description: One sentence about the images.
        splits: The ways to split the classes, by name; the first one is the default.
        size: Default side of an image in pixels.
        channels: 1 for greyscale, 3 for colour.
        mirrors: Whether the mirror image of an example belongs to the same class. `False` for characters.
        limit: Largest number of images of a class that are loaded from each official part; `None` for all images.
        transpose: Whether the stored images have rows and columns exchanged, so that loading must transpose them.
        originals: The original files; `None` if only TFDS with TensorFlow can prepare the data set.
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
    """Load a prepared data set; its images are cropped to squares and resized.

    Args:
        images: The declaration of the data set.
        split: A key of `images.splits`. Default: the first key.
        size: Side of an image in pixels. Default: `images.size`.
        data_dir: Folder of prepared data sets; see `metajax.data.prepare`.

    Returns:
        The data set, with the images `uint8[examples, size, size, channels]` of all official parts.

    Raises:
        UserError: If the data set is not prepared or is damaged, or if `images.splits` has no key `split`.
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
    """Store a data set as records, from its original files or from a folder that TFDS has prepared.

    Args:
        images: The declaration of the data set.
        source: A folder with the original files, or a folder that TFDS has prepared in the ArrayRecord format. Default:
            download the original files.
        data_dir: Folder of prepared data sets, in which the records are stored.

    Returns:
        The folder of the records. If the data set is already prepared, it is not written again.

    Raises:
        UserError: If a file is missing or damaged, if the disk is full, or if only TFDS can prepare the data set and
            `source` is `None`.
    """
    store, originals = images.store, images.originals
    folder = records.directory(store, data_dir)
    if records.is_prepared(store, data_dir):
        records.remove_leftovers(store, data_dir)
        return folder
    source = None if source is None else expand_home(source)
    if source is not None:
        has_originals = originals is not None and any(find(source, file) for file in originals.files)
        if originals is None or (adopt.is_tfds(source) and not has_originals):
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
    """Convert the declaration of an image data set into the description that `metajax data` uses.

    Args:
        images: The declaration of the data set.

    Returns:
        The description, with functions to load and prepare the data set.
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
    """Return a function that splits classes by their names. Classes that are not named are for training.

    Args:
        validation: Names of the validation classes, in one string.
        test: Names of the test classes, in one string.
        separator: Separator between the names in a string. Default: white space.

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
    """Return a function that splits classes by their indices. Classes that are not listed are for training.

    Args:
        validation: Indices of the validation classes; the first class has index 0.
        test: Indices of the test classes.

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


def random_split(seed: int = 0) -> Choose:
    """Return a function that splits classes at random: 64 % for training, 16 % for validation, 20 % for the test.

    Args:
        seed: Seed of the random split.

    Returns:
        The function that assigns classes to splits. It gives the same result in every call.

    >>> {split: len(chosen) for split, chosen in random_split()([str(c) for c in range(62)]).items()}
    {'train': 40, 'validation': 10, 'test': 12}
    """

    def choose(names: list[str]) -> dict[str, list[int]]:
        if len(names) < 3:
            raise UserError(f"the prepared data has {len(names)} classes, a split by class needs at least 3")
        return dataset.split_at_random(dataset.proportional(len(names)), seed)

    return choose
