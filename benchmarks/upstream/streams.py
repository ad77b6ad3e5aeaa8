"""The upstream for streams that stay open, as a process: watches with or without events, an echo for exec.

    python -m benchmarks.upstream.streams FOLDER      (with server.pem and server.key in it)

    GET …?watch=true         an endless chunked answer; silent until events are asked for
    GET …/exec?…             upgraded to a WebSocket of v5.channel.k8s.io; stdout repeats what comes on stdin
    GET …/exec?command=true… the same, and the command has succeeded at once
    GET the pod, discovery   what `kubectl exec` asks for before that
    GET /emit?per_s=N        from now on so many events a second, round robin over all watches; 0 ends them
    GET /emit?per_s=N&all    so many a second, each to all watches at once
    GET anything else        a small answer

nginx cannot hold a request open without something behind it, and the sandbox does much for each event. One
thread and one epoll, TLS 1.3, as the load generator.
"""

from __future__ import annotations

import itertools
import json
import re
import select
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Ping, Request
from wsproto.frame_protocol import CloseReason

from benchmarks.nginx import issue_certificate
from benchmarks.processes import Daemons
from benchmarks.system import Endpoint
from benchmarks.upstream.apiserver import POD_PATH, pod_json
from benchmarks.upstream.events import Pace, chunk, event
from benchmarks.upstream.kubectl import ANSWERS
from benchmarks.upstream.other import OtherUpstream
from proxy.process.lifecycle.filelimit import raise_file_limit

PROTOCOL: Final = "v5.channel.k8s.io"
STDIN: Final = 0
STDOUT: Final = 1
# The status of a command that has ended well, on its channel.
SUCCESS: Final = b'\x03{"metadata":{},"status":"Success"}'
_JSON: Final = {
    POD_PATH.encode(): pod_json().encode(),
    **{path.encode(): json.dumps(answer).encode() for path, answer in ANSWERS.items()},
}
BACKLOG: Final = 1024
READ_BYTES: Final = 64 * 1024
TOP = Path(__file__).parents[2]
_EMIT: Final = re.compile(rb"GET /emit\?per_s=(\d+)(&all)? ")
_WATCH_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
    # For an nginx in front, which otherwise collects what comes.
    b"X-Accel-Buffering: no\r\n\r\n"
)


@contextmanager
def open_streams(folder: Path) -> Iterator[OtherUpstream]:
    """Run it in `folder`."""
    ca = issue_certificate(folder)
    with Daemons(folder) as daemons:
        argv = [sys.executable, "-m", "benchmarks.upstream.streams", str(folder)]
        daemon = daemons.start("streams", argv, {"PYTHONPATH": str(TOP)})
        port = int(daemon.wait_for("listening ").split()[1])
        yield OtherUpstream(Endpoint("127.0.0.1", port, ca), {"upstream": daemon.process.pid})


