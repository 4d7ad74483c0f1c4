"""Connect the processes of a run, and check that they have the same settings.

`jax.distributed` ends the process without a message if a port is in use or a process is missing. So the processes first
connect over TCP: process 0 listens at ADDRESS:PORT. Each process (including process 0) connects, sends its index and
the number of processes, and waits until all processes have connected. Messages are lines of JSON.
"""

import contextlib
import json
import re
import selectors
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
from jax._src import distributed  # its client stores values for all processes before JAX has devices

from metajax.errors import UserError
from metajax.system.streams import put_line

WAIT_SECONDS = 300.0
"""Time limit in seconds for the other processes to start."""

_FIRST_NOTICE_SECONDS, _NEXT_NOTICE_SECONDS = 8.0, 60.0
"""Seconds until the first message about missing processes, and between later messages."""

_ADDRESS_SECONDS = 5.0
"""Time limit in seconds for resolving a host name, and for process 0 to connect to itself at ADDRESS:PORT."""

_AGREE_SECONDS = 300.0
"""Time limit in seconds for the other processes to read their config files and their data."""

_LEAVE_SECONDS = 20.0
"""Time limit in seconds for the other processes to read the reason why process 0 stops."""

_LONGEST = 1 << 16
"""Largest size of a message in bytes."""

_NAMED = 10
"""Largest number of missing processes that a message lists."""


