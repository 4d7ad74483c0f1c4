"""Where data lies on disk, and what to say when the disk refuses."""

import contextlib
import errno
import os
import shutil
import stat
import unicodedata
import zipfile
from collections.abc import Iterator
from pathlib import Path

from metajax.errors import UserError
from metajax.files import expand_home

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

MAX_BYTES = 2**28
"""Largest file, or member of an archive, that is read: 256 MB."""


def resolve_data_dir(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Finds the directory for prepared data.

    Args:
        data_dir: Where the caller wants it; `None` asks the environment.

    Returns:
        `data_dir`, else `$METAJAX_DATA_DIR`, else `metajax` below `$XDG_CACHE_HOME` or `~/.cache`. It need
        not exist yet.

    >>> resolve_data_dir("/data/metajax").as_posix()
    '/data/metajax'
    """
    if data_dir is not None:
        return expand_home(data_dir)
    if chosen := os.environ.get("METAJAX_DATA_DIR"):
        return expand_home(chosen)
    cache_home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification asks to ignore a relative path.
    return (cache_home if cache_home.is_absolute() else Path.home() / ".cache") / "metajax"


def one_line(error: BaseException, limit: int = 300) -> str:
    r"""Squeezes an error of another library into one short line.

    Args:
        error: Any exception.
        limit: Longest result in characters.

    Returns:
        Its message, or its type where it has none.

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
    """Turns a failure to write below `directory` into a one-line message.

    Args:
        directory: What the body writes to.

    Yields:
        Nothing.

    Raises:
        UserError: No space is left, or the directory cannot be written to.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # The record writer is C++ and reports a full disk as a RuntimeError with errno's text.
        full = os.strerror(errno.ENOSPC)
        if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or full in str(error):
            hint = "free some space, or choose another place with --data-dir or METAJAX_DATA_DIR"
            raise UserError(f"{directory}: no space left on the device; {hint}") from error
        if isinstance(error, OSError):
            named = error.filename or directory
            hint = "choose another place with --data-dir or METAJAX_DATA_DIR"
            raise UserError(f"{named}: cannot write: {one_line(error)}; {hint}") from error
        raise


def check_regular(path: Path) -> None:
    """Raise an `OSError` unless a path is a regular file: reading a FIFO or a device may never end.

    Args:
        path: The file, or a link to it.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("not a regular file")


def read_file(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Read a regular file of limited size.

    Args:
        path: The file, or a link to it.
        limit: Most bytes that it may have.

    Returns:
        The content.

    Raises:
        OSError: The file is larger, is no regular file, or cannot be read.
    """
    check_regular(path)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        _check_size(size, limit)
        return file.read(size)


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip archive for reading.

    Args:
        path: The archive.

    Returns:
        The archive, to be closed by the caller.

    Raises:
        OSError: It is no regular file, or cannot be read.
        zipfile.BadZipFile: It is damaged, or no zip archive.
    """
    check_regular(path)
    try:
        return zipfile.ZipFile(path)
    except OSError:
        raise
    # zipfile reports damage through many types: struct.error, ValueError, NotImplementedError, MemoryError, ...
    except Exception as error:
        raise zipfile.BadZipFile(one_line(error)) from error


def read_member(archive: zipfile.ZipFile, name: str | zipfile.ZipInfo, limit: int = MAX_BYTES) -> bytes:
    """Read a member of a zip archive, of limited size.

    Args:
        archive: The archive.
        name: The member.
        limit: Most bytes that it may have, unpacked.

    Returns:
        The content.

    Raises:
        KeyError: There is no such member.
        OSError: The member is larger, or cannot be read.
        zipfile.BadZipFile: It is damaged, encrypted, or packed in an unknown way.
    """
    member = archive.getinfo(name) if isinstance(name, str) else name
    _check_size(member.file_size, limit)
    if member.flag_bits & 1:
        raise zipfile.BadZipFile("is encrypted")
    try:
        with archive.open(member) as file:
            # In small pieces: zipfile unpacks all of what it has read of bzip2 and LZMA at once.
            return b"".join(iter(lambda: file.read(4096), b""))
    except OSError:
        raise
    except Exception as error:
        raise zipfile.BadZipFile(one_line(error)) from error


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise OSError(f"has {size:,} bytes, more than the {limit:,} that are read")


def printable(name: str) -> str:
    r"""Escape what a terminal or a file in UTF-8 cannot take of a file's name.

    Args:
        name: The name, in which Python keeps bytes that are not UTF-8 as surrogates.

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

    Others may be able to put links into a shared directory, and what is written through one would land elsewhere.

    Args:
        data_dir: The data directory, which may be a link.
        folder: The folder to write to, which need not exist yet.
    """
    for path in (folder, *folder.parents):
        if path == data_dir:
            return
        if path.is_symlink():
            raise OSError(errno.ELOOP, "it is a symbolic link, through which nothing is written", str(path))


@contextlib.contextmanager
def clear_leftovers(folder: Path, pattern: str) -> Iterator[None]:
    """Remove what killed processes left in a folder, unless another process is at work there.

    Each process holds a shared lock on the folder while it works, so that only the first one removes anything.

    Args:
        folder: The folder, which exists.
        pattern: A glob pattern of files and folders that only exist while a process works.

    Yields:
        Nothing.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        # Another process has the lock, or the file system has none.
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in folder.glob(pattern):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)
