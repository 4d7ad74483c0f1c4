"""A user's own images: a folder or a zip archive with a folder per class."""

import hashlib
import logging
import zipfile
import zlib
from pathlib import Path

import numpy as np

from metajax.data import dataset
from metajax.data.cache import cached
from metajax.data.dataset import Bank, Dataset, DatasetInfo
from metajax.data.disk import one_line, resolve_data_dir
from metajax.data.listing import Layout, Source, arrange, open_source
from metajax.data.lists import arrange_by_lists
from metajax.data.pixels import BadImageError, decode
from metajax.errors import UserError

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
    """Loads a folder of images, arranged as `split/class/image` or `class/image`.

    Splits are folders called train, val or validation, test. Without them the classes are shuffled and
    split 64 % / 16 % / 20 %. Files that are no images by their ending are ignored.

    Args:
        source: The folder, or a zip archive of it.
        size: Side in pixels: the centre square of each image is resampled to it.
        channels: 3 for colour, 1 for greyscale.
        split_seed: Seed for splitting the classes; the same seed always gives the same split.
        strict: Whether an image that cannot be read is an error. If not, it is left out: a warning says
            how many are, and `Dataset.skipped` lists them.
        data_dir: Where the decoded images are cached; see `metajax.data.prepare`.
        split_lists: A folder of published lists that say which images or classes each split has, whatever the
            folders say; see `metajax.data.lists`.

    Returns:
        The data set; its images are `uint8[examples, size, size, channels]`.

    Raises:
        UserError: There are no images, or too few classes to split; something listed is missing; or `strict`
            and an image is damaged.
    """
    source = Path(source).expanduser()
    dataset.check_options("folder", {"": ""}, "", size)
    if channels not in (1, 3):
        raise UserError(f"{source}: {channels!r} channels asked for, there can be 1 (greyscale) or 3 (colour)")
    with open_source(source) as files:
        if split_lists is None:
            layout = arrange(source, files.entries)
        else:
            layout = arrange_by_lists(source, files.entries, Path(split_lists).expanduser())
        if not layout.groups:
            raise UserError(f"{source}: no images in class folders; expected split/class/image.png or class/image.png")
        if files.empty:
            _LOG.warning("%s: empty folders ignored: %s", source, _some(files.empty))
        listing = "\n".join(f"{entry.path}\t{entry.stamp}" for entry in files.entries)
        if split_lists is not None:
            listing += "\n".join(f"\n{group}\t{paths}" for group, paths in layout.groups.items())
        fingerprint = hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest()
        key = {"data": "folder", "files": fingerprint, "size": size, "channels": channels}
        stem = resolve_data_dir(data_dir) / "folder" / f"{fingerprint[:16]}-{size}px-{channels}"
        bank = cached(stem, key, lambda: _decode_all(source, files, layout, size, channels))
    if bank.skipped:
        if strict:
            raise UserError(f"{source}: {bank.skipped[0]} ({len(bank.skipped)} such files in all)")
        _LOG.warning("%s: unusable images left out (%d): %s", source, len(bank.skipped), _some(bank.skipped))
    return dataset.split(f"folder/{source.stem}", *_split(source, bank, split_seed))


def prepare_folder(source: Path | None = None, data_dir: Path | None = None) -> Path:
    """Reads a folder of images once at the default size, which checks and caches them.

    Args:
        source: The folder or archive.
        data_dir: Where the decoded images are cached.

    Returns:
        Where the caches of folders lie.

    Raises:
        UserError: No source is given, or it is unusable.
    """
    if source is None:
        raise UserError("a folder needs a source: run `metajax data prepare folder --source DIR`")
    load_folder(source, data_dir=data_dir)
    return resolve_data_dir(data_dir) / "folder"


def _decode_all(source: Path, files: Source, layout: Layout, size: int, channels: int) -> Bank:
    """Decodes all images, class after class, leaving out what cannot be read."""
    images = np.empty((sum(map(len, layout.groups.values())), size, size, channels), np.uint8)
    counts, names, done = [], [], 0
    skipped = [f"{path}: not in a class folder" for path in layout.stray]
    for (split, name), paths in layout.groups.items():
        begin = done
        for path in paths:
            try:
                images[done] = decode(files.read(path), size, channels)
                done += 1
            # An encrypted member of an archive is a RuntimeError, an unknown compression the next one.
            except (BadImageError, OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
                skipped.append(f"{path}: {one_line(error)}")
        if done > begin:  # a class without a readable image is no class
            counts.append(done - begin)
            names.append(f"{split}/{name}")
    if not counts:
        raise UserError(f"{source}: none of the {len(images)} images can be read, e.g. {skipped[-1]}")
    return Bank(images[:done], np.asarray(counts, np.int32), names, skipped)


def _split(source: Path, bank: Bank, seed: int) -> tuple[Bank, dict[str, list[int]]]:
    """Assigns the classes to splits, by their folders or by lot."""
    owners = [name.split("/", 1)[0] for name in bank.names]
    bank = bank._replace(names=[name.split("/", 1)[1] for name in bank.names])
    total = len(bank.names)
    if owners[0]:
        found = [split for split in ("train", "validation", "test") if split in owners]
        return bank, {split: [c for c in range(total) if owners[c] == split] for split in found}
    if total < 3:
        raise UserError(f"{source}: holds {total} classes, a split by class needs at least 3")
    return bank, dataset.by_lot(dataset.proportional(total), seed)


def _some(items: list[str], limit: int = 3) -> str:
    """Names the first few of many."""
    return ", ".join(items[:limit]) + (f", and {len(items) - limit} more" if len(items) > limit else "")


INFO = DatasetInfo(
    title="A folder of images",
    licence="that of the images",
    description="your own images as split/class/image or class/image, a folder or a zip archive",
    splits={"by_class": "the folders train, val, test; else the classes by lot, 64/16/20 %"},
    size=84,
    load=load_folder,
    prepare=prepare_folder,
    is_prepared=lambda data_dir: True,
)
