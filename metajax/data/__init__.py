"""Load image data sets for few-shot learning. Each split is a `ClassBank`: decoded images, sorted by class.

Prepare a data set once, by download or from local files; then load it:

    prepare("omniglot")
    bank = load("omniglot", split="alphabet").splits["train"]
"""

from pathlib import Path
from typing import Any

from metajax.data import fashion_mnist, folder, images, omniglot
from metajax.data.catalogue import IMAGE_SETS
from metajax.data.dataset import Dataset, DatasetInfo
from metajax.data.disk import resolve_data_dir
from metajax.data.fashion_mnist import load_fashion_mnist
from metajax.data.folder import load_folder
from metajax.data.omniglot import load_omniglot
from metajax.errors import UserError, suggestion

__all__ = [
    "DATASETS",
    "IMAGE_SETS",
    "Dataset",
    "DatasetInfo",
    "is_prepared",
    "load",
    "load_fashion_mnist",
    "load_folder",
    "load_omniglot",
    "prepare",
    "resolve_data_dir",
]

DATASETS: dict[str, DatasetInfo] = {
    "omniglot": omniglot.INFO,
    "fashion_mnist": fashion_mnist.INFO,
    **{name: images.info(each) for name, each in IMAGE_SETS.items()},
    "folder": folder.INFO,
}
"""The description of every data set, by the name of the data set on the command line."""


def load(name: str, *, data_dir: Path | None = None, **options: Any) -> Dataset:
    """Load a data set by name.

    Args:
        name: A key of `DATASETS`.
        data_dir: Folder of prepared data sets. Default: `$METAJAX_DATA_DIR`, else `~/.cache/metajax`.
        **options: Options of the loader: `split` and `size`. For the data set `"folder"`, the options of `load_folder`.

    Returns:
        The data set. Each split is a class bank of NumPy arrays with images `uint8[examples, size, size, channels]`.

    Raises:
        UserError: If no data set has this name, or if its prepared files are missing or damaged.
    """
    return _info(name).load(data_dir=data_dir, **options)


def prepare(name: str, source: Path | None = None, data_dir: Path | None = None) -> Path:
    """Download or read the original files of a data set and store the images for `load`.

    A data set that is already prepared is not prepared again.

    Args:
        name: A key of `DATASETS`.
        source: A folder with the original files. Default: download the files.
        data_dir: Folder of prepared data sets. Default: `$METAJAX_DATA_DIR`, else `~/.cache/metajax`.

    Returns:
        The folder of the prepared data set.

    Raises:
        UserError: If no data set has this name, if an original file is missing or wrong, or if the disk is full.
    """
    return _info(name).prepare(source, data_dir)


def is_prepared(name: str, data_dir: Path | None = None) -> bool:
    """Return whether a data set is ready for `load`.

    Args:
        name: A key of `DATASETS`.
        data_dir: Folder of prepared data sets. Default: `$METAJAX_DATA_DIR`, else `~/.cache/metajax`.

    Returns:
        Whether the data set is prepared. Always `True` for `"folder"`, which needs no preparation.

    Raises:
        UserError: If no data set has this name.

    >>> is_prepared("folder")
    True
    """
    return _info(name).is_prepared(data_dir)


def _info(name: str) -> DatasetInfo:
    if name in DATASETS:
        return DATASETS[name]
    raise UserError(f"there is no data set {name!r}{suggestion(name, DATASETS)}")
