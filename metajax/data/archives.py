"""Images in tar archives, or in what came out of them."""

import io
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from metajax.data import records
from metajax.data.disk import MAX_BYTES, one_line, open_regular, read_file
from metajax.data.images import Contents
from metajax.data.pixels import BadImageError, decode
from metajax.errors import UserError

_PHOTOGRAPH = re.compile(r"(?:.*/)?([^/.][^/]*)/([^/.][^/]*\.jpg)", re.IGNORECASE)


def class_folders(files: dict[str, Path], classes: int, images: int) -> Contents:
    """Reads photographs that lie in a folder per class.

    Args:
        files: From the archive's name to where it lies, packed or unpacked.
        classes: How many there should be.
        images: How many there should be in all.

    Returns:
        The photographs, labelled by the rank of their class' name, in one part.

    Raises:
        UserError: The archive is damaged, or there are more or fewer.
    """
    (place,) = files.values()
    found = {name: match for name in _names(place) if (match := _PHOTOGRAPH.fullmatch(name))}
    names = sorted({match[1] for match in found.values()})
    labels = {name: names.index(match[1]) for name, match in found.items()}
    return _contents(place, labels, names, classes, images)


def flowers(files: dict[str, Path], classes: int, images: int) -> Contents:
    """Reads Oxford Flowers: photographs `image_00001.jpg` and so on, with their labels in a MATLAB file.

    Args:
        files: From the names of the archive and of `imagelabels.mat` to where they lie.
        classes: How many there should be.
        images: How many there should be in all.

    Returns:
        The photographs in one part, with numbers from 0 for the names of the classes.

    Raises:
        UserError: The archive or the file of labels is damaged, or a photograph is missing.
    """
    import scipy.io

    place, listed = files.values()
    try:
        # It is small, and packed: so it cannot unpack to much.
        content = io.BytesIO(read_file(listed, 2**20))
        labels = scipy.io.loadmat(content)["labels"].ravel().astype(int) - 1
    # scipy reports damage through many types.
    except Exception as error:
        raise UserError(f"{listed}: not a MATLAB file with labels ({one_line(error)})") from error
    if len(labels) != images or sorted(set(labels)) != list(range(classes)):
        raise UserError(f"{listed}: should hold {images:,} labels from 1 to {classes}")
    known = {f"image_{number:05d}.jpg": int(label) for number, label in enumerate(labels, 1)}
    found = {name: known[base] for name in _names(place) if (base := PurePosixPath(name).name) in known}
    return _contents(place, found, [str(c) for c in range(classes)], classes, images)


def read_files(place: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Reads some files of a tar archive or of a folder.

    Args:
        place: The archive, packed in any way, or the folder.
        wanted: Whether to read the file of a name.

    Yields:
        The name of each file, with slashes, and what is in it.

    Raises:
        UserError: The archive is damaged, or a file is larger than any of these data sets.
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
    """A member of limited size, also where it is a header that tarfile reads into memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Member":
        member = super().frombuf(buf, encoding, errors)
        _check_size(member)
        return member


def _check_size(member: tarfile.TarInfo) -> None:
    if member.size > MAX_BYTES:
        raise tarfile.ReadError(f"{member.name} has {member.size:,} bytes, more than the {MAX_BYTES:,} that are read")


def _names(place: Path) -> list[str]:
    """Lists all files; nothing is read but the archive's headers."""
    names: list[str] = []
    # Noting every name and wanting none keeps one way through archives, folders and their damage.
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
