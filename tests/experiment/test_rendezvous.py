"""Where the processes of a run meet, here as threads of one process."""

import socket
import threading
import time

import pytest

from metajax.errors import UserError
from metajax.experiment import rendezvous
from metajax.experiment.rendezvous import Place, meet, parse_place


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(rendezvous, "_FIRST_NOTICE_SECONDS", 1.0)
    monkeypatch.setattr(rendezvous, "_ADDRESS_SECONDS", 3.0)


def start(place, **options):
    """Meet in a thread; the outcome is None, or the message of the error."""
    outcome = []

    def run():
        try:
            meet(place, **options)
            outcome.append(None)
        except UserError as error:
            outcome.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


def outcomes(*started):
    for thread, _ in started:
        thread.join(60)
        assert not thread.is_alive()
    return [outcome[0] for _, outcome in started]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_processes_meet_in_any_order_and_the_port_is_free_at_once(port, order):
    started = []
    for index in order:
        started.append(start(Place("localhost", port, index, 3)))
        time.sleep(0.1)
    assert outcomes(*started) == [None, None, None]
    socket.create_server(("", port)).close()


def test_one_process_alone_meets_itself(port):
    assert outcomes(start(Place("127.0.0.1", port, 0, 1))) == [None]


@pytest.mark.parametrize("others", [(0, 1), (0, 0), (0, 1, 1)])
def test_a_missing_process_or_an_index_twice_ends_all(port, others, capsys):
    count = 3
    said = outcomes(*[start(Place("localhost", port, index, count), wait=4) for index in others])
    if len({*others}) < len(others):
        assert all(f"index {others[-1]} is taken" in line for line in said), said
        return
    assert all(f"waiting for 1 of 3 processes at localhost:{port} (index 2)" in line for line in said)
    assert f"metajax: waiting for 1 of 3 processes at localhost:{port} (index 2)" in capsys.readouterr().err


def test_other_counts_end_all(port):
    said = outcomes(start(Place("localhost", port, 0, 2)), start(Place("localhost", port, 1, 3)))
    assert said == ["--distributed: process 1 was started as one of 3, and process 0 as one of 2"] * 2


def test_a_process_that_went_away_may_come_again(port):
    first = start(Place("localhost", port, 0, 2))
    with rendezvous._connect(Place("localhost", port, 1, 2), time.monotonic() + 10) as connection:
        connection.sendall(b'{"index": 0, "cou')  # and goes away in the middle
    assert outcomes(first, start(Place("localhost", port, 1, 2))) == [None, None]


def test_strangers_at_the_port_do_no_harm(port):
    first = start(Place("localhost", port, 0, 2))
    place = Place("localhost", port, 1, 2)
    with (
        rendezvous._connect(place, time.monotonic() + 10) as one,
        rendezvous._connect(place, time.monotonic() + 10) as two,
        rendezvous._connect(place, time.monotonic() + 10) as three,
        rendezvous._connect(place, time.monotonic() + 10) as four,
    ):
        one.sendall(b"GET / HTTP/1.1\r\n\r\n")
        two.sendall(b"[" * 30_000 + b"\n")
        three.sendall(b'{"index": 1e999, "count": 2}\n')
        four.sendall(b'{"index": [], "count": 2}\n[]\n7\n')
        assert outcomes(first, start(place)) == [None, None]


def test_many_missing_processes_fit_in_a_message(port):
    (said,) = outcomes(start(Place("localhost", port, 0, 100_000), wait=2))
    assert "waiting for 99999 of 100000 processes" in said
    assert "(index 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, …)" in said


def test_process_0_never_comes(port, capsys):
    (said,) = outcomes(start(Place("localhost", port, 1, 2), wait=2))
    assert said.startswith(f"--distributed: process 0 was not at localhost:{port} for ")
    assert "connection refused" in said
    assert f"metajax: waiting for process 0 at localhost:{port} (" in capsys.readouterr().err


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"{}\n"])
def test_a_port_in_use_by_another_program(port, index, answer, monkeypatch):
    monkeypatch.setattr(rendezvous, "_ADDRESS_SECONDS", 1.0)
    with socket.create_server(("", port)) as server:
        threading.Thread(target=serve, args=(server, answer), daemon=True).start()
        (said,) = outcomes(start(Place("127.0.0.1", port, index, 2), wait=5))
    if index == 0:
        assert said.startswith(f"--distributed: port {port} of this machine is in use by another program")
    else:
        assert said.startswith(f"--distributed: what answers at 127.0.0.1:{port} is not a process 0")


def serve(server, answer):
    connection, _ = server.accept()
    connection.sendall(answer)
    time.sleep(5)
    connection.close()


def test_process_0_that_stops_ends_the_others(port):
    with socket.create_server(("", port)) as server:
        started = start(Place("127.0.0.1", port, 1, 2))
        connection, _ = server.accept()
        assert connection.recv(4096)  # a connection that is closed with unread data would drop the answer
        connection.sendall(rendezvous._line({"missing": [2], "count": 1, "error": "", "complete": False}))
        connection.close()
        assert outcomes(started) == [f"--distributed: process 0 at 127.0.0.1:{port} has stopped"]


@pytest.mark.parametrize("host", ["no-such-host.invalid", "999.1.1.1", "a" * 300, "ü" * 70])
def test_an_address_that_is_none(port, host, monkeypatch):
    monkeypatch.setattr(rendezvous, "_ADDRESS_SECONDS", 0.2)
    (said,) = outcomes(start(Place(host, port, 0, 2)))
    assert "cannot be resolved" in said
    assert len(said) < 300


def test_process_0_with_the_address_of_another_machine(port, monkeypatch):
    monkeypatch.setattr(rendezvous, "_ADDRESS_SECONDS", 1.0)
    (said,) = outcomes(start(Place("192.0.2.1", port, 0, 2)))  # an address for documentation: nobody has it
    assert said.startswith(f"--distributed: 192.0.2.1:{port} does not lead to this process")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("here", "ADDRESS:PORT,INDEX,COUNT"),
        ("", "ADDRESS:PORT,INDEX,COUNT"),
        ("localhost:1,2,2", "with INDEX from 0 and below COUNT, got index 2 of 2"),
        ("localhost:1,-1,2", "ADDRESS:PORT,INDEX,COUNT"),
        ("localhost:1,٣,4", "ADDRESS:PORT,INDEX,COUNT"),
        ("localhost:99999999,0,2", "a port is from 1 to 65535, got 99999999"),
        ("localhost:0,0,2", "a port is from 1 to 65535"),
        (f"localhost:1,0,{'9' * 5000}", "COUNT must be from 1 to 100000"),
        ("x" * 5000, "ADDRESS:PORT,INDEX,COUNT"),
    ],
)
def test_what_is_no_place(text, said):
    with pytest.raises(UserError) as caught:
        parse_place(text)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 300


def test_an_address_of_version_6():
    place = parse_place("[::1]:4700,0,2")
    assert place == Place("::1", 4700, 0, 2)
    assert place.address == "[::1]:4700"
