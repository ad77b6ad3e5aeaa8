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
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import SplitResult, urlsplit

import attrs
import trio

from tunnel.handshake import say_hello
from tunnel.net.connect import HandshakeFailed, open_tcp, os_reason, wrap_client
from tunnel.net.egress import Proxy, ProxyRefused, ProxySettings, connect_through, join_host_port
from tunnel.protocol.connection import Role
from tunnel.protocol.errors import CloseCode, RemoteProtocolError
from tunnel.protocol.frames import Hello
from tunnel.protocol.memory import Memory
from tunnel.refusals import Rejected, SessionClosed
from tunnel.session import Session, open_session
from tunnel.settings import Settings
from tunnel.websocket.transport import Transport, TransportClosed
from tunnel.websocket.upgrade import (
    AT_HEADER,
    ELSEWHERE_HEADER,
    HUB_TIME_HEADER,
    SESSION_HEADER,
    TUNNEL_PATH,
    WebSocketRefused,
    dial_websocket,
)

__all__ = ["Attempt", "DialFailed", "DialerConfig", "Endpoint", "dial", "open_tunnel"]

# From the name to the WELCOME. A phase that hangs must not hold up the next dial.
DIAL_S: Final = 10.0

# Of what the hub says beside a refusal; its own sentences are shorter.
WARNING_CHARACTERS_MAX: Final = 200

# What a balancer says while the hub behind it restarts. The hub's own 503 comes with a Retry-After.
_HUB_IS_AWAY: Final = frozenset({502, 503, 504})

_WARNING: Final = re.compile(r'[0-9]{3} \S{1,255} "([\x20-\x7e]*)"')
_HTTPS_PORT: Final = 443
# X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED.
_OUT_OF_TIME: Final = frozenset({9, 10})
# Those of a chain that ends in no certificate we trust: X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT,
# DEPTH_ZERO_SELF_SIGNED_CERT, SELF_SIGNED_CERT_IN_CHAIN, UNABLE_TO_GET_ISSUER_CERT_LOCALLY,
# UNABLE_TO_VERIFY_LEAF_SIGNATURE.
_NO_ISSUER: Final = frozenset({2, 18, 19, 20, 21})


class DialFailed(Exception):
    """There is no tunnel this time; the text is one line for the log."""

    def __init__(
        self,
        reason: str,
        *,
        refused: bool = False,
        retry_after_s: float = 0.0,
        busy: bool = False,
        forgotten: bool = False,
        hub_time: str = "",
        hub: str = "",
    ) -> None:
        super().__init__(reason)
        self.refused = refused or retry_after_s > 0
        """The hub has answered, and wants no session now."""
        self.busy = busy
        """It is refused for a reason of this hub's, and another hub of the same name may want a session."""
        self.hub = hub
        """The id of the hub that has answered, if its answer says so."""
        self.retry_after_s = retry_after_s
        self.hub_time = hub_time
        """A token dated by our clock was refused for that, and one dated by this is to be tried at once."""
        self.forgotten = forgotten
        """The hub has answered, and knows nothing of the session that was to be resumed."""


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
            raise DialFailed(f"no TLS with {name}: {exc}{_tls_advice(exc)}") from exc

    def explain(self, exc: BaseException) -> DialFailed:
        """Return the failure in one line."""
        match exc:
            case ProxyRefused():
                return DialFailed(str(exc))
            case WebSocketRefused():
                return self._explain_answer(exc)
            case Rejected():
                forgotten = exc.close_code == CloseCode.RESUME_UNKNOWN
                return DialFailed(
                    f"the hub turns this relay away: {exc}",
                    refused=not forgotten,
                    retry_after_s=exc.retry_after_ms / 1000,
                    busy=exc.close_code in (CloseCode.DRAINING, CloseCode.SLOW_DOWN),
                    forgotten=forgotten,
                    hub=_hub_in(self.transport.answer_headers),
                )
            case _:
                return DialFailed(f"{self.phase}: {exc}")

    def _explain_answer(self, refused: WebSocketRefused) -> DialFailed:
        headers = {name.lower(): value.decode("latin-1") for name, value in refused.headers}
        now = self.config.wall_clock()
        # Its Date dates the Retry-After only, never a token: any server can name a time to come.
        answered_at = _http_date(headers.get(b"date", "")) or now
        retry_after_s = _retry_after_s(headers.get(b"retry-after", ""), answered_at)
        why = _warning(headers.get(b"warning", ""))
        reason = f"{refused}{why}"
        hub_time = headers.get(HUB_TIME_HEADER, "")
        told_s = self.config.seconds_of(hub_time) if refused.status == 401 and not self.hub_time else None
        if told_s is not None:
            return DialFailed(
                f"{reason}; {_clock_advice(told_s - now)}",
                refused=True,
                retry_after_s=retry_after_s,
                hub_time=hub_time,
            )
        # A hub that says why it refuses a relay says what to do, too.
        advice = (
            "" if refused.status == 401 and why else _advice(refused.status, headers.get(b"location", ""))
        )
        by_hub = refused.status is not None and refused.status not in _HUB_IS_AWAY
        return DialFailed(
            f"{reason}{advice}",
            refused=by_hub,
            retry_after_s=retry_after_s,
            busy=refused.status in _HUB_IS_AWAY,
            hub=_hub_in(refused.headers),
        )


