"""Where data lies on disk, and what to say when the disk refuses."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from metajax.errors import UserError


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
        return Path(data_dir).expanduser()
    if chosen := os.environ.get("METAJAX_DATA_DIR"):
        return Path(chosen).expanduser()
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
