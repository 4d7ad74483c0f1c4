"""Fashion-MNIST: 70,000 greyscale images of ten kinds of clothes.

Xiao, Rasul, Vollgraf: Fashion-MNIST, a novel image dataset for benchmarking machine learning algorithms,
arXiv 1708.07747 (2017).
"""

from pathlib import Path

from metajax.data import dataset, idx, records
from metajax.data.dataset import Dataset, DatasetInfo
from metajax.data.download import obtain

CLASSES = [
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
]  # fmt: skip
IMAGES = {"train": 60_000, "test": 10_000}
"""Number of images in the official training set and in the official test set."""
TRAIN_CLASSES = 5
"""Number of training classes in the split `by_class`. The other five classes are for the test."""

FILES = idx.four_files(
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    (26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
    (29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
    (4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
    (5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
)

_STORE = records.Store(
    name="fashion_mnist",
    version="1.0.0",
    description="Pictures of clothes; label = kind, index = place in the official file.",
    homepage="https://github.com/zalandoresearch/fashion-mnist",
)


def load_fashion_mnist(split: str = "by_class", size: int = 28, data_dir: Path | None = None) -> Dataset:
    """Load Fashion-MNIST, with light clothes on a black background (0).

    Args:
        split: `by_class` has classes 0 to 4 for training and classes 5 to 9 for the test, with all 7,000 images of each
            class, from both the official training set and the official test set. `by_example` has all ten classes for
            training and for the test: per class 6,000 official training images and 1,000 official test images. Neither
            option has a validation split, because the authors published none and ten classes are too few for three
            splits.
        size: Side of an image in pixels. Images are resampled with a Lanczos filter unless the side is 28.
        data_dir: Folder of prepared data sets; see `metajax.data.prepare`.

    Returns:
        The data set; its images are `uint8[examples, size, size, 1]`.

    Raises:
        UserError: If the data set is not prepared or is damaged, or if there is no split option `split`.
    """
    dataset.check_options("fashion_mnist", INFO.splits, split, size)
    bank = records.load_bank(_STORE, data_dir, size, parts=IMAGES)
    if split == "by_example":
        # `bank` has two entries per class: its official training images (even indices), its official test images (odd).
        classes = {"train": range(0, len(bank.names), 2), "test": range(1, len(bank.names), 2)}
    else:
        bank = dataset.pool(bank, len(IMAGES))
        classes = {"train": range(TRAIN_CLASSES), "test": range(TRAIN_CLASSES, len(CLASSES))}
    return dataset.split(f"fashion_mnist/{split}", bank, classes, records.directory(_STORE, data_dir))


def prepare_fashion_mnist(source: Path | None = None, data_dir: Path | None = None) -> Path:
    """Store Fashion-MNIST as records, from a download or from local files.

    Args:
        source: A directory with the four official `.gz` files, packed or unpacked; `None` downloads the files.
        data_dir: Folder of prepared data sets, in which the records are stored.

    Returns:
        The folder of the records. If the data set is already prepared, it is not written again.

    Raises:
        UserError: If a file is missing, damaged or has the wrong content, or if the disk is full.
    """
    folder = records.directory(_STORE, data_dir)
    if records.is_prepared(_STORE, data_dir):
        records.remove_leftovers(_STORE, data_dir)
        return folder
    files = obtain(_STORE.name, FILES, source, data_dir)
    splits = {part: idx.examples(part, files, images, len(CLASSES)) for part, images in IMAGES.items()}
    records.write(_STORE, data_dir, (idx.SIDE, idx.SIDE, 1), CLASSES, splits)
    return folder


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
