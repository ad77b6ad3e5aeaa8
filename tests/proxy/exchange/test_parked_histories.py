"""Random histories of a parked connection: answers are whole and in order, or the client is cut.

The calls that the loop schedules run late, when the history says so.
"""

from __future__ import annotations

import math
import socket
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TypeAlias

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from proxy.exchange.next_pass import NextPass
from proxy.exchange.parked_connection import Begun
from proxy.exchange.server import ServerConnection
from proxy.message.body import ChunkedBody
from proxy.message.failure import InboundBroken, StreamCode
from proxy.message.head import RequestHead, ResponseHead
from tests.proxy.exchange.clients import read_arrived
from tests.proxy.exchange.fake_ports import LOST, REVOKED
from tests.proxy.exchange.parking import BUFFER_BYTES, LAST_CHUNK, Asked
from tests.tunnel.stream_pairs import handshake, tcp_pair
from tunnel.net.readiness import Readiness
from tunnel.net.tls import TLSStream

HEADS = {
    "get": b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n",
    "close": b"GET /%d HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    "post": b"POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: 300\r\n\r\n",
    "chunked": b"POST /%d HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
    "upgrade": b"GET /%d HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
}
BODIES = {
    "post": b"p" * 300,
    "chunked": b"1\r\nc\r\n" * 1200 + b"8000\r\n" + b"d" * 0x8000 + b"\r\n" + LAST_CHUNK,
}
# Each with whether the loop runs behind it.
Operations: TypeAlias = list[tuple[Sequence[object] | str, bool]]
SENT_BODIES = {"post": b"p" * 300, "chunked": b"c" * 1200 + b"d" * 0x8000}


