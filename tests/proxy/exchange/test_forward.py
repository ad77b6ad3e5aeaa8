from __future__ import annotations

import gc
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from proxy.exchange.client import ClientConnection
from proxy.exchange.engine import CLIENT_LEAVES_S, SPLICE_DRAIN_S
from proxy.exchange.forward import CloseReason, Outcome, Tally, forward
from proxy.exchange.http_server import ServerHTTP
from proxy.exchange.server import ServerConnection
from proxy.exchange.tunnelled import TunnelOutbound
from proxy.message.failure import ExchangeBroken, Failure, OutboundBroken, Processed, StreamCode
from proxy.message.head import RequestHead, ResponseHead
from tests.proxy.exchange.chains import open_chain, open_sessions, plain_pair
from tests.proxy.exchange.legs import read_all, read_until, tls_pair

GET = b"GET /api/v1/pods HTTP/1.1\r\nHost: hub\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"
POST = b"POST /api/v1/pods HTTP/1.1\r\nHost: hub\r\nContent-Length: 2\r\n\r\n{}"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
UPGRADE = b"GET /exec HTTP/1.1\r\nHost: hub\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"

both = pytest.mark.parametrize("kind", ["direct", "tunnel"])


# -- whole exchanges ----------------------------------------------------------------------------------------


@both
async def test_a_get_and_the_next_one(kind):
    async with open_chain(kind) as chain:
        for _ in range(2):
            await chain.client.send_all(GET)
            upstream, head = await chain.upstream()
            assert head == b"GET /api/v1/pods HTTP/1.1\r\nhost: api\r\n\r\n"
            await upstream.send_all(OK)
            assert (await read_until(chain.client, b"abc")).startswith(b"HTTP/1.1 200 OK\r\n")
        await wait_all_tasks_blocked()
        assert chain.hub_outcomes == [Outcome(200, 0, 3, CloseReason.COMPLETE, None, False)] * 2


async def test_an_answer_that_is_here_as_a_whole_leaves_in_one_write():
    async with open_chain("direct") as chain:
        await chain.client.send_all(GET)
        upstream, _ = await chain.upstream()
        await upstream.send_all(OK)
        await read_until(chain.client, b"abc")
        await chain.client.send_all(GET)
        upstream, _ = await chain.upstream()
        await upstream.send_all(CHUNKED + b"3\r\nabc\r\n0\r\n\r\n")
        await read_until(chain.client, b"0\r\n\r\n")
        assert len(chain.hub_leg.sends) == 2


@both
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_goes_up_while_the_answer_is_awaited(kind, chunked):
    async with open_chain(kind) as chain:
        framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 6"
        await chain.client.send_all(b"POST / HTTP/1.1\r\nHost: a\r\n" + framing + b"\r\n\r\n")
        upstream, head = await chain.upstream()
        assert framing.lower() in head
        await chain.client.send_all(b"3\r\nabc\r\n" if chunked else b"abc")
        await read_until(upstream, b"abc\r\n" if chunked else b"abc")
        await chain.client.send_all(b"3\r\ndef\r\n0\r\n\r\n" if chunked else b"def")
        await read_until(upstream, b"3\r\ndef\r\n0\r\n\r\n" if chunked else b"def")
        await upstream.send_all(OK)
        await read_until(chain.client, b"abc")
        await wait_all_tasks_blocked()
        assert chain.outcomes == [Outcome(200, 6, 3, CloseReason.COMPLETE, None, False)]
        await chain.client.send_all(GET)
        await chain.upstream()