def _hub_in(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the id of the hub that an answer is from, as it says."""
    return next((value.decode("latin-1") for name, value in headers if name.lower() == AT_HEADER), "")


def _bearer(token: str) -> bytes:
    # h11 would refuse such a header as well, and quote it.
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError("the token for the hub is empty or holds characters that no header may hold")
    return b"Bearer " + token.encode("ascii")


def _advice(status: int | None, location: str) -> str:
    match status:
        case 301 | 302 | 303 | 307 | 308:
            return f", it points to {_origin(location)}; the hub's URL must name the hub itself"
        case 401:
            return "; the hub, or a proxy on the way, does not accept this relay and does not say why"
        case 403:
            return "; this relay is not allowed to connect"
        case 200 | 404 | 426:
            return "; there is no hub at this URL"
        case 407:
            return "; a proxy on the way demands a user and a password, and HTTPS_PROXY does not name it"
        case 429 | 503:
            return "; the hub has no room now"
        case 502 | 504:
            return "; a proxy in front of the hub does not reach it"
        case _:
            return ""


def _clock_advice(offset_s: float) -> str:
    side = "behind" if offset_s > 0 else "ahead of"
    return (
        f"our clock is {abs(offset_s):.0f} s {side} the hub's: set the one that is wrong; "
        "until then each dial is repeated at once by the time that the hub tells"
    )


def _warning(header: str) -> str:
    """Return what the hub says beside its refusal (RFC 7234 5.5), as far as a log may show it."""
    match = _WARNING.fullmatch(header)
    if match is None:
        return ""
    text = re.sub(r"\\(.)", r"\1", match[1])
    return f" ({text[:WARNING_CHARACTERS_MAX]})"


def _origin(location: str) -> str:
    """Return what a log may show of a Location: no user, no path, no query."""
    try:
        parts: SplitResult = urlsplit(location)
        host = parts.hostname
    except ValueError:
        return "no usable URL"
    return f"{parts.scheme}://{host}" if parts.scheme and host else "a path of its own"


def _tls_advice(failed: HandshakeFailed) -> str:
    cause = failed.__cause__
    if not isinstance(cause, ssl.SSLCertVerificationError):
        return ""
    if "ostname" in cause.verify_message or "IP address" in cause.verify_message:
        return "; the URL must name the host as the certificate does"
    if cause.verify_code in _OUT_OF_TIME:
        return "; the certificate must be renewed, unless this machine's clock is wrong"
    signed = f"; it is signed by {failed.issuer or 'an unknown CA'}"
    return f"{signed}, and hub.ca does not hold that CA" if cause.verify_code in _NO_ISSUER else signed


def _http_date(text: str) -> float | None:
    try:
        parsed = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        # The latter of a number that no date has room for.
        return None
    return (parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)).timestamp()


def _retry_after_s(text: str, now: float) -> float:
    """RFC 9110 10.2.3: a number of seconds, or a date."""
    if text.isascii() and text.isdigit():
        # More digits than any patience has.
        return float(text[:9])
    date = _http_date(text)
    return max(date - now, 0.0) if date is not None else 0.0
