from __future__ import annotations

from collections.abc import AsyncIterator

import attrs
import pytest
import trio
from trio.testing import assert_no_checkpoints, wait_all_tasks_blocked

from proxy.exchange.tunnelled import TunnelInbound, TunnelOutbound
from proxy.message.failure import Failure, InboundBroken, OutboundBroken, Processed, StreamCode
from proxy.message.head import RequestHead, ResponseHead
from tests.proxy.exchange.chains import open_sessions
from tunnel.session import Session
from tunnel.stream import Stream, StreamReset

GET = RequestHead.of(b"GET", b"/api", ((b"accept", b"*/*"),))
POST = RequestHead.of(b"POST", b"/api", ((b"content-length", b"6"),))
CHUNKED = RequestHead.of(b"POST", b"/api", ((b"transfer-encoding", b"chunked"),))
UPGRADE = RequestHead.of(b"GET", b"/exec", ((b"connection", b"Upgrade"), (b"upgrade", b"websocket")))
OK = ResponseHead.of(200, b"OK", ((b"content-length", b"6"),))


@attrs.frozen
class Way:
    hub: Session
    relay: Session
    context: int
    nursery: trio.Nursery

    async def streams(self, request: RequestHead) -> tuple[Stream, Stream]:
        """Return both ends of a stream that was opened for a request."""
        eof = request.body_length == 0 and request.upgrade is None
        here = self.hub.open_stream(request.encode(), context=self.context, eof=eof)
        return here, await self.relay.accept()

    async def exchange(self, request: RequestHead) -> tuple[TunnelOutbound, TunnelInbound]:
        here, there = await self.streams(request)
        assert RequestHead.decode(there.head) == request
        return TunnelOutbound(here, request), TunnelInbound(there, request, self.nursery)


async def body_of(end: TunnelInbound | TunnelOutbound) -> bytes:
    data = b""
    while part := await end.receive_body():
        data += part
    return data


@pytest.fixture
async def way() -> AsyncIterator[Way]:
    async with open_sessions() as (hub, relay), trio.open_nursery() as nursery:
        yield Way(hub, relay, hub.add_context(1, b"identity"), nursery)


async def received(source: TunnelInbound | TunnelOutbound, size: int) -> bytes:
    """That many bytes of a body, in however many pieces they come."""
    data = b""
    while len(data) < size:
        data += await source.receive_body()
    return data


async def test_of_an_upload_what_is_here_is_had_without_a_schedule_point(way: Way):
    outbound, inbound = await way.exchange(CHUNKED)
    await outbound.send_body(b"abc")
    await wait_all_tasks_blocked()
    with assert_no_checkpoints():
        assert await inbound.receive_body() == b"abc"
    await outbound.send_body(b"def")
    assert await inbound.receive_body() == b"def"
    await outbound.end_body()
    assert await inbound.receive_body() == b""


async def test_an_exchange_crosses_in_canonical_form(way: Way):
    outbound, inbound = await way.exchange(POST)
    await outbound.send_body(b"abc")
    await outbound.send_body(b"def")
    await outbound.end_body()
    assert await received(inbound, 6) == b"abcdef"
    assert await inbound.receive_body() == b""
    assert await inbound.receive_body() == b""
    await inbound.send_head(OK, b"uvw")
    await inbound.send_body(b"xyz", end=True)
    await inbound.end()
    assert await outbound.receive_head() == OK
    assert await received(outbound, 6) == b"uvwxyz"
    # The promised length is an end: nobody waits for the FIN behind it.
    assert outbound.receive_body_nowait() == b""
    assert await outbound.receive_body() == b""
    await outbound.aclose()
    await inbound.aclose()
    await wait_all_tasks_blocked()
    assert way.hub.stream_count == way.relay.stream_count == 0


@pytest.mark.parametrize(
    "head", [OK, ResponseHead.of(200), ResponseHead.of(304, b"", ((b"content-length", b"6"),))]
)
async def test_an_answer_that_is_whole_at_once_is_one_call(way: Way, head):
    outbound, inbound = await way.exchange(GET)
    body = b"abcdef" if head.status == 200 else b""
    await inbound.send_head(head, body, end=True)
    assert await outbound.receive_head() == head
    assert b"".join([await outbound.receive_body(), await outbound.receive_body()]) == body
    await outbound.aclose()
    await inbound.aclose()


