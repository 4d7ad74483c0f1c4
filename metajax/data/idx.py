"""Read IDX files, the array format of MNIST and similar data sets.

An IDX file has two zero bytes, the element type, the number of axes, the length of each axis, and the array.
"""

import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from metajax.data import records
from metajax.data.disk import one_line, open_zip, read_member
from metajax.data.download import RemoteFile
from metajax.data.images import Contents
from metajax.data.pixels import encode_png
from metajax.errors import UserError
from metajax.system.files import read_file

SIDE = 28
"""Height and width of an image in pixels."""
_PREFIX = {"train": "train", "test": "t10k"}


def four_files(url: str, *checks: tuple[int, str]) -> tuple[RemoteFile, ...]:
    """Return the addresses and checksums of the four files of a data set in MNIST's format.

    Args:
        url: Address of the folder with the files; it ends with a slash.
        *checks: `(size in bytes, sha256)` of each file: training images, training labels, test images, test labels.

    Returns:
        The four files. In a user's folder they may also be unpacked, under their names without `.gz`.

    >>> [file.also for file in four_files("http://x/", (1, ""), (1, ""), (1, ""), (1, ""))][0]
    ('train-images-idx3-ubyte',)
    """
    stems = [f"{prefix}-{kind}-ubyte" for prefix in _PREFIX.values() for kind in ("images-idx3", "labels-idx1")]
    return tuple(RemoteFile(f"{url}{stem}.gz", *check, (stem,)) for stem, check in zip(stems, checks, strict=True))


def examples(part: str, files: dict[str, Path], images: int, classes: int) -> Iterator[records.Example]:
    """Read the images and labels of the official training set or test set.

    Args:
        part: `train` or `test`.
        files: `{file name: path}` of the four files.
        images: Expected number of images in this part.
        classes: Number of classes.

    Yields:
        Examples whose images are encoded as PNG, the format in which TFDS stores images.

    Raises:
        UserError: If a file is damaged, has an unexpected shape, or has a label that is not in `[0, classes)`.
    """
    pictures, places = (files[f"{_PREFIX[part]}-{kind}-ubyte.gz"] for kind in ("images-idx3", "labels-idx1"))
    pixels = _parse_file(pictures, (images, SIDE, SIDE))
    labels = _parse_file(places, (images,))
    yield from labelled(part, str(places), pixels, labels, classes)


def read_four(files: dict[str, Path], images: dict[str, int], class_names: list[str]) -> Contents:
    """Read a data set that consists of four files in MNIST's format.

    Args:
        files: `{file name: path}` of the four files.
        images: `{part: expected number of images}`, with the parts `train` and `test`.
        class_names: The name of each class, in the order of the labels.

    Returns:
        The contents of the data set, with greyscale images.

    Raises:
        UserError: If a file is damaged or has the wrong content. The error is raised when the examples are read.
    """
    parts = {part: examples(part, files, count, len(class_names)) for part, count in images.items()}
    return Contents((SIDE, SIDE, 1), class_names, parts)


def read_zip(files: dict[str, Path], stem: str, images: dict[str, int], class_names: list[str]) -> Contents:
    """Read a data set whose four files are in one zip archive, such as EMNIST.

    Args:
        files: A dict with one item, the name and the path of the archive.
        stem: Beginning of the names of the four files in the archive, before `-train-...` and `-test-...`.
        images: `{part: expected number of images}`, with the parts `train` and `test`.
        class_names: The name of each class, in the order of the labels.

    Returns:
        The contents of the data set, with greyscale images.

    Raises:
        UserError: If the archive is damaged or has the wrong content. The error is raised when the examples are read.
    """
    (place,) = files.values()

    def member(name: str, shape: tuple[int, ...]) -> np.ndarray:
        try:
            with open_zip(place) as archive:
                data = read_member(archive, name, _most(shape))
        except KeyError:
            raise UserError(f"{place}: holds no {name}") from None
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"{place}: {name}: cannot be read from a zip archive ({one_line(error)})") from error
        return parse(f"{place}: {name}", data, shape)

    def part_examples(part: str, count: int) -> Iterator[records.Example]:
        pixels = member(f"{stem}-{part}-images-idx3-ubyte.gz", (count, SIDE, SIDE))
        labels = member(f"{stem}-{part}-labels-idx1-ubyte.gz", (count,))
        yield from labelled(part, str(place), pixels, labels, len(class_names))

    return Contents((SIDE, SIDE, 1), class_names, {part: part_examples(part, count) for part, count in images.items()})


def labelled(part: str, where: str, pixels: np.ndarray, labels: np.ndarray, classes: int) -> Iterator[records.Example]:
    """Combine images with their labels into examples.

    Args:
        part: `train` or `test`, the beginning of the key of each example.
        where: Name of the file with the labels, for the error message.
        pixels: Images, `uint8[images, height, width]` for greyscale or `uint8[images, height, width, 3]` for colour.
        labels: Integers, `[images]`.
        classes: Number of classes.

    Yields:
        Pairs of a key and a dict: the image as PNG, its label, and its index in the file.

    Raises:
        UserError: If a label is not in `[0, classes)`.
    """
    if labels.max() >= classes:
        raise UserError(f"{where}: has the label {labels.max()}, but the classes are 0 to {classes - 1}")
    for index, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        yield f"{part}-{index:05d}", {"image": encode_png(image), "label": int(label), "index": index}


def parse(where: str, data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Parse the content of an IDX file whose elements are bytes.

    Args:
        where: Name of the file, for error messages.
        data: The content of the file, with or without gzip compression.
        shape: The expected shape of the array.

    Returns:
        `uint8[shape]`.

    Raises:
        UserError: If the content is damaged, or if the array does not have the expected shape.

    >>> parse("x", bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]), (2,)).tolist()
    [7, 9]
    """
    header = bytes([0, 0, 8, len(shape)]) + b"".join(length.to_bytes(4) for length in shape)
    expected = len(header) + int(np.prod(shape))
    try:
        # Recognise gzip by the content. Some browsers unpack a downloaded file but keep its name with `.gz`.
        if data[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
                # One byte more than expected is enough to detect a file that is too long.
                data = file.read(expected + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{where}: not a complete gzip file ({one_line(error)})") from error
    if data[: len(header)] != header or len(data) != expected:
        axes = " × ".join(str(length) for length in shape)
        length = f"more than {expected:,}" if len(data) > expected else f"{len(data):,}"
        raise UserError(
            f"{where}: not an IDX file of {axes} bytes: it has {length} bytes unpacked, "
            f"it should have {expected:,} with the header"
        )
    return np.frombuffer(data, np.uint8, offset=len(header)).reshape(shape)


def _parse_file(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    try:
        data = read_file(path, _most(shape))
    except OSError as error:
        raise UserError(f"{path}: cannot read: {one_line(error)}") from error
    return parse(str(path), data, shape)


def _most(shape: tuple[int, ...]) -> int:
    """Return an upper bound, in bytes, for an IDX file with an array of this shape, packed with gzip or unpacked."""
    return int(np.prod(shape)) + 2**20
