"""Load a user's own images from a folder or a zip archive that has one subfolder per class."""

import hashlib
import logging
import zipfile
from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np

from metajax.data import dataset
from metajax.data.cache import cached
from metajax.data.dataset import Bank, Dataset, DatasetInfo
from metajax.data.disk import one_line, printable, resolve_data_dir
from metajax.data.listing import SPLITS, Layout, Source, arrange, open_source
from metajax.data.lists import arrange_by_lists
from metajax.data.pixels import HEIF_ADVICE, HEIF_SUFFIXES, BadImageError, decode, formats, reads_heif
from metajax.errors import UserError
from metajax.system.files import expand_home

_LOG = logging.getLogger("metajax.data")


def load_folder(
    source: Path,
    size: int = 84,
    channels: int = 3,
    split_seed: int = 0,
    strict: bool = False,
    data_dir: Path | None = None,
    split_lists: Path | None = None,
) -> Dataset:
    """Load a folder of images with the structure `split/class/image` or `class/image`.

    A split folder is called train, val, validation, test, or similarly (`meta_train`, `valid`, `testing`). If there are
    no split folders, the classes are split at random into 64 % for training, 16 % for validation and 20 % for the test.
    A file is an image if its name has the suffix of an image format. The content decides for files without a suffix. A
    warning is logged for class folders without a readable image.

    Args:
        source: Path of the folder, or of a zip archive of the folder.
        size: Side of a loaded image in pixels. The centre square of each file is cropped and resampled to this size.
        channels: 3 for colour, 1 for greyscale.
        split_seed: Seed for splitting the classes at random. The same seed always gives the same split.
        strict: Whether to raise an error for an unreadable image or a class folder without a readable image. Default:
            skip them and log a warning; `Dataset.skipped` has a message for each skipped file.
        data_dir: The data directory, in which decoded images are cached; see `metajax.data.prepare`.
        split_lists: A folder with one list file for each split, which names its images or classes, as published for
            mini-ImageNet. The list files override split folders; see `metajax.data.lists`.

    Returns:
        The data set; its images are `uint8[examples, size, size, channels]`.

    Raises:
        UserError: If there are no images, if there are fewer than 3 classes to split at random, if an image or class of
            a list file is missing, or if `strict` is set and an image cannot be read.
    """
    source = expand_home(source)
    dataset.check_options("folder", {"": ""}, "", size)
    if channels not in (1, 3):
        raise UserError(f"{source}: {channels!r} channels asked for, there can be 1 (greyscale) or 3 (colour)")
    with open_source(source) as files:
        if split_lists is None:
            layout = arrange(source, files.entries, files.others)
        else:
            layout = arrange_by_lists(source, files.entries, expand_home(split_lists))
        if not layout.groups:
            raise UserError(
                f"{source}: no images in class folders; expected split/class/image.png or class/image.png"
                + (f" (its files end in {_endings(files.others)})" if files.others else "")
            )
        if files.empty:
            _LOG.warning("%s: empty folders ignored: %s", source, _some(files.empty))
        if layout.nested:
            examples = [f"{name} with {_some(folders)}" for name, folders in layout.nested.items()]
            _LOG.warning(
                "%s: all images below a class folder are one class, also where it holds several folders: %s",
                source,
                _some(examples),
            )
        listing = "\n".join(f"{entry.path}\t{entry.stamp}" for entry in files.entries)
        if split_lists is not None:
            listing += "\n".join(f"\n{group}\t{paths}" for group, paths in layout.groups.items())
        fingerprint = hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest()
        key = {"data": "folder", "files": fingerprint, "size": size, "channels": channels, "formats": list(formats())}
        data_dir = resolve_data_dir(data_dir)
        stem = data_dir / "folder" / f"{fingerprint[:16]}-{size}px-{channels}"
        bank = cached(data_dir, stem, key, lambda: _decode_all(source, files, layout, size, channels))
    if bank.skipped:
        if strict:
            raise UserError(f"{source}: {bank.skipped[0]} ({len(bank.skipped)} such files in all)")
        _LOG.warning("%s: unusable images left out (%d): %s", source, len(bank.skipped), _some(bank.skipped))
    if barren := _barren(layout, bank):
        if strict:
            raise UserError(f"{source}: {barren}")
        _LOG.warning("%s: %s", source, barren)
    return dataset.split(f"folder/{source.stem}", *_split(source, bank, split_seed), place=source)


