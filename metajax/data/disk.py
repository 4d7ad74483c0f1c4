"""Find the data directory, read zip archives safely, and convert disk errors into clear messages."""

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
"""Age in seconds after which a temporary file is deleted on file systems without locks. Younger files may be in use."""
_LOCK_RETRIES = 10
"""Number of attempts to lock a folder, 0.1 seconds apart."""


def resolve_data_dir(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the directory in which metajax keeps prepared data sets.

    Args:
        data_dir: The directory. Default: `$METAJAX_DATA_DIR`, else the cache directory of the user.

    Returns:
        `data_dir`, else `$METAJAX_DATA_DIR`, else `metajax` below `$XDG_CACHE_HOME` or `~/.cache`. The directory may
        not exist yet.

    >>> resolve_data_dir("/data/metajax").as_posix()
    '/data/metajax'
    """
    if data_dir is not None:
        return expand_home(data_dir)
    if variable := os.environ.get("METAJAX_DATA_DIR"):
        return expand_home(variable)
    cache_home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification says that a relative path in XDG_CACHE_HOME must be ignored.
    return (cache_home if cache_home.is_absolute() else Path.home() / ".cache") / "metajax"


def one_line(error: BaseException, limit: int = 300) -> str:
    r"""Return the message of an exception as one short line of text.

    Args:
        error: Any exception.
        limit: Largest length of the result in characters.

    Returns:
        The message without line breaks, or the name of the exception's type if there is no message.

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
    """Convert an exception in the body of a `with` statement that writes files into a `UserError` with advice.

    Args:
        directory: The directory to which the body of the `with` statement writes, for the message.

    Yields:
        Nothing.

    Raises:
        UserError: If the disk is full, or if a file or folder cannot be written.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # TFDS writes records with C++ code. If the disk is full, this code raises a RuntimeError that contains the text
        # of ENOSPC, not an OSError.
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
    """A zip archive that also closes the underlying file, which `zipfile` closes only if it opened the file itself."""

    def __init__(self, file: io.BufferedReader):
        self._opened = file
        super().__init__(file)

    def close(self) -> None:
        super().close()
        self._opened.close()


class _ShortReads(io.BufferedReader):
    """A file that refuses reads of more than `MAX_BYTES`.

    `zipfile` reads the table of contents of an archive with one call, whose size a damaged archive can make huge.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None:
            check_size(size, MAX_BYTES)
        return super().read(size)


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip archive for reading.

    Args:
        path: Path of the archive.

    Returns:
        The open archive. The caller must close it.

    Raises:
        OSError: If `path` is not a regular file, if the table of contents has more than 256 MB, or if reading fails.
        zipfile.BadZipFile: If the file is damaged, or is not a zip archive.
    """
    file = _ShortReads(open_regular(path).detach())
    try:
        return _Archive(file)
    except BaseException as error:
        file.close()
        # For a damaged archive zipfile raises many exception types: struct.error, ValueError, MemoryError, ...
        if isinstance(error, OSError) or not isinstance(error, Exception):
            raise
        raise zipfile.BadZipFile(one_line(error)) from error


def read_member(archive: zipfile.ZipFile, name: str | zipfile.ZipInfo, limit: int = MAX_BYTES) -> bytes:
    """Read one member of a zip archive, if it is not larger than a limit.

    Args:
        archive: The open archive.
        name: Name or `ZipInfo` of the member.
        limit: Largest unpacked size of the member in bytes.

    Returns:
        The content of the member.

    Raises:
        KeyError: If the archive has no member with this name.
        OSError: If the member is larger than `limit`, or cannot be read.
        zipfile.BadZipFile: If the member is damaged, encrypted, or compressed by an unknown method.
    """
    member = archive.getinfo(name) if isinstance(name, str) else name
    check_size(member.file_size, limit)
    if member.flag_bits & 1:
        raise zipfile.BadZipFile("is encrypted")
    try:
        with archive.open(member) as file:
            # Read in small pieces. zipfile would unpack bzip2 or LZMA data of a large read all at once, and a malicious
            # member could then fill the memory.
            return b"".join(iter(lambda: file.read(4096), b""))
    except OSError:
        raise
    except Exception as error:
        raise zipfile.BadZipFile(one_line(error)) from error


def printable(name: str) -> str:
    r"""Escape the characters of a file name that a terminal or a UTF-8 file cannot represent.

    Args:
        name: The file name. Python represents a byte that is not valid UTF-8 as a surrogate character.

    Returns:
        The name, with control characters and surrogates as escape sequences.

    >>> printable("Ära\n\udcff")
    'Ära\\n\\udcff'
    """
    return "".join(
        c if unicodedata.category(c) not in ("Cc", "Cs") else c.encode("unicode_escape").decode() for c in name
    )


def refuse_links(data_dir: Path, folder: Path) -> None:
    """Raise an `OSError` if a folder, or a parent of it below the data directory, is a symbolic link.

    In a data directory that several users share, another user could create a link so that files are written elsewhere.

    Args:
        data_dir: The data directory, which may be a link.
        folder: A folder below the data directory in which files will be written. It need not exist yet.
    """
    for path in (folder, *folder.parents):
        if path == data_dir:
            return
        if path.is_symlink():
            raise OSError(errno.ELOOP, "it is a symbolic link, through which nothing is written", str(path))


@contextlib.contextmanager
def clear_leftovers(folder: Path, pattern: str) -> Iterator[None]:
    """Remove temporary files of killed processes from a folder, before and after the body of a `with` statement.

    Each process holds a shared lock on the folder while its body runs. Files are removed only if no other process holds
    the lock. On systems without locks (Windows, some cluster file systems), only files older than an hour are removed.

    Args:
        folder: An existing folder.
        pattern: A glob pattern that matches the temporary files and folders.

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
            # Another process may hold the exclusive lock for a moment, to remove files. Give up after a second: a
            # process that never releases the lock cannot block this one.
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
    """Remove the files in `folder` that match `pattern`, unless another process uses the folder.

    With an exclusive lock on the folder all matching files are removed. On systems without locks only files older than
    `_STALE_SECONDS` are removed.
    """
    newest = time.time() - _STALE_SECONDS
    if fcntl is not None and handle is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            newest = math.inf
        except BlockingIOError:
            return
        except OSError:  # this file system does not support locks
            pass
    for path in list(folder.glob(pattern)):
        with contextlib.suppress(OSError):
            if path.lstat().st_mtime > newest:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
