"""The command line: `metajax train | evaluate | bench | tune | plot | data | configs`."""

import errno
import importlib
import logging
import os
import signal
import sys
from collections.abc import Sequence

from metajax.errors import UserError

_COMMANDS = {
    "train": "meta-train an experiment, or resume it, then evaluate it",
    "evaluate": "evaluate a trained learner at every inner step",
    "bench": "measure the throughput of an experiment, or of the standard workloads, on this device",
    "tune": "time the sensible ways to carry an experiment out, and keep the fastest for later runs",
    "plot": "draw the learning curve, adaptation and example tasks of a run",
    "data": "list, prepare or inspect data sets",
    "configs": "list the experiments that come with metajax, or show one",
}

_USAGE = f"""usage: metajax COMMAND ...

Gradient-based meta-learning in JAX.

commands:
{chr(10).join(f"  {name:<10} {text}" for name, text in _COMMANDS.items())}

metajax COMMAND --help says more; metajax --version gives the version."""

_DISK_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
}


_MISTAKE = 2
"""Exit status after a user's mistake, or a failure that is told in a line."""


class Stopped(Exception):
    """A signal stopped the run; its work is saved.

    Attributes:
        signum: The signal.
    """

    def __init__(self, signum: int):
        self.signum = signum


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Its words, by default those of the process.

    Returns:
        The exit status: 0, 2 for a user's mistake, 130 after an interrupt, 143 after a termination.

    >>> main(["--version"])
    metajax ...
    0
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE)
        return 0 if argv else _MISTAKE
    if argv[0] == "--version":
        from metajax import __version__

        print(f"metajax {__version__}")
        return 0
    try:
        if argv[0] not in _COMMANDS:
            from metajax.cli.parse import suggestion

            raise UserError(f"there is no command {argv[0]!r}{suggestion(argv[0], _COMMANDS)}")
        _log_warnings()
        command = importlib.import_module(f"metajax.cli.{argv[0]}")
        return command.run(argv[1:]) or 0
    except UserError as error:
        print(f"metajax: error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return _break_off(_MISTAKE, argv)
    except Stopped as stopped:
        return 128 + stopped.signum
    except KeyboardInterrupt:
        print("metajax: interrupted", file=sys.stderr)
        return _break_off(128 + signal.SIGINT, argv)
    except BrokenPipeError:  # the reader of our output has gone: say nothing, also not at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(f"metajax: error: {str(error.strerror).lower()}{where}", file=sys.stderr)
        return _break_off(_MISTAKE, argv)


def _break_off(status: int, argv: list[str]) -> int:
    """The exit status of work that is broken off; a process of several exits here and now.

    A usual exit waits for the others, which may be gone, or wait for this one.
    """
    if any(arg.startswith("--distributed") for arg in argv):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _log_warnings() -> None:
    """Show the library's warnings as the commands show theirs."""
    logger = logging.getLogger("metajax")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("metajax: warning: %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
