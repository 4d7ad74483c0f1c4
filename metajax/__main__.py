"""`python -m metajax`: the command line."""

import contextlib
import os
import sys


def _leave_current_folder() -> None:
    """Remove the current folder from Python's path, unless metajax is there: a file in it may be called `jax.py`."""
    with contextlib.suppress(OSError):  # the current folder is gone
        package = os.path.dirname(os.path.abspath(__file__))
        here = os.path.realpath(os.getcwd())
        if os.path.realpath(sys.path[0]) == here != os.path.realpath(os.path.dirname(package)):
            del sys.path[0]


if __name__ == "__main__":
    if not sys.flags.safe_path:
        _leave_current_folder()
    from metajax.cli import main

    raise SystemExit(main())
