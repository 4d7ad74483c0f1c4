"""Which images a folder or a zip archive holds, and to which split and class they belong."""

import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from metajax.data.disk import one_line
from metajax.errors import UserError

SUFFIXES = frozenset(
    [
        ".png",
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".bmp",
        ".gif",
        ".ppm",
        ".pgm",
        ".pbm",
        ".tif",
        ".tiff",
        ".webp",
    ]
)
"""Endings of image files, in lower case."""
SPLIT_FOLDERS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
"""What a folder of classes may be called, and the split that it makes."""


class Entry(NamedTuple):
    """An image file of the source.

    Attributes:
        path: Its path below the source, with slashes.
        stamp: Changes whenever the content does: size and time, or size and checksum.
    """

    path: str
    stamp: str


class Source(NamedTuple):
    """The image files below a folder or in an archive.

    Attributes:
        entries: The images, sorted by path.
        empty: Folders that hold no file at all.
        read: From a path to the file's bytes; raises `OSError`, `zipfile.BadZipFile` and the like.
    """

    entries: list[Entry]
    empty: list[str]
    read: Callable[[str], bytes]


class Layout(NamedTuple):
    """How the images are arranged.

    Attributes:
        groups: From split and class to the paths of its images; the split is "" where the folders name
            classes only. Sorted.
        stray: Images outside any class folder.
    """

    groups: dict[tuple[str, str], list[str]]
    stray: list[str]


@contextmanager
def open_source(source: Path) -> Iterator[Source]:
    """Lists the images of a folder or a zip archive.

    Args:
        source: The folder or archive.

    Yields:
        Its images, readable inside the `with` block.

    Raises:
        UserError: There is neither, or it cannot be read.
    """
    if source.is_dir():
        yield _folder(source)
        return
    if not source.exists():
        raise UserError(f"{source}: no such folder or zip archive")
    try:
        archive = zipfile.ZipFile(source)
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise UserError(f"{source}: neither a folder nor a complete zip archive ({one_line(error)})") from error
    with archive:
        members = archive.infolist()
        files = [info for info in members if not info.is_dir()]
        images = [Entry(i.filename, f"{i.file_size} {i.CRC:08x}") for i in files if _is_image(i.filename)]
        folders = {info.filename.rstrip("/") for info in members if info.is_dir()}
        occupied = {str(parent) for info in members for parent in PurePosixPath(info.filename).parents}
        occupied |= {str(PurePosixPath(info.filename).parent) for info in files}
        empty = sorted(folder for folder in folders - occupied if _is_visible(folder))
        yield Source(sorted(images), empty, archive.read)


def arrange(source: Path, entries: list[Entry]) -> Layout:
    """Recognises `split/class/image` and `class/image`, below any number of single top folders.

    Args:
        source: For messages.
        entries: The images.

    Returns:
        The arrangement. Deeper folders belong to the class above them.

    Raises:
        UserError: Folders of both kinds lie side by side.

    >>> found = arrange(Path("x"), [Entry("top/train/cat/1.png", ""), Entry("top/val/dog/a/2.png", "")])
    >>> list(found.groups)
    [('train', 'cat'), ('validation', 'dog')]
    >>> list(arrange(Path("x"), [Entry("cat/1.png", ""), Entry("dog/2.png", "")]).groups)
    [('', 'cat'), ('', 'dog')]
    """
    paths = {entry.path: PurePosixPath(entry.path).parts for entry in entries}
    while _has_single_top(list(paths.values())):
        paths = {path: parts[1:] for path, parts in paths.items()}
    inside = {path: parts for path, parts in paths.items() if len(parts) >= 2}
    stray = sorted(set(paths) - set(inside))
    deep = {parts[0] for parts in inside.values() if len(parts) >= 3 and parts[0].lower() in SPLIT_FOLDERS}
    others = {parts[0] for parts in inside.values()} - deep
    # A class may well be called "train": it is a split only where class folders lie in it.
    by_split = bool(deep)
    if by_split and any(other.lower() not in SPLIT_FOLDERS for other in others):
        raise UserError(
            f"{source}: the folders {sorted(deep)[0]!r} and {sorted(others)[0]!r} lie side by side; "
            "it should hold only class folders, or only folders train, val, test with class folders in them"
        )
    groups: dict[tuple[str, str], list[str]] = {}
    for path, parts in inside.items():
        if by_split and len(parts) < 3:
            stray.append(path)
            continue
        group = (SPLIT_FOLDERS[parts[0].lower()], parts[1]) if by_split else ("", parts[0])
        groups.setdefault(group, []).append(path)
    order = list(SPLIT_FOLDERS.values())
    ranked = sorted(groups, key=lambda group: (order.index(group[0]) if group[0] else 0, group[1]))
    return Layout({group: sorted(groups[group]) for group in ranked}, sorted(stray))


def _folder(source: Path) -> Source:
    """Walks a folder; links are followed, but no folder is entered twice along one path."""
    entries, empty = [], []

    def walk(folder: Path, above: frozenset[str]) -> None:
        children = sorted(child for child in folder.iterdir() if _is_visible(child.name))
        if not children and folder != source:
            empty.append(folder.relative_to(source).as_posix())
        for child in children:
            if child.is_dir():
                real = os.path.realpath(child)
                if real not in above:
                    walk(child, above | {real})
            elif _is_image(child.name):
                try:
                    status = child.stat()
                    stamp = f"{status.st_size} {status.st_mtime_ns}"
                except OSError:  # a dangling link: named as unreadable later
                    stamp = "unreadable"
                entries.append(Entry(child.relative_to(source).as_posix(), stamp))

    try:
        walk(source, frozenset([os.path.realpath(source)]))
    except OSError as error:
        raise UserError(f"{error.filename or source}: cannot list: {one_line(error)}") from error
    return Source(sorted(entries), empty, lambda path: (source / path).read_bytes())


def _is_visible(path: str) -> bool:
    """Leaves out hidden files and the shadows that macOS puts into archives."""
    return not any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(path).parts)


def _is_image(path: str) -> bool:
    return _is_visible(path) and PurePosixPath(path).suffix.lower() in SUFFIXES


def _has_single_top(paths: list[tuple[str, ...]]) -> bool:
    """Tells whether one folder, which is no split, holds everything, and class folders besides."""
    tops = {parts[0] for parts in paths}
    return len(tops) == 1 and min(map(len, paths)) >= 3 and next(iter(tops)).lower() not in SPLIT_FOLDERS
