"""A stream to a relay as a port of the engine: the contract of ports, over a real tunnel."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from proxy.exchange.engine import OVER, Exchange
from proxy.exchange.next_pass import SHORT_CALLS_PER_PASS, NextPass
from proxy.hub.calls.relay_port import RelayPort
from proxy.message.failure import Failure, OutboundBroken, Processed, StreamCode
from proxy.message.head import RequestHead, ResponseHead
from tests.proxy.exchange.fake_ports import GONE, REVOKED, FakePort
from tests.tunnel.passes import counted_passes
from tests.tunnel.sessions import open_sessions
from tests.tunnel.trio_stream import TrioStream, accept
from tunnel.driver import QUEUE_HIGH_BYTES
from tunnel.net.fairness import TASKS_PER_PASS_MAX
from tunnel.stream import StreamReset

HOST = (b"host", b"a")
REQUESTS = {
    "get": RequestHead.of(b"GET", b"/", (HOST,)),
    "head": RequestHead.of(b"HEAD", b"/", (HOST,)),
    "put": RequestHead.of(b"PUT", b"/", (HOST, (b"transfer-encoding", b"chunked"))),
    "upgrade": RequestHead.of(b"GET", b"/", (HOST, (b"connection", b"Upgrade"), (b"upgrade", b"websocket"))),
}
SWITCH = ((b"connection", b"Upgrade"), (b"upgrade", b"websocket"))


@attrs.define(eq=False, repr=False)
class Client(FakePort):
    """The client's port in small, which keeps what it is sent as the head."""

    answer: ResponseHead | None = None

    def head(self, head: ResponseHead, data: bytes, end: bool) -> bool:
        self.answer = head
        return super().head(head, data, end)


