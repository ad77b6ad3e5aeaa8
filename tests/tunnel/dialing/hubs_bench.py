"""Several hubs behind one balancer, without TLS, as the dialer of a relay meets them."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress

import attrs
import trio
from trio.testing import memory_stream_pair

from tests.tunnel.certificates import contexts
from tests.tunnel.dialing.dialer_bench import TOKEN, read_head
from tunnel import (
    CloseCode,
    Hello,
    Rejected,
    RemoteProtocolError,
    Role,
    Session,
    SessionClosed,
    Transport,
    TransportClosed,
    Welcome,
    hear_hello,
    open_session,
    read_hello,
)
from tunnel.dialing.dial import DialerConfig
from tunnel.net.egress import ProxySettings
from tunnel.websocket.upgrade import AT_HEADER, ELSEWHERE_HEADER, accept_websocket

RESUMING = ("resume",)


@attrs.define(eq=False)
class Hub:
    """One of several hubs: it refuses a second tunnel of the relay, and resumes the sessions that it has."""

    name: str
    tunnels: int = 2
    up: bool = True
    """Without it nothing answers, as after kill -9."""
    gone: bool = False
    """The others know that it is dead."""
    alone: bool = False
    """It knows of no other hub, and so of none of their sessions."""
    leaving: bool = False
    """It has said GOAWAY, and refuses new sessions."""
    busy: bool = False
    heeds: bool = True
    """Whether it refuses a second tunnel: one of an earlier version does not."""
    sessions: list[Session] = attrs.Factory(list)
    """Those that are open."""
    connections: list[trio.abc.Stream] = attrs.Factory(list)
    heads: list[bytes] = attrs.Factory(list)
    lives: Callable[[Session], bool] = lambda _: True
    """Whether a session of this hub lives at the relay's end."""
    superseded: int = 0
    """Sessions which a second one to this hub has replaced, and that the relay had not given up."""

    @property
    def current(self) -> list[Session]:
        """The sessions that stay."""
        return [each for each in self.sessions if not (each.closed or each.draining)]

    async def cut(self) -> None:
        """Cut all its connections."""
        for stream in self.connections:
            await trio.aclose_forcefully(stream)

    async def kill(self) -> None:
        self.up = False
        for session in self.sessions:
            session.abandon("killed")
        self.sessions.clear()
        await self.cut()

    def start(self) -> None:
        self.up, self.leaving, self.gone = True, False, False

    def leave(self, retry_after_ms: int = 0) -> None:
        self.leaving = True
        for session in self.sessions:
            session.go_away(drain_ms=60_000, retry_after_ms=retry_after_ms, reason="the hub stops")

    async def serve(self, stream: trio.abc.Stream, head: bytes, others: list[Hub]) -> None:
        listed = header(head, ELSEWHERE_HEADER).split(",")
        if self.heeds and self.name and self.name in listed:
            await refuse(stream, self.name)
        elif (self.busy or self.leaving) and b"hawse-session" not in head.lower():
            await refuse(stream)
        else:
            await self._upgrade(stream, head, others)

    async def _upgrade(self, stream: trio.abc.Stream, head: bytes, others: list[Hub]) -> None:
        self.heads.append(head)
        own = next((hub for hub in (self, *others) if hub.name == header(head, AT_HEADER)), self)
        if own is not self and not self.alone:
            if own.up:
                # The dial is carried to the session's own hub.
                await own.serve(stream, head, others)
                return
            if not own.gone:
                await refuse(stream)
                return
        self.connections.append(stream)
        signature = [(AT_HEADER, (self if self.alone else own).name.encode())]
        try:
            with suppress(Rejected, SessionClosed, RemoteProtocolError, TransportClosed):
                async with accept_websocket(stream, request_head=head, headers=signature) as transport:
                    await self._greet(transport)
        finally:
            self.connections.remove(stream)

    async def _greet(self, transport: Transport) -> None:
        greeting = await hear_hello(transport)
        hello = read_hello(greeting)
        if hello.resume is not None:
            for session in self.sessions:
                if session.session_id == hello.resume.session_id and session.may_resume(hello.resume):
                    await session.resume(transport, greeting)
                    return
        async with open_session(
            transport, Role.LISTENER, answer_hello=self._welcome, greeting=greeting
        ) as session:
            for other in self.current:
                self.superseded += self.lives(other)
                other.end(CloseCode.SUPERSEDED, "superseded")
            self.sessions.append(session)
            try:
                await session.wait_closed()
            finally:
                if session in self.sessions:
                    self.sessions.remove(session)

    def _welcome(self, hello: Hello) -> Welcome:
        if hello.resume is not None:
            raise Rejected(CloseCode.RESUME_UNKNOWN, "never heard of it")
        return Welcome(
            features=RESUMING, resume_ttl_s=60, replica=self.name, tunnels=self.tunnels, software="hawse/test"
        )