@both
async def test_a_large_upload_behind_a_100(kind):
    async with open_chain(kind) as chain:
        body = bytes(range(256)) * 20_000
        await chain.client.send_all(
            b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        upstream, head = await chain.upstream()
        assert b"expect" not in head
        await read_until(chain.client, b"HTTP/1.1 100 \r\n\r\n")
        received = bytearray()

        async def receive() -> None:
            while len(received) < len(body):
                received.extend(await upstream.receive_some())
            await upstream.send_all(OK)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            for at in range(0, len(body), 300_000):
                await chain.client.send_all(body[at : at + 300_000])
        assert received == body
        await read_until(chain.client, b"abc")


@both
@pytest.mark.parametrize(
    ("method", "answer"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        (b"GET", b'HTTP/1.1 304 Not Modified\r\nETag: "1"\r\nContent-Length: 3\r\n\r\n'),
        (
            b"OPTIONS",
            b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        ),
    ],
)
async def test_answers_without_a_body_keep_the_connection_in_step(kind, method, answer):
    async with open_chain(kind) as chain:
        await chain.client.send_all(method + b" / HTTP/1.1\r\nHost: a\r\n\r\n")
        upstream, _ = await chain.upstream()
        await upstream.send_all(answer)
        head = await read_until(chain.client, b"\r\n\r\n")
        assert b"103" not in head
        assert b"link" not in head
        await chain.client.send_all(GET)
        upstream, _ = await chain.upstream()
        await upstream.send_all(OK)
        assert (await read_until(chain.client, b"abc")).startswith(b"HTTP/1.1 200 OK")


@both
async def test_a_redirect_is_passed_on_under_the_prefix_and_not_followed(kind):
    async with open_chain(kind) as chain:
        await chain.client.send_all(GET)
        upstream, _ = await chain.upstream()
        await upstream.send_all(
            b"HTTP/1.1 301 Moved\r\nLocation: /openapi/v3?hash=1\r\nContent-Length: 0\r\n\r\n"
        )
        head = await read_until(chain.client, b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 301 Moved\r\n")
        assert b"location: /clusters/prod/openapi/v3?hash=1\r\n" in head
        assert len(chain.opened) == 1


@both
async def test_each_event_of_a_watch_leaves_when_it_comes(kind, autojump_clock):
    async with open_chain(kind) as chain:
        await chain.client.send_all(GET)
        upstream, _ = await chain.upstream()
        await upstream.send_all(CHUNKED)
        head = await read_until(chain.client, b"\r\n\r\n")
        assert head.lower().endswith(b"transfer-encoding: chunked\r\n\r\n")
        began = trio.current_time()
        for number in range(5):
            await trio.sleep(3600)
            await upstream.send_all(b"2\r\n%d\n\r\n" % number)
            assert await chain.client.receive_some() == b"2\r\n%d\n\r\n" % number
        assert trio.current_time() - began == pytest.approx(5 * 3600, abs=0.1)
        await upstream.send_all(b"0\r\n\r\n")
        assert await chain.client.receive_some() == b"0\r\n\r\n"


async def begun(chain, head=CHUNKED):
    """Have a request answered whose body is still to come; returns the upstream's end."""
    await chain.client.send_all(GET)
    upstream, _ = await chain.upstream()
    await upstream.send_all(head)
    await read_until(chain.client, b"\r\n\r\n")
    return upstream


async def test_what_goes_on_wakes_no_task_while_the_client_takes_it(autojump_clock):
    async with open_chain("tunnel") as chain:
        upstream = await begun(chain)
        for number in range(5):
            await upstream.send_all(b"2\r\n%d\n\r\n" % number)
            assert await chain.client.receive_some() == b"2\r\n%d\n\r\n" % number
        assert chain.hub_leg.sends_at_once == 5
        await upstream.send_all(b"1\r\n!\r\n0\r\n\r\n")
        # And the end leaves with what is before it.
        assert await chain.client.receive_some() == b"1\r\n!\r\n0\r\n\r\n"
        await wait_all_tasks_blocked()
        assert chain.hub_outcomes == [Outcome(200, 0, 11, CloseReason.COMPLETE, None, False)]


@pytest.mark.parametrize("room", [0, 1, 4])
async def test_what_the_client_does_not_take_at_once_arrives_all_the_same(room, autojump_clock):
    async with open_chain("tunnel") as chain:
        upstream = await begun(chain)
        chain.hub_leg.room_bytes = room
        for number in range(3):
            await upstream.send_all(b"2\r\n%d\n\r\n" % number)
            assert await read_until(chain.client, b"\n\r\n") == b"2\r\n%d\n\r\n" % number
        # Two at once: the second one comes while the first one is still under way.
        await upstream.send_all(b"1\r\na\r\n")
        await upstream.send_all(b"1\r\nb\r\n0\r\n\r\n")
        assert (await read_until(chain.client, b"0\r\n\r\n")).replace(b"1\r\n", b"") == b"a\r\nb\r\n0\r\n\r\n"
        await wait_all_tasks_blocked()
        assert chain.hub_outcomes == [Outcome(200, 0, 8, CloseReason.COMPLETE, None, False)]


@pytest.mark.parametrize("cut", [True, False], ids=["reset", "length"])
async def test_a_counted_answer_is_passed_on_up_to_its_last_piece(cut, autojump_clock):
    async with open_chain("tunnel") as chain:
        upstream = await begun(chain, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
        for piece in (b"abc", b"def"):
            await upstream.send_all(piece)
            assert await chain.client.receive_some() == piece
        assert chain.hub_leg.sends_at_once == 2
        if cut:
            await upstream.aclose()
            assert await read_all(chain.client) == (b"", False)
            await wait_all_tasks_blocked()
            assert chain.hub_outcomes[0].close_reason is CloseReason.UPSTREAM_FAILED
        else:
            await upstream.send_all(b"ghi")
            assert await chain.client.receive_some() == b"ghi"
            await chain.client.send_all(GET)
            await chain.upstream()
            assert chain.hub_outcomes == [Outcome(200, 0, 9, CloseReason.COMPLETE, None, False)]


async def test_a_client_that_is_gone_when_a_piece_is_passed_on_ends_the_exchange(autojump_clock):
    async with open_chain("tunnel") as chain:
        upstream = await begun(chain)
        chain.hub_leg.broken = True
        await upstream.send_all(b"1\r\na\r\n")
        await closed_within_a_second(upstream)
        assert [outcome.close_reason for outcome in chain.hub_outcomes] == [CloseReason.CLIENT_GONE]
        # What was to be sent counts as sent, as it does for whoever waits in a send.
        assert chain.hub_outcomes[0].bytes_out == 1


async def test_a_fault_while_a_piece_is_passed_on_is_the_tasks_and_not_the_tunnels(monkeypatch):
    async with open_sessions() as (hub, relay):
        client, hub_leg = tls_pair()
        inbound = ServerConnection(hub_leg, tls=hub_leg.as_tls)
        await client.send_all(GET)
        request = await inbound.next_request()
        context = hub.add_context(1, b"identity")
        stream = hub.open_stream(request.encode(), context=context, eof=True)
        accepted = await relay.accept()
        accepted.send_answer_nowait(ResponseHead.of(200).encode())
        faults = []

        async def carry() -> None:
            try:
                await forward(inbound, TunnelOutbound(stream, request), request, on_head=lambda head: head)
            except ZeroDivisionError as fault:
                faults.append(fault)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(carry)
            await read_until(client, b"\r\n\r\n")
            monkeypatch.setattr(ServerHTTP, "send_body", lambda *_: 1 // 0)
            accepted.send_nowait(b"event")
        assert len(faults) == 1
        assert not hub.closed


@both
async def test_an_answer_may_take_its_time(kind, autojump_clock):
    async with open_chain(kind) as chain:
        await chain.client.send_all(GET)
        upstream, _ = await chain.upstream()
        await trio.sleep(600)
        await upstream.send_all(OK)
        await read_until(chain.client, b"abc")


# -- failures of the upstream -------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize(
    "partial",
    [CHUNKED + b"3\r\nabc\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", CHUNKED + b"3\r\nabcXX"],
)
async def test_an_answer_that_breaks_off_is_cut_and_never_ended(kind, partial, clean):
    async with open_chain(kind) as chain:
        await chain.client.send_all(GET)
        upstream, _ = await chain.upstream()
        await upstream.send_all(partial[:-2])
        await wait_all_tasks_blocked()
        await upstream.send_all(partial[-2:])
        if clean:
            await upstream.aclose()
        else:
            await trio.aclose_forcefully(upstream)
        data, ended_cleanly = await read_all(chain.client)
        assert not ended_cleanly
        assert b"abc" in data
        assert not data.endswith(b"0\r\n\r\n")
        await wait_all_tasks_blocked()
        outcome = chain.hub_outcomes[0]
        assert outcome.close_reason is CloseReason.UPSTREAM_FAILED
        assert outcome.failure is not None
        assert outcome.failure.processed is Processed.YES
        assert outcome.status == 200


@both
@pytest.mark.parametrize(("method", "status"), [(b"GET", b"503"), (b"DELETE", b"504")])
async def test_an_upstream_that_closes_without_an_answer_is_a_status(kind, method, status):
    async with open_chain(kind) as chain:
        await chain.client.send_all(method + b" / HTTP/1.1\r\nHost: a\r\n\r\n")
        upstream, _ = await chain.upstream()
        await upstream.aclose()
        data = await read_until(chain.client, b"}")
        assert data.startswith(b"HTTP/1.1 " + status)
        assert b"retry-after" not in data.lower()
        assert chain.hub_outcomes[0].status == 0
        failure = chain.hub_outcomes[0].failure
        assert failure is not None
        assert (failure.code, failure.processed) == (StreamCode.UPSTREAM_RESET, Processed.MAYBE)
        await chain.client.send_all(GET)
        await chain.upstream()


@both
@pytest.mark.parametrize(
    "lie",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        SWITCH,
        b"garbage\r\n\r\n",
    ],
)
async def test_a_lying_upstream_is_not_passed_on(kind, lie):
    async with open_chain(kind) as chain:
        await chain.client.send_all(GET)
        upstream, _ = await chain.upstream()
        await upstream.send_all(lie)
        assert (await read_until(chain.client, b"}")).startswith(b"HTTP/1.1 502 ")
        assert chain.hub_outcomes[0].failure is not None
        assert chain.hub_outcomes[0].failure.code is StreamCode.PROTOCOL


@both
@pytest.mark.parametrize("answer", [b"", CHUNKED + b"3\r\nabc\r\n"], ids=["unanswered", "cut"])
@pytest.mark.parametrize("body", [b"", b"Content-Length: 3\r\n\r\nabc"], ids=["asks", "says"])
async def test_an_exchange_that_failed_is_forgotten_with_its_connections(kind, body, answer):
    """An exception in its own traceback would keep them all until a garbage collection."""
    gc.collect()
    gc.disable()
    try:
        async with open_chain(kind) as chain:
            method = b"POST" if body else b"GET"
            await chain.client.send_all(method + b" / HTTP/1.1\r\nHost: a\r\n" + (body or b"\r\n"))
            upstream, _ = await chain.upstream()
            await upstream.send_all(answer)
            await wait_all_tasks_blocked()
            await trio.aclose_forcefully(upstream)
            await wait_all_tasks_blocked()
            assert [outcome.close_reason for outcome in chain.outcomes] == [CloseReason.UPSTREAM_FAILED]
            assert not [thing for thing in gc.get_objects() if isinstance(thing, ExchangeBroken)]
    finally:
        gc.enable()


@both
async def test_an_answer_nobody_asked_for_goes_nowhere(kind):
    async with open_chain(kind) as chain:
        await chain.client.send_all(GET)
        upstream, _ = await chain.upstream()
        await upstream.send_all(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        assert b"evil" not in await read_until(chain.client, b"abc")
        await chain.client.send_all(GET)
        second, _ = await chain.upstream()
        await second.send_all(OK)
        assert (await read_until(chain.client, b"abc")).startswith(b"HTTP/1.1 200")


@both
@pytest.mark.parametrize("closes", [True, False])
async def test_an_early_413_gets_through_while_the_client_still_uploads(kind, closes, autojump_clock):
    async with open_chain(kind) as chain:
        uploaded = 0

        async def upload() -> None:
            nonlocal uploaded
            await chain.client.send_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 50000000\r\n\r\n")
            try:
                while True:
                    await chain.client.send_all(b"x" * 50_000)
                    uploaded += 50_000
                    await trio.sleep(0.1)
            except trio.BrokenResourceError:
                return

        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload)
            upstream, _ = await chain.upstream()
            await upstream.send_all(
                b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc"
            )
            if closes:
                await upstream.aclose()
            data = await read_until(chain.client, b"abc")
            assert data.startswith(b"HTTP/1.1 413 Too Large\r\n")
            assert b"connection: close" in data.lower()
            began = trio.current_time()
            assert await read_all(chain.client) == (b"", True)
            assert trio.current_time() - began < 6
        assert uploaded < 50_000_000
        outcome = chain.outcomes[0]
        assert (outcome.status, outcome.close_reason) == (413, CloseReason.COMPLETE)


class Prompt(ClientConnection):
    """A server whose answer is here before anybody waits for it."""

    async def receive_head(self):
        while (head := self.http.receive_head()) is None:
            self.take_in(await self.stream.receive_some())
        return head

    def take_in(self, data: bytes) -> None:
        self.http.feed(data)


@asynccontextmanager
async def answered_at_once(framing: bytes, answer: bytes):
    """Forward a POST of three bytes whose answer was there before; yields the ends of its two connections."""
    client, hub_leg = tls_pair()
    near, upstream = tls_pair()
    async with ServerEnd(hub_leg) as inbound, trio.open_nursery() as nursery:
        outbound = Prompt(near)
        body = b"abc" if framing.startswith(b"Content-Length") else b"3\r\nabc\r\n0\r\n\r\n"
        await client.send_all(b"POST / HTTP/1.1\r\nHost: a\r\n" + framing + b"\r\n\r\n" + body)
        request = await inbound.next_request()
        await outbound.send_request(request)
        await read_until(upstream, b"\r\n\r\n")
        outbound.take_in(answer)
        outcomes = []

        async def carry() -> None:
            outcomes.append(await forward(inbound, outbound, request, on_head=lambda head: head))

        nursery.start_soon(carry)
        yield client, upstream, outcomes, inbound
        nursery.cancel_scope.cancel()
    await outbound.aclose()
    for leg in (client, upstream):
        await leg.aclose()


@asynccontextmanager
async def ServerEnd(leg):
    connection = ServerConnection(leg)
    try:
        yield connection
    finally:
        await connection.aclose()


framings = pytest.mark.parametrize("framing", [b"Content-Length: 3", b"Transfer-Encoding: chunked"])


@framings
async def test_a_whole_answer_that_is_here_before_the_upload_ends_it_before_its_begin(framing):
    for _ in range(20):
        async with answered_at_once(framing, b"HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno") as (
            client,
            upstream,
            outcomes,
            inbound,
        ):
            await read_until(client, b"no")
            await wait_all_tasks_blocked()
            assert outcomes == [Outcome(403, 0, 2, CloseReason.COMPLETE, None, False)]
            # Nothing says that the body was whole; and the client's connection goes on.
            upstream.inner.send_stream.close()
            await client.send_all(GET)
            assert (await inbound.next_request()).method == b"GET"
            with trio.move_on_after(0.01):
                pytest.fail(f"uploaded after all: {await upstream.receive_some()!r}")


@framings
async def test_an_answer_that_begins_before_the_upload_does_not_take_its_body(framing):
    for _ in range(20):
        async with answered_at_once(framing, CHUNKED + b"2\r\nhi\r\n") as (client, upstream, outcomes, _):
            await read_until(client, b"hi\r\n")
            await read_until(upstream, b"abc" if framing.startswith(b"Content-Length") else b"0\r\n\r\n")
            await upstream.send_all(b"3\r\nABC\r\n0\r\n\r\n")
            await read_until(client, b"0\r\n\r\n")
            await wait_all_tasks_blocked()
            assert outcomes == [Outcome(200, 3, 5, CloseReason.COMPLETE, None, False)]


# -- clients ------------------------------------------------------------------------------------------------


async def closed_within_a_second(upstream: trio.abc.Stream) -> None:
    began = trio.current_time()
    await read_all(upstream)
    assert trio.current_time() - began <= 1.01


@both
@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("after", [0, 0.3, 0.7, 100])
@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("request_", [GET, POST], ids=["GET", "POST"])
async def test_a_client_that_leaves_takes_its_request_with_it(
    kind, clean, after, begun, request_, autojump_clock
):
    async with open_chain(kind) as chain:
        await chain.client.send_all(request_)
        upstream, _ = await chain.upstream()
        if request_ is POST:
            await read_until(upstream, b"{}")
        if begun:
            await upstream.send_all(CHUNKED + b"3\r\nabc\r\n")
            await read_until(chain.client, b"abc\r\n")
        await trio.sleep(after)
        if clean:
            await chain.client.aclose()
        else:
            await trio.aclose_forcefully(chain.client)
        await closed_within_a_second(upstream)
        await wait_all_tasks_blocked()
        assert chain.hub_outcomes[0].close_reason is CloseReason.CLIENT_GONE


@both
async def test_a_client_that_leaves_within_its_upload(kind, autojump_clock):
    async with open_chain(kind) as chain:
        await chain.client.send_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc")
        upstream, _ = await chain.upstream()
        await chain.client.aclose()
        await closed_within_a_second(upstream)
        await wait_all_tasks_blocked()
        assert [outcome.close_reason for outcome in chain.hub_outcomes] == [CloseReason.CLIENT_GONE]


@both
async def test_a_malformed_upload_is_a_refusal_and_no_whole_request_upstream(kind, autojump_clock):
    async with open_chain(kind) as chain:
        await chain.client.send_all(
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
        )
        upstream, _ = await chain.upstream()
        await read_until(upstream, b"abc\r\n")
        await chain.client.send_all(b"XX\r\n0\r\n\r\n")
        data, _ = await read_all(upstream)
        assert not data.endswith(b"0\r\n\r\n")
        # The hub itself answers its client's errors by a 400.
        assert (await read_until(chain.client, b"}")).startswith(b"HTTP/1.1 502 ")
        assert chain.hub_outcomes[0].close_reason is CloseReason.CLIENT_ERROR


async def test_a_client_that_does_not_read_holds_no_more_than_credit(autojump_clock):
    async with open_chain("tunnel") as chain:
        await chain.client.send_all(GET)
        upstream, _ = await chain.upstream()
        await upstream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n" + b"x" * 50_000)
        await read_until(chain.client, b"x" * 50_000)
        chain.hub_leg.stalled = True
        await upstream.send_all(b"x" * 10_000_000)
        await trio.sleep(60)
        assert chain.relay_legs[0].bytes_received < 1_000_000
        # It is noticed all the same when it leaves.
        await chain.client.aclose()
        await closed_within_a_second(upstream)


@both
async def test_pipelined_requests_are_answered_in_turn(kind):
    async with open_chain(kind) as chain:
        await chain.client.send_all(GET * 3)
        for _ in range(3):
            upstream, _ = await chain.upstream()
            await wait_all_tasks_blocked()
            await upstream.send_all(OK)
            await read_until(chain.client, b"abc")


# -- upgrades -----------------------------------------------------------------------------------------------


@both
async def test_bytes_around_a_101_arrive_once_and_in_order(kind, autojump_clock):
    async with open_chain(kind) as chain:
        await chain.client.send_all(UPGRADE + b"early-")
        upstream, head = await chain.upstream()
        assert head == b"GET /exec HTTP/1.1\r\nhost: api\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\r\n"
        await chain.client.send_all(b"early2-")
        await trio.sleep(2)
        with trio.move_on_after(1):
            pytest.fail(f"raw bytes before the 101: {await upstream.receive_some()!r}")
        # The 101, all frames and the close in one segment.
        ours = b"Hawse-Relay-Decision: guardrails a\r\nSet-Cookie: a=b\r\n\r\n"
        await upstream.send_all(SWITCH.removesuffix(b"\r\n") + ours + b"frames")
        switched = await read_until(chain.client, b"frames")
        assert switched.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
        # It is rewritten as any other answer is.
        assert b"hawse" not in switched.lower()
        assert b"cookie" not in switched.lower()
        assert await read_until(upstream, b"early2-") == b"early-early2-"
        await chain.client.send_all(b"in")
        assert await upstream.receive_some() == b"in"
        await upstream.send_all(b"out")
        await upstream.aclose()
        assert await read_all(chain.client) == (b"out", True)
        await chain.client.aclose()
        await wait_all_tasks_blocked()
        outcome = chain.hub_outcomes[0]
        assert outcome == Outcome(101, 15, 9, CloseReason.COMPLETE, None, True)


@both
@pytest.mark.parametrize("leaves", [True, False])
async def test_the_end_of_the_upstream_is_told_at_once_and_the_client_heard_until_it_leaves(
    kind, leaves, autojump_clock
):
    async with open_chain(kind) as chain:
        await chain.client.send_all(UPGRADE)
        upstream, _ = await chain.upstream()
        await upstream.send_all(SWITCH)
        await read_until(chain.client, b"\r\n\r\n")
        began = trio.current_time()
        await upstream.send_all(b"last")
        await upstream.aclose()
        assert await read_all(chain.client) == (b"last", True)
        assert trio.current_time() == began
        # Unread, it would have TCP take back what the client has not read yet.
        for _ in range(4):
            await chain.client.send_all(b"ping")
            await trio.sleep(5)
        assert chain.hub_leg.bytes_received == len(UPGRADE) + 4 * len(b"ping")
        if leaves:
            await chain.client.aclose()
        await trio.sleep(0 if leaves else CLIENT_LEAVES_S)
        await wait_all_tasks_blocked()
        assert [outcome.close_reason for outcome in chain.hub_outcomes] == [CloseReason.COMPLETE]


@both
async def test_a_101_with_all_frames_and_the_close_at_once(kind, autojump_clock):
    async with open_chain(kind) as chain:
        await chain.client.send_all(UPGRADE)
        upstream, _ = await chain.upstream()
        await upstream.send_all(SWITCH + b"frames" * 50_000)
        await upstream.aclose()
        data, clean = await read_all(chain.client)
        assert clean
        assert data.partition(b"\r\n\r\n")[2] == b"frames" * 50_000


@both
@pytest.mark.parametrize("status", [400, 401, 403, 404, 500, 503])
async def test_after_a_refused_upgrade_nothing_raw_goes_upstream(kind, status, autojump_clock):
    async with open_chain(kind) as chain:
        await chain.client.send_all(UPGRADE + b"GET /api/v1/secrets HTTP/1.1\r\nHost: hub\r\n\r\n")
        upstream, _ = await chain.upstream()
        await upstream.send_all(b"HTTP/1.1 %d No\r\nContent-Length: 3\r\n\r\nabc" % status)
        began = trio.current_time()
        data = await read_until(chain.client, b"abc")
        assert trio.current_time() - began < 1
        assert data.startswith(b"HTTP/1.1 %d " % status)
        assert b"content-length: 3\r\n" in data
        # The upstream's connection saw the upgrade request and nothing else, and is over.
        assert (await read_all(upstream))[0] == b""
        # What the client sent too early is a request of its own, on a connection of its own.
        second, head = await chain.upstream()
        assert second is not upstream
        assert head.startswith(b"GET /api/v1/secrets HTTP/1.1\r\nhost: api\r\n")
        assert b"upgrade" not in head


@both
async def test_a_post_upgrade_carries_a_length_of_nothing(kind):
    async with open_chain(kind) as chain:
        await chain.client.send_all(
            b"POST /exec HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
            b"Content-Length: 0\r\n\r\n"
        )
        upstream, head = await chain.upstream()
        assert b"content-length: 0\r\n" in head
        await upstream.send_all(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: SPDY/3.1\r\nConnection: Upgrade\r\n\r\n"
        )
        await read_until(chain.client, b"\r\n\r\n")
        await chain.client.send_all(b"syn")
        assert await read_until(upstream, b"syn") == b"syn"


@both
async def test_an_upstream_that_breaks_cuts_an_upgraded_client(kind, autojump_clock):
    async with open_chain(kind) as chain:
        await chain.client.send_all(UPGRADE)
        upstream, _ = await chain.upstream()
        await upstream.send_all(SWITCH + b"part")
        await trio.aclose_forcefully(upstream)
        data, clean = await read_all(chain.client)
        assert data.endswith(b"part")
        assert not clean
        await wait_all_tasks_blocked()
        assert chain.hub_outcomes[0].close_reason is CloseReason.UPSTREAM_FAILED
        assert chain.hub_outcomes[0].upgraded


@both
@pytest.mark.parametrize("clean", [True, False])
async def test_an_upgraded_client_that_leaves_ends_the_upstream(kind, clean, autojump_clock):
    async with open_chain(kind) as chain:
        await chain.client.send_all(UPGRADE)
        upstream, _ = await chain.upstream()
        await upstream.send_all(SWITCH)
        await read_until(chain.client, b"\r\n\r\n")
        await chain.client.send_all(b"last")
        if clean:
            await chain.client.aclose()
        else:
            await trio.aclose_forcefully(chain.client)
        assert await read_until(upstream, b"last") == b"last"
        await closed_within_a_second(upstream)
        await trio.sleep(2)
        assert chain.hub_outcomes[0].close_reason is CloseReason.CLIENT_GONE


@both
async def test_half_close_is_carried_both_ways_where_the_legs_can(kind, autojump_clock):
    """`echo foo | kubectl exec -i pod -- cat`, as far as TCP goes."""
    async with open_chain(kind, client_pair=plain_pair, upstream_pair=plain_pair) as chain:
        await chain.client.send_all(UPGRADE)
        upstream, _ = await chain.upstream()
        await upstream.send_all(SWITCH)
        await read_until(chain.client, b"\r\n\r\n")
        await chain.client.send_all(b"question")
        await chain.client.send_eof()
        assert await read_all(upstream) == (b"question", True)
        await trio.sleep(3600)
        await upstream.send_all(b"answer")
        assert await chain.client.receive_some() == b"answer"
        await upstream.send_eof()
        assert await read_all(chain.client) == (b"", True)
        await wait_all_tasks_blocked()
        assert chain.hub_outcomes == [Outcome(101, 8, 6, CloseReason.COMPLETE, None, True)]


@both
async def test_an_end_at_a_leg_without_half_close_becomes_drain_then_close(kind, autojump_clock):
    async with open_chain(kind, client_pair=plain_pair) as chain:
        await chain.client.send_all(UPGRADE)
        upstream, _ = await chain.upstream()
        await upstream.send_all(SWITCH)
        await read_until(chain.client, b"\r\n\r\n")
        await chain.client.send_eof()
        await trio.sleep(SPLICE_DRAIN_S / 2)
        await upstream.send_all(b"still in time")
        assert await chain.client.receive_some() == b"still in time"
        began = trio.current_time()
        assert (await read_all(upstream))[0] == b""
        assert trio.current_time() - began == pytest.approx(SPLICE_DRAIN_S / 2, abs=0.1)


async def test_an_upgrade_with_a_body_goes_nowhere():
    head = RequestHead.of(
        b"POST",
        b"/",
        ((b"connection", b"upgrade"), (b"upgrade", b"SPDY/3.1"), (b"content-length", b"3")),
    )
    left, right = tls_pair()
    inbound, outbound = ServerConnection(left), ClientConnection(right)
    outcome = await forward(inbound, outbound, head, on_head=lambda answer: answer)
    assert outcome.close_reason is CloseReason.CLIENT_ERROR
    assert outcome.failure is not None
    assert (outcome.failure.code, outcome.failure.processed) == (StreamCode.PROTOCOL, Processed.NO)
    await left.aclose()
    await right.aclose()


# -- the caller's part --------------------------------------------------------------------------------------


@both
async def test_a_head_that_the_caller_refuses_is_no_answer(kind):
    def refuse(head: ResponseHead) -> ResponseHead:
        raise OutboundBroken(Failure(StreamCode.UNAUTHENTICATED, Processed.NO, "the relay says no"))

    async with open_chain(kind) as chain:
        chain.on_head = refuse
        await chain.client.send_all(GET)
        upstream, _ = await chain.upstream()
        await upstream.send_all(OK)
        assert (await read_until(chain.client, b"}")).startswith(b"HTTP/1.1 401 ")


async def test_a_tally_is_there_for_whoever_cancels(autojump_clock):
    client, server = tls_pair()
    upstream, stream = tls_pair()
    inbound, outbound = ServerConnection(server), ClientConnection(stream)
    tally = Tally()
    await client.send_all(GET)
    request = await inbound.next_request()
    assert request is not None
    with trio.move_on_after(5) as scope:
        await outbound.send_request(request)
        await upstream.send_all(CHUNKED + b"3\r\nabc\r\n")
        await forward(inbound, outbound, request, on_head=lambda head: head, tally=tally)
    assert scope.cancelled_caught
    assert (tally.status, tally.bytes_in, tally.bytes_out, tally.upgraded) == (200, 0, 3, False)
    for end in (inbound, outbound, client, upstream):
        await end.aclose()


async def test_the_piece_ahead_is_told_while_the_one_before_it_is_sent():
    tally, pieces, told = Tally(), [b"one", b"two", b"three", b""], []

    class Told(ServerConnection):
        async def send_head(self, head, data=b"", *, end=False):
            told.append((data, tally.ahead))

        async def send_body(self, data, *, end=False):
            told.append((data, tally.ahead))

    class Ready(ClientConnection):
        async def receive_head(self):
            return ResponseHead.of(200, b"OK", ())

        def receive_body_nowait(self):
            return pieces.pop(0)

    client, server = tls_pair()
    upstream, stream = tls_pair()
    await client.send_all(GET)
    inbound, outbound = Told(server), Ready(stream)
    request = await inbound.next_request()
    await forward(inbound, outbound, request, on_head=lambda head: head, tally=tally)
    assert told == [(b"one", b"two"), (b"two", b"three"), (b"three", b"")]
    for end in (inbound, outbound, client, upstream):
        await end.aclose()


@pytest.mark.parametrize("upgrade", [False, True])
async def test_cancelled_at_any_await_everything_closes_and_nothing_looks_whole(upgrade):
    whole = 0
    for steps in range(40):
        client, server = tls_pair()
        upstream, stream = plain_pair()
        inbound, outbound = ServerConnection(server, tls=server.as_tls), ClientConnection(stream)

        async def proxy(inbound: ServerConnection = inbound, outbound: ClientConnection = outbound) -> None:
            try:
                request = await inbound.next_request()
                assert request is not None
                try:
                    await outbound.send_request(request)
                    await forward(inbound, outbound, request, on_head=lambda head: head)
                finally:
                    await outbound.aclose()
                await inbound.next_request()
            finally:
                await inbound.aclose()

        async with trio.open_nursery() as nursery:
            if upgrade:
                await client.send_all(UPGRADE)
                await upstream.send_all(SWITCH + b"abc")
                await upstream.send_eof()
            else:
                await client.send_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
                await upstream.send_all(CHUNKED + b"3\r\nabc\r\n0\r\n\r\n")
            nursery.start_soon(proxy)
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        await stream.aclose()
        data, clean = await read_all(client)
        complete = data.endswith(b"abc" if upgrade else b"0\r\n\r\n")
        assert complete or not clean
        whole += complete
        for leg in (client, upstream):
            await leg.aclose()
    assert 5 < whole < 40


def test_exceptions_say_what_failed():
    error = ExchangeBroken(Failure(StreamCode.DIAL_FAILED, Processed.NO, "connection refused"))
    assert str(error) == "dial_failed: connection refused"


# -- paused -------------------------------------------------------------------------------------------------


async def held_and_released(tally: Tally, release: trio.Event) -> None:
    """Pause an exchange until `release`."""
    tally.held = trio.Event()
    await release.wait()
    held, tally.held = tally.held, None
    held.set()


async def test_a_paused_answer_waits_and_then_arrives_whole(autojump_clock):
    tally, release = Tally(), trio.Event()
    client, hub_leg = tls_pair()
    near, upstream = tls_pair()
    inbound, outbound = ServerConnection(hub_leg), ClientConnection(near)
    await client.send_all(GET)
    request = await inbound.next_request()
    await outbound.send_request(RequestHead.of(b"GET", b"/", request.headers))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            lambda: forward(inbound, outbound, request, on_head=lambda head: head, tally=tally)
        )
        await upstream.send_all(CHUNKED + b"3\r\nabc\r\n")
        await read_until(client, b"abc\r\n")
        nursery.start_soon(held_and_released, tally, release)
        await wait_all_tasks_blocked()
        # What is being received when it is paused still goes on.
        await upstream.send_all(b"1\r\nd\r\n")
        await read_until(client, b"d\r\n")
        await upstream.send_all(b"1\r\ne\r\n0\r\n\r\n")
        await wait_all_tasks_blocked()
        assert tally.bytes_out == 4
        release.set()
        assert (await read_until(client, b"0\r\n\r\n")) == b"1\r\ne\r\n0\r\n\r\n"
    assert tally.bytes_out == 5


async def test_a_paused_upload_waits_and_then_arrives_whole(autojump_clock):
    tally, release = Tally(), trio.Event()
    client, hub_leg = tls_pair()
    near, upstream = tls_pair()
    inbound, outbound = ServerConnection(hub_leg), ClientConnection(near)
    await client.send_all(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc")
    request = await inbound.next_request()
    await outbound.send_request(request)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            lambda: forward(inbound, outbound, request, on_head=lambda head: head, tally=tally)
        )
        await read_until(upstream, b"abc")
        nursery.start_soon(held_and_released, tally, release)
        await wait_all_tasks_blocked()
        await client.send_all(b"def")
        with trio.move_on_after(60):
            pytest.fail(f"sent on while it was paused: {await upstream.receive_some()!r}")
        release.set()
        await read_until(upstream, b"def")
        await upstream.send_all(OK)
        await read_until(client, b"abc")
    assert (tally.bytes_in, tally.bytes_out) == (6, 3)


async def test_a_paused_answer_is_not_passed_on(autojump_clock):
    tally, release = Tally(), trio.Event()
    async with open_sessions() as (hub, relay), trio.open_nursery() as nursery:
        client, hub_leg = tls_pair()
        inbound = ServerConnection(hub_leg, tls=hub_leg.as_tls)
        await client.send_all(GET)
        request = await inbound.next_request()
        context = hub.add_context(1, b"identity")
        stream = hub.open_stream(request.encode(), context=context, eof=True)
        outbound = TunnelOutbound(stream, request)
        accepted = await relay.accept()
        nursery.start_soon(
            lambda: forward(inbound, outbound, request, on_head=lambda head: head, tally=tally)
        )
        accepted.send_answer_nowait(ResponseHead.of(200).encode())
        await read_until(client, b"\r\n\r\n")
        nursery.start_soon(held_and_released, tally, release)
        await wait_all_tasks_blocked()
        for event in (b"a", b"b", b"c"):
            accepted.send_nowait(event)
            await wait_all_tasks_blocked()
        # What is being received when it is paused still goes on.
        assert await client.receive_some() == b"1\r\na\r\n"
        assert tally.bytes_out == 1
        assert hub_leg.sends_at_once == 0
        release.set()
        assert await client.receive_some() == b"2\r\nbc\r\n"
        await wait_all_tasks_blocked()
        accepted.send_nowait(b"d", eof=False)
        assert await client.receive_some() == b"1\r\nd\r\n"
        assert (tally.bytes_out, hub_leg.sends_at_once) == (4, 1)
        nursery.cancel_scope.cancel()


async def test_a_paused_splice_waits_both_ways_and_goes_on(autojump_clock):
    tally, release = Tally(), trio.Event()
    client, hub_leg = tls_pair()
    near, upstream = tls_pair()
    inbound, outbound = ServerConnection(hub_leg), ClientConnection(near)
    await client.send_all(UPGRADE)
    request = await inbound.next_request()
    await outbound.send_request(request)
    await read_until(upstream, b"\r\n\r\n")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            lambda: forward(inbound, outbound, request, on_head=lambda head: head, tally=tally)
        )
        await upstream.send_all(SWITCH)
        await read_until(client, b"\r\n\r\n")
        nursery.start_soon(held_and_released, tally, release)
        await wait_all_tasks_blocked()
        for leg in (client, upstream):
            await leg.send_all(b"being received")
            await wait_all_tasks_blocked()
            await leg.send_all(b", waiting")
        await wait_all_tasks_blocked()
        assert (tally.bytes_in, tally.bytes_out) == (14, 14)
        release.set()
        for leg in (client, upstream):
            await read_until(leg, b"being received, waiting")
        nursery.cancel_scope.cancel()
