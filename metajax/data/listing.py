"""List the images in a folder or a zip archive, and find the split and class of each image from its path."""

import bisect
import logging
import os
import re
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from metajax.data.disk import one_line, open_zip, printable, read_member
from metajax.data.pixels import SUFFIXES, looks_like_image
from metajax.errors import UserError
from metajax.system.files import open_regular, read_file

_LOG = logging.getLogger("metajax.data")
SPLITS = ("train", "validation", "test")
"""The names of the splits, in the order in which they are listed."""
_MAX_LINKED = 100_000
"""Largest number of folders reached through symbolic links. A few links between folders can form millions of paths."""
_SPLIT_WORD = re.compile(
    r"(?:meta)?(?:(train(?:ing)?)|(val(?:id|idate|idation|idating)?|dev)|(test(?:ing)?))(?:set|data|split)?"
)
_PLAIN_WORD = re.compile(
    r"class(?:es)?|data(?:set)?|(?:file|folder|image|img|photo|picture|sample|set|split)s?|jpe?g|meta|mini|png|raw"
)
"""Pattern of words in a folder's name that do not name a class, e.g. `images` in `train_images`."""


class Entry(NamedTuple):
    """An image file in a folder or zip archive.

    Attributes:
        path: Path relative to the folder or archive, with slashes.
        stamp: A text that changes when the file changes: its size and modification time, or its size and checksum.
    """

    path: str
    stamp: str


class Source(NamedTuple):
    """The files of a folder, with all its subfolders, or of a zip archive.

    Attributes:
        entries: The image files, sorted by path.
        others: Paths of the files that are neither images nor hidden.
        empty: Paths of the folders that contain no file.
        read: `path -> content of the file as bytes`; raises `OSError`, `zipfile.BadZipFile` or a similar exception.
    """

    entries: list[Entry]
    others: list[str]
    empty: list[str]
    read: Callable[[str], bytes]


class Layout(NamedTuple):
    """The images of a folder or zip archive, by split and class.

    Attributes:
        groups: `{(split, class): sorted paths of the images}`. The split is "" if there are no split folders.
        stray: Paths of the images that are not in a class folder.
        others: `{(split, class): paths}` of the files in class folders that are not images.
        nested: `{class folder: names of its subfolders}`, for the classes whose images are in several subfolders.
    """

    groups: dict[tuple[str, str], list[str]]
    stray: list[str]
    others: dict[tuple[str, str], list[str]]
    nested: dict[str, list[str]]


@contextmanager
def open_source(source: Path) -> Iterator[Source]:
    """List the images in a folder or a zip archive, in a `with` statement.

    Args:
        source: Path of the folder or archive.

    Yields:
        The files. Inside the `with` statement their contents can be read.

    Raises:
        UserError: If `source` is neither a folder nor a zip archive, or cannot be read.
    """
    if source.is_dir():
        yield _folder(source)
        return
    if not source.exists():
        raise UserError(f"{source}: no such folder or zip archive")
    try:
        archive = open_zip(source)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{source}: neither a folder nor a complete zip archive ({one_line(error)})") from error
    with archive:
        yield _archive(archive)


def arrange(source: Path, entries: list[Entry], others: Iterable[str] = ()) -> Layout:
    """Assign images to splits and classes by their paths, `split/class/image` or `class/image`.

    If all images are below one top folder, this folder is ignored.

    Args:
        source: Path of the folder or archive, for error messages.
        entries: The image files.
        others: Paths of files that are not images.

    Returns:
        The images by split and class. An image in a subfolder of a class folder belongs to this class.

    Raises:
        UserError: If only some of the top folders are named like splits, if two folders are named like the same split,
            or if the folders look like splits but have unknown names.

    >>> found = arrange(Path("x"), [Entry("top/train/cat/1.png", ""), Entry("top/val/dog/a/2.png", "")])
    >>> list(found.groups)
    [('train', 'cat'), ('validation', 'dog')]
    >>> list(arrange(Path("x"), [Entry("cat/1.png", ""), Entry("dog/2.png", "")]).groups)
    [('', 'cat'), ('', 'dog')]
    """
    paths = {entry.path: PurePosixPath(entry.path).parts for entry in entries}
    tops: tuple[str, ...] = ()
    while _has_single_top(list(paths.values())):
        tops += (next(iter(paths.values()))[0],)
        paths = {path: parts[1:] for path, parts in paths.items()}
    splits = _split_folders(source, list(paths.values()))
    depth = 2 if splits else 1

    def group(parts: tuple[str, ...]) -> tuple[str, str]:
        return (splits[parts[0]], parts[1]) if splits else ("", parts[0])

    groups: dict[tuple[str, str], list[str]] = {}
    folders: dict[str, set[str]] = {}
    for path, parts in paths.items():
        if len(parts) > depth:
            groups.setdefault(group(parts), []).append(path)
            folders.setdefault("/".join(parts[:depth]), set()).add(parts[depth] if len(parts) > depth + 1 else "")
    stray = sorted(path for path, parts in paths.items() if len(parts) <= depth)
    aside: dict[tuple[str, str], list[str]] = {}
    for path in others:
        parts = PurePosixPath(path).parts
        if parts[: len(tops)] == tops and len(parts) > len(tops) + depth and (not splits or parts[len(tops)] in splits):
            aside.setdefault(group(parts[len(tops) :]), []).append(path)
    ranked = sorted(groups, key=lambda group: (SPLITS.index(group[0]) if group[0] else 0, group[1]))
    nested = {name: sorted(below) for name, below in folders.items() if len(below) > 1 and "" not in below}
    return Layout({group: sorted(groups[group]) for group in ranked}, stray, aside, nested)


