"""Fashion-MNIST: 70,000 greyscale pictures of ten kinds of clothes.

Xiao, Rasul, Vollgraf: Fashion-MNIST, a novel image dataset for benchmarking machine learning algorithms,
arXiv 1708.07747 (2017).
"""

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from metajax.data import dataset, records
from metajax.data.cache import cached
from metajax.data.dataset import Bank, Dataset, DatasetInfo
from metajax.data.disk import one_line, resolve_data_dir
from metajax.data.download import RemoteFile, fetch
from metajax.errors import UserError

CLASSES = [
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
]  # fmt: skip
IMAGES = {"train": 60_000, "test": 10_000}
"""Images in each official part."""
SIDE = 28
"""Height and width of an image in pixels."""
TRAIN_CLASSES = 5
"""How many classes the split by class trains on; the others are for testing."""

_PREFIX = {"train": "train", "test": "t10k"}
_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
FILES = (
    RemoteFile(
        f"{_URL}train-images-idx3-ubyte.gz",
        26_421_880,
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    ),
    RemoteFile(
        f"{_URL}train-labels-idx1-ubyte.gz",
        29_515,
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    ),
    RemoteFile(
        f"{_URL}t10k-images-idx3-ubyte.gz",
        4_422_102,
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    ),
    RemoteFile(
        f"{_URL}t10k-labels-idx1-ubyte.gz",
        5_148,
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    ),
)

_STORE = records.Store(
    name="fashion_mnist",
    version="1.0.0",
    description="Pictures of clothes; label = kind, index = place in the official file.",
    homepage="https://github.com/zalandoresearch/fashion-mnist",
)


def load_fashion_mnist(split: str = "by_class", size: int = 28, data_dir: Path | None = None) -> Dataset:
    """Loads Fashion-MNIST, light clothes on a black ground (0).

    Args:
        split: `by_class` trains on classes 0 to 4 and tests on classes 5 to 9, each with all its 7,000
            images of both official parts; `by_example` has all ten classes in both, 6,000 official
            training images and 1,000 official test images per class. Neither has a validation split: ten
            classes are too few to spare some, and the authors made none.
        size: Side of an image in pixels; other sizes than 28 are resampled with Lanczos' filter.
        data_dir: Where the data set was prepared; see `metajax.data.prepare`.

    Returns:
        The data set; its images are `uint8[examples, size, size, 1]`.

    Raises:
        UserError: The data set is not prepared or damaged, or `split` does not exist.
    """
    dataset.check_options("fashion_mnist", INFO.splits, split, size)
    root = resolve_data_dir(data_dir) / _STORE.name
    key = {"records": records.fingerprint(_STORE, data_dir), "size": size}
    bank = cached(root / "decoded" / f"{size}px", key, lambda: _decode_all(data_dir, size))
    if split == "by_example":
        # The bank's groups alternate: official training images of a class, then its test images.
        classes = {"train": range(0, len(bank.names), 2), "test": range(1, len(bank.names), 2)}
    else:
        pooled = bank.counts.reshape(-1, len(IMAGES)).sum(axis=1)
        bank = bank._replace(counts=pooled, names=bank.names[::2])
        classes = {"train": range(TRAIN_CLASSES), "test": range(TRAIN_CLASSES, len(CLASSES))}
    return dataset.split(f"fashion_mnist/{split}", bank, classes)


def prepare_fashion_mnist(source: Path | None = None, data_dir: Path | None = None) -> Path:
    """Stores Fashion-MNIST as records, from a download or from local files.

    Args:
        source: A directory that holds the four official `.gz` files, or the same unpacked; `None`
            downloads them.
        data_dir: Where to store the records.

    Returns:
        The records' folder. If it is there already nothing is done.

    Raises:
        UserError: A file is missing, damaged or not what it should be, or the disk is full.
    """
    folder = records.directory(_STORE, data_dir)
    if records.is_prepared(_STORE, data_dir):
        return folder
    if source is None:
        files = fetch(_STORE.name, FILES, resolve_data_dir(data_dir) / "downloads" / _STORE.name)
    else:
        files = {file.filename: _find(Path(source).expanduser(), file.filename) for file in FILES}
    splits = {part: _examples(part, files) for part in IMAGES}
    records.write(_STORE, data_dir, (SIDE, SIDE, 1), CLASSES, splits)
    return folder