def header(head: bytes, name: bytes) -> str:
    found = re.search(rb"(?i)\r\n" + name + rb": (.*?)\r\n", head)
    return found[1].decode() if found else ""


async def refuse(stream: trio.abc.Stream, hub: str = "") -> None:
    signed = f"Hawse-At: {hub}\r\n" if hub else ""
    await stream.send_all(
        f"HTTP/1.1 503 Later\r\nRetry-After: 1\r\n{signed}Content-Length: 0\r\n\r\n".encode()
    )


@attrs.define(eq=False)
class Balancer:
    """Sends each connection to one of the hubs by `choose`, which is given their number."""

    nursery: trio.Nursery
    hubs: list[Hub]
    choose: Callable[[int], int]
    began_at: float = attrs.Factory(trio.current_time)
    dialled_at: list[float] = attrs.Factory(list)
    """The dials for new sessions."""
    resumed_at: list[float] = attrs.Factory(list)
    """Those for sessions that have lost their connection."""
    chosen: list[str] = attrs.Factory(list)

    async def open_tcp(self, host: str, port: int) -> trio.abc.Stream:
        near, far = memory_stream_pair()
        self.nursery.start_soon(self._handle, far)
        await trio.lowlevel.checkpoint()
        return near

    async def _handle(self, stream: trio.abc.Stream) -> None:
        async with stream:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                head = await read_head(stream)
                resumes = b"hawse-session" in head.lower()
                (self.resumed_at if resumes else self.dialled_at).append(trio.current_time() - self.began_at)
                hub = self.hubs[self.choose(len(self.hubs))]
                self.chosen.append(hub.name)
                if hub.up:
                    await hub.serve(stream, head, self.hubs)

    def config(self, chance: Callable[[], float] = lambda: 0.5) -> DialerConfig:
        return DialerConfig(
            hub_url="https://hub.test",
            tls=contexts()[0],
            authorization=lambda hub_time: TOKEN,
            hello=lambda: Hello(cluster="c1", features=RESUMING),
            proxy=ProxySettings(),
            open_tcp=self.open_tcp,
            chance=chance,
            wall_clock=lambda: 1_800_000_000.0,
        )


@attrs.define(eq=False)
class Relay:
    """The user of a dialer: it serves each session by waiting for its end."""

    sessions: list[Session] = attrs.Factory(list)

    async def __call__(self, session: Session) -> None:
        self.sessions.append(session)
        await session.wait_closed()

    def has(self, session: Session) -> bool:
        """Whether this end of a hub's session lives."""
        return any(each.session_id == session.session_id and not each.closed for each in self.sessions)

    @property
    def up(self) -> list[Session]:
        """The sessions that are connected and stay."""
        return [each for each in self.sessions if not (each.closed or each.draining or each.detached)]


async def plain(stream: trio.abc.Stream, *_: object, **__: object) -> trio.abc.Stream:
    """Stands for the TLS handshake, which takes most of a dial's time in these tests."""
    return stream