class Place(NamedTuple):
    """The address of process 0, the index of this process and the number of processes, from `--distributed`."""

    host: str
    port: int
    index: int
    count: int

    @property
    def address(self) -> str:
        """Return the address of process 0 as `ADDRESS:PORT`."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_place(text: str) -> Place:
    """Parse `ADDRESS:PORT,INDEX,COUNT`.

    Raises:
        UserError: If `text` has another form, or if one of its numbers is out of range.

    >>> parse_place("node0:4700,1,2")
    Place(host='node0', port=4700, index=1, count=2)
    """
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^\s,:\[\]]+)):([0-9]+),([0-9]+),([0-9]+)", text, re.ASCII)
    if match is None:
        raise UserError(f"--distributed is auto or ADDRESS:PORT,INDEX,COUNT with INDEX from 0, got {_short(text)}")
    port, index, count = (int(digits[:12]) for digits in match.groups()[2:])
    if not 1 <= port <= 65535:
        raise UserError(f"--distributed: a port is from 1 to 65535, got {match[3][:40]}")
    if not 1 <= count <= 100_000:
        raise UserError(f"--distributed: COUNT must be from 1 to 100000, got {match[5][:40]}")
    if index >= count:
        raise UserError(
            f"--distributed is auto or ADDRESS:PORT,INDEX,COUNT with INDEX from 0 and below COUNT, got index "
            f"{match[4][:40]} of {count}"
        )
    return Place(match[1] or match[2], port, index, count)


def meet(place: Place, *, wait: float = WAIT_SECONDS) -> None:
    """Wait until all processes of a run have connected to process 0.

    After 8 seconds, and then once a minute, print which processes are missing.

    Args:
        place: The address of process 0, and the index of this process.
        wait: Seconds to wait for the other processes.

    Raises:
        UserError: If the address does not lead to process 0, if the port is in use, if two processes have the same
            index or different counts, or if a process does not connect within `wait` seconds.
    """
    deadline = time.monotonic() + wait
    _resolve(place)
    with contextlib.ExitStack() as stack:
        if place.index == 0:
            listener = _listen(place)
            if listener is not None:
                stack.enter_context(_Host(listener, place.count))
        connection = stack.enter_context(_connect(place, deadline))
        hello = {"metajax": 1, "index": place.index, "count": place.count}
        with contextlib.suppress(OSError):  # the answer of process 0 gives the reason
            connection.sendall(_line(hello))
        _await_all(place, connection, deadline)


def _resolve(place: Place) -> None:
    deadline = time.monotonic() + _ADDRESS_SECONDS
    while True:
        try:
            socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
            return
        except (OSError, UnicodeError) as error:
            if time.monotonic() > deadline or isinstance(error, UnicodeError):
                reason = "no such host" if isinstance(error, UnicodeError) else str(error.strerror or error).lower()
                raise UserError(
                    f"--distributed: the address {_short(place.host)} cannot be resolved ({reason}): give the name or "
                    "IP address of process 0's machine"
                ) from error
            time.sleep(0.5)


def _listen(place: Place) -> socket.socket | None:
    """Return process 0's listening socket; `None` if the port is in use.

    If another process 0 already uses the port, it answers this process's connection with an error message.
    """
    try:
        if socket.has_dualstack_ipv6():
            with contextlib.suppress(OSError):
                return socket.create_server(("", place.port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
        return socket.create_server(("", place.port), backlog=1024)
    except PermissionError as error:
        raise UserError(
            f"--distributed: port {place.port} needs administrator rights: choose a port from 1024 to 65535"
        ) from error
    except OSError:
        return None


def _connect(place: Place, deadline: float) -> socket.socket:
    """Connect to process 0, which may start later."""
    began, notices = time.monotonic(), _notices()
    if place.index == 0:
        deadline = min(deadline, began + _ADDRESS_SECONDS)
    while True:
        try:
            left = max(deadline - time.monotonic(), 0.1)
            return socket.create_connection((place.host, place.port), timeout=min(left, _ADDRESS_SECONDS))
        except OSError as error:
            reason = str(error.strerror or error).lower()
        if time.monotonic() >= deadline:
            if place.index == 0:
                raise UserError(
                    f"--distributed: {place.address} does not lead to this process ({reason}): process 0 must be "
                    "given the address of its own machine"
                )
            raise UserError(
                f"--distributed: process 0 was not at {place.address} for {time.monotonic() - began:.0f} seconds "
                f"({reason})"
            )
        if next(notices):
            put_line(f"metajax: waiting for process 0 at {place.address} ({reason})", sys.stderr)
        time.sleep(0.2)


def _await_all(place: Place, connection: socket.socket, deadline: float) -> None:
    """Read process 0's messages, one per second, until all processes have connected."""
    if place.index == 0:
        taken = f"--distributed: port {place.port} of this machine is in use by another program: choose another port"
    else:
        taken = (
            f"--distributed: what answers at {place.address} is not a process 0 that waits for other "
            "processes: is the port in use by another program, or has the run begun already?"
        )
    connection.settimeout(_ADDRESS_SECONDS)
    messages, notices, heard = connection.makefile("rb"), _notices(), False
    while True:
        try:
            line = messages.readline(_LONGEST)
            message = json.loads(line)
            missing, error, complete = message["missing"], message["error"], message["complete"]
            count = message["count"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as bad:
            raise UserError(f"--distributed: process 0 at {place.address} has stopped" if heard else taken) from bad
        heard = True
        if error:
            raise UserError(f"--distributed: {error}")
        if complete:
            return
        which = f"waiting for {count} of {place.count} processes at {place.address}"
        which += f" (index {', '.join(map(str, missing[:_NAMED]))}{', …' if count > _NAMED else ''})"
        if time.monotonic() >= deadline:
            raise UserError(f"--distributed: {which}: these processes did not connect in time")
        if next(notices):
            put_line(f"metajax: {which}", sys.stderr)


class _Host:
    """Process 0's thread. It accepts connections, and once per second sends to each one which processes are missing."""

    def __init__(self, listener: socket.socket, count: int):
        self._listener, self._count = listener, count
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metajax-rendezvous", daemon=True)

    def __enter__(self) -> "_Host":
        self._thread.start()
        return self

    def __exit__(self, *exc_info) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        with self._listener, selectors.DefaultSelector() as selector:
            self._listener.setblocking(False)
            selector.register(self._listener, selectors.EVENT_READ)
            received: dict[socket.socket, bytes] = {}
            indices: dict[socket.socket, int] = {}
            sent_at, error = 0.0, ""
            while True:
                for key, _ in selector.select(0.1):
                    if key.fileobj is self._listener:
                        with contextlib.suppress(OSError):
                            connection, _ = self._listener.accept()
                            connection.setblocking(False)
                            selector.register(connection, selectors.EVENT_READ)
                            received[connection] = b""
                        continue
                    connection: socket.socket = key.fileobj  # type: ignore[assignment]
                    try:
                        part = connection.recv(4096)
                    except OSError:
                        part = b""
                    received[connection] += part
                    if (
                        not part or len(received[connection]) > _LONGEST
                    ):  # the process has stopped, or is another program
                        selector.unregister(connection)
                        connection.close()
                        received.pop(connection)
                        indices.pop(connection, None)
                    elif connection not in indices and b"\n" in received[connection]:
                        index, problem = self._welcome(received[connection], list(indices.values()))
                        error, sent_at = error or problem, 0.0
                        if index is not None:
                            indices[connection] = index
                missing = sorted({*range(self._count)} - {*indices.values()})
                complete = not missing and not error
                if complete or time.monotonic() > sent_at + 1:
                    sent_at = time.monotonic()
                    listed = missing[:_NAMED]  # not all of them, because a message has at most `_LONGEST` bytes
                    message = _line({"missing": listed, "count": len(missing), "error": error, "complete": complete})
                    for connection in received:
                        with contextlib.suppress(OSError):
                            connection.sendall(message)
                if complete or self._ended.is_set():
                    break
            for connection in received:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_WR)
                connection.close()

    def _welcome(self, hello: bytes, taken: list[int]) -> tuple[int | None, str]:
        """Check the first message that a process sends to process 0: its index and the number of processes.

        Returns:
            The index of the process, or `None` if the message is not valid. And an error message; it is empty if there
            is no error, and also for a message of another program.
        """
        try:
            message = json.loads(hello.split(b"\n")[0])
            index, count = int(message["index"]), int(message["count"])
        except (
            ValueError,
            KeyError,
            TypeError,
            OverflowError,
            RecursionError,
        ):  # such as the number 1e999, or thousands of nested brackets
            return None, ""
        if count != self._count:
            return None, f"process {index} was started as one of {count}, and process 0 as one of {self._count}"
        if not 0 <= index < count:
            return None, ""
        if index in taken:
            return None, f"index {index} is taken: two processes were started with it"
        return index, ""


