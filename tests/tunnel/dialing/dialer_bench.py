"""A network in memory for the dialer's tests, and the hubs that a dial meets in it."""

from __future__ import annotations

import re
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio
from trio.testing import memory_stream_pair

from tests.tunnel.certificates import contexts
from tests.tunnel.trio_stream import accept
from tunnel import (
    Hello,
    Rejected,
    Role,
    Session,
    SessionClosed,
    Welcome,
    open_session,
)
from tunnel.dialing.dial import DialerConfig
from tunnel.net.connect import wrap_server
from tunnel.net.egress import ProxySettings
from tunnel.websocket.upgrade import accept_websocket

TOKEN = "aaa.bbb.ccc"
NOW = 1_800_000_000.0

Handler = Callable[[trio.abc.Stream], Awaitable[None]]


async def read_head(stream: trio.abc.Stream) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        data = await stream.receive_some(1)
        if not data:
            raise trio.BrokenResourceError
        head += data
    return head


async def over_tls(stream: trio.abc.Stream, handler: Handler, context: ssl.SSLContext | None = None) -> None:
    async with wrap_server(stream, context or contexts()[1]) as tls:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await tls.do_handshake()
            await handler(tls)


class Network:
    """A network of memory streams: each dial reaches the next of `handlers`; the last one stays."""

    def __init__(self, nursery: trio.Nursery, *handlers: Handler, open_max: int = 1) -> None:
        self.nursery = nursery
        self.handlers = list(handlers)
        self.open_max = open_max
        self.began_at = trio.current_time()
        self.dialled_at: list[float] = []
        self.closed_at: list[float] = []
        self.targets: list[tuple[str, int]] = []
        self.open_now = 0

    async def open_tcp(self, host: str, port: int) -> trio.abc.Stream:
        self.dialled_at.append(trio.current_time() - self.began_at)
        self.targets.append((host, port))
        handler = self.handlers.pop(0) if len(self.handlers) > 1 else self.handlers[0]
        if isinstance(handler, Unreachable):
            await handler.fail()
        near, far = memory_stream_pair()
        self.nursery.start_soon(self._handle, handler, far)
        await trio.lowlevel.checkpoint()
        return near

    async def _handle(self, handler: Handler, stream: trio.abc.Stream) -> None:
        self.open_now += 1
        assert self.open_now <= self.open_max, "two connections at once"
        try:
            await handler(stream)
        finally:
            self.open_now -= 1
            self.closed_at.append(trio.current_time() - self.began_at)
            await trio.aclose_forcefully(stream)

    @property
    def waits(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.dialled_at, self.dialled_at[1:], strict=False)]


class Unreachable:
    """A dial that fails with this error; without one it hangs."""

    def __init__(self, error: OSError | None) -> None:
        self.error = error

    async def fail(self) -> None:
        if self.error is None:
            await trio.sleep_forever()
        else:
            raise self.error

    async def __call__(self, stream: trio.abc.Stream) -> None:
        raise AssertionError("never reached")


class Answer:
    """A server that answers each upgrade with the same bytes and records the request heads."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.heads: list[bytes] = []

    async def __call__(self, stream: trio.abc.Stream) -> None:
        await over_tls(stream, self._answer)

    async def _answer(self, tls: trio.abc.Stream) -> None:
        self.heads.append(await read_head(tls))
        await tls.send_all(self.answer)


class Hub:
    """A hub whose sessions live for `lives_s` each; it records request heads and hellos."""

    def __init__(
        self,
        lives_s: float,
        *,
        reject: Rejected | None = None,
        retry_after_ms: int = 0,
        goes_after_s: float = 0.0,
    ) -> None:
        self.lives_s = lives_s
        self.goes_after_s = goes_after_s
        self.reject = reject
        self.retry_after_ms = retry_after_ms
        self.heads: list[bytes] = []
        self.hellos: list[Hello] = []

    async def __call__(self, stream: trio.abc.Stream) -> None:
        await over_tls(stream, self.upgrade)

    def welcome(self, hello: Hello) -> Welcome:
        self.hellos.append(hello)
        if self.reject is not None:
            raise self.reject
        return Welcome(session_id=f"s{len(self.hellos)}")

    async def upgrade(self, tls: trio.abc.Stream) -> None:
        head = await read_head(tls)
        self.heads.append(head)
        with suppress(Rejected, SessionClosed):
            async with accept_websocket(tls, request_head=head) as transport:
                async with open_session(transport, Role.LISTENER, answer_hello=self.welcome) as session:
                    with trio.move_on_after(self.lives_s):
                        await session.wait_closed()
                    if self.goes_after_s:
                        session.go_away(drain_ms=60_000, reason="bye")
                        with trio.move_on_after(self.goes_after_s):
                            await session.wait_closed()
                    elif self.retry_after_ms:
                        session.go_away(
                            code=4503, drain_ms=60_000, retry_after_ms=self.retry_after_ms, reason="bye"
                        )
                        await session.wait_closed()


def config(network: Network, **changes: object) -> DialerConfig:
    values: dict[str, object] = {
        "hub_url": "https://hub.test/base/",
        "tls": contexts()[0],
        "authorization": lambda hub_time: TOKEN,
        "hello": lambda: Hello(cluster="c1"),
        "proxy": ProxySettings(),
        "open_tcp": network.open_tcp,
        "chance": lambda: 0.0,
        "wall_clock": lambda: NOW,
        **changes,
    }
    return DialerConfig(**values)  # type: ignore[arg-type]


async def accept_until_closed(session: Session) -> None:
    while True:
        await accept(session)


def answer(status: int, headers: bytes = b"") -> Answer:
    return Answer(b"HTTP/1.1 %d Whatever\r\n%sContent-Length: 3\r\n\r\nno\n" % (status, headers))


def seconds_of(hub_time: str) -> int | None:
    """Parse a signed hub time of these tests: `hub:` and its seconds."""
    _, found, seconds = hub_time.partition("hub:")
    return int(seconds) if found else None


def hub_time_at(ahead_s: float) -> bytes:
    """The time of a hub whose clock is ahead of ours, as its header carries it."""
    return b"hub:%d" % (NOW + ahead_s)


def refuses_with_hub_time(ahead_s: float) -> Answer:
    """A server that finds a token out of date, and refuses_with_hub_time the time."""
    return answer(401, b"Hawse-Hub-Time: %b\r\n" % hub_time_at(ahead_s))


def token_dated_by(hub_time: str) -> str:
    return f"dated-by-{hub_time or 'our-clock'}"


def tokens_in(heads: list[bytes]) -> list[str]:
    return [re.findall(r"(?i)\r\nauthorization: bearer (.*?)\r\n", head.decode())[0] for head in heads]


# Changes of `config`: each token names the clock that dates it.
DATED_TOKENS = {"authorization": token_dated_by, "seconds_of": seconds_of}
TOKEN_BY_OUR_CLOCK = "dated-by-our-clock"
