"""Downloads whose size and checksum are known beforehand, through TFDS' download manager."""

import contextlib
import hashlib
import logging
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from metajax.data.disk import one_line, refuse_links, resolve_data_dir, writing_to
from metajax.data.records import quiet
from metajax.errors import UserError
from metajax.files import expand_home

_LOG = logging.getLogger("metajax.data")


class RemoteFile(NamedTuple):
    """A file to download.

    Attributes:
        url: Where from.
        size: Bytes.
        sha256: Checksum in hexadecimal digits.
        also: Other names under which the user's own folder may hold it, unpacked for instance.
    """

    url: str
    size: int
    sha256: str
    also: tuple[str, ...] = ()

    @property
    def filename(self) -> str:
        """Last part of the address."""
        return urlsplit(self.url).path.rsplit("/", 1)[-1]


def obtain(name: str, files: Sequence[RemoteFile], source: Path | None, data_dir: Path | None) -> dict[str, Path]:
    """Find a data set's original files in the user's folder, or download them.

    A warning says if a file in the folder is not the official one.

    Args:
        name: The data set.
        files: Its original files.
        source: A folder that holds them, or the file where there is but one; `None` downloads them.
        data_dir: Where data is prepared; downloads are kept there.

    Returns:
        For each file's name where it lies, packed or unpacked.

    Raises:
        UserError: A file is not there, cannot be fetched, or is not the one expected.
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
    """Warn if a user's file is not the official one; of other forms of it no checksum is known."""
    other_forms = {name.rsplit("/", 1)[-1] for name in file.also} - {file.filename}
    if not path.is_file() or path.name in other_forms:
        return
    try:
        size = path.stat().st_size
        with path.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest() if size == file.size else ""
    except OSError as error:
        raise UserError(f"{path}: cannot read: {one_line(error)}") from error
    if found != file.sha256:
        what = f"has sha256 {found}" if found else f"has {size:,} bytes"
        right = f"sha256 {file.sha256}" if found else f"{file.size:,}"
        _LOG.warning("%s: %s, the official %s has %s: it may hold something else", path, what, file.filename, right)


def find(source: Path, file: RemoteFile) -> Path | None:
    """Looks for an original file in a folder.

    Args:
        source: The folder.
        file: The file.

    Returns:
        Where it lies, packed or unpacked; `None` if it does not.
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
    """Downloads files, or finds them downloaded already.

    Args:
        name: The data set, for the messages.
        files: What to download; one after the other.
        folder: Where to.

    Returns:
        For each file's name its path, which TFDS derives from the address and the checksum.

    Raises:
        UserError: A file cannot be fetched, or is not the one expected.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import downloader

    files = list(files)
    with writing_to(folder):
        manager = tfds.download.DownloadManager(
            download_dir=folder,
            url_infos={file.url: _url_info(file) for file in files},
            force_checksums_validation=True,
        )
    # TFDS' ten retries take more than three minutes to notice that there is no network.
    retries, downloader.MAX_RETRIES = downloader.MAX_RETRIES, 3
    # Its progress bars are for people, and its reports of every retry are for nobody.
    connections = logging.getLogger("urllib3.connectionpool")
    level = connections.level
    connections.setLevel(logging.ERROR)
    try:
        with contextlib.nullcontext() if sys.stderr.isatty() else quiet():
            return {file.filename: _fetch_one(name, file, manager, folder) for file in files}
    finally:
        connections.setLevel(level)
        downloader.MAX_RETRIES = retries
        # What a failed download leaves behind; nothing else runs in this folder.
        for leftover in folder.glob("*.tmp.*"):
            shutil.rmtree(leftover, ignore_errors=True)


def _url_info(file: RemoteFile) -> Any:
    from tensorflow_datasets.core.download import checksums
    from tensorflow_datasets.core.utils import Size

    return checksums.UrlInfo(size=Size(file.size), checksum=file.sha256, filename=file.filename)


def _fetch_one(name: str, file: RemoteFile, manager: Any, folder: Path) -> Path:
    """Downloads one file and explains what went wrong."""
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
    """Describes the rejected file, which TFDS leaves in a temporary folder."""
    for path in folder.glob("*.tmp.*/*"):
        data = path.read_bytes()
        return f"{len(data):,} bytes with sha256 {hashlib.sha256(data).hexdigest()}"
    return "another file"
