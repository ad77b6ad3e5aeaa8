"""A whole way of exchanges in memory: client → hub [→ tunnel → relay] → upstream, the upstream by hand.

The same tests run over both kinds, since hub and relay must not differ in what they do to an exchange. The
legs to the client and to the upstream behave as TLS does, or half-close where a test asks for it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import attrs
import trio
from trio.testing import memory_stream_pair

from proxy.exchange.client import ClientConnection
from proxy.exchange.deadlines import Deadlines
from proxy.exchange.groups import TunnelInbound, TunnelOutbound
from proxy.exchange.ports import Outbound
from proxy.exchange.server import ServerConnection
from proxy.hub.calls.outcome import Outcome, forward
from proxy.message.head import RequestHead, ResponseHead
from proxy.message.rewrite import hub_response_head, relay_response_head
from proxy.message.status import failure_response, status_response
from proxy.message.strict import BadRequest
from tests.proxy.exchange.legs import TLSLeg, read_until, tls_pair
from tunnel.protocol.connection import Role
from tunnel.protocol.frames import Welcome
from tunnel.session import Session, open_session
from tunnel.stream import Stream
from tunnel.websocket.transport import memory_transport_pair

HOST = (b"host", b"api")
AnyLeg = TLSLeg | trio.StapledStream
Pair = Callable[[], tuple[TLSLeg, TLSLeg] | tuple[trio.StapledStream, trio.StapledStream]]


@attrs.define(eq=False)
class Chain:
    client: TLSLeg | trio.StapledStream
    """The client's end."""
    hub_leg: TLSLeg | trio.StapledStream
    """The hub's end of the client's connection."""
    upstream_pair: Pair
    hub_outcomes: list[Outcome] = attrs.Factory(list)
    relay_outcomes: list[Outcome] = attrs.Factory(list)
    relay_legs: list[TLSLeg | trio.StapledStream] = attrs.Factory(list)
    """The near ends of the connections to the upstream."""
    upstreams_send: trio.MemorySendChannel[AnyLeg] = attrs.field(init=False)
    upstreams: trio.MemoryReceiveChannel[AnyLeg] = attrs.field(init=False)
    opened: list[AnyLeg] = attrs.Factory(list)
    on_head: Callable[[ResponseHead], ResponseHead] | None = None

    def __attrs_post_init__(self) -> None:
        self.upstreams_send, self.upstreams = trio.open_memory_channel(100)

    @property
    def outcomes(self) -> list[Outcome]:
        """The outcomes where the upstream is seen: the relay's if there is one."""
        return self.relay_outcomes or self.hub_outcomes

    async def upstream(self) -> tuple[AnyLeg, bytes]:
        """Accept the next connection to the upstream; returns its far end and the request's head."""
        leg = await self.upstreams.receive()
        return leg, await read_until(leg, b"\r\n\r\n")

    def dial(self) -> ClientConnection:
        near, far = self.upstream_pair()
        self.relay_legs.append(near)
        self.opened.append(far)
        self.upstreams_send.send_nowait(far)
        return ClientConnection(near)

    def answer_head(self, head: ResponseHead) -> ResponseHead:
        head = hub_response_head(head, b"/clusters/prod", b"/", b"hub")
        return head if self.on_head is None else self.on_head(head)


def upstream_head(request: RequestHead) -> RequestHead:
    """What a relay makes of a request, without identity: these tests are about bytes."""
    kept = [
        (name, value)
        for name, value in request.headers
        if name in {b"content-length", b"transfer-encoding", b"upgrade", b"x-a"}
    ]
    if request.upgrade is not None:
        kept.append((b"connection", b"Upgrade"))
    return RequestHead.of(request.method, request.target, (HOST, *kept))