class Connection:
    """A client's connection; `on_bytes` is its state."""

    def __init__(self, server: Server, plain: socket.socket) -> None:
        plain.setblocking(False)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.server = server
        self.sock = server.context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
        self.on_bytes: Callable[[bytes], None] = self.take_head
        self.head = b""
        self.unsent = bytearray()
        self.shaken = False

    def ready(self) -> None:
        """Go on with the handshake, unsent bytes and input."""
        try:
            if not self.shaken:
                self.sock.do_handshake()
                self.shaken = True
            if self.unsent:
                self.flush()
            while data := self.sock.recv(READ_BYTES):
                self.on_bytes(data)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except OSError:
            pass
        self.server.drop(self)

    def send(self, data: bytes) -> None:
        """Send now or later. The buffer of a client that does not read its watch is not bounded."""
        self.unsent += data
        with suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
            self.flush()
        if self.unsent:
            self.server.epoll.modify(self.sock.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def flush(self) -> None:
        while self.unsent:
            sent = self.sock.send(self.unsent)
            del self.unsent[:sent]
        self.server.epoll.modify(self.sock.fileno(), select.EPOLLIN)

    def take_head(self, data: bytes) -> None:
        """Answer a request once its head is whole; none that is asked here has a body."""
        self.head += data
        if b"\r\n\r\n" not in self.head:
            return
        head, self.head = self.head, b""
        line = head.partition(b"\r\n")[0]
        path = line.split(b" ")[1].partition(b"?")[0]
        if found := _EMIT.match(head):
            self.server.emit(int(found[1]), to_all=found[2] is not None)
            self.answer(b'{"emitting":%b}' % found[1])
        elif b"watch=true" in line:
            self.on_bytes = self.ignore
            self.send(_WATCH_HEAD)
            self.server.watches.append(self)
        elif b"/exec?" in line:
            self.on_bytes = (Succeeded if b"command=true" in line else Echo)(self).take
            self.on_bytes(head)
        else:
            self.answer(_JSON.get(path, b'{"kind":"Status","status":"Success"}'))

    def answer(self, body: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        self.send(head % len(body) + body)

    def ignore(self, data: bytes) -> None:
        """A watch has no request body."""


class Echo:
    """The container's end of an exec: its stdout is its stdin."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._websocket = WSConnection(ConnectionType.SERVER)

    def take(self, data: bytes) -> None:
        self._websocket.receive_data(data)
        for happened in self._websocket.events():
            match happened:
                case Request():
                    answer = AcceptConnection(subprotocol=PROTOCOL)
                    self._connection.send(self._websocket.send(answer))
                case BytesMessage(data=message) if message[:1] == bytes([STDIN]) and len(message) > 1:
                    echo = BytesMessage(bytes([STDOUT]) + bytes(message[1:]))
                    self._connection.send(self._websocket.send(echo))
                case Ping() | CloseConnection():
                    self._connection.send(self._websocket.send(happened.response()))


class Succeeded:
    """The container's end of an exec whose command has ended at once, without output."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._websocket = WSConnection(ConnectionType.SERVER)

    def take(self, data: bytes) -> None:
        self._websocket.receive_data(data)
        for happened in self._websocket.events():
            if isinstance(happened, Request):
                # Separate sends, as the API server answers before it asks the kubelet.
                for event in (
                    AcceptConnection(subprotocol=PROTOCOL),
                    BytesMessage(SUCCESS),
                    CloseConnection(CloseReason.NORMAL_CLOSURE),
                ):
                    self._connection.send(self._websocket.send(event))


class Server:
    """The listener, its connections, and the events that are due."""

    def __init__(self, folder: Path) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_3
        self.context.load_cert_chain(folder / "server.pem", folder / "server.key")
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
        self.epoll = select.epoll()
        self.epoll.register(self.listener.fileno(), select.EPOLLIN)
        self.connections: dict[int, Connection] = {}
        self.watches: list[Connection] = []
        self.pace: Pace | None = None
        # The watches that get the next event, and the one after it.
        self.turns: Iterator[list[Connection]] = iter(())

    def emit(self, per_s: int, *, to_all: bool) -> None:
        """Start or end the events; a watch that is opened later gets none of these."""
        watches = list(self.watches)
        self.pace = Pace(per_s, time.monotonic()) if per_s and watches else None
        self.turns = itertools.cycle([watches] if to_all else [[watch] for watch in watches])

    def drop(self, connection: Connection) -> None:
        del self.connections[connection.sock.fileno()]
        connection.sock.close()
        if connection in self.watches:
            self.watches.remove(connection)

    def serve(self) -> None:
        while True:
            timeout = max(0.0, self.pace.next_s() - time.monotonic()) if self.pace else -1
            for descriptor, _ in self.epoll.poll(timeout):
                if descriptor == self.listener.fileno():
                    connection = Connection(self, self.listener.accept()[0])
                    self.connections[connection.sock.fileno()] = connection
                    self.epoll.register(connection.sock.fileno(), select.EPOLLIN)
                elif descriptor in self.connections:
                    self.connections[descriptor].ready()
            if self.pace:
                self.send_due(self.pace.due(time.monotonic()))

    def send_due(self, count: int) -> None:
        for _ in range(count):
            for connection in next(self.turns):
                if connection.sock.fileno() in self.connections:
                    # The loop drops a connection that was reset when epoll reports it.
                    with suppress(OSError):
                        connection.send(chunk(event(time.monotonic_ns())))


def main() -> None:
    raise_file_limit()
    server = Server(Path(sys.argv[1]))
    print(f"listening {server.listener.getsockname()[1]}", flush=True)
    server.serve()


if __name__ == "__main__":
    main()
