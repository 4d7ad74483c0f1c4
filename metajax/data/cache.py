"""Cache decoded images on disk, so that they are decoded only once."""

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
"""Exceptions that reading a damaged cache raises."""
_FORMAT = 1
"""Version of the decoder, a part of every key. Increase it when a change of the decoder changes its results."""


def cached(data_dir: Path, stem: Path, key: dict[str, Any], build: Callable[[], Bank]) -> Bank:
    """Read a bank from `STEM.npy` and `STEM.json`, or build and store it.

    Args:
        data_dir: The data directory. Writes do not follow symbolic links below it.
        stem: Path without suffix, below the data directory.
        key: JSON values that determine the result. A stored bank with another key is rebuilt.
        build: A function that decodes the images.

    Returns:
        The bank. Images from the cache are a read-only memory map. If the cache is damaged, there is a warning and the
        bank is rebuilt. If the directory is not writable, there is a warning and the next call decodes the images
        again.
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
    # Another process may have stored a bank with another key in the meantime.
    return bank if stored is None else stored


def _read(stem: Path, key: dict[str, Any]) -> Bank | None:
    """Read a stored bank; return `None` if there is no bank with this key."""
    try:
        meta = json.loads(read_file(stem.with_suffix(".json")))
    except FileNotFoundError:
        return None
    if meta["key"] != key:
        return None
    with open_regular(stem.with_suffix(".npy")) as file:  # `np.load` maps only what it opens itself, also a FIFO
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
    """Store the decoded images of a data set.

    The description, with the checksum, is written last, so a partial bank is never read.
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
