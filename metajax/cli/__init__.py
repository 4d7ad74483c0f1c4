"""The command line: `metajax train | evaluate | bench | tune | plot | data | configs`."""

import contextlib
import importlib
import importlib.util
import logging
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from metajax import __version__
from metajax.errors import UserError, needs, suggestion
from metajax.system.signals import CALL_SECONDS, Stopped, end_process, ends_at_once, ends_in_time
from metajax.system.streams import leave, put_line

_COMMANDS = {
    "train": "meta-train an experiment, or resume it, then evaluate it",
    "evaluate": "evaluate a trained learner at every inner step",
    "bench": "measure the throughput of an experiment, or of the standard workloads, on this device",
    "tune": "time several execution settings for an experiment, and save the fastest for later runs",
    "plot": "draw the learning curve, adaptation and example tasks of a run",
    "data": "list, prepare or inspect data sets",
    "configs": "list the experiments that come with metajax, or show one",
}

_USAGE = f"""usage: metajax COMMAND ...

Gradient-based meta-learning in JAX.

commands:
{chr(10).join(f"  {name:<10} {text}" for name, text in _COMMANDS.items())}

metajax COMMAND --help describes a command; metajax --version prints the version."""

_MISTAKE = 2
"""Exit status of a command that fails with an error message, for example after a user's mistake."""

_LONGEST = 4000
"""Largest number of characters in a printed error message. Longer messages are shortened."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The arguments of the command line. Default: the arguments of this process. With the default, the process
            always ends soon after Ctrl-C, even while a program compiles.

    Returns:
        The exit status: 0 for success, 2 for a user's mistake, 130 after SIGINT, 143 after SIGTERM.

    >>> main(["--version"])
    metajax ...
    0
    """
    if argv is not None:
        return _run(list(argv))
    with ends_in_time():
        status = _run(sys.argv[1:])
        if status in _SIGNALLED:  # a normal exit would wait for threads that compile or write
            end_process(status)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python runs no signal handlers while it shuts down
    return status


_SIGNALLED = {128 + signum for signum in CALL_SECONDS}


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE)
        return 0 if argv else _MISTAKE
    if argv[0] == "--version":
        print(f"metajax {__version__}")
        return 0
    try:
        if any("\0" in word for word in argv):
            raise UserError("a word of the command line contains a NUL character")
        if argv[0] not in _COMMANDS:
            raise UserError(f"there is no command {argv[0]!r}{suggestion(argv[0], _COMMANDS)}")
        _print_log()
        command = _import(argv[0])
        with _warnings_in_a_line():
            return command.run(argv[1:]) or 0
    except UserError as error:
        return _fail(str(error))
    except Stopped as stopped:
        return _break_off(128 + stopped.signum)
    except KeyboardInterrupt:
        put_line("metajax: interrupted", sys.stderr)
        return _break_off(128 + signal.SIGINT)
    except BrokenPipeError:  # the output's reader, such as `head`, has closed it: print no more
        leave(sys.stdout)
        return 1
    except MemoryError as error:
        return _fail(f"out of memory ({str(error) or 'on the host'}): try smaller sizes, or fewer images")
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return _fail(f"{(error.strerror or str(error) or type(error).__name__).lower()}{where}")
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _fail(f"out of memory ({str(error).splitlines()[0]}): try a smaller model, or fewer tasks at once")


def _import(command: str) -> ModuleType:
    """Import the module of a command. The module imports JAX."""
    try:
        with ends_at_once(), needs("all"):
            if command == "plot":
                _import_matplotlib()
            return importlib.import_module(f"metajax.cli.{command}")
    except ValueError as error:  # an environment variable has an invalid value, such as JAX_ENABLE_X64=maybe
        raise UserError(f"JAX does not start: {error}") from error


def _import_matplotlib() -> None:
    """Import Matplotlib without the file `matplotlibrc` of the current folder, which another user may have written.

    Matplotlib searches this file in the current folder first, even if the variable `MATPLOTLIBRC` is set. It reads the
    file only at import.
    """
    package = importlib.util.find_spec("matplotlib")
    if "matplotlib" in sys.modules or package is None or package.origin is None:
        return
    if os.path.lexists("matplotlibrc"):
        with contextlib.chdir(Path(package.origin).parent):
            importlib.import_module("matplotlib")


def _fail(message: str) -> int:
    line = " ".join(message.split())
    if len(line) > _LONGEST:
        line = f"{line[: _LONGEST - 200]} … {line[-200:]}"
    put_line(f"metajax: error: {line}", sys.stderr)
    return _break_off(_MISTAKE, line)


def _break_off(status: int, reason: str = "interrupted") -> int:
    """Return the exit status of a failed command, or end the process at once if it has joined other processes.

    A normal exit would wait for the other processes, which may have ended or may wait for this process.
    """
    rendezvous = sys.modules.get("metajax.experiment.rendezvous")
    if rendezvous is not None and rendezvous.joined():
        rendezvous.tell_others(reason)
        end_process(status)
    return status


def _print_log() -> None:
    """Print the messages of metajax's logger on standard output, and its warnings on standard error."""
    logger = logging.getLogger("metajax")
    if not any(isinstance(handler, _Lines) for handler in logger.handlers):
        logger.addHandler(_Lines())
        logger.setLevel(logging.INFO)
        logger.propagate = False


class _Lines(logging.Handler):
    """A log handler that prints each record as a line, in process 0 only.

    It looks up `sys.stdout` and `sys.stderr` for each record, because these streams may be replaced.
    """

    def emit(self, record: logging.LogRecord) -> None:
        rendezvous = sys.modules.get("metajax.experiment.rendezvous")
        if rendezvous is not None and rendezvous.process_index():
            return
        if record.levelno < logging.WARNING:
            put_line(record.getMessage(), sys.stdout)
        else:
            put_line(f"metajax: warning: {record.getMessage()}", sys.stderr)


@contextlib.contextmanager
def _warnings_in_a_line() -> Iterator[None]:
    """Print each Python warning as one line, `metajax: warning: ...`, without its line of code."""

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        text = " ".join(str(message).split())
        damaged = re.match(r"Error reading persistent compilation cache entry for '([\w.-]+)'", text)
        if damaged:
            text = f"a compiled program in the cache is damaged ({damaged[1]}): it is compiled again"
            _drop_compiled(damaged[1])
        put_line(f"metajax: warning: {text[:_LONGEST]}", sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _drop_compiled(name: str) -> None:
    """Remove the compiled programs of a function from the cache, because JAX never replaces a damaged cache entry."""
    import jax

    folder = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    for path in Path(folder).glob(f"{name}-*") if folder else ():
        with contextlib.suppress(OSError):
            path.unlink()
