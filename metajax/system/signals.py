"""Handle signals: which signals end a command, how soon, and with which message.

Python runs a signal handler only between two bytecodes of the main thread. While XLA compiles or runs a program, the
main thread runs no bytecode, sometimes for minutes. So a process that runs a command also has a watch thread, which
Python's C handler wakes at once. The watch thread prints that the signal was received, and ends the process after a
time limit. This module has no slow imports, so the watch thread starts before JAX is imported.
"""

import contextlib
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

from metajax.errors import UserError
from metajax.system.streams import put_line

INTERRUPT_SECONDS = 1.5
"""Time limit in seconds from Ctrl-C, or from any signal while there is no state to save, to the end of the process."""

CALL_SECONDS = {signal.SIGINT: INTERRUPT_SECONDS, signal.SIGTERM: 20.0}
if hasattr(signal, "SIGHUP"):  # Windows has no SIGHUP
    CALL_SECONDS[signal.SIGHUP] = 20.0
"""Time limit in seconds from each signal to the end of a training process.

If the running call of the training step returns before the limit, the state is saved. The limit is short for Ctrl-C,
because a person waits at the terminal. Schedulers kill a job about 30 seconds after SIGTERM.
"""

_AGAIN_SECONDS = 0.5
"""Time limit in seconds from a second signal to the end of the process."""


class Stopped(Exception):
    """A signal stopped the run. The state was saved if possible, and the message to the user was printed.

    Attributes:
        signum: The signal.
    """

    def __init__(self, signum: int):
        self.signum = signum


class StopRequests:
    """Signals received during training.

    Attributes:
        received: The numbers of the received signals, in order.
        saves: Whether there is a state to save when the running call of the training step returns.
        saving: Whether no call of the training step is running. The process then ends only after the state is saved, or
            after a second signal.
    """

    def __init__(self):
        self.received: list[int] = []
        self.saves = False
        self.saving = False
        self._save: Callable[[], None] | None = None
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def saved_at_once(self, save: Callable[[], None]) -> Iterator[None]:
        """Save the state and end the process as soon as a signal arrives in the body of the `with` statement.

        The body may be in a long call of a compiled program.

        Args:
            save: A function that saves the state. Another thread calls `save`, and only within `ends_in_time`.
        """
        self._save, self.saving = save, False
        try:
            yield
        finally:
            with self._lock:  # wait until `save` has ended
                self._save, self.saving = None, True

    def save_now(self) -> bool:
        """Save the state if the training is in the body of `saved_at_once`. Return whether the state was saved.

        Raises:
            UserError: If the state cannot be saved.
        """
        with self._lock:
            if self._save is None:
                return False
            self.saving = True
            self._save()
            return True

    def seconds(self, signum: int) -> float:
        """Return the time limit in seconds from the first signal to the end of the process."""
        return CALL_SECONDS[signal.Signals(signum)] if self.saves else INTERRUPT_SECONDS

    def notice(self, signum: int) -> str:
        """Return the message to print when a signal arrives; empty if the process ends at once."""
        if not self.saves:
            return ""
        if self._save is not None:
            return "metajax: stopping and saving"
        return f"metajax: stopping, and saving if this call returns within {self.seconds(signum):g} seconds"

    def farewell(self, signum: int) -> str:
        """Return the message to print when the process ends without saving its state."""
        name = "interrupted" if signum == signal.SIGINT else f"stopped by {signal.Signals(signum).name}"
        if not self.saves:
            return f"metajax: {name}"
        return f"metajax: {name} before the call returned; the same command resumes from the last checkpoint"


