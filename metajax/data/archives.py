"""Read images from tar archives, packed or unpacked into a folder."""

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
    """Read photographs from an archive that has one folder of `.jpg` files for each class.

    Args:
        files: A dict with one item: the archive's name, and its path as a tar file or as an unpacked folder.
        classes: Expected number of classes.
        images: Expected number of images.

    Returns:
        The photographs in a single part, `train`. A label is the index of the class in the sorted class names.

    Raises:
        UserError: If the archive is damaged, or if its number of classes or images is not the expected one.
    """
    (place,) = files.values()
    found = {name: match for name in _names(place) if (match := _PHOTOGRAPH.fullmatch(name))}
    names = sorted({match[1] for match in found.values()})
    labels = {name: names.index(match[1]) for name, match in found.items()}
    return _contents(place, labels, names, classes, images)


def flowers(files: dict[str, Path], classes: int, images: int) -> Contents:
    """Read Oxford Flowers: photographs `image_00001.jpg` and so on, with their labels in a MATLAB file.

    Args:
        files: `{name: path}` of the archive and of `imagelabels.mat`, in this order.
        classes: Expected number of classes.
        images: Expected number of images.

    Returns:
        The photographs in a single part, `train`. The class names are the labels as text: `"0"`, `"1"` and so on.

    Raises:
        UserError: If the archive or the file of labels is damaged, or if a photograph is missing.
    """
    with needs("data"):
        import scipy.io

    place, listed = files.values()
    try:
        # A MATLAB file is compressed. With at most 1 MiB compressed, the content cannot fill the memory.
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
    """Read the files whose names satisfy a predicate from a tar archive or a folder.

    Args:
        place: The path of the tar archive, with any compression, or of the folder.
        wanted: `name -> bool`, whether to read the file with this name.

    Yields:
        The path inside the archive or folder, with slashes, and the content of each file.

    Raises:
        UserError: If the archive is damaged, or if a file is larger than `MAX_BYTES`.
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
    # For a damaged archive tarfile raises many exception types: TarError, OSError, EOFError, zlib.error, ...
    except Exception as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{place}: not a complete tar archive ({one_line(error)})") from error


class _Member(tarfile.TarInfo):
    """A member of a tar archive that raises an error if it is larger than `MAX_BYTES`.

    The check also covers extended headers, which tarfile reads into memory before it returns a member.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Member":
        member = super().frombuf(buf, encoding, errors)
        _check_size(member)
        return member


def _check_size(member: tarfile.TarInfo) -> None:
    if member.size > MAX_BYTES:
        raise tarfile.ReadError(f"{member.name} has {member.size:,} bytes, more than the {MAX_BYTES:,} that are read")


def _names(place: Path) -> list[str]:
    """Return the names of all files in an archive or folder, without reading the contents of the files."""
    names: list[str] = []
    # `append` returns None, so the predicate records every name, returns False, and no file is read.
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