def prepare_folder(source: Path | None = None, data_dir: Path | None = None) -> Path:
    """Decode all images of a user's folder once, at the default size, to check them and to fill the cache.

    Args:
        source: Path of the folder or zip archive.
        data_dir: The data directory, in which decoded images are cached.

    Returns:
        The folder in the data directory with the caches of all image folders.

    Raises:
        UserError: If `source` is `None`, or if `load_folder` cannot load it.
    """
    if source is None:
        raise UserError("a folder needs a source: run `metajax data prepare folder --source DIR`")
    load_folder(source, data_dir=data_dir)
    return resolve_data_dir(data_dir) / "folder"


def _decode_all(source: Path, files: Source, layout: Layout, size: int, channels: int) -> Bank:
    """Decode all images in the order of their classes, and skip files that cannot be read."""
    total = sum(map(len, layout.groups.values()))
    dataset.check_memory(source, total, size, channels)
    try:
        images = np.empty((total, size, size, channels), np.uint8)
    except (MemoryError, ValueError) as error:
        raise UserError(
            f"{source}: {total} images of {size}×{size}×{channels} do not fit in memory: choose a smaller size"
        ) from error
    counts, names, done = [], [], 0
    skipped = [f"{printable(path)}: not in a class folder" for path in layout.stray]
    for (split, name), paths in layout.groups.items():
        begin = done
        for path in paths:
            try:
                images[done] = decode(files.read(path), size, channels)
                done += 1
            except (BadImageError, OSError, zipfile.BadZipFile, MemoryError) as error:
                heif = PurePosixPath(path).suffix.lower() in HEIF_SUFFIXES and not reads_heif()
                skipped.append(f"{printable(path)}: {HEIF_ADVICE if heif else one_line(error)}")
        if done > begin:  # a folder without a readable image is not a class
            counts.append(done - begin)
            names.append(f"{split}/{name}")
    if not counts:
        raise UserError(f"{source}: none of the {len(images)} images can be read, e.g. {skipped[-1]}")
    return Bank(images[:done], np.asarray(counts, np.int32), names, skipped)


def _barren(layout: Layout, bank: Bank) -> str:
    """Return a message about the class folders that have files but no readable image; "" if there are none."""
    files = {
        group: [*layout.groups.get(group, []), *layout.others.get(group, [])]
        for group in [*layout.groups, *layout.others]
    }
    classes = set(bank.names)
    barren = {"/".join(filter(None, group)): paths for group, paths in files.items() if "/".join(group) not in classes}
    if not barren:
        return ""
    endings = _endings([path for paths in barren.values() for path in paths])
    return f"class folders without a readable image: {_some(sorted(barren))} (files end in {endings})"


def _endings(paths: list[str]) -> str:
    """Return the suffixes of file names as text for a message, the most frequent suffix first."""
    counts = Counter(PurePosixPath(path).suffix or "none" for path in paths)
    return _some([ending for ending, _ in counts.most_common()])


def _split(source: Path, bank: Bank, seed: int) -> tuple[Bank, dict[str, list[int]]]:
    """Assign each class to a split: to the split folder of the class, or at random if there are no split folders."""
    owners = [name.split("/", 1)[0] for name in bank.names]
    bank = bank._replace(names=[printable(name.split("/", 1)[1]) for name in bank.names])
    total = len(bank.names)
    if owners[0]:
        found = [split for split in SPLITS if split in owners]
        return bank, {split: [c for c in range(total) if owners[c] == split] for split in found}
    if total < 3:
        raise UserError(f"{source}: holds {total} classes, a split by class needs at least 3")
    return bank, dataset.split_at_random(dataset.proportional(total), seed)


def _some(items: list[str], limit: int = 3) -> str:
    """Return the first `limit` items as text, and the number of the remaining items."""
    return ", ".join(map(printable, items[:limit])) + (f", and {len(items) - limit} more" if len(items) > limit else "")


INFO = DatasetInfo(
    title="A folder of images",
    licence="that of the images",
    description="your own images as split/class/image or class/image, a folder or a zip archive",
    splits={"by_class": "the folders train, val, test; else the classes are split at random, 64/16/20 %"},
    size=84,
    load=load_folder,
    prepare=prepare_folder,
    is_prepared=lambda data_dir: True,
)
