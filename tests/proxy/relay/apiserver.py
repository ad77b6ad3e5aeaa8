"""An API server for the relay's tests: real sockets, raw bytes, no parser that could share our mistakes.

Each accepted connection is a task of the script that the test hands in; what came on it stays in `received`.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio
import trustme

from proxy.relay.service_account import ClusterAccess, in_cluster
from tunnel.net.connect import TLSStream, server_context, wrap_server

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
# The uid of the cluster: that of its namespace kube-system.
UID = "0b9f2c1e-6a53-4c0e-9d6b-5f0f5c7f6a11"


@attrs.define(eq=False)
class Connection:
    """One accepted connection, as the script sees it."""

    number: int
    stream: trio.abc.Stream
    received: bytearray = attrs.field(factory=bytearray)
    _parsed: int = 0

    async def request(self) -> bytes:
        """The next request's head (bodies are the script's business); b"" when the relay closed."""
        while (end := self.received.find(b"\r\n\r\n", self._parsed)) < 0:
            if not await self.more():
                return b""
        head = bytes(self.received[self._parsed : end + 4])
        self._parsed = end + 4
        return head

    def unread(self, head: bytes) -> None:
        """Have `request` return this head once more."""
        self._parsed -= len(head)

    async def more(self) -> bytes:
        """Receive more bytes."""
        try:
            data = bytes(await self.stream.receive_some(65536))
        except trio.BrokenResourceError:
            return b""
        self.received += data
        return data

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)


Script = Callable[[Connection], Awaitable[None]]


@attrs.define(eq=False)
class ApiServer:
    """A running server; `access` is how the relay reaches it."""

    access: ClusterAccess
    folder: Path
    connections: list[Connection] = attrs.field(factory=list)

    @property
    def received(self) -> bytes:
        """Every byte of every connection."""
        return b"".join(bytes(connection.received) for connection in self.connections)

    def rotate_token(self, token: str) -> None:
        fresh = self.folder / "token.new"
        fresh.write_text(token)
        fresh.rename(self.folder / "token")


def headers(head: bytes, name: str) -> list[str]:
    """The values of a header in a raw head, a line each."""
    return [
        match.decode("latin-1")
        for match in re.findall(
            rb"\r\n" + re.escape(name.encode()) + rb":[ \t]*([^\r]*)", head, re.IGNORECASE
        )
    ]


def answer(status: int, body: bytes = b"", *lines: bytes) -> bytes:
    """An answer with this body, and these header lines before its length."""
    head = b"".join(b"%b\r\n" % line for line in (*lines, b"Content-Length: %d" % len(body)))
    return b"HTTP/1.1 %d Any\r\n%b\r\n%b" % (status, head, body)


def namespace_answer(uid: object = UID) -> bytes:
    """The answer to a GET of the namespace kube-system."""
    return answer(200, json.dumps({"kind": "Namespace", "metadata": {"uid": uid}}).encode())


@asynccontextmanager
async def running(script: Script, folder: Path) -> AsyncIterator[ApiServer]:
    """Serve `script` on a loopback port by TLS; the folder holds token and CA like a service account's."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    (folder / "ca.crt").write_bytes(authority.cert_pem.bytes())
    (folder / "token").write_text("relay-token-1")
    (folder / "server.pem").write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
    (folder / "server.key").write_bytes(certificate.private_key_pem.bytes())
    context = server_context(folder / "server.pem", folder / "server.key")

    async def serve(tcp: trio.SocketStream) -> None:
        tls: TLSStream = wrap_server(tcp, context)
        try:
            await tls.do_handshake()
            connection = Connection(len(server.connections), tls)
            server.connections.append(connection)
            await script(connection)
        except trio.BrokenResourceError:
            pass
        finally:
            await trio.aclose_forcefully(tls)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        environment = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(port)}
        server = ApiServer(in_cluster(environment, folder), folder)
        await nursery.start(trio.serve_listeners, serve, listeners)
        yield server
        nursery.cancel_scope.cancel()