@pytest.mark.parametrize(
    ("request_head", "head", "body"),
    [
        (GET, OK, b"abc"),
        (GET, OK, b"abcdefg"),
        (GET, ResponseHead.of(204), b"a"),
        (RequestHead.of(b"HEAD", b"/"), OK, b"abcdef"),
    ],
)
async def test_a_relay_that_lies_about_its_length_is_found_out(way: Way, request_head, head, body):
    here, there = await way.streams(request_head)
    outbound = TunnelOutbound(here, request_head)
    await there.send_head(head.encode())
    await there.send_all(body)
    await there.send_eof()
    await outbound.receive_head()
    with pytest.raises(OutboundBroken) as caught:
        await body_of(outbound)
    assert (caught.value.failure.code, caught.value.failure.processed) == (StreamCode.PROTOCOL, Processed.YES)
    await outbound.aclose()
    await there.aclose()


@pytest.mark.parametrize("last", [b"def", b"defg"])
async def test_the_last_piece_by_its_length_is_not_passed_on(way: Way, last):
    here, there = await way.streams(GET)
    outbound = TunnelOutbound(here, GET)
    await there.send_head(OK.encode())
    await outbound.receive_head()
    passed: list[bytes] = []
    returned: list[bytes | StreamCode] = []

    def pass_on(piece: bytes) -> bool:
        passed.append(piece)
        return True

    async def receive() -> None:
        try:
            returned.append(await outbound.receive_body(pass_on))
        except OutboundBroken as broken:
            returned.append(broken.failure.code)

    way.nursery.start_soon(receive)
    for piece in (b"a", b"bc", last):
        await wait_all_tasks_blocked()
        await there.send_all(piece)
    await wait_all_tasks_blocked()
    assert passed == [b"a", b"bc"]
    assert returned == [b"def" if last == b"def" else StreamCode.PROTOCOL]
    assert returned == [StreamCode.PROTOCOL] or outbound.receive_body_nowait() == b""
    await outbound.aclose()
    await there.aclose()