class LatePasses(NextPass):
    """Scheduled calls are made when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduled: list[Callable[[], None]] = []

    def soon(self, peer: Hashable, call: Callable[[], None]) -> None:
        self.scheduled.append(call)

    def make_one(self) -> None:
        if self.scheduled:
            self.scheduled.pop(0)()


@attrs.define(eq=False)
class Rig:
    """A client's port, a stream to a relay, and the relay's end of it."""

    client: Client
    port: RelayPort
    relay: TrioStream
    passes: LatePasses
    done: list[Failure | None] = attrs.Factory(list)
    patience: list[float] = attrs.Factory(list)
    exchange: Exchange = OVER
    said: bytearray = attrs.Factory(bytearray)
    """What the relay has said behind its head."""
    said_end: bool = False
    heard: bytearray = attrs.Factory(bytearray)
    heard_end: bool = False
    answered: bool = False

    def start(self, kind: str) -> None:
        self.client.said_end = kind in {"get", "head"}
        self.exchange = Exchange(
            self.client,
            self.port,
            self._done,
            self.patience.append,
            bodiless=self.client.said_end,
            upgrade=kind == "upgrade",
        )
        self.exchange.start()

    def _done(self, failure: Failure | None) -> None:
        self.done.append(failure)
        self.client.released = True
        self.port.stream.close_nowait()

    def answer(self, status: int, data: bytes, end: bool, headers: tuple[tuple[bytes, bytes], ...]) -> None:
        if self.answered or self.relay.broken:
            return
        self.answered = True
        self.said += data
        self.said_end = end
        self.relay.send_answer_nowait(ResponseHead.of(status, b"", headers).encode(), data, eof=end)

    def say(self, data: bytes, end: bool) -> None:
        if not self.answered or self.said_end or self.relay.broken:
            return
        self.said += data
        self.said_end = end
        self.relay.write(data, eof=end)

    def hear(self) -> None:
        try:
            while not self.heard_end and (data := self.relay.receive_nowait()) is not None:
                self.heard += data
                self.heard_end = not data
        except StreamReset:
            return


@asynccontextmanager
async def rigged(
    kind: str = "get",
    *,
    rewrite: Callable[[ResponseHead], ResponseHead] = lambda head: head,
    drains: bool = False,
) -> AsyncIterator[Rig]:
    async with open_sessions() as (hub, relay):
        passes = LatePasses()
        request = REQUESTS[kind]
        context = hub.add_context(1, b"identity")
        stream = hub.open_stream(request.encode(), context=context, eof=kind in {"get", "head"})
        port = RelayPort(stream, request, "prod", rewrite, passes)
        rig = Rig(Client(drains_at_once=drains), port, await accept(relay), passes)
        rig.start(kind)
        yield rig
        rig.exchange.end(REVOKED)
        stream.close_nowait()
        rig.relay.close_nowait()
        while passes.scheduled:
            passes.make_one()


def some(size: int, position: int) -> bytes:
    """Bytes that no other position of a stream has."""
    return random.Random(position).randbytes(size)


async def do(rig: Rig, operation: Sequence[object] | str) -> None:
    client, exchange = rig.client, rig.exchange
    match operation:
        case ("client", int(size), bool(end)):
            client.say(some(size, len(client.said)), end)
        case ("head", int(status), int(size), bool(end)):
            size = min(size, QUEUE_HIGH_BYTES)
            rig.answer(status, some(size, 0), end, SWITCH if status == 101 else ())
        case ("relay", int(size), bool(end)):
            rig.say(some(size, len(rig.said)), end)
        case ("reset", bool(in_line)):
            rig.relay.reset(StreamCode.UPSTREAM_RESET, processed=Processed.YES, in_line=in_line)
        case "hear":
            rig.hear()
        case "drain":
            client.drain()
        case "late":
            rig.passes.make_one()
        case "busy":
            # The budget is used up, and nothing renews it: no later pass has room for a head.
            rig.passes._short_calls_left = 0
        case "quiet":
            rig.passes._short_calls_left = SHORT_CALLS_PER_PASS
        case "hold":
            exchange.hold()
        case "release":
            exchange.release()
        case "gone":
            client.break_off(GONE)
        case "revoke":
            exchange.end(REVOKED)
        case "expire":
            if rig.patience:
                exchange.expire()
        case _:
            raise AssertionError(operation)
    await wait_all_tasks_blocked()


# Operations name a body by its size: 300 KB would make reports of failures unreadable.
bodies = st.sampled_from([0, 1, 3, 16, 70_000, 300_000])
ends = st.sampled_from([False, False, False, True])
operations = st.lists(
    st.one_of(
        st.tuples(st.just("client"), bodies, ends),
        st.tuples(st.just("relay"), bodies, ends),
        st.tuples(st.just("head"), st.sampled_from([101, 200, 200, 403, 413]), bodies, ends),
        st.sampled_from(["hear", "drain", "drain", "hold", "release", "release"]),
        st.sampled_from(["late", "late", "busy", "quiet"]),
    ),
    max_size=25,
)
endings = st.lists(
    st.one_of(st.sampled_from(["gone", "revoke", "expire"]), st.tuples(st.just("reset"), st.booleans())),
    max_size=1,
)


async def finish(rig: Rig) -> None:
    """Take everything that is still on its way; none of it needs another event."""
    rig.exchange.release()
    while not rig.exchange.over:
        before = len(rig.client.out), len(rig.heard), rig.passes.scheduled[:]
        for step in ("late", "drain", "hear"):
            await do(rig, step)
        # For the timers of the tunnel.
        await trio.sleep(1)
        if before == (len(rig.client.out), len(rig.heard), rig.passes.scheduled):
            break
    if not rig.exchange.over and rig.answered:
        assert bytes(rig.client.out) == bytes(rig.said)
        # After a 101 the client has an end of its own.
        assert not rig.said_end or rig.exchange.spliced


async def check_history(
    before: list[Sequence[object] | str],
    endings: list[Sequence[object] | str],
    after: list[Sequence[object] | str],
    kind: str,
    drains: bool,
) -> None:
    async with rigged(kind, drains=drains) as rig:
        client = rig.client
        for operation in [*before, *endings, *after]:
            held, crossed = rig.exchange.held, len(client.out)
            await do(rig, operation)
            if held and rig.exchange.held:
                assert len(client.out) == crossed
            if rig.exchange.over:
                break
        if not endings:
            await finish(rig)
        rig.hear()
        assert len(rig.done) == rig.exchange.over
        assert client.touched_when_over == 0
        assert bytes(rig.said).startswith(bytes(client.out))
        assert bytes(client.said).startswith(bytes(rig.heard))
        assert not client.out_end or rig.said_end or kind == "head"
        assert not rig.heard_end or client.said_end
        if rig.done == [None]:
            assert client.flushed
            assert kind == "head" or (rig.said_end and bytes(client.out) == bytes(rig.said))
        elif rig.done and rig.done[0] is not None:
            assert rig.done[0].code is not StreamCode.INTERNAL
            assert rig.exchange.status == 0 or client.was_cut is not None
            await wait_all_tasks_blocked()
            assert rig.relay.broken or rig.said_end


def check(
    before: list[Sequence[object] | str],
    endings: list[Sequence[object] | str],
    after: list[Sequence[object] | str],
    kind: str,
    drains: bool,
) -> None:
    clock = MockClock(autojump_threshold=0)
    trio.run(check_history, before, endings, after, kind, drains, clock=clock)


any_history = given(operations, endings, operations, st.sampled_from(sorted(REQUESTS)), st.booleans())


def test_the_contract_holds_over_a_real_tunnel() -> None:
    settings(max_examples=150, deadline=None)(any_history(check))()


@pytest.mark.long
def test_the_contract_holds_over_a_real_tunnel_in_3_000_histories() -> None:
    settings(max_examples=3_000, deadline=None)(any_history(check))()


# -- single promises ----------------------------------------------------------------------------------------


LENGTH = ((b"content-length", b"3"),)


async def test_an_answer_that_is_here_as_a_whole_is_passed_on_in_one_step() -> None:
    async with rigged() as rig:
        rig.answer(200, b"yes", True, LENGTH)
        await wait_all_tasks_blocked()
        assert rig.client.calls == {"head": 1}
        await do(rig, "drain")
        assert rig.done == [None]


async def test_a_promised_length_is_an_end_also_before_the_stream_ends() -> None:
    async with rigged(drains=True) as rig:
        rig.answer(200, b"ye", False, LENGTH)
        rig.say(b"s", False)
        await wait_all_tasks_blocked()
        assert rig.done == [None]


@pytest.mark.parametrize(
    ("first", "then", "end"), [(b"yess", b"", False), (b"ye", b"", True), (b"ye", b"ss", True)]
)
async def test_a_body_of_another_length_than_promised_ends_the_exchange(
    first: bytes, then: bytes, end: bool
) -> None:
    async with rigged(drains=True) as rig:
        rig.answer(200, first, end and not then, LENGTH)
        await wait_all_tasks_blocked()
        if then:
            rig.say(then, end)
            await wait_all_tasks_blocked()
        (failure,) = rig.done
        assert failure is not None
        assert failure.code is StreamCode.PROTOCOL
        assert not rig.client.out_end
        assert rig.relay.broken or end


@pytest.mark.parametrize("status", [100, 101, 103])
async def test_a_head_that_is_no_final_one_is_refused(status: int) -> None:
    async with rigged() as rig:
        rig.answer(status, b"", False, ())
        await wait_all_tasks_blocked()
        (failure,) = rig.done
        assert failure is not None
        assert (failure.code, failure.processed) == (StreamCode.PROTOCOL, Processed.MAYBE)
        assert rig.client.heads == []


async def test_a_relay_that_refuses_says_why_and_what_it_has_seen() -> None:
    async with rigged() as rig:
        rig.relay.reset(StreamCode.UNAUTHENTICATED, processed=Processed.NO, reason="stale")
        await wait_all_tasks_blocked()
        assert rig.done == [Failure(StreamCode.UNAUTHENTICATED, Processed.NO, "stale")]


async def test_what_came_before_a_reset_in_line_still_arrives() -> None:
    async with rigged() as rig:
        rig.answer(200, b"some", False, ())
        rig.relay.reset(StreamCode.UPSTREAM_RESET, processed=Processed.YES, reason="cut", in_line=True)
        await wait_all_tasks_blocked()
        assert bytes(rig.client.out) == b"some"
        (failure,) = rig.done
        assert failure is not None
        assert failure.reason == "cut"
        assert not rig.client.dropped


async def test_a_relay_that_takes_no_more_of_a_body_may_still_answer() -> None:
    async with rigged("put", drains=True) as rig:
        await do(rig, ("client", 4, False))
        rig.answer(413, b"", True, ())
        rig.relay.close_nowait()
        await do(rig, ("client", 4, False))
        assert rig.done == [None]
        assert rig.client.heads == [413]
        assert rig.client.stopped


@pytest.mark.parametrize("names_it", [False, True])
@pytest.mark.parametrize("at_once", [False, True])
async def test_a_short_403_is_explained_where_the_relay_cannot_impersonate(
    names_it: bool, at_once: bool
) -> None:
    async with rigged(drains=True) as rig:
        body = b"user cannot impersonate resource users" if names_it else b"pods is forbidden"
        headers = ((b"content-length", b"%d" % len(body)),)
        rig.answer(403, body if at_once else body[:5], at_once, headers)
        await wait_all_tasks_blocked()
        assert (rig.client.heads == [403]) is at_once
        if not at_once:
            rig.say(body[5:], True)
            await wait_all_tasks_blocked()
        assert rig.done == [None]
        assert bytes(rig.client.out) == body
        head = rig.client.answer
        assert head is not None
        assert (b"hawse admin cluster check prod" in (head.header(b"warning") or b"")) is names_it


async def test_a_head_that_fits_into_none_for_the_client_goes_no_further() -> None:
    def rewrite(head: ResponseHead) -> ResponseHead:
        raise OutboundBroken(Failure(StreamCode.PROTOCOL, Processed.YES, "too large"))

    async with rigged(rewrite=rewrite) as rig:
        rig.answer(200, b"yes", True, LENGTH)
        await wait_all_tasks_blocked()
        assert rig.done == [Failure(StreamCode.PROTOCOL, Processed.YES, "too large")]
        assert rig.client.heads == []
        assert rig.port.bytes_passed == 0


async def test_what_is_not_taken_yet_stays_in_the_streams_window() -> None:
    async with rigged(drains=True) as rig:
        rig.exchange.hold()
        rig.answer(200, b"", False, ())
        total = 0
        while rig.relay.has_room:
            rig.say(bytes(60_000), False)
            total += 60_000
            await wait_all_tasks_blocked()
        assert bytes(rig.client.out) == b""
        rig.exchange.release()
        with trio.fail_after(5):
            while len(rig.client.out) < total:
                await wait_all_tasks_blocked(0.01)


@pytest.mark.parametrize("with_head", [False, True])
async def test_an_end_is_passed_on_once_also_before_a_scheduled_call(with_head: bool) -> None:
    async with rigged() as rig:
        await do(rig, "busy")
        rig.answer(200, b"yes", with_head, ())
        await wait_all_tasks_blocked()
        assert rig.client.heads == []
        for operation in ("hold", "release"):
            await do(rig, operation)
        assert bytes(rig.client.out) == b"yes"
        if not with_head:
            rig.say(b"", True)
        await wait_all_tasks_blocked()
        for operation in ("late", "drain"):
            await do(rig, operation)
        assert rig.done == [None]


async def test_the_heads_of_one_message_are_spread_over_passes_beside_another_relay(
    mock_clock: MockClock,
) -> None:
    heads = 450
    order: list[str] = []

    @attrs.define(eq=False, repr=False)
    class NotedClient(Client):
        name: str = ""

        def head(self, head: ResponseHead, data: bytes, end: bool) -> bool:
            order.append(self.name)
            passes.note()
            return super().head(head, data, end)

    async with (
        open_sessions() as (hub, relay),
        open_sessions() as (other_hub, other_relay),
        trio.open_nursery() as nursery,
    ):
        next_pass = NextPass()
        nursery.start_soon(next_pass.run)
        clients = []
        for name, count, session in (("watch", heads, hub), ("other", 1, other_hub)):
            context = session.add_context(1, b"identity")
            for _ in range(count):
                request = REQUESTS["get"]
                stream = session.open_stream(request.encode(), context=context, eof=True)
                port = RelayPort(stream, request, "prod", lambda head: head, next_pass)
                client = NotedClient(drains_at_once=True, said_end=True, name=name)
                Exchange(client, port, lambda _: None, bodiless=True).start()
                clients.append(client)
        answered = [await accept(relay) for _ in range(heads)]
        other = await accept(other_relay)
        with counted_passes() as passes:
            for number, stream in enumerate(answered):
                stream.send_answer_nowait(ResponseHead.of(200).encode(), b"%d" % number)
            other.send_answer_nowait(ResponseHead.of(200).encode(), b"yes", eof=True)
            await wait_all_tasks_blocked()
        assert passes.noted.total() == heads + 1
        # A pass may have the calls that were scheduled before beside the new ones.
        assert passes.most <= SHORT_CALLS_PER_PASS + TASKS_PER_PASS_MAX
        assert order.index("other") <= SHORT_CALLS_PER_PASS + 2 * TASKS_PER_PASS_MAX
        assert sorted(int(client.out) for client in clients[:-1]) == list(range(heads))
        for stream in (*answered, other):
            stream.close_nowait()
        for client in clients:
            client.exchange.end(REVOKED)
        nursery.cancel_scope.cancel()