class LatePasses(NextPass):
    """Scheduled calls, which run when the history says so."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduled: list[Callable[[], None]] = []
        self.delayed: list[Callable[[], None]] = []

    def soon(self, peer: Hashable, call: Callable[[], None]) -> None:
        self.scheduled.append(call)

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        self.delayed.append(call)


@attrs.define(eq=False)
class Answer:
    status: int
    closes: bool
    chunks: ChunkedBody | None
    """None for an answer with a length, and for raw bytes."""
    left: float = math.inf
    body: bytearray = attrs.Factory(bytearray)

    @property
    def whole(self) -> bool:
        return self.chunks.reached if self.chunks is not None else not self.left


@attrs.define(eq=False)
class History:
    client: TLSStream
    connection: ServerConnection
    passes: LatePasses
    how: list[str]
    """How the following requests begin."""
    kinds: list[str] = attrs.Factory(list)
    unsent: bytearray = attrs.Factory(bytearray)
    begun: dict[int, Asked] = attrs.Factory(dict)
    served: set[int] = attrs.Factory(set)
    """The requests that the task has served from the beginning."""
    answers: list[Answer] = attrs.Factory(list)
    received: bytearray = attrs.Factory(bytearray)
    ended: str = ""
    gone: bool = False
    """The client has left, or the task was cancelled or has met a bug."""
    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)
    over: bool = False
    _starts: str = ""

    # -- the server

    def begin(self, connection: ServerConnection, head: RequestHead) -> Begun | None:
        how = self.how.pop(0) if self.how else "forward"
        if how == "task":
            return None
        number = int(head.target[1:])
        assert number not in self.begun
        asked = Asked(connection, head, self.on_start)
        asked.upstream.drains_at_once = how != "slow"
        self.begun[number] = asked
        self._starts = how
        return asked

    def on_start(self, asked: Asked) -> None:
        if self._starts == "hand over":
            asked.parked.hand_over()
        elif self._starts == "fault":
            self.gone = True
            raise RuntimeError("a bug")
        elif self._starts == "at once":
            asked.answer()
            asked.forward()
        elif self._starts != "wait":
            asked.forward()

    async def serve(self) -> None:
        """The task of the connection."""
        connection = self.connection
        try:
            with self.scope:
                while (head := await connection.next_request()) is not None:
                    if (begun := connection.take_begun()) is not None:
                        await begun.carry_on()
                        continue
                    self.served.add(int(head.target[1:]))
                    while await connection.receive_body():
                        pass
                    await connection.answer(ResponseHead.of(200), b"task")
        except (InboundBroken, RuntimeError):
            pass
        finally:
            with trio.CancelScope(shield=True):
                await connection.cut()
            self.over = True

    # -- the client

    def ask(self, kind: str) -> None:
        if "close" in self.kinds or "upgrade" in self.kinds:
            return
        self.unsent += HEADS[kind] % len(self.kinds) + BODIES.get(kind, b"")
        self.kinds.append(kind)

    def send(self, size: int) -> None:
        data = bytes(self.unsent[:size])
        del self.unsent[:size]
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            self.client.send_nowait(data)

    def read(self) -> None:
        if not self.ended:
            self.ended = read_arrived(self.client, self._take)

    def _take(self, data: bytes) -> None:
        self.received += data
        self._parse()

    def _parse(self) -> None:
        while self.received:
            if not self.answers or self.answers[-1].whole:
                raw, end, rest = bytes(self.received).partition(b"\r\n\r\n")
                if not end:
                    return
                self.received[:] = rest
                lines = raw.lower().split(b"\r\n")
                lengths = [int(line[15:]) for line in lines if line.startswith(b"content-length:")]
                chunked = b"transfer-encoding: chunked" in lines
                self.answers.append(
                    Answer(
                        int(raw.split()[1]),
                        b"connection: close" in lines,
                        ChunkedBody() if chunked else None,
                        lengths[0] if lengths else math.inf,
                    )
                )
                continue
            answer = self.answers[-1]
            data = bytes(self.received)
            self.received.clear()
            if answer.chunks is not None:
                answer.body += answer.chunks.feed(data)
                self.received += answer.chunks.rest if answer.chunks.reached else b""
            else:
                taken = data if answer.left == math.inf else data[: int(answer.left)]
                answer.body += taken
                answer.left -= len(taken)
                self.received += data[len(taken) :]

    # -- the history

    @property
    def current(self) -> Asked | None:
        """The last request that was begun, if it has not ended."""
        asked = list(self.begun.values())[-1:]
        return asked[0] if asked and not asked[0].ends else None

    def do(self, operation: Sequence[object] | str) -> None:
        asked = self.current
        exchange = asked.exchange if asked is not None else None
        match operation:
            case ("ask", str(kind)):
                self.ask(kind)
            case ("send", int(size)):
                self.send(size)
            case ("say", int(size), bool(end)) if exchange is not None and asked is not None:
                self._say(asked, b"%d:" % len(self.begun) + b"y" * size, end)
            case "read":
                self.read()
            case "drain" if asked is not None:
                asked.upstream.drain()
            case "forward" if asked is not None and exchange is None and asked.parked.parked:
                asked.forward()
            case "fault" if asked is not None and exchange is None and asked.parked.parked:
                self.gone = True
                asked.parked.hand_over(RuntimeError("a bug"))
            case "lost" if exchange is not None and asked is not None:
                asked.upstream.break_off(LOST)
            case "revoke" if exchange is not None:
                exchange.end(REVOKED)
            case "hold" if exchange is not None:
                exchange.hold()
            case "release" if exchange is not None:
                exchange.release()
            case "soon" if self.passes.scheduled:
                self.passes.scheduled.pop(0)()
            case "later" if self.passes.delayed:
                self.passes.delayed.pop(0)()
            case "cancel":
                self.gone = True
                self.scope.cancel()
            case "client end":
                self.gone = True
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    self.client.send_close_notify_nowait()
            case "client cut":
                self.gone = True
                self.read()
                self.ended = self.ended or "cut"
                self.client.close_nowait()

    def _say(self, asked: Asked, data: bytes, end: bool) -> None:
        upstream = asked.upstream
        if not upstream.heads_said:
            upstream.heads_said = True
            switches = asked.head.fields.upgrade is not None
            upstream.say(data, end and not switches, 101 if switches else 200)
        else:
            upstream.say(data, end)

    async def finish(self) -> None:
        """Let everything take its course."""
        quiet = 0
        while quiet < 3 and not self.over:
            before = self._progress()
            for name in ("release", "forward", "drain", "soon", "read"):
                self.do(name)
                await wait_all_tasks_blocked()
            self.do(("send", 1 << 20))
            if not self.unsent:
                self.do(("say", 1, True))
            await wait_all_tasks_blocked()
            self.read()
            quiet = 0 if self._progress() != before else quiet + 1
        self.read()

    def _progress(self) -> tuple[object, ...]:
        upstreams = [(len(asked.upstream.out), len(asked.ends)) for asked in self.begun.values()]
        body = sum(len(answer.body) for answer in self.answers)
        return len(self.answers), body, upstreams, len(self.served), self.ended, len(self.passes.scheduled)

    # -- the invariants

    def check(self) -> None:
        for number, asked in self.begun.items():
            upstream, kind = asked.upstream, self.kinds[number]
            assert len(asked.ends) <= 1
            assert number not in self.served
            assert asked.failure is None or asked.failure.code is not StreamCode.INTERNAL
            if kind != "upgrade":
                assert SENT_BODIES.get(kind, b"").startswith(bytes(upstream.out))
                assert not upstream.out_end or SENT_BODIES[kind] == bytes(upstream.out)
        for number, answer in enumerate(self.answers):
            assert answer.whole or number == len(self.answers) - 1
            asked_now = self.begun.get(number)
            if asked_now is None:
                assert number in self.served
                said, said_end = b"task", True
            elif asked_now.upstream.heads_said or asked_now.complete:
                said, said_end = bytes(asked_now.upstream.said), asked_now.upstream.said_end
                if answer.status == 502:
                    said, said_end = b"failed", True
            else:
                said, said_end = b"failed", True
            if answer.whole:
                assert said_end
                assert bytes(answer.body) == said
            assert said.startswith(bytes(answer.body))

    def check_end(self) -> None:
        """Every request has its answer, unless the connection has ended."""
        for number, asked in self.begun.items():
            if asked.complete and not self.gone:
                answer = self.answers[number]
                # TCP resets the connection if a further request arrives behind an answer that closes.
                resets = answer.closes and number < len(self.kinds) - 1
                assert answer.whole or answer.status == 101 or resets
        if not (self.gone or self.ended):
            # Behind an early answer the task lingers.
            closes = self.answers[-1].closes
            assert closes or len(self.answers) == len(self.kinds)
            assert all(answer.whole or answer.status == 101 for answer in self.answers)


@asynccontextmanager
async def under_way(how: list[str]) -> AsyncIterator[History]:
    near, far = await tcp_pair()
    far.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
    near.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    async with trio.open_nursery() as nursery:
        client, server = await handshake((near, far))
        readiness, passes = Readiness(), LatePasses()
        nursery.start_soon(readiness.run)  # noqa: ASYNC113
        connection = ServerConnection(server, readiness=readiness, passes=passes)
        history = History(client, connection, passes, how)
        connection.serve_parked(server, history.begin)
        nursery.start_soon(history.serve)  # noqa: ASYNC113
        history.ask("get")
        history.send(1 << 20)
        await wait_all_tasks_blocked()
        history.read()
        yield history
        history.scope.cancel()
        await wait_all_tasks_blocked()
        assert history.over
        assert not readiness._watches
        assert all(len(asked.ends) == 1 for asked in history.begun.values())
        client.close_nowait()
        nursery.cancel_scope.cancel()


sizes = st.sampled_from([0, 1, 3000, 300_000])
ends = st.sampled_from([False, True, True])
asks = st.sampled_from(["get", "get", "post", "chunked", "chunked", "close", "upgrade"])
events = st.sampled_from(["read", "drain", "drain", "forward", "hold", "release", "release", "soon", "later"])
operations = st.lists(
    st.tuples(
        st.one_of(
            st.tuples(
                st.just("ask"),
                asks,
            ),
            st.tuples(st.just("send"), st.sampled_from([1, 40, 300, 9000, 1 << 20, 1 << 20])),
            st.tuples(st.just("say"), sizes, ends),
            st.sampled_from(
                ["read", "drain", "drain", "forward", "hold", "release", "release", "soon", "later"]
            ),
        ),
        st.sampled_from([True, True, True, False]),
    ),
    max_size=30,
)
endings = st.lists(
    st.tuples(
        st.sampled_from(["lost", "lost", "revoke", "cancel", "fault", "client end", "client cut"]),
        st.booleans(),
    ),
    max_size=1,
)
hows = st.lists(
    st.sampled_from(["forward", "forward", "slow", "wait", "hand over", "fault", "at once", "task"]),
    max_size=8,
)
any_history = given(operations, endings, operations, hows)


async def check_history(before: Operations, endings: Operations, after: Operations, how: list[str]) -> None:
    async with under_way(how) as history:
        for operation, settles in [*before, *endings, *after]:
            history.do(operation)
            if settles:
                await wait_all_tasks_blocked()
                history.check()
        await history.finish()
        history.check()
        history.check_end()


def check(before: Operations, endings: Operations, after: Operations, how: list[str]) -> None:
    trio.run(check_history, before, endings, after, how, clock=MockClock())


def test_answers_are_whole_and_in_order_or_the_client_is_cut() -> None:
    settings(max_examples=150, deadline=None)(any_history(check))()


@pytest.mark.long
def test_answers_are_whole_and_in_order_or_the_client_is_cut_in_4_000_histories() -> None:
    settings(max_examples=4_000, deadline=None)(any_history(check))()
