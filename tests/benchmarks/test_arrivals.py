"""What a client that arrives sees of a server that serves it, refuses it, cuts it, or never answers."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import trustme

from benchmarks.arrivals import arrive

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


def job(port: int, **changes: object) -> dict[str, object]:
    return {
        "host": "127.0.0.1", "port": port, "head": "GET / HTTP/1.1\r\n\r\n",
        "rate": 0, "count": 3, "sources": 2, "deadline_s": 5.0, **changes,
    }  # fmt: skip


@contextmanager
def serving(handle: Callable[[socket.socket], None]) -> Iterator[tuple[int, list[str]]]:
    """Handle connections one after the other; yields the port and the addresses of the clients."""
    clients: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            while True:
                try:
                    connection, (address, _) = listening.accept()
                except OSError:
                    return
                clients.append(address)
                handle(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield listening.getsockname()[1], clients
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def answering(answer: bytes) -> Callable[[socket.socket], None]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)

    def handle(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as tls:
            tls.recv(1000)
            tls.sendall(answer)

    return handle


def test_each_client_comes_from_the_next_address_and_is_served() -> None:
    with serving(answering(ANSWER)) as (port, clients):
        report = arrive(job(port, rate=1000))
    assert report["outcomes"] == {"served": 3}
    assert sorted(clients) == ["127.0.0.1", "127.0.0.1", "127.0.0.2"]
    latencies_ns = report["latencies_ns"]
    assert isinstance(latencies_ns, list)
    assert len(latencies_ns) == 3


@pytest.mark.parametrize(
    ("handle", "outcome"),
    [(answering(ANSWER.replace(b"200", b"503")), "status"), (socket.socket.close, "cut")],
    ids=["status", "cut"],
)
def test_a_client_that_is_not_served_is_counted_by_what_it_saw(
    handle: Callable[[socket.socket], None], outcome: str
) -> None:
    with serving(handle) as (port, _):
        assert arrive(job(port))["outcomes"] == {outcome: 3}


def test_a_client_without_an_answer_is_late() -> None:
    held: list[socket.socket] = []
    with serving(held.append) as (port, _):
        assert arrive(job(port, deadline_s=0.05))["outcomes"] == {"late": 3}
    for each in held:
        each.close()


def test_a_client_without_a_listener_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    assert arrive(job(port))["outcomes"] == {"refused": 3}