def _notices() -> Iterator[bool]:
    """Yield, each time the caller asks, whether it is time to print which processes are missing."""
    due = time.monotonic() + _FIRST_NOTICE_SECONDS
    while True:
        is_due = time.monotonic() >= due
        if is_due:
            due = time.monotonic() + _NEXT_NOTICE_SECONDS
        yield is_due


def _line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _short(text: str) -> str:
    return repr(text if len(text) <= 100 else f"{text[:100]}…")


def joined() -> bool:
    """Return whether this process has joined other processes."""
    return distributed.global_state.client is not None and distributed.global_state.num_processes > 1


def process_index() -> int:
    """Return the index of this process in its run, without initialising JAX's devices."""
    return distributed.global_state.process_id


def agree(subject: str, settings: Mapping[str, Any], *, wait: float = _AGREE_SECONDS) -> None:
    """Check that all processes of a run have the same settings. Do nothing if there is only one process.

    Args:
        subject: Name of the compared settings, such as `data`. All processes use the same name.
        settings: Names and values of the settings; the values must be JSON values.
        wait: Seconds to wait for the other processes.

    Raises:
        UserError: If the settings of two processes differ, or if another process stopped before the comparison. The
            message lists the first differences with both values. Every process raises the error.
    """
    if not joined():
        return
    state, client = distributed.global_state, distributed.global_state.client
    assert client is not None
    mine = {name: json.dumps(value, sort_keys=True, default=str) for name, value in settings.items()}
    try:
        if state.process_id:
            client.key_value_set(_key(subject, state.process_id), json.dumps({"settings": mine}))
            verdict = client.blocking_key_value_get(_key(subject, "verdict"), int(wait * 1000))
        else:
            verdict = _verdict(client, subject, mine, state.num_processes, wait)
            client.key_value_set(_key(subject, "verdict"), verdict, allow_overwrite=True)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"another process of the run has stopped ({str(error).splitlines()[0][:120]})") from error
    if verdict:
        if state.process_id:
            _leave(client, state.process_id)
        else:
            _await_leaving(client, state.num_processes)
        raise UserError(verdict)
    _agreed.append(subject)


