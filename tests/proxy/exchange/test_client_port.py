"""A client's connection as a port of the engine: the contract of ports, over real sockets and TLS."""

from __future__ import annotations

import gc
import logging
import socket
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from proxy.exchange.client_port import CUT_WITHIN_S, QUIET_S, ClientPort
from proxy.exchange.deadlines import Deadlines
from proxy.exchange.engine import OVER, Exchange
from proxy.exchange.http_client import ClientHTTP
from proxy.exchange.http_server import EARLY_BYTES_MAX, ServerHTTP
from proxy.exchange.http_state import State
from proxy.exchange.kept_body import REPLAY_BYTES_MAX
from proxy.exchange.next_pass import NextPass
from proxy.message.body import CHUNKS_AT_ONCE_MAX
from proxy.message.failure import Failure, OutboundBroken, Processed, StreamCode
from proxy.message.head import RequestHead, ResponseHead
from tests.proxy.exchange.clients import read_arrived
from tests.proxy.exchange.fake_ports import LOST, REVOKED, Bug, Upstream
from tests.tunnel.stream_pairs import handshake, tcp_pair
from tunnel.net.readiness import Readiness
from tunnel.net.tls import TLSStream

HOST = (b"host", b"a")
WEBSOCKET = (HOST, (b"connection", b"Upgrade"), (b"upgrade", b"websocket"))
CHUNKED = (HOST, (b"transfer-encoding", b"chunked"))
REQUESTS = {
    "get": RequestHead.of(b"GET", b"/", (HOST,)),
    "chunked": RequestHead.of(b"PUT", b"/", CHUNKED),
    "expect": RequestHead.of(b"PUT", b"/", (*CHUNKED, (b"expect", b"100-continue"))),
    "upgrade": RequestHead.of(b"GET", b"/", WEBSOCKET),
}
# What a socket's two buffers hold, so that a client that does not read is noticed soon.
BUFFER_BYTES = 64 * 1024


