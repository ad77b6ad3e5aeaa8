"""A loopback proxy on sockets, before a hub of this process that answers by a script."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import attrs
import trio
import trio.testing

from proxy.agent.connect.certificate import loopback_context
from proxy.agent.connect.proxy import Guard, HubSide, LoopbackProxy
from proxy.agent.connect.tokens import Tokens
from proxy.agent.local.account import Account
from proxy.agent.local.errors import AgentError
from proxy.exchange.server import ServerConnection
from proxy.message.failure import InboundBroken
from proxy.message.head import RequestHead, ResponseHead
from tests.tunnel.stream_pairs import handshake, tcp_pair
from tunnel.net.connect import client_context, wrap_client
from tunnel.net.egress import ProxySettings
from tunnel.net.tls import TLSStream

PORT = 43210
OWN = "own-token"
GUARD = Guard(PORT, {"prod": OWN, "stage": "token-of-stage"})
Script = Callable[[ServerConnection, RequestHead], Awaitable[None]]


class FakeTokens(Tokens):
    """Gives numbered tokens; a refused token is followed by the next one."""

    def __init__(self) -> None:
        self.number = 1
        self.down = False
        self.fetch_s = 0.0
        """How long it takes to replace a refused token."""
        self.replaced = True
        """A refused token is old."""

    def replaces(self, cluster: str, refused: str) -> bool:
        return self.replaced

    async def token(self, cluster: str, *, refused: str = "") -> str:
        if self.down:
            raise AgentError("cannot reach the hub")
        if refused:
            await trio.sleep(self.fetch_s)
        if refused == f"token-{self.number}":
            self.number += 1
        return f"token-{self.number}"


async def answer_ok(connection: ServerConnection, head: RequestHead) -> None:
    while await connection.receive_body():
        pass
    await connection.answer(ResponseHead.of(200, b"OK", ((b"content-length", b"2"),)), b"ok")


class FakeHub(HubSide):
    """A hub on sockets of this process, that answers by `script`."""

    def __init__(self, nursery: trio.Nursery) -> None:
        super().__init__(Account("https://hub.example", "robot", "k", None, "s"), ProxySettings())
        self.nursery = nursery
        self.script: Script = answer_ok
        self.seen: list[RequestHead] = []
        self.dials = 0
        self.dial_gate: trio.Event | None = None
        """Further dials wait for it."""
        self.dial_is_shielded = False
        """A dial succeeds although it was cancelled, like one whose last step was done already."""
        self.by_tls_proxy = False
        """TLS goes through TLS, as to a proxy on the way."""

    async def dial(self) -> trio.abc.Stream:
        self.dials += 1
        with trio.CancelScope(shield=self.dial_is_shielded):
            if self.dial_gate is not None:
                await self.dial_gate.wait()
            ours, theirs = await handshake(await tcp_pair())
            if self.by_tls_proxy:
                ours, theirs = await handshake((ours, theirs))
        self.nursery.start_soon(self._serve, theirs)
        return ours

    async def _serve(self, stream: trio.abc.Stream) -> None:
        connection = ServerConnection(stream)
        try:
            while (head := await connection.next_request()) is not None:
                self.seen.append(head)
                await self.script(connection, head)
        except (InboundBroken, trio.BrokenResourceError):
            pass  # the proxy has cut it
        finally:
            await trio.aclose_forcefully(stream)


@attrs.define(eq=False)
class Bench:
    proxy: LoopbackProxy
    hub: FakeHub
    tokens: FakeTokens
    nursery: trio.Nursery
    certificate_pem: str

    async def connect(self) -> TLSStream:
        client, server = await tcp_pair()
        self.nursery.start_soon(self.proxy.handle_client, server)
        return await wrap_client(client, client_context(self.certificate_pem), server_hostname="127.0.0.1")

    async def ask(self, *lines: str, target: str = "/clusters/prod/api", body: bytes = b"") -> bytes:
        """Send one request, and return all bytes until the end."""
        tls = await self.connect()
        head = [f"{'POST' if body else 'GET'} {target} HTTP/1.1", *(lines or GOOD), "Connection: close"]
        if body:
            head.append(f"Content-Length: {len(body)}")
        await tls.send_all("\r\n".join(head).encode() + b"\r\n\r\n" + body)
        received = b""
        with trio.fail_after(5):
            while data := await tls.receive_some():
                received += data
        await trio.aclose_forcefully(tls)
        return received


GOOD = (f"Host: 127.0.0.1:{PORT}", f"Authorization: Bearer {OWN}")


@asynccontextmanager
async def open_bench() -> AsyncIterator[Bench]:
    context, pem = loopback_context()
    async with trio.open_nursery() as nursery:
        hub, tokens = FakeHub(nursery), FakeTokens()
        proxy = LoopbackProxy(context, GUARD, hub, tokens)
        nursery.start_soon(proxy.run)
        yield Bench(proxy, hub, tokens, nursery, pem)
        await proxy.connections.aclose()
        nursery.cancel_scope.cancel()
