"""Read and write files safely in a folder that another user may have prepared.

Writes never follow a symbolic link. Reads accept only regular files, because a FIFO would block for ever.
"""

import contextlib
import errno
import io
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from metajax.errors import UserError

MAX_BYTES = 2**28
"""Largest size in bytes of a file, or of a member of an archive, that is read at once: 256 MB."""

_MOST_JSON_BYTES = 2**22
"""Largest size in bytes of a JSON file that is read: 4 MB."""
_MOST_LINE_BYTES = 2**20
"""Largest size in bytes of a line that `read_lines` yields. A line of metrics is far shorter."""
_DEEPEST = 50
"""Largest nesting depth of a JSON file. Settings nest far less deeply, and Python's recursion limit is far higher."""

PARTIALS = ".metajax-*.partial"
"""Glob pattern of the temporary files of `replacing`."""
_PARTIAL = re.compile(r"\.metajax-[0-9a-f]{16}\.partial")
_STALE_SECONDS = 3600.0
"""Age from which a temporary file is assumed to come from a killed process."""

# Flags for `os.open`: fail on a symbolic link, close the file in child processes, and do not wait for a FIFO.
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)


def expand_home(path: str | os.PathLike[str]) -> Path:
    """Return a path with the home folder in place of `~`. A path `~name` of an unknown user is returned unchanged."""
    return Path(os.path.expanduser(path))


def read_bytes(path: str | os.PathLike[str], limit: int = MAX_BYTES) -> bytes:
    """Read a regular file as `read_file` does, but raise a `UserError` with a message of one line.

    Raises:
        UserError: If the file is missing, cannot be read, is not a regular file, or has more than `limit` bytes.
    """
    with _reading(Path(path)):
        return read_file(path, limit)


def read_file(path: str | os.PathLike[str], limit: int = MAX_BYTES) -> bytes:
    """Read a regular file of limited size.

    Args:
        path: The file, or a symbolic link to it.
        limit: Largest size of the file in bytes.

    Returns:
        The content of the file.

    Raises:
        OSError: If the file is larger than `limit`, is not a regular file, or cannot be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        check_size(size, limit)
        return file.read(size)


def check_size(size: int, limit: int) -> None:
    """Raise an `OSError` if content of `size` bytes is larger than `limit`."""
    if size > limit:
        raise OSError(f"has {size:,} bytes, more than the {limit:,} that are read")


def read_lines(path: str | os.PathLike[str]) -> Iterator[bytes]:
    r"""Read a regular file line by line, so that a file of any size needs little memory.

    Args:
        path: The file, or a symbolic link to it.

    Yields:
        Each line with its newline. The last line may have no newline. A line of 1 MB or more is replaced by `b"\n"`,
        or by `b""` if it is the last line and has no newline.

    Raises:
        UserError: If the file is missing, cannot be read, or is not a regular file.
    """
    with _reading(Path(path)), open_regular(path) as file:
        while line := file.readline(_MOST_LINE_BYTES):
            if len(line) == _MOST_LINE_BYTES and not line.endswith(b"\n"):
                while line and not line.endswith(b"\n"):
                    line = file.readline(_MOST_LINE_BYTES)
                line = line[-1:]
            yield line


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a regular file for reading. A FIFO or a device is refused, because reading it may never end.

    Args:
        path: The file, or a symbolic link to it.

    Returns:
        The open file. The caller must close it.

    Raises:
        OSError: If the file is not a regular file, or cannot be opened.
    """
    # Without O_NONBLOCK `open` blocks on a FIFO. A check before `open` would miss a FIFO that replaces the file later.
    flags = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    file = open(path, "rb", opener=lambda name, mode: os.open(name, mode | flags))  # noqa: SIM115, the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError("not a regular file")
    return file


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Convert an error of opening or reading a file into a `UserError` with a message of one line."""
    try:
        yield
    except (OSError, ValueError) as error:  # Python raises a ValueError for a path with a null character
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        UserError: If the file cannot be read, is not JSON, has more than 4 MB, or has more than 50 levels of nesting.
    """
    content = read_bytes(path, _MOST_JSON_BYTES)
    try:
        value = json.loads(content)
        level = [value]
        for _ in range(_DEEPEST):
            level = [inner for each in level for inner in _containers(each)]
            if not level:
                return value
        raise ValueError("it nests too deeply")
    except (ValueError, RecursionError) as error:  # thousands of nested brackets raise a RecursionError
        raise UserError(f"{path} is damaged: {error}") from error


