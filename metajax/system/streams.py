"""Print lines to streams whose reader may have closed them."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from typing import TextIO

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def put_line(text: str, stream: TextIO, *, styled: bool = False) -> None:
    """Print a line to a stream. Do nothing if the reader of the stream has closed it.

    Characters that the encoding of the stream does not have, for example in file names, are escaped. Control characters
    are escaped, too, unless `styled` is set.
    """
    if not styled:
        text = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    with unread_is_fine(stream):
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


@contextlib.contextmanager
def unread_is_fine(stream: TextIO) -> Iterator[None]:
    """Discard the output to `stream` if its reader has closed it, as in `| head -1`, or after a terminal was closed."""
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
