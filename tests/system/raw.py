"""Bytes that no kubectl would send: a raw TLS connection to the hub, with a valid access token at hand."""

from __future__ import annotations

import enum
import json
import secrets
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlencode

import attrs

from tests.system.world import NAMESPACE, World

DEADLINE_S = 20.0
WEBSOCKET_KEY = "dGhlIHNhbXBsZSBub25jZQ=="
V5 = "Sec-WebSocket-Protocol: v5.channel.k8s.io"
# What RFC 6455 makes of that key.
WEBSOCKET_ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@attrs.frozen
class Answer:
    """A whole answer, split; `raw` is everything that came on the connection."""

    status: int
    headers: dict[str, str]
    body: bytes
    raw: bytes


@attrs.frozen
class RawClient:
    """Speaks to one cluster of the hub, in its own bytes."""

    world: World
    way: str
    api_key: str = ""
    """The world's own agent's, unless it is another's."""
    at: int = 0
    """Another port than the world's, as that of one hub of several."""

    @property
    def port(self) -> int:
        return self.at or self.world.hub_port

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.world.ca))

    def token(self) -> str:
        """A fresh access token for the cluster."""
        key = self.api_key or self.world.api_key
        form = urlencode({"grant_type": "client_credentials", "audience": self.way, "client_secret": key})
        url = f"https://127.0.0.1:{self.port}/oauth/token"
        with urllib.request.urlopen(url, form.encode(), DEADLINE_S, context=self.context()) as answer:
            token: str = json.load(answer)["access_token"]
        return token

    def post(self, path: str, form: Mapping[str, str]) -> tuple[int, dict[str, object]]:
        """What the hub itself answers to a form."""
        url = f"https://127.0.0.1:{self.port}{path}"
        try:
            with urllib.request.urlopen(
                url, urlencode(form).encode(), DEADLINE_S, context=self.context()
            ) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def connect(self) -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", self.port), DEADLINE_S)
        return self.context().wrap_socket(plain, server_hostname="127.0.0.1", suppress_ragged_eofs=False)

    @contextmanager
    def talk(self, data: bytes = b"") -> Iterator[Talk]:
        """A connection to the hub for the block, with the first bytes sent."""
        with self.connect() as connection:
            talk = Talk(connection)
            talk.send(data)
            yield talk

    def send(self, data: bytes) -> bytes:
        """Send bytes and return all that comes until the hub closes."""
        with self.connect() as connection:
            connection.sendall(data)
            received = b""
            try:
                while chunk := connection.recv(65536):
                    received += chunk
            except (ConnectionError, ssl.SSLError):
                pass  # cut, as a refused request's connection may be
        return received

    def head(self, path: str, *headers: str, method: str = "GET", connection: str = "close") -> bytes:
        """A well-formed head under the cluster's prefix, with `headers` added, that closes afterwards."""
        lines = [
            f"{method} /clusters/{self.way}{path} HTTP/1.1",
            f"Host: 127.0.0.1:{self.port}",
            f"Authorization: Bearer {self.token()}",
            f"Connection: {connection}",
            *headers,
        ]
        return "\r\n".join(lines).encode("utf-8") + b"\r\n\r\n"

    def upgrade(self, path: str, *headers: str, method: str = "GET") -> bytes:
        """The head of a WebSocket handshake as kubectl sends it."""
        websocket = ["Upgrade: websocket", f"Sec-WebSocket-Key: {WEBSOCKET_KEY}", "Sec-WebSocket-Version: 13"]
        return self.head(path, *websocket, *headers, method=method, connection="Upgrade")

    def get(self, path: str, *headers: str) -> Answer:
        return parse(self.send(self.head(path, *headers)))


class End(enum.Enum):
    """How a connection ended."""

    CLEAN = "with TLS's farewell"
    CUT = "without"


@attrs.define
class Talk:
    """A connection that is read piece by piece."""

    connection: ssl.SSLSocket
    received: bytearray = attrs.Factory(bytearray)
    end: End | None = None

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def hang_up(self) -> None:
        """End the connection, also for a thread that waits for more of it."""
        with suppress(OSError):
            socket.socket.shutdown(self.connection, socket.SHUT_RDWR)

    def more(self, within_s: float = DEADLINE_S) -> bool:
        """Receive what comes next; False once the connection has ended. Raises TimeoutError."""
        if self.end is not None:
            return False
        self.connection.settimeout(within_s)
        try:
            data = self.connection.recv(65536)
            self.end = None if data else End.CLEAN
        except TimeoutError:
            raise
        except (ConnectionError, ssl.SSLError):
            data, self.end = b"", End.CUT
        self.received += data
        return bool(data)

    def take(self, size: int, within_s: float = DEADLINE_S) -> bytes:
        """The next `size` bytes, or what there is when the connection ends first."""
        while len(self.received) < size and self.more(within_s):
            pass
        data = bytes(self.received[:size])
        del self.received[:size]
        return data

    def answer(self, *, body: bool = True, within_s: float = DEADLINE_S) -> Answer:
        """The next answer whole, by its Content-Length; the head alone without `body`."""
        while b"\r\n\r\n" not in self.received and self.more(within_s):
            pass
        end = self.received.find(b"\r\n\r\n") + 4
        assert end > 3, f"no whole head: {bytes(self.received)!r}, ended {self.end}"
        head = self.take(end)
        answer = parse(head)
        size = int(answer.headers.get("content-length", "0")) if body else 0
        return attrs.evolve(answer, body=self.take(size, within_s))

    def rest(self, within_s: float = DEADLINE_S) -> bytes:
        """All that comes up to the end; raises TimeoutError when that does not come in time."""
        deadline = time.monotonic() + within_s
        while self.more(max(0.001, deadline - time.monotonic())):
            pass
        data = bytes(self.received)
        self.received.clear()
        return data


def parse(raw: bytes) -> Answer:
    head, _, body = raw.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return Answer(int(status_line.split(" ")[1]), headers, body, raw)


def marked_path() -> tuple[str, str]:
    """A path that no other test requests, and the mark by which an audit log shows its arrival."""
    mark = "mark-" + secrets.token_hex(6)
    return f"/api/v1/namespaces/{NAMESPACE}/configmaps/{mark}", mark


def arrived(world: World, mark: str) -> list[dict[str, Any]]:
    """The API server's audit lines with the mark in them."""
    return [line for line in world.cluster_audit() if mark in json.dumps(line)]
