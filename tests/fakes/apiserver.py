"""An API server that answers exactly what a test scripts, and keeps every byte that it received.

A script belongs to a mark that stands in the request's target, so that tests share one running server (and
one hub and relay in front of it). It gets the exchange and does with it what no real server would: stalls,
resets, lies, or answers before it was asked to. No parser of ours is in it.
"""

from __future__ import annotations

import json
import secrets
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs
import trustme
import yaml

DEADLINE_S = 20.0
TOKEN = "service-account-token-of-the-relay"
RECEIVE_BYTES = 65536


class Gone(Exception):
    """The peer left while a script waited for more of it."""


@attrs.define(eq=False)
class Connection:
    """One accepted connection."""

    stream: ssl.SSLSocket
    received: bytearray = attrs.Factory(bytearray)
    requests: int = 0
    closed_at: float | None = None
    """When the peer was seen to be gone, by time.monotonic()."""
    _taken: int = 0

    def more(self, within_s: float = DEADLINE_S) -> bool:
        """Receive what comes next; False once the peer is gone. Raises TimeoutError."""
        self.stream.settimeout(within_s)
        try:
            data = self.stream.recv(RECEIVE_BYTES)
        except TimeoutError:
            raise
        except (OSError, ValueError):
            data = b""
        if not data:
            self.closed_at = time.monotonic()
            return False
        self.received += data
        return True

    def take(self, size: int) -> bytes:
        """The next `size` bytes; raises Gone."""
        while len(self.received) - self._taken < size:
            if not self.more():
                raise Gone
        data = bytes(self.received[self._taken : self._taken + size])
        self._taken += size
        return data

    def take_until(self, end: bytes) -> bytes:
        """What comes up to `end` and with it; raises Gone."""
        while (at := self.received.find(end, self._taken)) < 0:
            if not self.more():
                raise Gone
        return self.take(at + len(end) - self._taken)

    @property
    def ahead(self) -> bytes:
        """What was received and not taken."""
        return bytes(self.received[self._taken :])