def _containers(value: Any) -> list[Any]:
    """Return the lists and dicts among the direct elements of a list or dict."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [each for each in inside if isinstance(each, list | dict)]


def write_bytes(path: str | os.PathLike[str], content: bytes, *, mode: int = 0o666) -> None:
    """Replace a file atomically: a reader sees the old content or the new content, and nothing in between.

    The new content goes into a temporary file with a random name, which is then renamed. A symbolic link at `path` is
    replaced; its target does not change.

    Args:
        path: The file.
        content: The new content of the file.
        mode: The permissions of the new file, before the umask removes some of them.

    Raises:
        UserError: If `path` is a folder, a device or another special file.
        OSError: If the file cannot be written. The error's `filename` is `path`.
    """
    with replacing(path, mode=mode) as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Replace a file atomically by the content that the body of the `with` statement writes; see `write_bytes`.

    If the body raises an exception, the old file stays.

    Yields:
        The temporary file.
    """
    path = Path(path)
    try:
        _check_replaceable(path)
        descriptor, partial = _create_partial(path.parent, mode)
        try:
            with open(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(descriptor)
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:  # an `OSError` of NumPy has no error number
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Replace a text file atomically, in UTF-8; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike[str], value: Any, *, mode: int = 0o666) -> None:
    """Replace a JSON file atomically; see `write_bytes`."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    # A file name that is not UTF-8 contains surrogates. Python's backslash escape of a surrogate is valid JSON, too.
    write_bytes(path, text.encode("utf-8", "backslashreplace"), mode=mode)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Check that `write_bytes` can write a file, before starting the work that produces its content.

    A missing folder counts as writable if its nearest existing parent is writable.

    Raises:
        UserError: If the file cannot be written.
    """
    path = Path(path)
    try:
        _check_replaceable(path)
        folder = path.parent
        while not os.path.lexists(folder) and folder != folder.parent:
            folder = folder.parent
        descriptor, partial = _create_partial(folder)
        os.close(descriptor)
        partial.unlink()
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise UserError(f"{path} cannot be written: {reason}") from error


def open_append(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for appending; create the file if it is missing.

    Raises:
        UserError: If the file is a symbolic link or a special file.
        OSError: If the file cannot be opened.
    """
    path = Path(path)
    descriptor = _open_no_link(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        _check_regular(path, os.fstat(descriptor))
    except UserError:
        os.close(descriptor)
        raise
    return open(descriptor, "ab")


def subfolder(folder: str | os.PathLike[str], name: str) -> Path:
    """Return the folder `folder / name`; create it and its parents if they are missing.

    Raises:
        UserError: If `folder / name` is a symbolic link to a place outside `folder`, or if it is not a folder.
        OSError: If `folder / name` cannot be created.
    """
    path = check_inside(folder, name)
    path.mkdir(parents=True, exist_ok=True)
    return path


def check_inside(folder: str | os.PathLike[str], name: str) -> Path:
    """Check that `folder / name` is missing or is a folder inside `folder`, and return its path.

    Raises:
        UserError: If `folder / name` is a symbolic link to a place outside `folder`, or if it is not a folder.
    """
    path = Path(folder) / name
    if path.is_symlink() and not path.resolve().is_relative_to(Path(folder).resolve()):
        raise UserError(
            f"{path} is a symbolic link out of {folder}: remove the link, because metajax does not write through it"
        )
    if os.path.lexists(path) and not path.is_dir():
        raise UserError(f"{path} is not a folder: remove it")
    return path


def is_partial(name: str) -> bool:
    """Return whether a file name has the form of the temporary files of `write_bytes`."""
    return _PARTIAL.fullmatch(name) is not None


def remove_stale_partials(folder: str | os.PathLike[str]) -> None:
    """Remove the temporary files that killed processes left in a folder."""
    for path in Path(folder).iterdir():
        if is_partial(path.name):
            with contextlib.suppress(OSError):
                if time.time() - path.lstat().st_mtime > _STALE_SECONDS:
                    path.unlink()


@contextlib.contextmanager
def lock(path: str | os.PathLike[str]) -> Iterator[bool]:
    """Hold an exclusive lock on a lock file. The system releases the lock when the process ends, even after a kill.

    Args:
        path: The lock file, created if it is missing. Its content does not change.

    Yields:
        Whether this process holds the lock; `True` if the system cannot lock the file (Windows, some cluster file
        systems, a folder that is not writable).

    Raises:
        UserError: If `path` is a symbolic link.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield True
        return
    try:
        descriptor = _open_no_link(Path(path), os.O_RDWR | os.O_CREAT)
    except OSError:
        yield True
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locked = True
    except OSError as error:
        locked = not isinstance(error, BlockingIOError)
    try:
        yield locked
    finally:
        os.close(descriptor)


def _create_partial(folder: Path, mode: int = 0o666) -> tuple[int, Path]:
    """Create a temporary file with a random name; return its descriptor and path."""
    path = folder / f".metajax-{secrets.token_hex(8)}.partial"
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK, mode), path


def _open_no_link(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags | _NO_LINK, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP or path.is_symlink():
            raise UserError(
                f"{path} is a symbolic link: remove it, because metajax does not write through it"
            ) from error
        if error.errno == errno.ENXIO:  # a FIFO without a reader
            raise UserError(f"{path} is not a regular file") from error
        raise


def _check_replaceable(path: Path) -> None:
    """Raise a `UserError` if a path exists and is not a regular file.

    A rename by the user root would replace even `/dev/null`.
    """
    with contextlib.suppress(FileNotFoundError):
        path.lstat()  # raises an `OSError` if the name is too long, or if a parent is a file
        _check_regular(path, path.stat())


def _check_regular(path: Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise UserError(f"{path} is a folder, not a file")
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is not a regular file")
