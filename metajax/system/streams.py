"""Print lines to streams whose reader may have closed them."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from typing import TextIO

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def put_line(text: str, stream: TextIO, *, styled: bool = False) -> None:
    """Print a line, unless nobody reads the stream.

    Escapes what its encoding cannot express, as in a file's name, and control characters unless `text` is `styled`.
    """
    if not styled:
        text = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    with unread_is_fine(stream):
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


@contextlib.contextmanager
def unread_is_fine(stream: TextIO) -> Iterator[None]:
    """Continue without `stream` if its reader has closed it, for example `| head -1`, or a closed terminal."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise
        leave(stream)


def leave(stream: TextIO) -> None:
    """Discard all further output to a stream, including the content of its buffer."""
    with contextlib.suppress(OSError, ValueError):  # a stream such as io.StringIO has no descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