@attrs.define(eq=False)
class Rig:
    """A client, the port of its connection, and an exchange with what answers."""

    client: TLSStream
    server: TLSStream
    nursery: trio.Nursery
    readiness: Readiness = attrs.Factory(Readiness)
    passes: NextPass = attrs.Factory(NextPass)
    http: ServerHTTP = attrs.Factory(ServerHTTP)
    deadlines: Deadlines = attrs.Factory(Deadlines)
    asking: ClientHTTP = attrs.Factory(ClientHTTP)
    upstream: Upstream = attrs.Factory(lambda: Upstream(drains_at_once=False))
    port: ClientPort = attrs.field(init=False)
    exchange: Exchange = OVER
    done: list[Failure | None] = attrs.Factory(list)
    patience: list[float] = attrs.Factory(list)
    idle_calls: int = 0
    was_cut: bool = False
    said: bytearray = attrs.Factory(bytearray)
    """What the client has sent as its body, or raw."""
    said_end: bool = False
    gone: bool = False
    head: ResponseHead | None = None
    """What the client has received."""
    interim: bytes = b""
    body: bytearray = attrs.Factory(bytearray)
    ended: str = ""
    """How the connection ended for the client: "clean" or "cut"."""

    def __attrs_post_init__(self) -> None:
        self.nursery.start_soon(self.readiness.run)
        self.nursery.start_soon(self.passes.run)
        transport = self.server.transport_stream
        watch = self.readiness.watch(transport.socket.fileno(), lambda: None)  # type: ignore[attr-defined]
        self.port = ClientPort(
            self.http,
            self.server,
            watch,
            self.passes,
            "peer",
            self._on_cut,
            self.deadlines,
        )
        self.port.on_idle = self._on_idle

    def _on_cut(self) -> None:
        self.was_cut = True

    def _on_idle(self) -> None:
        """Read the next head, as the owner of a connection does, and begin its exchange."""
        self.idle_calls += 1
        if not self.port.take_in() or self.done:
            return
        raw = self.http.take_head()
        if raw is not None:
            fields = self.http.begin_request(raw).fields
            self.port.begin()
            upgrade = fields.upgrade is not None
            self.exchange = Exchange(
                self.port,
                self.upstream,
                self._done,
                self.patience.append,
                bodiless=fields.body_length == 0 and not upgrade,
                upgrade=upgrade,
            )
            self.exchange.start()

    def _done(self, failure: Failure | None) -> None:
        self.done.append(failure)
        self.upstream.released = True

    async def ask(self, kind: str) -> None:
        self.said_end = kind == "get"
        self.send(self.asking.send_request(REQUESTS[kind]))
        await wait_all_tasks_blocked()
        assert self.exchange is not OVER

    def send(self, data: bytes) -> None:
        """Send from the client; what the kernel does not take waits for the next send."""
        try:
            self.client.send_nowait(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.gone = True

    def end(self) -> None:
        """Say close_notify from the client."""
        try:
            self.client.send_close_notify_nowait()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.gone = True

    def say(self, data: bytes, end: bool = False) -> None:
        """Say a piece of the body, or raw bytes after a 101."""
        if self.said_end or self.gone:
            return
        self.said += data
        switched = self.asking.incoming is State.SWITCHED
        if switched or self.asking.outgoing is State.DONE:
            # A client may send raw bytes before it has the 101.
            self.said_end = end and switched
            self.send(data)
            if self.said_end:
                self.end()
        else:
            self.said_end = end
            self.send(self.asking.send_body(data, end=end))

    def read(self) -> None:
        """Receive what has come for the client."""
        if self.ended or self.gone:
            return
        self.ended = read_arrived(self.client, self._receive)
        if self.ended == "clean":
            self.asking.ended = True
            self._receive(b"")

    def _receive(self, data: bytes) -> None:
        self.asking.feed(data)
        if self.head is None:
            if bytes(self.asking.held).startswith(b"HTTP/1.1 100 "):
                self.interim += b"100"
            self.head = self.asking.receive_head() if data else None
        if self.asking.incoming is State.SWITCHED:
            self.body += self.asking.take_rest()
        elif self.head is not None:
            try:
                while part := self.asking.receive_body():
                    self.body += part
            except OutboundBroken:
                assert self.ended

    @property
    def whole(self) -> bool:
        """Whether the client takes the answer for whole."""
        if self.asking.incoming is State.SWITCHED:
            return self.ended == "clean"
        return self.head is not None and self.asking.incoming is State.DONE


@asynccontextmanager
async def rigged(kind: str = "get", *, buffers: int = BUFFER_BYTES) -> AsyncIterator[Rig]:
    near, far = await tcp_pair()
    far.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
    near.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
    client, server = await handshake((near, far))
    try:
        async with trio.open_nursery() as nursery:
            rig = Rig(client, server, nursery)
            await rig.ask(kind)
            yield rig
            nursery.cancel_scope.cancel()
    finally:
        client.close_nowait()
        server.close_nowait()


async def do(rig: Rig, operation: Sequence[object] | str) -> None:
    upstream, exchange = rig.upstream, rig.exchange
    match operation:
        case ("client", bytes(data), bool(end)):
            rig.say(data, end)
        case ("head", int(status), bytes(data), bool(end)):
            switches = status == 101
            if not upstream.heads_said and not (switches and rig.http.request.upgrade is None):  # type: ignore[union-attr]
                if 100 <= status < 200 and not switches:
                    upstream.say(b"", False, status)
                else:
                    upstream.heads_said = True
                    upstream.say(data, end and not switches, status)
        case ("upstream", bytes(data), bool(end)):
            if upstream.heads_said:
                upstream.say(data, end)
        case "read":
            rig.read()
        case "drain":
            upstream.drain()
        case "hold":
            exchange.hold()
        case "release":
            exchange.release()
        case "lost":
            upstream.break_off(LOST)
        case "revoke":
            exchange.end(REVOKED)
        case "expire":
            if rig.patience:
                exchange.expire()
        case "client cut":
            rig.gone = True
            rig.client.close_nowait()
        case _:
            raise AssertionError(operation)
    await wait_all_tasks_blocked()


bodies = st.sampled_from([b"", b"a", b"bcd", b"e" * 20, b"f" * 3000, b"g" * 300_000])
ends = st.sampled_from([False, False, False, True])
operations = st.lists(
    st.one_of(
        st.tuples(st.just("client"), bodies, ends),
        st.tuples(st.just("upstream"), bodies, ends),
        st.tuples(st.just("head"), st.sampled_from([103, 101, 200, 200, 413]), bodies, ends),
        st.sampled_from(["read", "read", "drain", "drain", "hold", "release", "release"]),
    ),
    max_size=25,
)
endings = st.lists(st.sampled_from(["lost", "revoke", "expire", "client cut"]), max_size=1)
any_history = given(operations, endings, operations, st.sampled_from(sorted(REQUESTS)))


async def check_history(
    before: list[Sequence[object] | str], endings: list[str], after: list[Sequence[object] | str], kind: str
) -> None:
    async with rigged(kind) as rig:
        upstream = rig.upstream
        for operation in [*before, *endings, *after]:
            held, taken = rig.exchange.held, len(upstream.out)
            await do(rig, operation)
            if held and rig.exchange.held:
                assert len(upstream.out) == taken
        rig.read()
        # What is done is in the kernel: without us the client gets all of it.
        rig.nursery.cancel_scope.cancel()
        if rig.done == [None]:
            with trio.CancelScope(shield=True), trio.fail_after(5):
                while not (rig.whole or rig.gone):
                    await trio.lowlevel.wait_readable(rig.client.transport_stream.socket)  # type: ignore[attr-defined]
                    rig.read()
        rig.read()
    assert len(rig.done) == rig.exchange.over
    assert upstream.touched_when_over == 0
    assert bytes(rig.said).startswith(bytes(upstream.out))
    assert not upstream.out_end or rig.said_end
    assert bytes(upstream.said).startswith(bytes(rig.body))
    assert not rig.whole or upstream.said_end
    if rig.done == [None]:
        assert upstream.said_end
        assert rig.gone or bytes(rig.body) == bytes(upstream.said)
    elif rig.done:
        failure = rig.done[0]
        assert failure is not None
        assert failure.code is not StreamCode.INTERNAL
        if rig.exchange.status:
            assert failure.processed is Processed.YES
            assert not rig.whole or (kind == "upgrade" and upstream.said_end)
        else:
            # The owner has the words.
            assert not rig.was_cut
            assert rig.head is None
    assert rig.interim.count(b"100") <= 1


def check(
    before: list[Sequence[object] | str], endings: list[str], after: list[Sequence[object] | str], kind: str
) -> None:
    trio.run(check_history, before, endings, after, kind)


def test_the_contract_holds_over_a_real_socket() -> None:
    settings(max_examples=120, deadline=None)(any_history(check))()


@pytest.mark.long
def test_the_contract_holds_over_a_real_socket_in_3_000_histories() -> None:
    settings(max_examples=3_000, deadline=None)(any_history(check))()


# -- single promises ----------------------------------------------------------------------------------------


async def test_a_paused_port_delivers_nothing_and_keeps_one_read() -> None:
    async with rigged("chunked", buffers=1 << 20) as rig:
        rig.exchange.hold()
        for _ in range(20):
            await do(rig, ("client", b"x" * 8000, False))
        assert bytes(rig.upstream.out) == b""
        assert len(rig.http) <= 16 * 1024
        rig.exchange.release()
        await wait_all_tasks_blocked()
        # The other port is full with the first piece.
        assert rig.upstream.full
        while len(rig.upstream.out) < 20 * 8000:
            await do(rig, "drain")
        assert bytes(rig.upstream.out) == bytes(rig.said)


async def test_a_client_that_does_not_read_pauses_the_answer_and_nothing_else_waits() -> None:
    async with rigged() as rig:
        await do(rig, ("head", 200, b"", False))
        for _ in range(40):
            await do(rig, ("upstream", b"y" * 60_000, False))
        assert rig.upstream.paused
        assert rig.port.held_bytes < 400_000
        while len(rig.body) < 40 * 60_000:
            await do(rig, "read")
        assert not rig.upstream.paused


async def test_the_end_is_reported_once_the_kernel_has_the_last_byte() -> None:
    async with rigged() as rig:
        await do(rig, ("head", 200, b"y" * 2_000_000, True))
        assert rig.done == []
        while not rig.whole:
            await do(rig, "read")
        assert rig.done == [None]


@pytest.mark.parametrize("drop", [False, True])
async def test_a_cut_sends_queued_bytes_unless_it_drops_them(drop: bool) -> None:
    async with rigged() as rig:
        await do(rig, ("head", 200, b"y" * 1_000_000, False))
        await do(rig, "revoke" if drop else "lost")
        assert rig.was_cut is drop
        while not rig.ended:
            await do(rig, "read")
        assert rig.ended == "cut"
        assert not rig.whole
        assert (len(rig.body) == 1_000_000) is not drop


async def test_a_stalled_client_does_not_hold_a_cut_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    async with rigged() as rig:
        await do(rig, ("head", 200, b"y" * 1_000_000, False))
        await do(rig, "lost")
        assert not rig.was_cut
        await trio.sleep(CUT_WITHIN_S + 1)
        assert rig.was_cut


async def test_a_cut_connection_is_not_kept_until_its_time_is_over() -> None:
    async with rigged() as rig:
        await do(rig, ("head", 200, b"y" * 1_000_000, False))
        await do(rig, "lost")
        while not rig.ended:
            await do(rig, "read")
        assert rig.was_cut
    # The port refers to it.
    kept = weakref.ref(rig)
    del rig
    gc.collect()
    assert kept() is None


async def test_a_client_that_ends_still_gets_an_answer_that_comes_soon(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with rigged() as rig:
        rig.end()
        await trio.sleep(QUIET_S / 2)
        await do(rig, ("head", 200, b"soon", True))
        assert rig.done == [None]
        rig.read()
        assert bytes(rig.body) == b"soon"


async def test_a_client_that_ended_is_gone_after_a_while(autojump_clock: trio.testing.MockClock) -> None:
    async with rigged() as rig:
        rig.end()
        await trio.sleep(QUIET_S * 1.1)
        (failure,) = rig.done
        assert failure is not None
        assert failure.code is StreamCode.CANCEL


@pytest.mark.parametrize("noticed", [True, False])
async def test_a_client_that_ended_before_an_attempt_is_gone_in_it(
    autojump_clock: trio.testing.MockClock, noticed: bool
) -> None:
    async with rigged() as rig:
        if noticed:
            rig.end()
            await wait_all_tasks_blocked()
        rig.exchange.end(LOST)
        # What a connection does with what comes while no attempt runs.
        rig.port.on_idle = rig.port.unlisten
        rig.end()
        await wait_all_tasks_blocked()
        done: list[Failure | None] = []
        rig.port.rewind()
        Exchange(rig.port, Upstream(), done.append, bodiless=True).start()
        rig.port.attend()
        await trio.sleep(QUIET_S * 1.1)
        assert [failure and failure.code for failure in done] == [StreamCode.CANCEL]


async def test_a_body_is_delivered_whole_again_after_an_attempt_that_took_a_part_of_it() -> None:
    async with rigged("chunked", buffers=1 << 20) as rig:
        while not rig.said_end:
            await do(rig, ("client", bytes([len(rig.said) // 2000]) * 2000, len(rig.said) >= 8000))
            await do(rig, "drain")
        assert rig.upstream.out_end
        rig.exchange.end(LOST)
        for drains in (False, True):
            upstream = Upstream(drains_at_once=drains)
            rig.port.rewind()
            exchange = Exchange(rig.port, upstream, lambda _: None)
            exchange.start()
            await wait_all_tasks_blocked()
            while drains and upstream.queue:
                upstream.drain()
            assert upstream.out_end is drains
            assert bytes(rig.said).startswith(bytes(upstream.out))
            exchange.end(LOST)
        assert bytes(upstream.out) == bytes(rig.said)
        assert rig.port.bytes_delivered == len(rig.said)


async def test_a_body_is_not_kept_where_no_other_attempt_sends_it() -> None:
    async with rigged("chunked") as rig:
        rig.upstream.drains_at_once = True
        rig.port.begin(keep_body=False)
        assert rig.port.whole
        rig.exchange.start()
        rig.port.resume()
        await do(rig, ("client", b"abc", False))
        assert bytes(rig.upstream.out) == b"abc"
        assert not rig.port.whole
        assert rig.port._body is None


async def test_the_rest_of_a_replay_is_delivered_after_an_answer_that_begins_within_it() -> None:
    async with rigged("chunked", buffers=1 << 20) as rig:
        rig.upstream.drains_at_once = True
        for piece in (b"a", b"b", b"c"):
            await do(rig, ("client", piece * 2000, False))
        rig.exchange.end(LOST)
        upstream = rig.upstream = Upstream()
        held_bytes = rig.port.held_bytes
        rig.port.rewind()
        rig.exchange = Exchange(rig.port, upstream, lambda _: None)
        rig.exchange.start()
        # It takes one piece at a time, and answers before it has all of them.
        assert bytes(upstream.out) == b"a" * 2000
        assert rig.port.held_bytes == held_bytes
        upstream.say(b"", False, 200)
        await do(rig, ("client", b"d" * 2000, True))
        while upstream.queue:
            await do(rig, "drain")
        assert bytes(upstream.out) == bytes(rig.said)
        assert upstream.out_end


async def test_a_body_is_kept_for_another_attempt_up_to_a_bound() -> None:
    async with rigged("chunked", buffers=1 << 20) as rig:
        rig.upstream.drains_at_once = True
        before, half = rig.port.held_bytes, REPLAY_BYTES_MAX // 2
        for whole, size, kept in ((True, half, half), (True, half, 2 * half), (False, 1, 0)):
            rig.send(b"%x\r\n%s\r\n" % (size, bytes(size)))
            await wait_all_tasks_blocked()
            assert rig.port.whole is whole
            # The memory counts.
            assert rig.port.held_bytes - before == kept
        assert len(rig.upstream.out) == REPLAY_BYTES_MAX + 1


async def test_while_the_hub_stops_each_answer_is_its_connections_last() -> None:
    async with rigged() as rig:
        rig.deadlines.ending = True
        await do(rig, ("head", 200, b"ok", True))
        rig.read()
        assert rig.whole
        assert not rig.asking.persistent


async def test_a_client_whose_connection_breaks_is_gone_at_once() -> None:
    async with rigged() as rig:
        await do(rig, "client cut")
        assert [failure and failure.code for failure in rig.done] == [StreamCode.CANCEL]


async def test_pipelined_bytes_are_kept_up_to_a_bound_and_are_the_next_request() -> None:
    async with rigged(buffers=1 << 20) as rig:
        head = b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n"
        rig.send(head + bytes(4 * EARLY_BYTES_MAX))
        await wait_all_tasks_blocked()
        assert EARLY_BYTES_MAX <= len(rig.http) <= EARLY_BYTES_MAX + 16 * 1024
        await do(rig, ("head", 200, b"ok", True))
        assert rig.done == [None]
        assert rig.http.take_head() == head


async def test_no_more_is_read_behind_a_body_if_the_bytes_that_came_with_its_end_reach_the_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held: list[int] = []
    take_in = ClientPort.take_in

    def noting(port: ClientPort) -> bool:
        held.append(len(port._http.held))
        return take_in(port)

    monkeypatch.setattr(ClientPort, "take_in", noting)
    async with rigged("chunked", buffers=1 << 20) as rig:
        held.clear()
        rig.upstream.drains_at_once = True
        # The read after a large one may be larger.
        rig.say(bytes(20_000))
        await wait_all_tasks_blocked()
        rig.send(rig.asking.send_body(b"", end=True) + bytes(4 * EARLY_BYTES_MAX))
        await wait_all_tasks_blocked()
        assert rig.upstream.out_end
        assert len(rig.http.held) >= EARLY_BYTES_MAX
        # Otherwise each of many pipelined requests would add a read.
        assert held == []


async def test_the_next_request_never_begins_on_the_stack_of_the_last_ones_end() -> None:
    async with rigged() as rig:
        idle = rig.idle_calls
        rig.send(b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n")
        await wait_all_tasks_blocked()
        await do(rig, ("head", 200, b"ok", True))
        assert rig.done == [None]
        assert rig.idle_calls == idle


async def test_an_early_answer_is_the_last_where_the_body_is_not_here() -> None:
    async with rigged("chunked") as rig:
        await do(rig, ("client", b"part", False))
        await do(rig, ("head", 413, b"too large", True))
        assert rig.done == [None]
        rig.read()
        assert rig.whole
        assert not rig.asking.persistent
        await do(rig, ("client", b"more", True))
        assert bytes(rig.upstream.out) == b"part"


async def test_bodies_of_tiny_chunks_go_on_in_later_passes() -> None:
    async with rigged("chunked", buffers=1 << 20) as rig:
        rig.upstream.drains_at_once = True
        passes = 0
        delivered = 0

        async def count() -> None:
            nonlocal passes, delivered
            while len(rig.upstream.out) < 10_000:
                delivered = max(delivered, len(rig.upstream.out) - taken[-1])
                taken.append(len(rig.upstream.out))
                passes += 1
                await trio.lowlevel.checkpoint()

        taken = [0]
        rig.send(b"1\r\na\r\n" * 10_000)
        rig.nursery.start_soon(count)
        with trio.fail_after(10):
            while len(rig.upstream.out) < 10_000:
                await wait_all_tasks_blocked()
        assert delivered <= 2 * CHUNKS_AT_ONCE_MAX
        assert passes > 10


@pytest.mark.parametrize("chunks", [CHUNKS_AT_ONCE_MAX + 10, 3 * CHUNKS_AT_ONCE_MAX])
async def test_a_body_of_tiny_chunks_ends_once_if_its_end_comes_before_the_scheduled_delivery(
    chunks: int,
) -> None:
    async with rigged("chunked", buffers=1 << 20) as rig:
        rig.upstream.drains_at_once = True
        soon: list[Callable[[], None]] = []
        rig.passes.soon = lambda _, call: soon.append(call)  # type: ignore[method-assign]
        rig.send(b"1\r\na\r\n" * chunks)
        await wait_all_tasks_blocked()
        assert soon
        for _ in range(10):
            rig.send(b"1\r\na\r\n")
            await wait_all_tasks_blocked()
        rig.send(b"0\r\n\r\n")
        with trio.fail_after(5):
            while not rig.upstream.out_end:
                while soon:
                    soon.pop(0)()
                await wait_all_tasks_blocked()
        assert len(rig.upstream.out) == chunks + 10
        assert rig.done == []
        await do(rig, ("head", 200, b"ok", True))
        assert rig.done == [None]


async def test_a_client_that_ends_behind_a_body_of_tiny_chunks_is_gone_after_a_while(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with rigged("chunked", buffers=1 << 20) as rig:
        rig.upstream.drains_at_once = True
        soon: list[Callable[[], None]] = []
        rig.passes.soon = lambda _, call: soon.append(call)  # type: ignore[method-assign]
        rig.send(b"1\r\na\r\n" * 3 * CHUNKS_AT_ONCE_MAX + b"0\r\n\r\n")
        await wait_all_tasks_blocked()
        rig.end()
        await wait_all_tasks_blocked()
        while not rig.upstream.out_end:
            soon.pop(0)()
        del rig.passes.soon
        await trio.sleep(QUIET_S * 1.1)
        assert [failure and failure.code for failure in rig.done] == [StreamCode.CANCEL]


async def test_a_scheduled_delivery_that_finds_the_end_delivered_does_nothing() -> None:
    async with rigged("chunked", buffers=1 << 20) as rig:
        rig.upstream.drains_at_once = True
        scheduled: list[Callable[[], None]] = []
        rig.passes.soon = lambda _, call: scheduled.append(call)  # type: ignore[method-assign]
        rig.send(b"1\r\na\r\n" * (CHUNKS_AT_ONCE_MAX + 1) + b"0\r\n\r\n")
        await wait_all_tasks_blocked()
        assert scheduled
        assert not rig.upstream.out_end
        rig.exchange.hold()
        rig.exchange.release()
        assert rig.upstream.out_end
        for call in scheduled:
            call()
        await do(rig, ("head", 200, b"", True))
        assert rig.done == [None]


async def test_a_bug_behind_a_callback_ends_that_exchange_alone(caplog: pytest.LogCaptureFixture) -> None:
    async with rigged("chunked") as rig:
        rig.upstream.raises_in = "write"
        with caplog.at_level(logging.ERROR, "hawse"):
            await do(rig, ("client", b"part", False))
        assert "Bug" in caplog.text
        (failure,) = rig.done
        assert failure is not None
        assert failure.code is StreamCode.INTERNAL
        # The watch of all connections goes on.
        async with rigged() as other:
            await do(other, ("head", 200, b"ok", True))
            assert other.done == [None]
    assert issubclass(Bug, Exception)


async def test_raw_bytes_go_both_ways_after_a_101_and_each_way_ends() -> None:
    async with rigged("upgrade") as rig:
        rig.send(b"early ")
        await wait_all_tasks_blocked()
        assert bytes(rig.upstream.out) == b""
        await do(rig, ("head", 101, b"", False))
        rig.read()
        await do(rig, ("client", b"frames", False))
        await do(rig, "drain")
        assert bytes(rig.upstream.out) == b"early frames"
        await do(rig, ("upstream", b"back", True))
        rig.read()
        assert (bytes(rig.body), rig.ended) == (b"back", "clean")
        assert rig.patience == [30.0]
        await do(rig, ("client", b"", True))
        await do(rig, "drain")
        assert rig.done == [None]


async def test_a_client_that_ended_before_the_101_still_gets_raw_bytes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with rigged("upgrade") as rig:
        rig.end()
        await wait_all_tasks_blocked()
        await do(rig, ("head", 101, b"", False))
        assert rig.upstream.out_end
        await trio.sleep(QUIET_S * 3)
        await do(rig, ("upstream", b"late", True))
        await do(rig, "drain")
        rig.read()
        assert bytes(rig.body) == b"late"
        assert rig.ended == "clean"
        assert rig.done == [None]


async def test_a_raw_client_that_leaves_before_the_end_has_not_failed() -> None:
    async with rigged("upgrade") as rig:
        await do(rig, ("head", 101, b"", False))
        rig.read()
        rig.end()
        await wait_all_tasks_blocked()
        await do(rig, "client cut")
        await do(rig, ("upstream", b"late", False))
        # The client's kernel has answered with a RST.
        await do(rig, ("upstream", b"", True))
        await do(rig, "drain")
        assert rig.done == [None]