async def serve_hub(
    chain: Chain, open_outbound: Callable[[RequestHead], Awaitable[Outbound]], deadlines: Deadlines
) -> None:
    leg = chain.hub_leg
    connection = ServerConnection(leg, deadlines, leg.as_tls if isinstance(leg, TLSLeg) else None)
    try:
        while True:
            try:
                request = await connection.next_request()
            except BadRequest as exc:
                await connection.answer(*status_response(exc.status, "", exc.message))
                continue
            if request is None:
                return
            outbound = await open_outbound(request)
            try:
                outcome = await forward(connection, outbound, request, on_head=chain.answer_head)
            finally:
                await outbound.aclose()
            chain.hub_outcomes.append(outcome)
            if outcome.unanswered and outcome.failure is not None:
                upgrade = request.upgrade is not None
                await connection.answer(*failure_response(outcome.failure, request.method, upgrade=upgrade))
    finally:
        await connection.aclose()


async def handle_stream(chain: Chain, stream: Stream, nursery: trio.Nursery) -> None:
    request = RequestHead.decode(stream.head)
    inbound = TunnelInbound(stream, request, nursery)
    try:
        outbound = chain.dial()
        try:
            await outbound.send_request(upstream_head(request))
            outcome = await forward(
                inbound, outbound, request, on_head=lambda head: relay_response_head(head, b"api")
            )
        finally:
            await outbound.aclose()
        chain.relay_outcomes.append(outcome)
        if outcome.unanswered and outcome.failure is not None:
            await inbound.drop(outcome.failure)
    finally:
        await inbound.aclose()


async def serve_relay(chain: Chain, session: Session) -> None:
    async with trio.open_nursery() as nursery:
        while True:
            nursery.start_soon(handle_stream, chain, await session.accept(), nursery)


@asynccontextmanager
async def open_sessions() -> AsyncIterator[tuple[Session, Session]]:
    """Yield the hub's and the relay's end of one tunnel."""
    here, there = memory_transport_pair()
    async with trio.open_nursery() as nursery:
        hub: list[Session] = []
        leave = trio.Event()
        ready = trio.Event()

        async def listen() -> None:
            async with open_session(here, Role.LISTENER, answer_hello=lambda hello: Welcome()) as session:
                hub.append(session)
                ready.set()
                await leave.wait()

        nursery.start_soon(listen)
        async with open_session(there, Role.DIALER) as relay:
            await ready.wait()
            yield hub[0], relay
        leave.set()


@asynccontextmanager
async def open_chain(
    kind: str, *, client_pair: Pair = tls_pair, upstream_pair: Pair = tls_pair
) -> AsyncIterator[Chain]:
    """Run a chain: `direct` is hub and upstream, `tunnel` has a tunnel and a relay between them."""
    client, hub_leg = client_pair()
    chain = Chain(client, hub_leg, upstream_pair)
    deadlines = Deadlines()
    try:
        if kind == "direct":

            async def dial(request: RequestHead) -> Outbound:
                outbound = chain.dial()
                await outbound.send_request(upstream_head(request))
                return outbound

            async with trio.open_nursery() as nursery:
                nursery.start_soon(deadlines.run)
                nursery.start_soon(serve_hub, chain, dial, deadlines)
                yield chain
                nursery.cancel_scope.cancel()
        else:
            async with open_sessions() as (hub, relay), trio.open_nursery() as nursery:
                context = hub.add_context(1, b"identity")

                async def open_stream(request: RequestHead) -> Outbound:
                    ended = request.body_length == 0 and request.upgrade is None
                    head = upstream_head(request).encode()
                    return TunnelOutbound(hub.open_stream(head, context=context, eof=ended), request)

                nursery.start_soon(serve_relay, chain, relay)
                nursery.start_soon(deadlines.run)
                nursery.start_soon(serve_hub, chain, open_stream, deadlines)
                yield chain
                nursery.cancel_scope.cancel()
    finally:
        for leg in (client, *chain.opened):
            await leg.aclose()


def plain_pair() -> tuple[trio.StapledStream, trio.StapledStream]:
    """Return two ends of a connection that can half-close."""
    return memory_stream_pair()
