"""Record and check the checksums of the compiled programs that JAX caches on disk.

JAX does not check a cached program before it runs the program. If another file has overwritten the cache file, the
program fails an assertion or computes wrong numbers.
"""

import contextlib
import hashlib
import logging
import os
import time
from pathlib import Path
from typing import Any

from metajax.errors import UserError
from metajax.system import files

_CHECKSUMS = "checksums.json"
_LOG = logging.getLogger("metajax")


def drop_changed(folder: Path) -> None:
    """Remove the cached programs whose checksum has changed, with a warning. JAX then compiles these programs again.

    A file is read only if its size, modification time or inode has changed. The checksums of new programs are recorded.
    """
    known, changed = _read(folder), []
    for path in _programs(folder):
        *stamp, checksum = known.get(path.name, [None])
        with contextlib.suppress(OSError):
            if checksum is not None and stamp != _stamp(path) and checksum != _checksum(path):
                path.unlink()
                changed.append(path)
    if changed:
        _LOG.warning("%s: %d compiled programs had changed: they are compiled again", folder, len(changed))
    record(folder, time.time())


def record(folder: Path, since: float) -> None:
    """Record the checksums of the cached programs that have no checksum yet or that this process has written.

    Args:
        folder: The folder of the cache.
        since: Start time of this process, in seconds since 1970.
    """
    known, now = _read(folder), {}
    for path in _programs(folder):
        with contextlib.suppress(OSError):
            written = path.stat().st_mtime >= since
            kept = known.get(path.name)
            now[path.name] = kept if kept and not written else [*_stamp(path), _checksum(path)]
    if now != known:
        with contextlib.suppress(OSError, UserError):  # the cache may be read-only
            files.write_json(folder / _CHECKSUMS, now)


def _programs(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*-cache") if path.is_file())


def _stamp(path: Path) -> list[int]:
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(folder: Path) -> dict[str, list[Any]]:
    try:
        found = files.read_json(folder / _CHECKSUMS)
    except UserError:
        return {}
    entries = found.items() if isinstance(found, dict) else ()
    return {name: entry for name, entry in entries if isinstance(entry, list) and len(entry) == 4}