def _leave(client: Any, index: int) -> None:
    """Tell process 0 that this process has read the result, so that process 0 may end."""
    with contextlib.suppress(Exception):
        client.key_value_set(_key("left", index), "")


def _await_leaving(client: Any, count: int) -> None:
    """Wait until the other processes have read the result. JAX ends them without a message when process 0 ends."""
    deadline = time.monotonic() + _LEAVE_SECONDS
    for index in range(1, count):
        with contextlib.suppress(Exception):
            client.blocking_key_value_get(_key("left", index), int(max(deadline - time.monotonic(), 0.01) * 1000))
    time.sleep(0.5)  # a process needs some time to end after its last message


def _verdict(client: Any, subject: str, mine: dict[str, str], count: int, wait: float) -> str:
    deadline = time.monotonic() + wait
    for index in range(1, count):
        left = max(deadline - time.monotonic(), 1)
        try:
            message = json.loads(client.blocking_key_value_get(_key(subject, index), int(left * 1000)))
        except jax.errors.JaxRuntimeError:
            return f"process {index} of the run did not send its {subject} within {wait:.0f} seconds"
        if "stopped" in message:
            return f"process {index} of the run has stopped: {message['stopped']}"
        theirs = message["settings"]
        differing = [
            f"{name} is {mine.get(name, 'absent')} in process 0 and {theirs.get(name, 'absent')} in process {index}"
            for name in sorted({*mine, *theirs})
            if mine.get(name) != theirs.get(name)
        ]
        if differing:
            more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
            return (
                f"the processes of the run were given different {subject}: {'; '.join(differing[:3])}{more}. Start "
                "each process with the same command, except for the process index"
            )
    return ""


def _key(subject: str, name: int | str) -> str:
    # One job may train several runs, whose names must differ.
    return f"metajax/{subject.replace(' ', '_')}/{_agreed.count(subject)}/{name}"


_SUBJECTS = ("settings", "data")
"""Names of the comparisons of a run, in order."""

_agreed: list[str] = []
"""Names of the comparisons that have succeeded in this process."""


def tell_others(reason: str) -> None:
    """Tell the other processes why this process stops. They read the reason when they compare settings in `agree`.

    Process 0 waits for the other processes, because JAX ends them without a message as soon as process 0 ends.
    """
    state, client = distributed.global_state, distributed.global_state.client
    if client is None or _SUBJECTS[-1] in _agreed:  # now the next collective operation reports the stop
        return
    for subject in _SUBJECTS:
        with contextlib.suppress(Exception):  # the key may be set already
            if state.process_id:
                client.key_value_set(_key(subject, state.process_id), json.dumps({"stopped": reason}))
            else:
                client.key_value_set(_key(subject, "verdict"), f"process 0 of the run has stopped: {reason}")
    if state.process_id:
        _leave(client, state.process_id)
        return
    _await_leaving(client, state.num_processes)


@contextlib.contextmanager
def mistakes_told() -> Iterator[None]:
    """Tell the other processes if the body of the `with` statement raises an exception. The next `agree` ends them."""
    try:
        yield
    except Exception as error:
        if joined():
            tell_others(str(error) or type(error).__name__)
        raise