class _Watch:
    """The watch thread, which ends the process after a signal. `training` is the training that it lets save first."""

    def __init__(self):
        self.training: StopRequests | None = None
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="metajax-signals", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._previous = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)

    def stop(self) -> None:
        signal.set_wakeup_fd(self._previous)
        self._write.send(b"\0")
        self._thread.join()
        self._read.close()
        self._write.close()

    def _run(self) -> None:
        training, deadline, farewell, status, repeated = StopRequests(), None, "", 0, False
        while True:
            left = None if deadline is None else max(deadline - time.monotonic(), 0)
            if not select.select([self._read], [], [], left)[0]:
                if training.saving and not repeated:
                    deadline = None
                    continue
                put_line(farewell, sys.stderr)
                end_process(status)
            for signum in self._read.recv(64):
                if signum == 0:
                    return
                if signum not in CALL_SECONDS:  # for example SIGCHLD
                    continue
                if not status:
                    training = self.training or StopRequests()
                    seconds, status = training.seconds(signum), 128 + signum
                    farewell = training.farewell(signum)
                    if training.notice(signum):
                        put_line(training.notice(signum), sys.stderr)
                    threading.Thread(target=_save_and_end, args=(training, status), daemon=True).start()
                else:
                    seconds, repeated = _AGAIN_SECONDS, True
                deadline = min(time.monotonic() + seconds, deadline or float("inf"))


def _save_and_end(training: StopRequests, status: int) -> None:
    """Save the state and end the process if the training is in the body of `saved_at_once`, else do nothing."""
    try:
        if not training.save_now():
            return
    except UserError as error:
        put_line(f"metajax: error: {error}", sys.stderr)
    end_process(status)


_watch: _Watch | None = None


def end_process(status: int) -> None:
    """End this process at once, without cleanup, which could wait for a compilation or another process."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    if sys.stderr.isatty():
        with contextlib.suppress(OSError):
            os.write(2, b"\x1b[?25h")  # show the cursor again, which a progress bar hides
    os._exit(status)


@contextlib.contextmanager
def ends_in_time() -> Iterator[None]:
    """Limit the time from Ctrl-C to the end of the process. Use it only in a process that runs one command."""
    global _watch
    if _watch is not None or not _in_main_thread():
        yield
        return
    _watch, hook = _Watch(), sys.unraisablehook

    def report(unraisable) -> None:  # for example in a garbage collector callback, which cannot propagate exceptions
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            hook(unraisable)

    sys.unraisablehook = report
    _watch.start()
    try:
        yield
    finally:
        _watch.stop()
        _watch, sys.unraisablehook = None, hook


@contextlib.contextmanager
def ends_at_once() -> Iterator[None]:
    """Let Ctrl-C end the process at once while the body of the `with` statement runs.

    A `KeyboardInterrupt` would become an `ImportError` if the body is importing a C extension.
    """
    if _watch is None:
        yield
        return

    def end(signum, frame):
        put_line("metajax: interrupted", sys.stderr)
        end_process(128 + signum)

    previous = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Collect the first SIGINT, SIGTERM or SIGHUP while the body of the `with` statement runs.

    A signal is collected only if it is the first one and there is a state to save. Any other signal interrupts the body
    by an exception. Outside the main thread no signal is handled, because Python runs handlers only in the main thread.

    Raises:
        KeyboardInterrupt: In the body, for a SIGINT that is not collected.
        Stopped: In the body, for a SIGTERM or SIGHUP that is not collected.
    """
    requests = StopRequests()
    if not _in_main_thread():
        yield requests
        return

    raised: list[int] = []
    callbacks = logging.getLogger("jax._src.callback")  # this logger would print exceptions of callbacks

    def receive(signum, frame):
        if requests.received or not requests.saves:
            raised.append(signum)
            callbacks.disabled = True
            if signum == signal.SIGINT:
                raise KeyboardInterrupt
            put_line(requests.farewell(signum), sys.stderr)
            raise Stopped(signum)
        requests.received.append(signum)
        if _watch is None:
            put_line(requests.notice(signum), sys.stderr)

    handled = [each for each in CALL_SECONDS if each == signal.SIGINT or signal.getsignal(each) != signal.SIG_IGN]
    previous = {each: signal.signal(each, receive) for each in handled}  # nohup makes a process ignore SIGHUP
    if _watch is not None:
        _watch.training = requests
    try:
        yield requests
    except Exception as error:  # JAX converts an exception in a callback into its own error
        if not raised or isinstance(error, Stopped):
            raise
        raise (KeyboardInterrupt if raised[0] == signal.SIGINT else Stopped(raised[0])) from error
    finally:
        callbacks.disabled = False
        if _watch is not None:
            _watch.training = None
        for each, handler in previous.items():
            signal.signal(each, handler)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
