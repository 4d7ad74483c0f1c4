"""The data directory, safe reads of zip archives, and clear messages for errors of the disk."""

import contextlib
import errno
import io
import math
import os
import shutil
import time
import unicodedata
import zipfile
from collections.abc import Iterator
from pathlib import Path

from metajax.errors import UserError
from metajax.system.files import MAX_BYTES, check_size, expand_home, open_regular

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_STALE_SECONDS = 3600.0
"""Age from which a temporary file belongs to a killed process, where locks do not tell."""
_LOCK_RETRIES = 10


def resolve_data_dir(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the directory for prepared data.

    Args:
        data_dir: The directory, or `None` for the directory that the environment variables set.

    Returns:
        `data_dir`, else `$METAJAX_DATA_DIR`, else `metajax` below `$XDG_CACHE_HOME` or `~/.cache`. The directory may
        not exist yet.

    >>> resolve_data_dir("/data/metajax").as_posix()
    '/data/metajax'
    """
    if data_dir is not None:
        return expand_home(data_dir)
    if chosen := os.environ.get("METAJAX_DATA_DIR"):
        return expand_home(chosen)
    cache_home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification requires that a relative path is ignored.
    return (cache_home if cache_home.is_absolute() else Path.home() / ".cache") / "metajax"


def one_line(error: BaseException, limit: int = 300) -> str:
    r"""Convert the message of an exception into one short line.

    Args:
        error: Any exception.
        limit: Largest length of the result in characters.

    Returns:
        The message, or the name of the exception's type if it has no message.

    >>> one_line(ValueError("two\n  lines"))
    'two lines'
    >>> one_line(EOFError())
    'EOFError'
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


@contextlib.contextmanager
def writing_to(directory: Path) -> Iterator[None]:
    """Convert an error while writing below `directory` into a `UserError` of one line.

    Args:
        directory: The directory to which the body of the `with` statement writes.

    Yields:
        Nothing.

    Raises:
        UserError: If the disk is full, or if the directory cannot be written.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # The record writer is in C++ and raises a RuntimeError with errno's text if the disk is full.
        full = os.strerror(errno.ENOSPC)
        if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or full in str(error):
            hint = "free some space, or choose another place with --data-dir or METAJAX_DATA_DIR"
            raise UserError(f"{directory}: no space left on the device; {hint}") from error
        if isinstance(error, OSError):
            named = error.filename or directory
            hint = "choose another place with --data-dir or METAJAX_DATA_DIR"
            raise UserError(f"{named}: cannot write: {one_line(error)}; {hint}") from error
        raise


class _Archive(zipfile.ZipFile):
    """A zip archive that closes its file: `zipfile` leaves a file open that it did not open."""

    def __init__(self, file: io.BufferedReader):
        self._opened = file
        super().__init__(file)

    def close(self) -> None:
        super().close()
        self._opened.close()


class _ShortReads(io.BufferedReader):
    """A file that refuses long reads: `zipfile` reads the directory of an archive in one piece."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None:
            check_size(size, MAX_BYTES)
        return super().read(size)


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip archive for reading.

    Args:
        path: The archive.

    Returns:
        The archive. The caller must close it.

    Raises:
        OSError: It is no regular file, its directory has more than 256 MB, or it cannot be read.
        zipfile.BadZipFile: It is damaged, or no zip archive.
    """
    file = _ShortReads(open_regular(path).detach())
    try:
        return _Archive(file)
    except BaseException as error:
        file.close()
        # zipfile reports damage through many types: struct.error, ValueError, NotImplementedError, MemoryError, ...
        if isinstance(error, OSError) or not isinstance(error, Exception):
            raise
        raise zipfile.BadZipFile(one_line(error)) from error


def read_member(archive: zipfile.ZipFile, name: str | zipfile.ZipInfo, limit: int = MAX_BYTES) -> bytes:
    """Read a member of a zip archive, of limited size.

    Args:
        archive: The archive.
        name: The member.
        limit: Largest unpacked size of the member in bytes.

    Returns:
        The content of the member.

    Raises:
        KeyError: If there is no such member.
        OSError: If the member is larger than `limit`, or cannot be read.
        zipfile.BadZipFile: If the member is damaged, encrypted, or compressed by an unknown method.
    """
    member = archive.getinfo(name) if isinstance(name, str) else name
    check_size(member.file_size, limit)
    if member.flag_bits & 1:
        raise zipfile.BadZipFile("is encrypted")
    try:
        with archive.open(member) as file:
            # Read small pieces, because zipfile unpacks all the bzip2 or LZMA data that it has read at once.
            return b"".join(iter(lambda: file.read(4096), b""))
    except OSError:
        raise
    except Exception as error:
        raise zipfile.BadZipFile(one_line(error)) from error


def printable(name: str) -> str:
    r"""Escape the characters of a file name that a terminal or a UTF-8 file cannot represent.

    Args:
        name: The name. Python represents bytes that are not UTF-8 by surrogates.

    Returns:
        The name, with control characters and surrogates as escape sequences.

    >>> printable("Ära\n\udcff")
    'Ära\\n\\udcff'
    """
    return "".join(
        c if unicodedata.category(c) not in ("Cc", "Cs") else c.encode("unicode_escape").decode() for c in name
    )


def refuse_links(data_dir: Path, folder: Path) -> None:
    """Raise an `OSError` if a folder below the data directory is a symbolic link.

    In a shared directory another user may create links, through which files would be written to another folder.

    Args:
        data_dir: The data directory, which may be a link.
        folder: The folder to write to, which may not exist yet.
    """
    for path in (folder, *folder.parents):
        if path == data_dir:
            return
        if path.is_symlink():
            raise OSError(errno.ELOOP, "it is a symbolic link, through which nothing is written", str(path))


@contextlib.contextmanager
def clear_leftovers(folder: Path, pattern: str) -> Iterator[None]:
    """Remove what killed processes left in a folder, before and after this process works there.

    Each process holds a shared lock on the folder while it works. Files are removed only while no other process holds
    the lock. Where locks do not exist (Windows, some cluster file systems), only files older than an hour are removed.

    Args:
        folder: An existing folder.
        pattern: A glob pattern of temporary files and folders.

    Yields:
        Nothing.
    """
    try:
        handle = None if fcntl is None else os.open(folder, os.O_RDONLY)
    except OSError:
        handle = None
    try:
        _remove_leftovers(folder, pattern, handle)
        if fcntl is not None and handle is not None:
            # Another process may remove files now, but whoever holds the lock longer must not block this one.
            for _ in range(_LOCK_RETRIES):
                try:
                    fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(0.1)
                except OSError:
                    break
        yield
    finally:
        _remove_leftovers(folder, pattern, handle)
        if handle is not None:
            os.close(handle)


def _remove_leftovers(folder: Path, pattern: str, handle: int | None) -> None:
    """Remove files that match a pattern: all under an exclusive lock, old ones where there are no locks."""
    newest = time.time() - _STALE_SECONDS
    if fcntl is not None and handle is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            newest = math.inf
        except BlockingIOError:
            return
        except OSError:  # the file system has no locks
            pass
    for path in list(folder.glob(pattern)):
        with contextlib.suppress(OSError):
            if path.lstat().st_mtime > newest:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
