"""CIFAR-100: 100 classes of 600 colour images, with its two few-shot splits, CIFAR-FS and FC100.

Krizhevsky: Learning multiple layers of features from tiny images, technical report (2009).
"""

import io
import pickle
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from metajax.data import idx, records
from metajax.data.archives import read_files
from metajax.data.disk import one_line
from metajax.data.download import RemoteFile
from metajax.data.images import Contents, ImageSet, Originals, Split, named
from metajax.errors import UserError

IMAGES = {"train": 50_000, "test": 10_000}
"""Number of images in the official training set and in the official test set."""
CLASSES = 100
SIDE = 32
"""Height and width of an image in pixels."""

# Bertinetto, Henriques, Torr, Vedaldi: Meta-learning with differentiable closed-form solvers, arXiv 1805.08136;
# class names from torchmeta (assets/cifar100/cifar-fs). The 64 classes that are not listed are for training.
_CIFAR_FS = named(
    validation="beaver otter flatfish shark lamp television beetle butterfly sea camel cattle crab crocodile "
    "maple_tree motorcycle tractor",
    test="whale poppy rose sweet_pepper telephone bed table wardrobe leopard plain chimpanzee fox snail worm baby man "
    "woman bicycle pickup_truck rocket",
)
# Oreshkin, Rodríguez López, Lacoste: TADAM, arXiv 1805.10123, supplement; superclasses from torchmeta
# (assets/cifar100/fc100). The 60 classes that are not listed, from 12 superclasses, are for training.
_FC100 = named(
    validation="bear leopard lion tiger wolf "  # large carnivores
    "camel cattle chimpanzee elephant kangaroo "  # large omnivores and herbivores
    "crab lobster snail spider worm "  # invertebrates that are no insects
    "hamster mouse rabbit shrew squirrel",  # small mammals
    test="beaver dolphin otter seal whale "  # aquatic mammals
    "bee beetle butterfly caterpillar cockroach "  # insects
    "fox porcupine possum raccoon skunk "  # medium mammals
    "baby boy girl man woman",  # people
)


def read(files: dict[str, Path]) -> Contents:
    """Read CIFAR-100 from either official archive, `cifar-100-binary.tar.gz` or `cifar-100-python.tar.gz`.

    Args:
        files: A dict with one item: the name `cifar-100-binary.tar.gz`, and the path of either archive, packed or
            unpacked.

    Returns:
        The images with their fine labels, in the parts `train` and `test`.

    Raises:
        UserError: If the archive is damaged, or is not CIFAR-100.
    """
    (place,) = files.values()
    members = {PurePosixPath(name).name: content for name, content in read_files(place, _is_wanted)}
    if {"train.bin", "test.bin", "fine_label_names.txt"} <= set(members):
        names = members["fine_label_names.txt"].decode("utf-8", "replace").split()
        arrays = {part: _binary(place, f"{part}.bin", members[f"{part}.bin"], IMAGES[part]) for part in IMAGES}
    elif {"train", "test", "meta"} <= set(members):
        names = _texts(place, _unpickle(place, "meta", members["meta"]).get("fine_label_names"))
        arrays = {part: _python(place, part, members[part], IMAGES[part]) for part in IMAGES}
    else:
        raise UserError(f"{place}: holds neither train.bin, test.bin and fine_label_names.txt nor train, test and meta")
    if len(set(names)) != CLASSES:
        raise UserError(f"{place}: names {len(set(names))} classes, CIFAR-100 has {CLASSES}")
    parts = {
        part: idx.labelled(part, f"{place}: {part}", pixels, labels, CLASSES)
        for part, (pixels, labels) in arrays.items()
    }
    return Contents((SIDE, SIDE, 3), names, parts)


def _is_wanted(name: str) -> bool:
    return PurePosixPath(name).name in ("train.bin", "test.bin", "fine_label_names.txt", "train", "test", "meta")


def _binary(place: Path, name: str, data: bytes, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Read the binary format. Each image is a coarse label, a fine label and the red, green and blue planes."""
    size = 2 + 3 * SIDE * SIDE
    if len(data) != images * size:
        raise UserError(f"{place}: {name} has {len(data):,} bytes, it should have {images * size:,}")
    table = np.frombuffer(data, np.uint8).reshape(images, size)
    return _upright(table[:, 2:]), table[:, 1]


def _python(place: Path, name: str, data: bytes, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Read the Python format, a pickled dict with an array of pixels and a Python list of labels."""
    content = _unpickle(place, name, data)
    pixels: Any = content.get("data")
    labels: Any = content.get("fine_labels")
    shape = (images, 3 * SIDE * SIDE)
    fits = isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.shape == shape
    numbers = isinstance(labels, list) and all(isinstance(label, int) and label >= 0 for label in labels)
    if not (fits and numbers and len(labels) == images):
        raise UserError(
            f"{place}: {name} does not hold data, uint8 of {shape[0]} × {shape[1]}, and {shape[0]} fine_labels"
        )
    return _upright(pixels), np.asarray(labels)


def _upright(rows: np.ndarray) -> np.ndarray:
    """Convert rows of red, green and blue planes to images `uint8[images, height, width, 3]`."""
    return rows.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)


def _texts(place: Path, names: Any) -> list[str]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{place}: meta does not hold the list fine_label_names")
    return names


class _PlainData(pickle.Unpickler):
    """An unpickler that accepts only NumPy arrays and built-in types, because unpickling can run arbitrary code."""

    _ALLOWED = frozenset(
        [("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")]
        + [(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")]
    )

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it refers to {module_name}.{global_name}, which is not allowed in data")
        # NumPy 1 called this module `numpy.core`, NumPy 2 calls it `numpy._core`. The file may come from NumPy 1.
        return super().find_class(module_name.replace("numpy.core", "numpy._core"), global_name)


def _unpickle(place: Path, name: str, data: bytes) -> dict[str, Any]:
    try:
        content = _PlainData(io.BytesIO(data), encoding="latin1").load()
    # pickle can raise almost any exception for damaged data.
    except Exception as error:
        raise UserError(f"{place}: {name} is not a pickle of plain data ({one_line(error)})") from error
    if not isinstance(content, dict):
        raise UserError(f"{place}: {name} should hold a dictionary, it holds {type(content).__name__}")
    return {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in content.items()}


CIFAR100 = ImageSet(
    store=records.Store(
        name="cifar100",
        version="3.0.2",
        description="Colour pictures of 100 things; label = fine label, index = place in the official file.",
        homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    title="CIFAR-100",
    licence="none stated",
    description="60,000 colour pictures of 100 things, 32×32: CIFAR-FS and FC100",
    splits={
        "cifar_fs": Split("CIFAR-FS: 64 classes to train, 16 to validate, 20 to test, 600 images each", _CIFAR_FS),
        "fc100": Split("FC100: 60, 20, 20 classes of 12, 4, 4 superclasses, 600 images each (harder)", _FC100),
    },
    size=SIDE,
    channels=3,
    originals=Originals(
        (
            RemoteFile(
                "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
                168_513_733,
                "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
                ("cifar-100-python.tar.gz", "cifar-100-binary", "cifar-100-python"),
            ),
        ),
        read,
    ),
)