@attrs.define(eq=False)
class Exchange:
    """One request, as its script sees it."""

    connection: Connection
    head: bytes
    ended: bool = False
    """The script has closed the connection."""
    began: float = attrs.Factory(time.monotonic)
    """When its head was whole, by time.monotonic()."""

    @property
    def method(self) -> str:
        return self.head.split(b" ", 1)[0].decode("ascii")

    @property
    def target(self) -> str:
        return self.head.split(b" ", 2)[1].decode("latin-1")

    @property
    def fields(self) -> list[tuple[str, str]]:
        """The headers in their order, names in lower case."""
        lines = self.head.decode("latin-1").split("\r\n")[1:-2]
        return [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]

    def header(self, name: str) -> list[str]:
        return [value for field, value in self.fields if field == name]

    def send(self, data: bytes) -> None:
        self.connection.stream.settimeout(DEADLINE_S)
        self.connection.stream.sendall(data)

    def answer(self, status: int = 200, body: bytes = b"{}", *headers: str, reason: str = "Scripted") -> None:
        lines = [f"HTTP/1.1 {status} {reason}", f"Content-Length: {len(body)}", *headers]
        self.send("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)

    def refuse(self, status: int, message: str, *headers: str) -> None:
        self.answer(status, refusal(status, message), "Content-Type: application/json", *headers)

    def wait_gone(self, within_s: float = DEADLINE_S) -> bool:
        """Whether the peer leaves in time; what it sends until then is kept."""
        deadline = time.monotonic() + within_s
        while (left := deadline - time.monotonic()) > 0:
            try:
                if not self.connection.more(left):
                    return True
            except TimeoutError:
                break
        return False

    def close(self) -> None:
        """End cleanly, by TLS too."""
        self.ended = True
        self.connection.stream.settimeout(0.2)
        with suppress(OSError, ValueError):
            # close_notify goes out; nobody here waits for the peer's.
            self.connection.stream.unwrap()
        with suppress(OSError):
            self.connection.stream.shutdown(socket.SHUT_RDWR)

    def say_goodbye(self) -> None:
        """End our direction by TLS alone, and have whatever else comes read until the peer is gone.

        Closed with unread bytes, the kernel would take back what was sent.
        """
        self.ended = True
        self.connection.stream.settimeout(0.2)
        with suppress(OSError, ValueError):
            self.connection.stream.unwrap()
        plain = socket.socket(fileno=self.connection.stream.detach())
        with plain, suppress(OSError):
            plain.settimeout(DEADLINE_S)
            while plain.recv(RECEIVE_BYTES):
                pass

    def cut(self) -> None:
        """End TCP without a word of TLS."""
        self.ended = True
        with suppress(OSError):
            socket.socket.shutdown(self.connection.stream, socket.SHUT_RDWR)

    def reset(self) -> None:
        """End with a TCP reset."""
        self.ended = True
        self.connection.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.stream.close()


Script = Callable[[Exchange], None]

READYZ = "/readyz"
SYSTEM_NAMESPACE = "/api/v1/namespaces/kube-system"


def own_request(target: str, port: int) -> bytes:
    """The head of a request that a relay makes as itself, to the last byte."""
    lines = (
        f"GET {target} HTTP/1.1",
        f"host: 127.0.0.1:{port}",
        f"authorization: Bearer {TOKEN}",
        "accept: application/json",
        "user-agent: hawse-relay",
    )
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode()


def refusal(status: int, message: str) -> bytes:
    """A Status as kube-apiserver writes it."""
    return json.dumps(
        {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": {403: "Forbidden", 404: "NotFound"}.get(status, "Scripted"),
            "code": status,
        }
    ).encode()


# The least that kubectl asks before it does anything with a pod.
DISCOVERY: dict[str, dict[str, object]] = {
    "/api": {"kind": "APIVersions", "apiVersion": "v1", "versions": ["v1"]},
    "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
    "/api/v1": {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": "v1",
        "resources": [
            {
                "name": "pods",
                "singularName": "pod",
                "namespaced": True,
                "kind": "Pod",
                "verbs": ["get", "list"],
            }
        ],
    },
}


def answer_ok(exchange: Exchange) -> None:
    """What is answered where nothing was scripted; a body is read first."""
    lengths = exchange.header("content-length")
    if lengths:
        exchange.connection.take(int(lengths[0]))
    elif exchange.header("transfer-encoding"):
        while int(exchange.connection.take_until(b"\r\n").strip(), 16):
            exchange.connection.take_until(b"\r\n")
        exchange.connection.take_until(b"\r\n")
    known = DISCOVERY.get(exchange.target.partition("?")[0])
    exchange.answer(200, json.dumps(known or {}).encode(), "Content-Type: application/json")


@attrs.define(eq=False)
class ApiServer:
    """The running server."""

    port: int
    ca_pem: bytes
    context: ssl.SSLContext
    """Of the next connection; a test may put another one here."""
    all_connections: list[Connection] = attrs.Factory(list)
    """Also those of the relay's own two requests, which it makes whenever it likes."""
    all_exchanges: list[Exchange] = attrs.Factory(list)
    strangers: int = 0
    """Connections that ended within the handshake."""
    faults: list[Exception] = attrs.Factory(list)
    """What scripts raised; a test that has scripted something checks that there is none."""
    _scripts: dict[str, Script] = attrs.Factory(dict)

    def on(self, script: Script) -> str:
        """Answer by a script what has the returned mark, a path segment of its own, in its target."""
        mark = f"mark-{secrets.token_hex(6)}"
        self._scripts[mark] = script
        return mark

    def always(self, target: str, script: Script) -> None:
        """Answer by a script what has this target, from now on."""
        self._scripts[target] = script

    @property
    def own(self) -> set[bytes]:
        """The heads of the two requests that a relay makes as itself."""
        return {own_request(target, self.port) for target in (READYZ, SYSTEM_NAMESPACE)}

    @property
    def connections(self) -> list[Connection]:
        """Those on which anything else came, or nothing yet."""
        own = self.own
        return [each for each in list(self.all_connections) if bytes(each.received) not in own]

    @property
    def exchanges(self) -> list[Exchange]:
        """All requests but the relay's own two."""
        own = self.own
        return [each for each in list(self.all_exchanges) if each.head not in own]

    def seen(self, mark: str) -> list[Exchange]:
        """The requests with this mark in their target."""
        return [exchange for exchange in self.exchanges if mark in exchange.target]

    @property
    def received(self) -> bytes:
        """Every byte that ever came."""
        return b"".join(bytes(connection.received) for connection in self.connections)

    def hang_up(self) -> None:
        """End every connection, so that the next request comes on a new one."""
        for connection in list(self.all_connections):
            with suppress(OSError):
                socket.socket.shutdown(connection.stream, socket.SHUT_RDWR)

    def write_kubeconfig(self, path: Path) -> None:
        """A relay's way to this server."""
        ca = path.with_suffix(".ca.pem")
        ca.write_bytes(self.ca_pem)
        cluster = {"server": f"https://127.0.0.1:{self.port}", "certificate-authority": ca.name}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "relay"}}],
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "relay", "user": {"token": TOKEN}}],
        }
        path.write_text(yaml.safe_dump(document))

    def serve(self, plain: socket.socket) -> None:
        """One connection, to its end."""
        plain.settimeout(DEADLINE_S)
        try:
            stream = self.context.wrap_socket(plain, server_side=True)
        except OSError:
            self.strangers += 1
            plain.close()
            return
        connection = Connection(stream)
        self.all_connections.append(connection)
        try:
            while True:
                exchange = Exchange(connection, connection.take_until(b"\r\n\r\n"))
                connection.requests += 1
                self.all_exchanges.append(exchange)
                script = next(
                    (script for mark, script in self._scripts.items() if mark in exchange.target), answer_ok
                )
                script(exchange)
                if exchange.ended:
                    return
        except (Gone, OSError):
            pass  # the peer left, or stayed away for the deadline
        except Exception as fault:  # a thread's end: whoever looks is the test
            self.faults.append(fault)
        finally:
            stream.close()


def certified(authority: trustme.CA) -> ssl.SSLContext:
    """A server's context with a certificate of this authority for 127.0.0.1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    # A cut must show as one.
    context.options |= ssl.OP_NO_TICKET
    return context


@contextmanager
def running_apiserver() -> Iterator[ApiServer]:
    """Serve on loopback for the block, a thread a connection."""
    authority = trustme.CA()
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    port: int = listener.getsockname()[1]
    server = ApiServer(port, authority.cert_pem.bytes(), certified(authority))
    threads: list[threading.Thread] = []

    def accept() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=server.serve, args=(plain,), daemon=True)
            threads.append(thread)
            thread.start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield server
    finally:
        # Closing alone does not wake a thread in accept.
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join(DEADLINE_S)
        for connection in server.all_connections:
            with suppress(OSError):
                socket.socket.shutdown(connection.stream, socket.SHUT_RDWR)
        for thread in threads:
            thread.join(DEADLINE_S)