def split_of(name: str, *, anywhere: bool = False) -> str | None:
    """Return the split that a folder name or file name stands for.

    Args:
        name: Name of a folder, or name of a list file without its suffix, such as `train` for `train.csv`.
        anywhere: Whether the name may contain further words, as in `train2017`.

    Returns:
        `train`, `validation` or `test`; `None` if the name contains no split or several splits.

    >>> [split_of(name) for name in ("Train", "valid", "meta_test", "train_images", "valley")]
    ['train', 'validation', 'test', None, None]
    >>> [split_of(name, anywhere=True) for name in ("train2017", "birds-val", "TestImages", "train_test", "valley")]
    ['train', 'validation', 'test', None, None]
    """
    words = _words(name) if anywhere else []
    candidates = [re.sub(r"[\s_.-]", "", name), *words]
    matches = (_SPLIT_WORD.fullmatch(word.lower()) for word in candidates)
    found = {SPLITS[match.lastindex - 1] for match in matches if match and match.lastindex}
    return found.pop() if len(found) == 1 else None


def _words(name: str) -> list[str]:
    return re.findall(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+", name)


def _words_beside_split(name: str) -> tuple[str, ...]:
    """Return the words in a folder name that may name a class, e.g. `tube` in `test_tube`.

    Names of splits and words that match `_PLAIN_WORD` are left out.
    """
    if split_of(name):
        return ()
    words = [word.lower() for word in _words(name)]
    return tuple(word for word in words if not (_PLAIN_WORD.fullmatch(word) or _SPLIT_WORD.fullmatch(word)))


def _split_folders(source: Path, paths: list[tuple[str, ...]]) -> dict[str, str]:
    """Return `{folder: split}` for the top folders of `paths`; empty if the top folders are classes."""
    tops = sorted({parts[0] for parts in paths if len(parts) > 1})
    deep = {parts[0] for parts in paths if len(parts) > 2}
    # A class may be called "train" (a vehicle). A folder is a split only if it contains class folders.
    named = {top for top in deep if split_of(top)}
    # "birds_train" and "birds_test" are splits, because both have the word "birds" besides the name of a split.
    # "train_station" and "test_tube" are classes, because "station" and "tube" differ.
    beside = {top: _words_beside_split(top) for top in tops if split_of(top, anywhere=True)}
    agree = len(set(beside.values())) == 1
    splits = {top: split for top in tops if (split := split_of(top))}
    splits |= {
        top: split for top, words in beside.items() if (agree or not words) and (split := split_of(top, anywhere=True))
    }
    if not named and not {"train", "test"} <= {splits[top] for top in deep if top in splits}:
        if tops and not any(len(parts) == 2 for parts in paths) and len(tops) < 3:
            raise UserError(
                f"{source}: no images lie directly in {' and '.join(map(printable, tops))}, only folders do; where "
                "these are splits, rename them to train, val and test (a random split of classes needs at least 3)"
            )
        return {}
    if others := [top for top in tops if top not in splits]:
        first = sorted(named or set(splits))[0]
        raise UserError(
            f"{source}: the folders {first!r} and {others[0]!r} lie side by side; it should hold only class folders, "
            "or only folders train, val, test with class folders in them: rename or remove the others"
        )
    owners: dict[str, str] = {}
    for top, split in splits.items():
        if (owner := owners.setdefault(split, top)) != top:
            raise UserError(
                f"{source}: the folders {owner!r} and {top!r} are both the {split} split: merge them, or remove one"
            )
    if any(split_of(top) is None for top in splits):
        taken = ", ".join(f"{printable(top)} as {split}" for top, split in splits.items())
        _LOG.warning("%s: folders taken for splits: %s; if they are classes, rename them", source, taken)
    return splits


def _archive(archive: zipfile.ZipFile) -> Source:
    """Return the files of a zip archive. Files are unpacked only in memory, never to the disk."""
    members: dict[str, zipfile.ZipInfo] = {}
    folders: set[str] = set()
    for info in archive.infolist():
        # Some Windows programs separate folders by backslashes. Absolute paths are treated as relative paths.
        path = info.filename.replace("\\", "/").lstrip("/")
        if info.is_dir() or path.endswith("/"):
            folders.add(path.rstrip("/"))
        elif path and _is_visible(path):
            members[PurePosixPath(path).as_posix()] = info
    paths = sorted([*members, *folders])

    def is_empty(folder: str) -> bool:
        after = bisect.bisect_left(paths, f"{folder}/")
        return after == len(paths) or not paths[after].startswith(f"{folder}/")

    empty = sorted(folder for folder in folders if folder and is_empty(folder) and _is_visible(folder))

    def head(path: str) -> bytes:
        with archive.open(members[path]) as file:
            return file.read(16)

    images = {path for path in members if _is_image(path, head)}
    entries = [Entry(path, f"{members[path].file_size} {members[path].CRC:08x}") for path in sorted(images)]
    return Source(entries, sorted(set(members) - images), empty, lambda path: read_member(archive, members[path]))


def _folder(source: Path) -> Source:
    """Return the files of a folder and its subfolders.

    Symbolic links are followed, but a link to a folder that contains the link is ignored, because it would never end.
    """
    entries, others, empty = [], [], []
    waiting = [(source, frozenset([os.path.realpath(source)]), False)]
    linked = 0
    try:
        while waiting:
            folder, above, by_link = waiting.pop()
            children = [child for child in folder.iterdir() if _is_visible(child.name)]
            if not children and folder != source:
                empty.append(folder.relative_to(source).as_posix())
            for child in children:
                if not child.is_dir():
                    if entry := _entry(source, child):
                        entries.append(entry)
                    else:
                        others.append(child.relative_to(source).as_posix())
                elif (real := os.path.realpath(child)) not in above:
                    by_link_too = by_link or child.is_symlink()
                    linked += by_link_too
                    waiting.append((child, above | {real}, by_link_too))
            if linked > _MAX_LINKED:
                raise UserError(f"{source}: links lead to more than {_MAX_LINKED:,} folders, e.g. {folder}")
    except OSError as error:
        raise UserError(f"{error.filename or source}: cannot list: {one_line(error)}") from error
    return Source(sorted(entries), sorted(others), sorted(empty), lambda path: read_file(source / path))


def _entry(source: Path, path: Path) -> Entry | None:
    """Return the path and stamp of a file if it is an image, else `None`."""
    name = path.relative_to(source).as_posix()

    def head(_: str) -> bytes:
        with open_regular(path) as file:
            return file.read(16)

    try:
        status = path.stat()
        stamp, regular = f"{status.st_size} {status.st_mtime_ns}", stat.S_ISREG(status.st_mode)
    except OSError:  # a link to a missing file; the loader reports it as unreadable
        stamp, regular = "unreadable", False
    return Entry(name, stamp) if _is_image(name, head if regular else None) else None


def _is_visible(path: str) -> bool:
    """Return whether no part of a path is hidden (".name") or a folder of metadata that macOS adds to archives."""
    return not any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(path).parts)


def _is_image(path: str, head: Callable[[str], bytes] | None) -> bool:
    """Return whether a file is an image, judged by its suffix.

    A file without a suffix, or whose suffix is a number, is judged by its first bytes.
    """
    suffix = PurePosixPath(path).suffix.lower()
    if suffix in SUFFIXES:
        return True
    if head is None or (suffix and not suffix[1:].isdigit()):
        return False
    try:
        return looks_like_image(head(path))
    # For a damaged archive zipfile raises many types of exceptions.
    except Exception:
        return False


def _has_single_top(paths: list[tuple[str, ...]]) -> bool:
    """Return whether all paths are below one folder that is not a split, and below subfolders of this folder."""
    tops = {parts[0] for parts in paths}
    return len(tops) == 1 and min(map(len, paths)) >= 3 and split_of(next(iter(tops))) is None
