"""Read images from tar archives, or from the folders of unpacked archives."""

import io
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from metajax.data import records
from metajax.data.disk import one_line
from metajax.data.images import Contents
from metajax.data.pixels import BadImageError, decode
from metajax.errors import UserError, needs
from metajax.system.files import MAX_BYTES, open_regular, read_file

_PHOTOGRAPH = re.compile(r"(?:.*/)?([^/.][^/]*)/([^/.][^/]*\.jpg)", re.IGNORECASE)


def class_folders(files: dict[str, Path], classes: int, images: int) -> Contents:
    """Read photographs from an archive with one folder per class.

    Args:
        files: Path of the packed or unpacked archive, by the archive's name.
        classes: Expected number of classes.
        images: Expected number of images.

    Returns:
        The photographs in one part. Their labels are the ranks of the sorted class names.

    Raises:
        UserError: If the archive is damaged, or has another number of classes or images.
    """
    (place,) = files.values()
    found = {name: match for name in _names(place) if (match := _PHOTOGRAPH.fullmatch(name))}
    names = sorted({match[1] for match in found.values()})
    labels = {name: names.index(match[1]) for name, match in found.items()}
    return _contents(place, labels, names, classes, images)


def flowers(files: dict[str, Path], classes: int, images: int) -> Contents:
    """Read Oxford Flowers: photographs `image_00001.jpg` and so on, with their labels in a MATLAB file.

    Args:
        files: Paths of the archive and of `imagelabels.mat`, by their names.
        classes: Expected number of classes.
        images: Expected number of images.

    Returns:
        The photographs in one part. The class names are the numbers from 0.

    Raises:
        UserError: If the archive or the file of labels is damaged, or if a photograph is missing.
    """
    with needs("data"):
        import scipy.io

    place, listed = files.values()
    try:
        # The packed file is small, so its unpacked content is small, too.
        content = io.BytesIO(read_file(listed, 2**20))
        labels = scipy.io.loadmat(content)["labels"].ravel().astype(int) - 1
    # scipy raises many types of exceptions for damaged files.
    except Exception as error:
        raise UserError(f"{listed}: not a MATLAB file with labels ({one_line(error)})") from error
    if len(labels) != images or sorted(set(labels)) != list(range(classes)):
        raise UserError(f"{listed}: should hold {images:,} labels from 1 to {classes}")
    known = {f"image_{number:05d}.jpg": int(label) for number, label in enumerate(labels, 1)}
    found = {name: known[base] for name in _names(place) if (base := PurePosixPath(name).name) in known}
    return _contents(place, found, [str(c) for c in range(classes)], classes, images)


def read_files(place: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Read some files from a tar archive or a folder.

    Args:
        place: The archive, with any compression, or the folder.
        wanted: A predicate on the name of a file: whether to read the file.

    Yields:
        The name, with slashes, and the content of each file.

    Raises:
        UserError: If the archive is damaged, or if a file is larger than the largest file of these data sets.
    """
    if place.is_dir():
        for path in sorted(place.rglob("*")):
            name = path.relative_to(place).as_posix()
            if path.is_file() and wanted(name):
                try:
                    data = read_file(path)
                except OSError as error:
                    raise UserError(f"{path}: cannot read: {one_line(error)}") from error
                yield name, data
        return
    try:
        with open_regular(place) as file, tarfile.open(fileobj=file, tarinfo=_Member) as archive:
            for member in archive:
                _check_size(member)
                if member.isfile() and wanted(member.name) and (content := archive.extractfile(member)):
                    yield member.name, content.read()
    # tarfile reports damage through many types: TarError, OSError, EOFError, zlib.error, RecursionError, ...
    except Exception as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{place}: not a complete tar archive ({one_line(error)})") from error


class _Member(tarfile.TarInfo):
    """A tar member of limited size. The limit also applies to headers, which tarfile reads into memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Member":
        member = super().frombuf(buf, encoding, errors)
        _check_size(member)
        return member


def _check_size(member: tarfile.TarInfo) -> None:
    if member.size > MAX_BYTES:
        raise tarfile.ReadError(f"{member.name} has {member.size:,} bytes, more than the {MAX_BYTES:,} that are read")


def _names(place: Path) -> list[str]:
    """List all files; only the archive's headers are read."""
    names: list[str] = []
    # A predicate that records every name and returns False uses the same code for archives, folders and damage.
    for _ in read_files(place, lambda name: names.append(name) or False):
        pass
    return names


def _contents(place: Path, labels: dict[str, int], names: list[str], classes: int, images: int) -> Contents:
    found = len(set(labels.values()))
    if (found, len(labels)) != (classes, images):
        raise UserError(
            f"{place}: holds {len(labels):,} photographs of {found} classes, it should hold {images:,} of {classes}"
        )
    seen: Counter[int] = Counter()
    ranks: dict[str, int] = {}
    for name in sorted(labels):
        ranks[name] = seen[labels[name]]
        seen[labels[name]] += 1

    def examples() -> Iterator[records.Example]:
        for name, data in read_files(place, labels.__contains__):
            try:
                decode(data, 8, 3)
            except BadImageError as error:
                raise UserError(f"{place}: {name}: not a readable image ({error})") from error
            yield name, {"image": data, "label": labels[name], "index": ranks[name]}

    return Contents((None, None, 3), names, {"train": examples()})
