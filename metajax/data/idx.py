"""IDX files, in which MNIST and its successors come: two zeros, a type, the axes' lengths, the data."""

import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from metajax.data import records
from metajax.data.disk import one_line, open_zip, read_file, read_member
from metajax.data.download import RemoteFile
from metajax.data.images import Contents
from metajax.data.pixels import encode_png
from metajax.errors import UserError

SIDE = 28
"""Height and width of an image in pixels."""
_PREFIX = {"train": "train", "test": "t10k"}


def four_files(url: str, *checks: tuple[int, str]) -> tuple[RemoteFile, ...]:
    """Names the four files of a data set in MNIST's form.

    Args:
        url: Address of their folder, with a slash at its end.
        *checks: Size in bytes and sha256 of the training images, training labels, test images, test labels.

    Returns:
        The files. The user's own folder may hold them unpacked, under a name without `.gz`.

    >>> [file.also for file in four_files("http://x/", (1, ""), (1, ""), (1, ""), (1, ""))][0]
    ('train-images-idx3-ubyte',)
    """
    stems = [f"{prefix}-{kind}-ubyte" for prefix in _PREFIX.values() for kind in ("images-idx3", "labels-idx1")]
    return tuple(RemoteFile(f"{url}{stem}.gz", *check, (stem,)) for stem, check in zip(stems, checks, strict=True))


def examples(part: str, files: dict[str, Path], images: int, classes: int) -> Iterator[records.Example]:
    """Reads the images and the labels of an official part.

    Args:
        part: `train` or `test`.
        files: From the names of the four files to where they lie.
        images: How many the part has.
        classes: How many there are.

    Yields:
        The images as PNG files, which is what TFDS stores.

    Raises:
        UserError: A file is damaged or not what it should be.
    """
    pictures, places = (files[f"{_PREFIX[part]}-{kind}-ubyte.gz"] for kind in ("images-idx3", "labels-idx1"))
    pixels = _parse_file(pictures, (images, SIDE, SIDE))
    labels = _parse_file(places, (images,))
    yield from labelled(part, str(places), pixels, labels, classes)


def read_four(files: dict[str, Path], images: dict[str, int], class_names: list[str]) -> Contents:
    """Reads a data set in MNIST's form.

    Args:
        files: From the names of the four files to where they lie.
        images: How many each official part has.
        class_names: One name per label.

    Returns:
        The images, greyscale.

    Raises:
        UserError: A file is damaged or not what it should be, once the examples are asked for.
    """
    parts = {part: examples(part, files, count, len(class_names)) for part, count in images.items()}
    return Contents((SIDE, SIDE, 1), class_names, parts)


def read_zip(files: dict[str, Path], stem: str, images: dict[str, int], class_names: list[str]) -> Contents:
    """Reads a data set whose four files lie in one zip archive, as EMNIST's.

    Args:
        files: From the archive's name to where it lies.
        stem: How the names in it begin, up to the part's name.
        images: How many each official part has.
        class_names: One name per label.

    Returns:
        The images, greyscale.

    Raises:
        UserError: The archive is damaged or not what it should be, once the examples are asked for.
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
    """Pairs images with their labels.

    Args:
        part: Name of the official part, for the keys.
        where: The file of the labels, for the message.
        pixels: `uint8[images, height, width]`, or with a last axis of three colours.
        labels: `[images]`, integers.
        classes: How many there are.

    Yields:
        The examples.

    Raises:
        UserError: A label is none of the classes.
    """
    if labels.max() >= classes:
        raise UserError(f"{where}: holds the label {labels.max()}, the classes are 0 to {classes - 1}")
    for index, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        yield f"{part}-{index:05d}", {"image": encode_png(image), "label": int(label), "index": index}


def parse(where: str, data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Reads an IDX file of bytes.

    Args:
        where: The file, for the messages.
        data: What is in it, packed by gzip or not.
        shape: The axes that it should have.

    Returns:
        `uint8[shape]`.

    Raises:
        UserError: It is damaged, or has another shape.

    >>> parse("x", bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]), (2,)).tolist()
    [7, 9]
    """
    header = bytes([0, 0, 8, len(shape)]) + b"".join(length.to_bytes(4) for length in shape)
    expected = len(header) + int(np.prod(shape))
    try:
        # Told by its content: browsers unpack downloads without renaming them.
        if data[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
                # One byte more shows that it is too long, and no more of it is unpacked.
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
    """Return the most bytes that a file of this shape has, with some to spare for what gzip may add."""
    return int(np.prod(shape)) + 2**20