def _find(source: Path, filename: str) -> Path:
    """Finds an official file, packed or unpacked."""
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; it should hold the four official .gz files")
    for place in (source / filename, source / filename.removesuffix(".gz")):
        if place.is_file():
            return place
    raise UserError(f"{source}: holds neither {filename} nor {filename.removesuffix('.gz')}")


def _examples(part: str, files: dict[str, Path]) -> Iterator[records.Example]:
    """Reads both files of a part and yields the images as PNG files, which is what TFDS stores."""
    count = IMAGES[part]
    images = _read_idx(files[f"{_PREFIX[part]}-images-idx3-ubyte.gz"], (count, SIDE, SIDE))
    place = files[f"{_PREFIX[part]}-labels-idx1-ubyte.gz"]
    labels = _read_idx(place, (count,))
    if labels.max() >= len(CLASSES):
        raise UserError(f"{place}: holds the label {labels.max()}, the classes are 0 to {len(CLASSES) - 1}")
    for index, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG", compress_level=1)
        yield f"{part}-{index:05d}", {"image": file.getvalue(), "label": int(label), "index": index}


def _read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Reads an IDX file of bytes: two zeros, type 8, the number of axes, their lengths, the data."""
    try:
        data = path.read_bytes()
        # Told by its content: browsers unpack downloads without renaming them.
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (EOFError, OSError, zlib.error) as error:
        right = next((file for file in FILES if path.name.endswith(file.filename)), None)
        hint = f"; the official file has {right.size:,} bytes" if right else ""
        raise UserError(f"{path}: not a complete gzip file ({one_line(error)}){hint}") from error
    header = bytes([0, 0, 8, len(shape)]) + b"".join(length.to_bytes(4) for length in shape)
    expected = len(header) + int(np.prod(shape))
    if data[: len(header)] != header or len(data) != expected:
        axes = " × ".join(str(length) for length in shape)
        raise UserError(
            f"{path}: not an IDX file of {axes} bytes: it has {len(data):,} bytes unpacked, "
            f"it should have {expected:,} with the header"
        )
    return np.frombuffer(data, np.uint8, offset=len(header)).reshape(shape)


def _decode_all(data_dir: Path | None, size: int) -> Bank:
    """Decodes every image: class by class, within it first the official training images."""
    parts = list(IMAGES)
    found = [
        (record.label, place, record.index, record.pixels)
        for place, part in enumerate(parts)
        for record in records.read(_STORE, data_dir, part, size)
    ]
    found.sort(key=lambda item: item[:3])
    images = np.stack([pixels for _, _, _, pixels in found])
    counts = np.zeros((len(CLASSES), len(parts)), np.int32)
    for label, place, _, _ in found:
        counts[label, place] += 1
    names = [name for name in CLASSES for _ in parts]
    return Bank(images, counts.ravel(), names, [])


INFO = DatasetInfo(
    title="Fashion-MNIST",
    licence="MIT",
    description="70,000 greyscale pictures of ten kinds of clothes, 28×28, light on black",
    splits={
        "by_class": "classes 0-4 to train, 5-9 to test, 7,000 images each, none to validate",
        "by_example": "all ten classes in both: 6,000 images each to train, 1,000 to test, none to validate",
    },
    size=28,
    load=load_fashion_mnist,
    prepare=prepare_fashion_mnist,
    is_prepared=lambda data_dir: records.is_prepared(_STORE, data_dir),
)
