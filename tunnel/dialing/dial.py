"""One dial of the hub, from the name to its WELCOME.

It goes through six phases under one deadline: name and TCP, the CONNECT of an egress proxy, TLS, the
upgrade to a WebSocket, HELLO and WELCOME. Any of them can fail, or hang, in ways that an operator at the
other end of the world has to understand from one line of the log. So each failure becomes a DialFailed whose
text says what was tried, what came, and if it is known, what to do. It never holds a credential.
"""

from __future__ import annotations

import math
import os
import random
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import urlsplit

import attrs
import trio

from tunnel.dialing.failure import DialFailed, explain_answer, explain_rejection, tls_advice
from tunnel.handshake import say_hello
from tunnel.net.connect import HandshakeFailed, open_tcp, os_reason, wrap_client
from tunnel.net.egress import Proxy, ProxyRefused, ProxySettings, connect_through, join_host_port
from tunnel.protocol.connection import Role
from tunnel.protocol.errors import RemoteProtocolError
from tunnel.protocol.greetings import Hello
from tunnel.protocol.memory import Memory
from tunnel.refusals import Rejected, SessionClosed
from tunnel.session import Session, open_session
from tunnel.settings import Settings
from tunnel.websocket.transport import Transport, TransportClosed
from tunnel.websocket.upgrade import (
    ELSEWHERE_HEADER,
    SESSION_HEADER,
    TUNNEL_PATH,
    WebSocketRefused,
    dial_websocket,
)

__all__ = ["Attempt", "DialerConfig", "Endpoint", "dial", "open_tunnel"]

# From the name to the WELCOME. A phase that hangs must not hold up the next dial.
DIAL_S: Final = 10.0

_HTTPS_PORT: Final = 443


def _environment_proxy() -> ProxySettings:
    return ProxySettings.from_environment(os.environ)


def _no_seconds(hub_time: str) -> None:
    """Take no text for a time."""


