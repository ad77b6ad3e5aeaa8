"""Streams that take all that goes through, and streams of which nobody reads a byte.

They go straight to the hub: a proxy between would hold megabytes for those that stall.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlencode

import attrs

from tests.faults.wire import INITIAL_CREDIT
from tests.faults.world import CLUSTER, FaultWorld
from tests.system.raw import DEADLINE_S, V5, parse
from tests.system.world import NAMESPACE, POD

READ_BYTES = 256 * 1024
# What a kernel takes for a reader that does not read; to be set before there is a connection.
STALLED_BUFFER_BYTES = 8 * 1024


def ask(world: FaultWorld, request: bytes, *, buffer_bytes: int = 0) -> tuple[ssl.SSLSocket, bytes]:
    """Send a request to the hub's own port; its connection, and the head of the answer.

    `buffer_bytes` is what the kernel may hold of what is not read.
    """
    plain = socket.socket()
    try:
        if buffer_bytes:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        plain.settimeout(DEADLINE_S)
        plain.connect(("127.0.0.1", world.hub_listen))
        connection = world.client().context().wrap_socket(plain, server_hostname="127.0.0.1")
    except BaseException:
        plain.close()
        raise
    connection.sendall(request)
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        data = connection.recv(1)
        assert data, head
        head += data
    return connection, head


def endless_exec(world: FaultWorld, *, buffer_bytes: int = 0) -> ssl.SSLSocket:
    """Begin an exec that writes without end; its connection, behind the head of the answer."""
    query = urlencode([("command", "cat"), ("command", "/dev/zero"), ("stdout", "1")])
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{POD}/exec?{query}"
    connection, head = ask(world, world.client().upgrade(path, V5), buffer_bytes=buffer_bytes)
    assert parse(head).status == 101, head
    return connection


def endless_log(
    world: FaultWorld, token: str, *, turn: int | None = None, buffer_bytes: int = 0
) -> ssl.SSLSocket:
    """The same of a log of the server in `tests.faults.flood`."""
    path = f"/clusters/{CLUSTER}/api/v1/namespaces/{NAMESPACE}/pods/{POD}/log"
    if turn is not None:
        path += f"?sinceSeconds={turn}"
    request = f"GET {path} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {token}\r\n\r\n"
    connection, head = ask(world, request.encode(), buffer_bytes=buffer_bytes)
    assert parse(head).status == 200, head
    return connection


@attrs.define(eq=False)
class Download:
    """One that is read as fast as it comes, by a thread, and thrown away."""

    connection: ssl.SSLSocket
    received: int = 0

    def read(self) -> None:
        """The thread."""
        buffer = bytearray(READ_BYTES)
        with suppress(OSError):
            while size := self.connection.recv_into(buffer):
                self.received += size

    def mbit_per_s(self, during: Callable[[], object]) -> float:
        """How fast it comes while something else is done."""
        began, before = time.monotonic(), self.received
        during()
        return (self.received - before) * 8 / 1e6 / (time.monotonic() - began)


@contextmanager
def downloading(begun: ssl.SSLSocket) -> Iterator[Download]:
    """Read what was begun for the block, and end it then."""
    with begun as connection:
        download = Download(connection)
        thread = threading.Thread(target=download.read, daemon=True)
        thread.start()
        try:
            yield download
        finally:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            thread.join()


@contextmanager
def stalling(world: FaultWorld, begun: ssl.SSLSocket) -> Iterator[None]:
    """Never read what was begun; it has filled all that there is for it when the block begins."""
    with begun:
        # Credit is returned by the half window, so up to half of it may be missing.
        world.until(lambda: world.living(world.hub).held_bytes >= INITIAL_CREDIT // 2, "it is stalled")
        yield
