"""Cache the decoded images of a data set on disk, so that each image is decoded only once."""

import json
import logging
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from metajax.data.dataset import Bank
from metajax.data.disk import clear_leftovers, one_line, refuse_links
from metajax.errors import UserError
from metajax.system.files import PARTIALS, open_regular, read_file, replacing, write_bytes

_LOG = logging.getLogger("metajax.data")
_DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, ArithmeticError, RecursionError)
"""Exceptions that can occur while a damaged cache file is read."""
_FORMAT = 1
"""Version of the image decoder, a part of every cache key. Increase it when the decoder returns other pixels."""


def cached(data_dir: Path, stem: Path, key: dict[str, Any], build: Callable[[], Bank]) -> Bank:
    """Return the decoded images of a data set, from the cache files if possible.

    The images are in `STEM.npy`; the key, class names and checksum are in `STEM.json`. If the files are missing or have
    another key, `build` decodes the images, and the result is stored in the files.

    Args:
        data_dir: The data directory. If a folder below it is a symbolic link, nothing is written.
        stem: Path of the two cache files without their suffix, below the data directory.
        key: A JSON object with everything that determines the decoded images: source files, size, channels.
        build: A function without arguments that decodes the images.

    Returns:
        The decoded images by class. Images from the cache are a read-only memory map. If the cache is damaged, a
        warning is logged and the images are decoded again. If the cache cannot be written, a warning is logged and
        nothing is stored.
    """
    key = {"format": _FORMAT, **key}
    try:
        bank = _read(stem, key)
    except _DAMAGE as error:
        _LOG.warning("%s.npy: damaged cache (%s), decoding the images again", stem, one_line(error))
        bank = None
    if bank is not None:
        return bank
    bank = build()
    try:
        _write(data_dir, stem, key, bank)
        stored = _read(stem, key)
    except (*_DAMAGE, UserError) as error:
        _LOG.warning("%s.npy: cannot cache the decoded images (%s)", stem, one_line(error))
        return bank
    # `stored` is None if another process has stored images with another key in the meantime.
    return bank if stored is None else stored


def _read(stem: Path, key: dict[str, Any]) -> Bank | None:
    """Read decoded images from the cache files. Return `None` if the files are missing or have another key."""
    try:
        meta = json.loads(read_file(stem.with_suffix(".json")))
    except FileNotFoundError:
        return None
    if meta["key"] != key:
        return None
    with open_regular(stem.with_suffix(".npy")) as file:  # `np.load` would also open a FIFO and wait for ever
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("wrong version")
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype != np.uint8 or fortran_order:
            raise ValueError("wrong type")
        images = np.memmap(file, dtype, "r", file.tell(), shape).view(np.ndarray)
    counts = np.asarray(meta["counts"], dtype=np.int32)
    if images.ndim != 4 or len(images) != counts.sum():
        raise ValueError("wrong shape")
    if _checksum(images) != meta["crc32"]:
        raise ValueError("wrong checksum")
    return Bank(images, counts, meta["names"], meta["skipped"])


def _write(data_dir: Path, stem: Path, key: dict[str, Any], bank: Bank) -> None:
    """Write decoded images to the cache files.

    `STEM.json`, which has the checksum of the images, is written last. A reader therefore detects incomplete images.
    """
    refuse_links(data_dir, stem.parent)
    stem.parent.mkdir(parents=True, exist_ok=True)
    images = np.ascontiguousarray(bank.images)
    meta = {
        "key": key,
        "crc32": _checksum(images),
        "counts": bank.counts.tolist(),
        "names": bank.names,
        "skipped": bank.skipped,
    }
    text = json.dumps(meta).encode()
    with clear_leftovers(stem.parent, PARTIALS):
        with replacing(stem.with_suffix(".npy")) as file:
            np.save(file, images)
        write_bytes(stem.with_suffix(".json"), text)


def _checksum(images: np.ndarray) -> int:
    return zlib.crc32(images.reshape(-1).data) if images.size else 0