@attrs.frozen
class Endpoint:
    """Where a hub is, taken from its URL."""

    host: str
    port: int
    path: str

    @classmethod
    def from_url(cls, url: str) -> Endpoint:
        """Raises ValueError, whose text does not hold the URL: it may hold what it must not."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise ValueError("the hub's URL is malformed") from None
        if parts.scheme != "https" or not host:
            raise ValueError("the hub's URL must be https://HOST[:PORT][/PATH]")
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError("the hub's URL must hold no user, password, query or fragment")
        return cls(host, port or _HTTPS_PORT, parts.path.rstrip("/"))

    @property
    def name(self) -> str:
        """For logs."""
        return join_host_port(self.host, self.port)

    @property
    def host_header(self) -> str:
        if self.port != _HTTPS_PORT:
            return self.name
        return f"[{self.host}]" if ":" in self.host else self.host


@attrs.frozen
class DialerConfig:
    """What the dialer needs to know, and what tests replace."""

    hub_url: str
    tls: ssl.SSLContext
    """Verifies the hub, see tunnel.net.connect.client_context; an egress proxy with an https:// URL as
    well."""
    authorization: Callable[[str], str] = attrs.field(repr=False)
    """Returns a fresh bearer token for each dial: dated by our clock, for "", else by the hub's time that is
    handed in. That is the hub's own text, and the token must repeat it: so a text that is not the hub's is
    useless, whatever time it names."""
    hello: Callable[[], Hello]
    proxy: ProxySettings = attrs.field(factory=_environment_proxy)
    settings: Settings | None = None
    memory: Memory | None = None
    seconds_of: Callable[[str], int | None] = _no_seconds
    """Returns the epoch seconds in what a hub tells as its time; None for what is none, or not to be used."""
    open_tcp: Callable[[str, int], Awaitable[trio.abc.Stream]] = open_tcp
    chance: Callable[[], float] = random.random
    wall_clock: Callable[[], float] = time.time
    endpoint: Endpoint = attrs.field(init=False)

    @endpoint.default
    def _endpoint_of_url(self) -> Endpoint:
        return Endpoint.from_url(self.hub_url)


@asynccontextmanager
async def open_tunnel(
    config: DialerConfig, hub_time: str = "", elsewhere: Sequence[str] = ()
) -> AsyncIterator[Session]:
    """Dial the hub once; the session is closed when the block is left.

    With `hub_time`, that of a DialFailed of a moment ago, the token is dated by it. `elsewhere` are the ids
    of the hubs that are to refuse it, as there is a session to each. Raises DialFailed before the block
    begins.
    """
    hello = (config.settings or Settings()).stated_in(config.hello())
    headers = [(ELSEWHERE_HEADER, ",".join(elsewhere).encode("ascii"))] if elsewhere else []
    async with (
        dial(config, hello, DIAL_S, hub_time, headers) as attempt,
        open_session(
            attempt.transport,
            Role.DIALER,
            hello=hello,
            greeting=attempt.greeting,
            settings=config.settings,
            memory=config.memory,
        ) as session,
    ):
        attempt.succeeded()
        yield session


@asynccontextmanager
async def dial(
    config: DialerConfig,
    hello: Hello,
    dial_s: float,
    hub_time: str = "",
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> AsyncIterator[Attempt]:
    """Dial the hub and hear its answer to `hello`; the connection is closed when the block is left.

    `headers` go with the upgrade, beside those that every dial has.
    Raises DialFailed, also for what happens in the block before `Attempt.succeeded`. It has a `hub_time` only
    where none was handed in: there is one further attempt, and not a row of them.
    """
    attempt = Attempt(config, dial_s, hub_time)
    headers = [(b"authorization", _bearer(config.authorization(hub_time))), *headers]
    if hello.resume is not None:
        headers.append((SESSION_HEADER, hello.resume.session_id.encode("ascii")))
    attempt.deadline.deadline = trio.current_time() + dial_s
    with attempt.deadline:
        try:
            stream = await attempt.connect()
            attempt.phase = "waiting for its answer to the upgrade"
            async with dial_websocket(
                stream,
                host=config.endpoint.host_header,
                target=config.endpoint.path + TUNNEL_PATH,
                headers=headers,
            ) as attempt.transport:
                attempt.phase = "waiting for its WELCOME"
                attempt.greeting = await say_hello(attempt.transport, hello)
                yield attempt
        except _FAILURES as exc:
            if attempt.opened:
                raise
            raise attempt.explain(exc) from exc
    if attempt.deadline.cancelled_caught:
        raise attempt.too_late()


_FAILURES: Final = (
    OSError,
    ProxyRefused,
    HandshakeFailed,
    WebSocketRefused,
    Rejected,
    SessionClosed,
    RemoteProtocolError,
    TransportClosed,
)


class Attempt:
    """One dial, and how far it got."""

    transport: Transport
    greeting: bytes
    """The hub's first message."""

    def __init__(self, config: DialerConfig, dial_s: float, hub_time: str) -> None:
        self.config = config
        self.dial_s = dial_s
        self.hub_time = hub_time
        self.endpoint = config.endpoint
        self.phase = ""
        self.opened = False
        self.deadline = trio.CancelScope()

    def succeeded(self) -> None:
        """Take the dial for done: what fails from now on is the session's.

        Raises DialFailed when the time was over by then: a cancellation is under way that cannot be called
        back, and would end the session and not the dial.
        """
        if self.deadline.cancel_called:
            raise self.too_late()
        self.opened = True
        self.deadline.deadline = math.inf

    def too_late(self) -> DialFailed:
        return DialFailed(f"it took longer than {self.dial_s:.0f} s, the last of it {self.phase}")

    async def connect(self) -> trio.abc.Stream:
        """Return a TLS stream to the hub; on any failure nothing is left open."""
        host, port = self.endpoint.host, self.endpoint.port
        proxy = self.config.proxy.proxy_for(host, port)
        if proxy is None:
            stream = await self._open_tcp(host, port, join_host_port(host, port))
        else:
            stream = await self._open_through(proxy)
        return await self._start_tls(stream, self.endpoint.name, host)

    async def _open_through(self, proxy: Proxy) -> trio.abc.Stream:
        stream = await self._open_tcp(proxy.host, proxy.port, f"the proxy {proxy.name}")
        if proxy.tls:
            stream = await self._start_tls(stream, f"the proxy {proxy.name}", proxy.host)
        self.phase = f"waiting for the proxy {proxy.name}"
        try:
            await connect_through(stream, proxy, self.endpoint.host, self.endpoint.port)
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return stream

    async def _open_tcp(self, host: str, port: int, target: str) -> trio.abc.Stream:
        self.phase = f"connecting to {target}"
        try:
            return await self.config.open_tcp(host, port)
        except socket.gaierror as exc:
            raise DialFailed(f"the name {host} cannot be resolved: {exc.strerror}") from exc
        except OSError as exc:
            raise DialFailed(f"cannot connect to {target}: {os_reason(exc)}") from exc

    async def _start_tls(self, stream: trio.abc.Stream, name: str, hostname: str) -> trio.abc.Stream:
        self.phase = f"in the TLS handshake with {name}"
        try:
            return await wrap_client(stream, self.config.tls, server_hostname=hostname)
        except HandshakeFailed as exc:
            raise DialFailed(f"no TLS with {name}: {exc}{tls_advice(exc)}") from exc

    def explain(self, exc: BaseException) -> DialFailed:
        """Return the failure in one line."""
        match exc:
            case ProxyRefused():
                return DialFailed(str(exc))
            case WebSocketRefused():
                # One dial by the hub's time follows a refusal, and not a row of them.
                seconds_of = _no_seconds if self.hub_time else self.config.seconds_of
                return explain_answer(exc, self.config.wall_clock(), seconds_of)
            case Rejected():
                return explain_rejection(exc, self.transport.answer_headers)
            case _:
                return DialFailed(f"{self.phase}: {exc}")


def _bearer(token: str) -> bytes:
    # h11 would refuse such a header as well, and quote it.
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError("the token for the hub is empty or holds characters that no header may hold")
    return b"Bearer " + token.encode("ascii")
