"""Download the original files of data sets with the download manager of TFDS, and check their checksums."""

import contextlib
import hashlib
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from metajax.data.disk import clear_leftovers, one_line, refuse_links, resolve_data_dir, writing_to
from metajax.data.records import quiet
from metajax.errors import UserError, needs
from metajax.system.files import expand_home, open_regular

_LOG = logging.getLogger("metajax.data")


class RemoteFile(NamedTuple):
    """An original file of a data set, with its address on the web.

    Attributes:
        url: Address of the file.
        size: Size in bytes.
        sha256: Checksum in hexadecimal digits.
        also: Alternative names of the file in a user's folder, for example the name of the unpacked archive.
    """

    url: str
    size: int
    sha256: str
    also: tuple[str, ...] = ()

    @property
    def filename(self) -> str:
        """Return the file name at the end of the address."""
        return urlsplit(self.url).path.rsplit("/", 1)[-1]


def obtain(name: str, files: Sequence[RemoteFile], source: Path | None, data_dir: Path | None) -> dict[str, Path]:
    """Find a data set's original files in the user's folder, or download them.

    Log a warning if the checksum of a file in the user's folder is not the official checksum.

    Args:
        name: Name of the data set.
        files: The original files of the data set.
        source: The user's folder with the files; or the path of the file if `files` has only one item. `None` downloads
            the files.
        data_dir: The data directory, in which downloads are kept.

    Returns:
        `{file name: path}`. A path may lead to an unpacked archive.

    Raises:
        UserError: If a file is missing from `source`, cannot be downloaded, or if a download has the wrong checksum.
    """
    if source is None:
        root = resolve_data_dir(data_dir)
        folder = root / "downloads" / name
        with writing_to(root):
            refuse_links(root, folder)
        return fetch(name, files, folder)
    source = expand_home(source)
    if source.is_file() and len(files) == 1:
        places = {files[0].filename: source}
    elif source.is_dir():
        places = {file.filename: _found(source, file) for file in files}
    else:
        kind = "neither a folder nor a regular file" if source.exists() else "no such folder"
        raise UserError(f"{source}: {kind}; it should hold {' and '.join(file.filename for file in files)}")
    for file in files:
        _compare(places[file.filename], file)
    return places


def _compare(path: Path, file: RemoteFile) -> None:
    """Log a warning if a user's file differs from the official file in size or checksum.

    A file with an alternative name from `file.also` is not checked, because its checksum is not known.
    """
    other_forms = {name.rsplit("/", 1)[-1] for name in file.also} - {file.filename}
    if not path.is_file() or path.name in other_forms:
        return
    try:
        size = path.stat().st_size
        with open_regular(path) as content:
            found = hashlib.file_digest(content, "sha256").hexdigest() if size == file.size else ""
    except OSError as error:
        raise UserError(f"{path}: cannot read: {one_line(error)}") from error
    if found != file.sha256:
        what = f"has sha256 {found}" if found else f"has {size:,} bytes"
        right = f"sha256 {file.sha256}" if found else f"{file.size:,}"
        _LOG.warning(
            "%s: %s, the official %s has %s: it may be damaged or another file", path, what, file.filename, right
        )


def find(source: Path, file: RemoteFile) -> Path | None:
    """Find an original file in a folder.

    Args:
        source: The folder to search.
        file: The original file, which may have any of its names `file.filename` and `file.also`.

    Returns:
        The path of the file or of the unpacked archive; `None` if the folder has neither.
    """
    return next(
        (
            source / name
            for name in (file.filename, *file.also)
            if (source / name).is_file() or (source / name).is_dir()
        ),
        None,
    )


def _found(source: Path, file: RemoteFile) -> Path:
    if (path := find(source, file)) is not None:
        return path
    names = [file.filename, *file.also]
    listed = " nor ".join(names)
    raise UserError(f"{source}: holds neither {listed}" if len(names) > 1 else f"{source}: holds no {listed}")


def fetch(name: str, files: Iterable[RemoteFile], folder: Path) -> dict[str, Path]:
    """Download files to a folder. Files that the folder already contains are not downloaded again.

    Args:
        name: Name of the data set, for error messages.
        files: The files. They are downloaded one after the other.
        folder: The folder for the downloads.

    Returns:
        `{file name: path}`. TFDS chooses each path from the address and the checksum of the file.

    Raises:
        UserError: If a file cannot be downloaded, or has the wrong checksum.
    """
    with needs("data"):
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core.download import downloader

    files = list(files)
    with writing_to(folder):
        manager = tfds.download.DownloadManager(
            download_dir=folder,
            url_infos={file.url: _url_info(file) for file in files},
            force_checksums_validation=True,
        )
    # TFDS retries ten times by default. Without a network this would take more than three minutes.
    retries, downloader.MAX_RETRIES = downloader.MAX_RETRIES, 3
    # urllib3 would log a warning for each retry. The progress bars of TFDS are shown only on a terminal, see below.
    connections = logging.getLogger("urllib3.connectionpool")
    level = connections.level
    connections.setLevel(logging.ERROR)
    try:
        # A failed download leaves temporary folders, which `clear_leftovers` removes.
        with clear_leftovers(folder, "*.tmp.*"), contextlib.nullcontext() if sys.stderr.isatty() else quiet():
            return {file.filename: _fetch_one(name, file, manager, folder) for file in files}
    finally:
        connections.setLevel(level)
        downloader.MAX_RETRIES = retries


def _url_info(file: RemoteFile) -> Any:
    from tensorflow_datasets.core.download import checksums
    from tensorflow_datasets.core.utils import Size

    return checksums.UrlInfo(size=Size(file.size), checksum=file.sha256, filename=file.filename)


def _fetch_one(name: str, file: RemoteFile, manager: Any, folder: Path) -> Path:
    """Download one file, and raise a `UserError` with the reason if the download fails."""
    import requests
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    right = f"the right file has {file.size:,} bytes and sha256 {file.sha256}"
    advice = f"try again, or fetch it by hand and run `metajax data prepare {name} --source DIR`"
    with writing_to(folder):
        try:
            return Path(manager.download(file.url))
        except NonMatchingChecksumError as error:
            raise UserError(f"{file.url}: downloaded {_rejected(folder)}, but {right}; {advice}") from error
        except (requests.RequestException, tfds.download.DownloadError) as error:
            reason = one_line(error, limit=200)
            if isinstance(error, requests.ConnectionError):
                reason = f"cannot reach {urlsplit(file.url).hostname}"
            raise UserError(f"{file.url}: cannot download ({reason}); {right}; {advice}") from error


def _rejected(folder: Path) -> str:
    """Return the size and checksum of the file that TFDS downloaded and rejected, as text for an error message."""
    # TFDS leaves the rejected file in a temporary folder. It is the newest file there, unless another process downloads
    # to the same folder.
    with contextlib.suppress(OSError, ValueError):
        newest = max(folder.glob("*.tmp.*/*"), key=lambda path: path.stat().st_mtime_ns)
        with open_regular(newest) as content:
            checksum = hashlib.file_digest(content, "sha256").hexdigest()
        return f"{newest.stat().st_size:,} bytes with sha256 {checksum}"
    return "another file"