@pytest.mark.parametrize("raw", [b"", b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n", b"HTTP/1.1 200 OK\r\n"])
async def test_a_head_that_is_not_canonical_is_no_answer(way: Way, raw):
    here, there = await way.streams(GET)
    outbound = TunnelOutbound(here, GET)
    await there.send_head(raw)
    with pytest.raises(OutboundBroken) as caught:
        await outbound.receive_head()
    assert (caught.value.failure.code, caught.value.failure.processed) == (
        StreamCode.PROTOCOL,
        Processed.MAYBE,
    )
    await outbound.aclose()
    await there.aclose()


@pytest.mark.parametrize("body", [b"abc", b"abcdefg"])
async def test_a_hub_that_lies_about_its_length_is_found_out(way: Way, body):
    here, there = await way.streams(POST)
    inbound = TunnelInbound(there, POST, way.nursery)
    await here.send_all(body)
    await here.send_eof()
    with pytest.raises(InboundBroken) as caught:
        await body_of(inbound)
    assert caught.value.failure.code is StreamCode.PROTOCOL
    await inbound.aclose()
    await here.aclose()


async def test_a_refusal_arrives_as_it_was_meant(way: Way):
    outbound, inbound = await way.exchange(GET)
    await inbound.drop(Failure(StreamCode.UNAUTHENTICATED, Processed.NO, "token expired"))
    with pytest.raises(OutboundBroken) as caught:
        await outbound.receive_head()
    assert caught.value.failure == Failure(StreamCode.UNAUTHENTICATED, Processed.NO, "token expired")
    for call in (outbound.receive_body(), outbound.send_body(b"x")):
        with pytest.raises((OutboundBroken, trio.ClosedResourceError)):
            await call
    await outbound.aclose()
    await inbound.aclose()


async def test_a_cut_comes_behind_the_last_byte(way: Way):
    outbound, inbound = await way.exchange(GET)
    failure = Failure(StreamCode.UPSTREAM_RESET, Processed.YES, "gone")
    await inbound.send_head(ResponseHead.of(200), b"the last words")
    await inbound.cut(failure)
    await inbound.cut(failure)
    await outbound.receive_head()
    assert await outbound.receive_body() == b"the last words"
    with pytest.raises(OutboundBroken) as caught:
        await outbound.receive_body()
    assert caught.value.failure == failure
    for send in (inbound.send_body(b"x"), inbound.end(), inbound.send_head(OK)):
        with pytest.raises(InboundBroken):
            await send
    await inbound.aclose()
    await outbound.aclose()


async def test_an_answer_that_ended_survives_a_request_that_was_not_read(way: Way):
    outbound, inbound = await way.exchange(CHUNKED)
    await outbound.send_body(b"x" * 100_000)
    await inbound.send_head(ResponseHead.of(413, b"", ((b"content-length", b"6"),)), b"abcdef", end=True)
    await inbound.aclose()
    await wait_all_tasks_blocked()
    # The relay told us to stop, behind its answer.
    with pytest.raises(OutboundBroken):
        await outbound.send_body(b"more")
    assert (await outbound.receive_head()).status == 413
    assert await outbound.receive_body() == b"abcdef"
    await outbound.aclose()
    await wait_all_tasks_blocked()
    assert way.hub.stream_count == way.relay.stream_count == 0


@pytest.mark.parametrize("request_head", [GET, POST, UPGRADE])
async def test_a_hub_that_gives_up_is_noticed_at_once(way: Way, request_head, autojump_clock):
    outbound, inbound = await way.exchange(request_head)
    heard: list[Failure] = []

    async def hear(failure: Failure) -> None:
        heard.append(failure)

    inbound.watch(hear)
    await trio.sleep(10)
    assert heard == []
    await outbound.abandon()
    await wait_all_tasks_blocked()
    assert [failure.code for failure in heard] == [StreamCode.CANCEL]
    with pytest.raises(OutboundBroken):
        await outbound.receive_head()
    await outbound.aclose()
    await inbound.aclose()


async def test_what_a_hub_does_after_the_exchange_is_nobodys_concern(way: Way, autojump_clock):
    outbound, inbound = await way.exchange(GET)
    inbound.watch(pytest.fail)
    await inbound.unwatch()
    await outbound.aclose()
    await wait_all_tasks_blocked()
    await inbound.aclose()


async def test_a_hub_that_gives_up_within_a_body_is_gone(way: Way):
    outbound, inbound = await way.exchange(POST)
    await outbound.send_body(b"abc")
    await wait_all_tasks_blocked()
    await outbound.aclose()
    with pytest.raises(InboundBroken) as caught:
        await body_of(inbound)
    assert caught.value.failure.code is StreamCode.CANCEL
    await inbound.aclose()


async def test_early_bytes_of_an_upgrade_wait_in_the_window(way: Way, autojump_clock):
    outbound, inbound = await way.exchange(UPGRADE)
    raw = outbound.upgraded()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(raw.send_all, b"early" * 200_000)
        await trio.sleep(5)
        nursery.cancel_scope.cancel()
    switching = ((b"upgrade", b"websocket"), (b"connection", b"Upgrade"))
    await inbound.send_head(ResponseHead.of(101, b"", switching))
    there = inbound.upgraded()
    first = await there.receive_some()
    assert (b"early" * 200_000).startswith(first)
    assert there.can_half_close
    assert (await outbound.receive_head()).status == 101
    await there.send_all(b"back")
    assert await raw.receive_some() == b"back"
    await inbound.aclose()
    await outbound.aclose()


@pytest.mark.parametrize(("request_head", "status"), [(GET, 103), (POST, 100)])
async def test_a_head_that_is_no_final_answer_is_a_lie(way: Way, request_head, status):
    here, there = await way.streams(request_head)
    outbound = TunnelOutbound(here, request_head)
    await there.send_head(ResponseHead.of(status).encode())
    with pytest.raises(OutboundBroken, match=f"answered with {status}"):
        await outbound.receive_head()
    await outbound.aclose()
    await there.aclose()


LIES = {
    "nothing": (),
    "no upgrade": ((b"connection", b"Upgrade"),),
    "another": ((b"connection", b"Upgrade"), (b"upgrade", b"h2c")),
    "several": ((b"connection", b"Upgrade"), (b"upgrade", b"websocket, h2c")),
    "two": ((b"connection", b"Upgrade"), (b"upgrade", b"websocket"), (b"upgrade", b"websocket")),
    "no connection": ((b"upgrade", b"websocket"),),
    "a length": ((b"connection", b"Upgrade"), (b"upgrade", b"websocket"), (b"content-length", b"0")),
}


@pytest.mark.parametrize(
    ("request_head", "headers"),
    [
        *((UPGRADE, lie) for lie in LIES.values()),
        (GET, ((b"connection", b"Upgrade"), (b"upgrade", b"websocket"))),
    ],
)
async def test_a_relays_101_to_another_protocol_is_a_lie(way: Way, request_head, headers):
    here, there = await way.streams(request_head)
    outbound = TunnelOutbound(here, request_head)
    await there.send_head(ResponseHead.of(101, b"", headers).encode())
    with pytest.raises(OutboundBroken, match="101") as caught:
        await outbound.receive_head()
    failure = caught.value.failure
    assert (failure.code, failure.processed) == (StreamCode.PROTOCOL, Processed.MAYBE)
    if request_head is UPGRADE:
        with pytest.raises(StreamReset):
            await there.receive_some()
    await outbound.aclose()
    await there.aclose()
