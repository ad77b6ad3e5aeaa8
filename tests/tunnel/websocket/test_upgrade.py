from __future__ import annotations

import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest
import trio
import trio_websocket
import websockets.client
import websockets.frames
import websockets.http11
import websockets.protocol
import websockets.server
import websockets.uri
from trio.testing import (
    assert_checkpoints,
    assert_no_checkpoints,
    lockstep_stream_pair,
    memory_stream_pair,
    wait_all_tasks_blocked,
)

from tests.tunnel.stream_pairs import handshake, receive_exactly, tcp_pair
from tests.tunnel.websocket.websocket_bench import (
    MESSAGES,
    accepted,
    dialled,
    expect_closed,
    read_head,
    websocket_pair,
)
from tunnel.net.tcp import TCPStream
from tunnel.net.tls import TLSStream
from tunnel.websocket.frames import Control, FrameReader, encode_binary
from tunnel.websocket.transport import MESSAGE_BYTES_MAX, Transport, TransportClosed
from tunnel.websocket.upgrade import (
    SUBPROTOCOL,
    WebSocketRefused,
    accept_websocket,
    dial_websocket,
)
from tunnel.websocket.websocket_transport import CLOSE_S, EVENTS_PER_TURN


@pytest.mark.parametrize("reverse", [False, True])
async def test_messages_cross_both_ways_over_tls_and_tcp(reverse: bool) -> None:
    near, far = await handshake(await tcp_pair())
    async with websocket_pair(near, far) as (client, server):
        assert client.peer_name.startswith("127.0.0.1:")
        source, sink = (server, client) if reverse else (client, server)
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                for payload in MESSAGES:
                    await source.send(payload)

            nursery.start_soon(send)
            assert [await sink.receive() for _ in MESSAGES] == MESSAGES


@pytest.mark.parametrize("reverse", [False, True])
async def test_close_codes_are_carried_behind_the_last_message(reverse: bool) -> None:
    async with websocket_pair(*memory_stream_pair()) as ends:
        closer, other = reversed(ends) if reverse else ends
        await closer.send(b"last words")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(closer.aclose, 4503, "draining")
            assert await other.receive() == b"last words"
            closed = await expect_closed(other.receive)
        assert (closed.code, closed.reason) == (4503, "draining")
        for call in (closer.receive, lambda: closer.send(b"x"), lambda: other.send(b"x"), other.receive):
            closed = await expect_closed(call)
            assert (closed.code, closed.reason) == (4503, "draining")
        await closer.aclose(1000, "again")


async def test_a_cut_connection_has_no_code() -> None:
    near, far = memory_stream_pair()
    async with websocket_pair(near, far) as (client, server):
        await client.send(b"before")
        await near.send_stream.aclose()
        assert await server.receive() == b"before"
        closed = await expect_closed(server.receive)
        assert closed.code is None
        assert closed.reason == "the connection ended without a Close frame"


async def test_aclose_is_bounded_when_the_peer_is_silent(autojump_clock: trio.testing.MockClock) -> None:
    near, far = await handshake(await tcp_pair())
    async with trio.open_nursery() as nursery:

        async def silent() -> None:
            head = await read_head(far)
            with trio.CancelScope() as scope:
                async with accept_websocket(far, request_head=head):
                    scope.cancel()

        nursery.start_soon(silent)
        async with dialled(near) as client:
            await wait_all_tasks_blocked()
            started = trio.current_time()
            await client.aclose()
            assert trio.current_time() - started <= CLOSE_S


async def test_aclose_wakes_a_blocked_sender_and_a_blocked_receiver(
    autojump_clock: trio.testing.MockClock,
) -> None:
    near, far = trio.testing.lockstep_stream_pair()
    answered = trio.Event()

    async def stop_reading() -> None:
        head = await read_head(far)
        async with accept_websocket(far, request_head=head) as server:
            answered.set()
            # The messages are not taken: the queue fills, and then the connection.
            await trio.sleep(100)
            del server

    async def send(client: Transport) -> None:
        async def flood() -> None:
            for _ in range(100):
                await client.send(bytes(1000))

        assert (await expect_closed(flood)).code == 4409

    async def receive(client: Transport) -> None:
        assert (await expect_closed(client.receive)).code == 4409

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop_reading)
        async with dialled(near) as client:
            await answered.wait()
            async with trio.open_nursery() as users:
                users.start_soon(send, client)
                users.start_soon(receive, client)
                await wait_all_tasks_blocked()
                started = trio.current_time()
                await client.aclose(4409, "superseded")
            assert trio.current_time() - started == pytest.approx(CLOSE_S)
        nursery.cancel_scope.cancel()


async def test_a_cancelled_send_ends_the_transport(autojump_clock: trio.testing.MockClock) -> None:
    near, far = trio.testing.lockstep_stream_pair()

    async def stop_reading() -> None:
        head = await read_head(far)
        async with accept_websocket(far, request_head=head):
            await trio.sleep(100)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop_reading)
        async with dialled(near) as client:
            with trio.move_on_after(1) as scope:
                for _ in range(100):
                    await client.send(bytes(1000))
            assert scope.cancelled_caught
            closed = await expect_closed(lambda: client.send(b"never behind half a frame"))
            assert (closed.code, closed.reason) == (None, "a send was cancelled")
            assert (await expect_closed(client.receive)).code is None
        nursery.cancel_scope.cancel()


async def test_a_cancelled_receive_loses_no_message(autojump_clock: trio.testing.MockClock) -> None:
    async with websocket_pair(*memory_stream_pair()) as (client, server):
        with trio.move_on_after(1):
            await server.receive()
        await client.send(b"late")
        with trio.CancelScope() as scope:
            scope.cancel()
            await server.receive()
        assert await server.receive() == b"late"


async def test_an_error_of_the_user_comes_out_as_it_is() -> None:
    near, far = memory_stream_pair()
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            async with accepted(far) as server:
                await expect_closed(server.receive)

        nursery.start_soon(serve)
        with pytest.raises(KeyError, match="mine"):
            async with dialled(near):
                raise KeyError("mine")


async def test_cancelling_closes_the_stream(autojump_clock: trio.testing.MockClock) -> None:
    near, far = memory_stream_pair()
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            async with accepted(far) as server:
                assert (await expect_closed(server.receive)).code is None

        nursery.start_soon(serve)
        with trio.move_on_after(5) as scope:
            async with dialled(near):
                await trio.sleep_forever()
        assert scope.cancelled_caught
        with pytest.raises(trio.ClosedResourceError):
            await near.send_all(b"x")


async def raw_answer(answer: bytes, *, end: bool = True) -> WebSocketRefused:
    near, far = memory_stream_pair()
    await far.send_all(answer)
    if end:
        await far.send_eof()
    with pytest.raises(WebSocketRefused) as caught:
        async with dialled(near):
            raise AssertionError("never open")
    assert b"GET /v1/tunnel HTTP/1.1\r\n" in await read_head(far)
    return caught.value


@pytest.mark.parametrize("status", [200, 301, 401, 403, 407, 429, 502, 503])
async def test_any_other_answer_than_101_is_a_refusal_with_its_headers(status: int) -> None:
    # The body has no end, and is not waited for.
    refused = await raw_answer(
        b"HTTP/1.1 %d Whatever\r\nRetry-After: 7\r\nContent-Length: 1000000\r\n\r\nsome" % status, end=False
    )
    assert refused.status == status
    assert (b"retry-after", b"7") in refused.headers
    assert str(refused) == f"the answer to the upgrade is {status} instead of 101"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "the connection ended before an answer to the upgrade"),
        (b"HTTP/1.1 101 Switching", "the connection ended before an answer to the upgrade"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "what answers speaks no HTTP"),
        (b"HTTP/1.1 1O1 x\r\n\r\n", "no WebSocket handshake: Bad HTTP message"),
        (
            b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
            "no WebSocket handshake: Missing header, 'Connection: Upgrade'",
        ),
        (
            b"HTTP/1.1 101 x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Accept: AAAA\r\n\r\n",
            "no WebSocket handshake: Bad accept token",
        ),
        (b"\xff" * 20_000, "what answers speaks no HTTP"),
        (
            b"HTTP/1.1 101 x\r\nConnection: \xff\r\n\r\n",
            "no WebSocket handshake: 'ascii' codec can't decode byte 0xff in position 0: "
            "ordinal not in range(128)",
        ),
    ],
)
async def test_a_bad_answer_is_named(answer: bytes, reason: str) -> None:
    refused = await raw_answer(answer)
    assert refused.status is None
    assert str(refused) == reason


async def test_a_head_without_an_end_is_not_read_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    with trio.fail_after(1):
        refused = await raw_answer(b"HTTP/1.1 101 x\r\nX-Filler: " + b"x" * 20_000, end=False)
    assert refused.status is None


async def test_a_target_that_is_none_is_refused_here() -> None:
    near, _ = memory_stream_pair()
    with pytest.raises(WebSocketRefused, match="no WebSocket handshake"):
        async with dial_websocket(near, host="hub.test", target="/a b"):
            raise AssertionError("never open")


class Reset(trio.abc.Stream):
    """A connection that the peer has reset."""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        raise trio.BrokenResourceError

    async def wait_send_all_might_not_block(self) -> None:
        await self.send_all(b"")

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        raise trio.BrokenResourceError

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("dials", [False, True])
async def test_a_connection_that_is_reset_in_the_handshake_is_a_refusal(dials: bool) -> None:
    stream = Reset()
    opening = dialled(stream) if dials else accept_websocket(stream, request_head=GOOD_REQUEST)
    with pytest.raises(WebSocketRefused, match=r"before (an|the) answer"):
        async with opening:
            raise AssertionError("never open")


async def test_an_answer_without_our_subprotocol_is_refused() -> None:
    near, far = memory_stream_pair()
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            async with trio.open_nursery() as inner:
                request = await trio_websocket.wrap_server_stream(inner, far)
                async with await request.accept():
                    await trio.sleep_forever()

        nursery.start_soon(serve)
        with pytest.raises(WebSocketRefused, match=r"lacks the subprotocol hawse\.v1"):
            async with dialled(near):
                raise AssertionError("never open")
        nursery.cancel_scope.cancel()


GOOD_REQUEST = (
    b"GET /v1/tunnel HTTP/1.1\r\nHost: hub.test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Protocol: other, hawse.v1\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n"
)


async def raw_request(request: bytes) -> tuple[WebSocketRefused, bytes]:
    near, far = memory_stream_pair()
    with pytest.raises(WebSocketRefused) as caught:
        async with accept_websocket(far, request_head=request):
            raise AssertionError("never open")
    return caught.value, await read_head(near)


@pytest.mark.parametrize(
    ("old", "new", "answer"),
    [
        (b"Sec-WebSocket-Protocol: other, hawse.v1\r\n", b"", b"HTTP/1.1 400 "),
        (b"hawse.v1", b"hawse.v2", b"HTTP/1.1 400 "),
        (b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Version: 8", b"HTTP/1.1 426 "),
        (b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n", b"", b"HTTP/1.1 400 "),
        (b"Upgrade: WebSocket", b"Upgrade: h2c", b"HTTP/1.1 400 "),
        (b"GET", b"POST", b"HTTP/1.1 400 "),
    ],
)
async def test_a_request_that_is_not_ours_is_answered_and_refused(
    old: bytes, new: bytes, answer: bytes
) -> None:
    assert old in GOOD_REQUEST
    refused, head = await raw_request(GOOD_REQUEST.replace(old, new))
    assert refused.status == 400
    assert head.startswith(answer)


async def test_the_answer_accepts_our_subprotocol_and_no_extension() -> None:
    near, far = memory_stream_pair()
    async with accept_websocket(far, request_head=GOOD_REQUEST):
        head = (await read_head(near)).lower()
        await near.aclose()
    assert head.startswith(b"http/1.1 101 ")
    assert b"\r\nsec-websocket-protocol: hawse.v1\r\n" in head
    assert b"extensions" not in head


async def test_frames_that_came_with_the_request_are_delivered_after_the_101(
    autojump_clock: trio.testing.MockClock,
) -> None:
    eager = b"\x82\x85\x00\x00\x00\x00eager"
    # trio runs tasks that are ready at once in an order of its own, a different one each time.
    for _ in range(20):
        near, far = memory_stream_pair()
        async with accept_websocket(far, request_head=GOOD_REQUEST, leftover=eager) as transport:
            with trio.fail_after(1):
                assert await transport.receive() == b"eager"
                await near.send_all(eager)
                assert await transport.receive() == b"eager"
            await near.aclose()


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (b"\x82\x05hello", 1002),
        (b"\x81\x85\x00\x00\x00\x00hello", 1003),
        (b"\x83\x85\x00\x00\x00\x00hello", 1002),
        (b"\xc2\x85\x00\x00\x00\x00hello", 1002),
        (b"\x80\x85\x00\x00\x00\x00hello", 1002),
        (b"\x82\xff\x00\x00\x00\x00\x00\x10\x00\x01\x00\x00\x00\x00" + bytes(MESSAGE_BYTES_MAX + 1), 1009),
    ],
    ids=["unmasked", "text", "unknown opcode", "reserved bit", "stray continuation", "too large"],
)
async def test_a_violation_ends_the_transport_and_the_peer_hears_the_code(frames: bytes, code: int) -> None:
    near, far = memory_stream_pair()
    async with accept_websocket(far, request_head=GOOD_REQUEST) as transport:
        await read_head(near)
        await near.send_all(frames)
        closed: list[TransportClosed] = []

        async def receive() -> None:
            closed.append(await expect_closed(transport.receive))
            await transport.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            answer = await near.receive_some()
            # The peer answers nothing: it leaves.
            await near.aclose()
    assert closed[0].code == code
    assert answer[0] == 0x88
    assert int.from_bytes(answer[2:4]) == code


@asynccontextmanager
async def raw_peer(*, tls: bool = False) -> AsyncIterator[tuple[trio.abc.Stream, Transport]]:
    """A client that writes its frames by hand, and the server's transport."""
    near, far = await handshake(await tcp_pair()) if tls else memory_stream_pair()
    async with near, accept_websocket(far, request_head=GOOD_REQUEST) as transport:
        await read_head(near)
        yield near, transport
        await near.aclose()


async def test_a_peer_that_keeps_sending_forbidden_frames_gets_the_close_code() -> None:
    """A reset would take the Close back, and say nothing."""
    async with raw_peer(tls=True) as (near, transport):

        async def receive() -> None:
            await expect_closed(transport.receive)
            await transport.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            # More than the sockets hold.
            await near.send_all(b"\x81" + message(bytes(MESSAGE_BYTES_MAX))[1:])
            for _ in range(15):
                await near.send_all(message(bytes(MESSAGE_BYTES_MAX)))
            assert await near.receive_some() == b"\x88\x16\x03\xebonly binary messages"
            assert await near.receive_some() == b""


@pytest.mark.parametrize("pause_s", [CLOSE_S / 10, float("inf")], ids=["that goes on", "that is silent"])
async def test_a_peer_that_broke_our_rules_and_stays_is_waited_for_no_longer_than_for_a_close(
    pause_s: float, autojump_clock: trio.testing.MockClock
) -> None:
    async with raw_peer() as (near, transport), trio.open_nursery() as nursery:

        async def send() -> None:
            with suppress(trio.BrokenResourceError):
                while True:
                    await near.send_all(b"\x81\x80" + bytes(4))
                    await trio.sleep(pause_s)

        nursery.start_soon(send)
        await expect_closed(transport.receive)
        begun = trio.current_time()
        await transport.aclose()
        assert trio.current_time() - begun == pytest.approx(CLOSE_S)
        nursery.cancel_scope.cancel()


def ping(payload: bytes) -> bytes:
    return bytes([0x89, 0x80 | len(payload)]) + bytes(4) + payload


def message(payload: bytes) -> bytes:
    return encode_binary(payload, masked=True)


async def test_it_runs_no_task_of_its_own() -> None:
    tasks = trio.lowlevel.current_statistics().tasks_living
    async with raw_peer():
        assert trio.lowlevel.current_statistics().tasks_living == tasks


async def test_messages_received_together_are_returned_without_a_checkpoint_up_to_a_bound() -> None:
    async with raw_peer() as (near, transport):
        await near.send_all(message(b"x") * 3 * EVENTS_PER_TURN)
        assert await transport.receive() == b"x"
        with assert_no_checkpoints():
            for _ in range(EVENTS_PER_TURN // 2):
                await transport.receive()
        with assert_checkpoints():
            for _ in range(EVENTS_PER_TURN):
                await transport.receive()


async def test_a_ping_is_answered_at_once_when_no_task_sends() -> None:
    async with raw_peer(tls=True) as (near, transport):
        await near.send_all(ping(b"one") + ping(b"") + message(b"x"))
        assert await transport.receive() == b"x"
        assert await receive_exactly(near, 7) == b"\x8a\x03one\x8a\x00"


async def test_the_last_ping_is_answered_behind_the_message_that_is_under_way() -> None:
    near, far = lockstep_stream_pair()
    async with trio.open_nursery() as nursery:

        async def peer() -> None:
            await read_head(near)
            await near.send_all(ping(b"one") + ping(b"two") + message(b"x"))
            assert await receive_exactly(near, 12) == b"\x82\x05hello\x8a\x03two"
            await near.aclose()

        nursery.start_soon(peer)
        async with (
            accept_websocket(far, request_head=GOOD_REQUEST) as transport,
            trio.open_nursery() as writer,
        ):
            writer.start_soon(transport.send, b"hello")
            await wait_all_tasks_blocked()
            assert await transport.receive() == b"x"
            await expect_closed(transport.receive)


async def test_a_flood_of_pings_is_no_way_to_fill_our_memory_or_to_stop_the_reader() -> None:
    async with raw_peer(tls=True) as (near, transport):
        assert isinstance(near, TLSStream)
        # The peer reads nothing, so at some time no pong goes out any more.
        async with trio.open_nursery() as nursery:
            flood = ping(bytes(125)) * 500

            async def send() -> None:
                for _ in range(20):
                    await near.send_all(flood)
                await near.send_all(message(b"still here"))

            nursery.start_soon(send)
            assert await transport.receive() == b"still here"
        stream = transport._stream  # type: ignore[attr-defined]
        assert len(stream._held) < 1000


BEGUN = b"\x02\x80" + bytes(4)
GOES_ON = b"\x00\x80" + bytes(4)
PONG = b"\x8a\x80" + bytes(4)


# The input: nothing, or the beginning of a message; a flood; and a last message.
@pytest.mark.parametrize(
    ("before", "each", "last"),
    [
        (b"", ping(b""), message(b"x")),
        (b"", PONG, message(b"x")),
        (BEGUN, GOES_ON, b"\x80\x81" + bytes(4) + b"x"),
    ],
    ids=["pings", "pongs", "fragments"],
)
async def test_other_tasks_run_while_a_flood_is_taken_apart(before: bytes, each: bytes, last: bytes) -> None:
    async with raw_peer() as (near, transport):
        await near.send_all(before + each * 10 * EVENTS_PER_TURN + last)
        async with counted_passes() as passes:
            assert await transport.receive() == b"x"
        assert passes() >= 9


async def test_of_many_floods_one_is_taken_apart_in_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    floods, turns_each = 8, 10
    taken: Counter[int] = Counter()
    async with AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(raw_peer()) for _ in range(floods)]
        for near, _ in peers:
            await near.send_all(PONG * turns_each * EVENTS_PER_TURN + message(b"x"))
        next_event = FrameReader.next_event
        async with counted_passes() as passes:

            def counting(self: FrameReader) -> bytes | Control | None:
                taken[passes()] += 1
                return next_event(self)

            monkeypatch.setattr(FrameReader, "next_event", counting)
            async with trio.open_nursery() as nursery:
                for _, transport in peers:
                    nursery.start_soon(transport.receive)
    # But for the first one of each, which all come together. Who counts has its turn anywhere in a pass, and
    # so sees parts of two.
    most = [count for _, count in taken.most_common()[2:]]
    assert max(most) <= 2 * EVENTS_PER_TURN


@pytest.mark.parametrize("each", [ping(b""), PONG], ids=["pings", "pongs"])
async def test_other_tasks_run_while_a_flood_keeps_us_from_the_peers_close(each: bytes) -> None:
    async with raw_peer() as (near, transport):
        await near.send_all(each * 10 * EVENTS_PER_TURN + b"\x88\x80" + bytes(4))
        async with counted_passes() as passes:
            await transport.aclose()
        assert passes() >= 9 * EVENTS_PER_TURN


@asynccontextmanager
async def counted_passes() -> AsyncIterator[Callable[[], int]]:
    """Count how often another task has its turn within the block."""
    passes = 0

    async def count() -> None:
        nonlocal passes
        while True:
            await trio.lowlevel.checkpoint()
            passes += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        yield lambda: passes
        nursery.cancel_scope.cancel()


async def test_any_byte_of_a_message_is_a_sign_of_life(autojump_clock: trio.testing.MockClock) -> None:
    async with raw_peer() as (near, transport):
        wire = message(bytes(1000))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.receive)
            for cut in range(0, 1000, 100):
                await trio.sleep(10)
                await near.send_all(wire[cut : cut + 100])
                await wait_all_tasks_blocked()
                assert transport.last_received_s == trio.current_time()
            await near.send_all(wire[1000:])


async def test_pings_and_pongs_are_no_sign_of_life(autojump_clock: trio.testing.MockClock) -> None:
    """Also where they come within a message of several frames, and in pieces."""
    pong = b"\x8a\x80" + bytes(4)
    first, last = b"\x02\x82" + bytes(4) + b"ab", b"\x80\x82" + bytes(4) + b"cd"
    async with raw_peer() as (near, transport):

        async def heard(wire: bytes) -> bool:
            await trio.sleep(10)
            await near.send_all(wire)
            await wait_all_tasks_blocked()
            return transport.last_received_s == trio.current_time()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.receive)
            assert not await heard(ping(b"alive") * 3)
            assert not await heard(pong)
            assert await heard(first)
            assert not await heard(ping(b"")[:3])
            assert not await heard(ping(b"")[3:])
            assert await heard(last[:-1])
            assert await heard(last[-1:])


@pytest.mark.parametrize("before", [b"", ping(b"one")], ids=["alone", "behind a ping"])
async def test_a_close_is_answered_behind_the_message_that_is_under_way(before: bytes) -> None:
    near, far = lockstep_stream_pair()
    async with trio.open_nursery() as nursery:

        async def peer() -> None:
            await read_head(near)
            await near.send_all(before + b"\x88\x82\x00\x00\x00\x00" + (4409).to_bytes(2))
            received = b""
            while data := await near.receive_some():
                received += data
            # Behind a Close there is no pong any more (RFC 6455 section 5.5.2).
            assert received == b"\x82\x05hello\x88\x02" + (4409).to_bytes(2)
            await near.aclose()

        nursery.start_soon(peer)
        async with accept_websocket(far, request_head=GOOD_REQUEST) as transport:
            async with trio.open_nursery() as writer:
                writer.start_soon(transport.send, b"hello")
                await wait_all_tasks_blocked()
                assert (await expect_closed(transport.receive)).code == 4409


async def test_a_ping_behind_which_the_peer_breaks_off_is_the_end_and_no_fault() -> None:
    async with raw_peer(tls=True) as (near, transport):
        assert isinstance(near, TLSStream)
        await near.send_all(ping(b"one") + message(b"x"))
        below = near.transport_stream
        assert isinstance(below, TCPStream)
        below.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        near.close_nowait()
        assert await transport.receive() == b"x"
        assert (await expect_closed(transport.receive)).code is None


async def test_a_ping_waits_for_the_message_that_is_under_way() -> None:
    async with raw_peer(tls=True) as (near, transport):
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                for _ in range(10):
                    await transport.send(LARGE)

            nursery.start_soon(send)
            await wait_all_tasks_blocked()
            await near.send_all(ping(b"one") + message(b"x"))
            assert await transport.receive() == b"x"
            frame, pong = encode_binary(LARGE, masked=False), b"\x8a\x03one"
            received = await receive_exactly(near, 10 * len(frame) + len(pong))
        assert received.count(pong) == 1
        assert received.replace(pong, b"") == frame * 10


async def test_a_peer_that_says_close_and_takes_no_answer_delays_no_task(
    autojump_clock: trio.testing.MockClock,
) -> None:
    near, far = lockstep_stream_pair()
    async with trio.open_nursery() as nursery:

        async def peer() -> None:
            await read_head(near)
            await near.send_all(b"\x88\x82\x00\x00\x00\x00" + (4409).to_bytes(2))
            await trio.sleep_forever()

        nursery.start_soon(peer)
        async with accept_websocket(far, request_head=GOOD_REQUEST) as transport:
            with trio.fail_after(CLOSE_S + 1):
                assert (await expect_closed(transport.receive)).code == 4409
        nursery.cancel_scope.cancel()


async def test_our_close_goes_behind_the_message_that_is_under_way() -> None:
    near, far = lockstep_stream_pair()
    async with trio.open_nursery() as nursery:

        async def peer() -> None:
            await read_head(near)
            await slow.wait()
            assert await receive_exactly(near, 7) == b"\x82\x05hello"
            close = (4503).to_bytes(2) + b"draining"
            assert await receive_exactly(near, 12) == b"\x88\x0a" + close
            await near.send_all(b"\x88\x8a\x00\x00\x00\x00" + close)
            assert await near.receive_some() == b""
            await near.aclose()

        async def receive(transport: Transport) -> None:
            assert (await expect_closed(transport.receive)).code == 4503

        slow = trio.Event()
        nursery.start_soon(peer)
        async with (
            accept_websocket(far, request_head=GOOD_REQUEST) as transport,
            trio.open_nursery() as users,
        ):
            users.start_soon(transport.send, b"hello")
            users.start_soon(receive, transport)
            await wait_all_tasks_blocked()
            users.start_soon(transport.aclose, 4503, "draining")
            await wait_all_tasks_blocked()
            slow.set()


async def test_a_cancelled_aclose_says_no_close() -> None:
    async with raw_peer(tls=True) as (near, transport):
        with trio.CancelScope() as scope:
            scope.cancel()
            await transport.aclose(4503, "draining")
        with pytest.raises(trio.BrokenResourceError, match="without a TLS close_notify"):
            await near.receive_some()


async def test_messages_behind_our_close_are_dropped_until_the_peers() -> None:
    async with raw_peer() as (near, transport):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.aclose, 4503, "draining")
            assert await near.receive_some() == b"\x88\x0a" + (4503).to_bytes(2) + b"draining"
            await near.send_all(message(b"late") + ping(b"late") + b"\x88\x80\x00\x00\x00\x00")
            assert await near.receive_some() == b""


async def test_a_failed_writer_reports_the_close_that_the_peer_sent_before_it_left() -> None:
    async with raw_peer() as (near, transport):
        await near.send_all(message(b"last words"))
        assert isinstance(near, trio.StapledStream)
        await near.receive_stream.aclose()
        closed = await expect_closed(lambda: transport.send(b"x"))
        assert closed.code is None
        assert await transport.receive() == b"last words"


# Interoperability: the other end is a library that shares no code with trio-websocket.

Protocol = websockets.protocol.Protocol


# --- sending without a wait ---

LARGE = bytes(range(256)) * 4096


def clog(transport: Transport) -> int:
    """Begin messages of MESSAGE_BYTES_MAX until one is not all out; returns how many."""
    begun = 1
    while transport.send_nowait(LARGE):
        begun += 1
    return begun


def fill(stream: TLSStream) -> bytes:
    """Send frames of MESSAGE_BYTES_MAX by a stream until one is not all out; returns all of them."""
    frame = encode_binary(LARGE, masked=False)
    begun = 1
    while stream.send_nowait(frame):
        begun += 1
    return frame * begun


async def test_a_message_that_the_kernel_takes_is_sent_at_once() -> None:
    async with raw_peer(tls=True) as (near, transport):
        assert transport.send_nowait(b"hello")
        assert await receive_exactly(near, 7) == b"\x82\x05hello"


@pytest.mark.parametrize("reverse", [False, True])
async def test_an_unsent_part_is_finished_before_the_next_message(reverse: bool) -> None:
    async with websocket_pair(*await handshake(await tcp_pair())) as ends:
        source, sink = reversed(ends) if reverse else ends
        begun = clog(source)
        async with trio.open_nursery() as nursery:

            async def go_on() -> None:
                await source.finish()
                await source.send(b"next")

            nursery.start_soon(go_on)
            assert [await sink.receive() for _ in range(begun)] == [LARGE] * begun
            assert await sink.receive() == b"next"
        assert source.send_nowait(b"and again")
        assert await sink.receive() == b"and again"


async def test_a_stream_that_cannot_send_without_a_wait_has_all_of_it_finished() -> None:
    async with websocket_pair(*memory_stream_pair()) as (client, server):
        assert not client.send_nowait(b"one")
        await client.finish()
        await client.send(b"two")
        assert [await server.receive(), await server.receive()] == [b"one", b"two"]


async def test_a_ping_is_answered_behind_the_rest_of_a_message() -> None:
    async with raw_peer(tls=True) as (near, transport):
        begun = clog(transport)
        await near.send_all(ping(b"one") + ping(b"two") + message(b"x"))
        assert await transport.receive() == b"x"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.finish)
            expected = encode_binary(LARGE, masked=False) * begun + b"\x8a\x03two"
            assert await receive_exactly(near, len(expected)) == expected
        # The next one waits for no message again.
        await near.send_all(ping(b"three") + message(b"y"))
        assert await transport.receive() == b"y"
        assert await receive_exactly(near, 7) == b"\x8a\x05three"


async def test_a_message_that_needs_no_wait_takes_the_pong_along_that_is_owed() -> None:
    near, far = await handshake(await tcp_pair())
    async with near, accept_websocket(far, request_head=GOOD_REQUEST) as transport:
        await read_head(near)
        frames = fill(far)
        for payload in (b"one", b"two"):
            await near.send_all(ping(payload) + message(payload))
            assert await transport.receive() == payload
        expected = frames + b"\x8a\x03one\x82\x05hello\x8a\x03two"
        received: list[bytes] = []
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:

                async def hear() -> None:
                    received.append(await receive_exactly(near, len(expected)))

                nursery.start_soon(hear)
                while not far.send_nowait(b""):
                    await wait_all_tasks_blocked()
                assert transport.send_nowait(b"hello")
        assert received == [expected]
        await near.aclose()


async def test_a_message_goes_behind_a_pong_that_is_not_all_out() -> None:
    near, far = await handshake(await tcp_pair())
    async with near, accept_websocket(far, request_head=GOOD_REQUEST) as transport:
        await read_head(near)
        frames = fill(far)
        await near.send_all(ping(b"one") + message(b"x"))
        assert await transport.receive() == b"x"
        assert not transport.send_nowait(b"hello")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.finish)
            expected = frames + b"\x8a\x03one\x82\x05hello"
            assert await receive_exactly(near, len(expected)) == expected
        await near.aclose()


async def test_a_close_is_answered_behind_the_rest_of_a_message() -> None:
    async with raw_peer(tls=True) as (near, transport):
        begun = clog(transport)
        async with trio.open_nursery() as nursery:

            async def hear() -> None:
                assert (await expect_closed(transport.receive)).code == 4503

            nursery.start_soon(hear)
            await near.send_all(b"\x88\x82" + bytes(4) + (4503).to_bytes(2))
            with trio.fail_after(5):
                while transport._ending is None:  # type: ignore[attr-defined]
                    await wait_all_tasks_blocked()
            # The Close is on its way out, and waits for the peer.
            assert not transport.send_nowait(b"late")
            expected = encode_binary(LARGE, masked=False) * begun + b"\x88\x02" + (4503).to_bytes(2)
            assert await receive_exactly(near, len(expected)) == expected
        # The end is raised in `finish`, and in the next send.
        assert (await expect_closed(transport.finish)).code == 4503
        assert not transport.send_nowait(b"late")
        assert (await expect_closed(transport.finish)).code == 4503


async def test_a_connection_that_breaks_is_raised_in_finish() -> None:
    near, far = await tcp_pair()
    client, server = await handshake((near, far))
    async with client, accept_websocket(server, request_head=GOOD_REQUEST) as transport:
        await read_head(client)
        clog(transport)
        await trio.aclose_forcefully(client)
        assert (await expect_closed(transport.finish)).code is None
        assert not transport.send_nowait(b"late")
        assert (await expect_closed(transport.finish)).code is None


async def test_cancelling_finish_ends_the_transport(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with raw_peer(tls=True) as (_, transport):
        clog(transport)
        with trio.move_on_after(1) as scope:
            await transport.finish()
        assert scope.cancelled_caught
        closed = await expect_closed(lambda: transport.send(b"x"))
        assert closed.reason == "a send was cancelled"


async def flush(stream: trio.abc.Stream, protocol: Protocol) -> None:
    for data in protocol.data_to_send():
        if data:
            await stream.send_all(data)
        else:
            await stream.aclose()


async def next_events(stream: trio.abc.Stream, protocol: Protocol) -> list[websockets.protocol.Event]:
    while True:
        events = protocol.events_received()
        if events:
            return events
        data = await stream.receive_some()
        if data:
            protocol.receive_data(bytes(data))
        else:
            protocol.receive_eof()
        await flush(stream, protocol)
        if not data:
            return protocol.events_received()


async def echo(
    stream: trio.abc.Stream, protocol: Protocol, events: Sequence[websockets.protocol.Event] = ()
) -> None:
    """Send each message back, after `events`, until the other end closes."""
    while protocol.state is websockets.protocol.State.OPEN:
        for event in events or await next_events(stream, protocol):
            assert isinstance(event, websockets.frames.Frame)
            if event.opcode is websockets.frames.Opcode.BINARY:
                protocol.send_ping(b"are you there?")
                protocol.send_binary(bytes(event.data))
            elif event.opcode is websockets.frames.Opcode.PONG:
                assert bytes(event.data) == b"are you there?"
        events = ()
        await flush(stream, protocol)


async def exercise(transport: Transport) -> None:
    for payload in MESSAGES:
        await transport.send(payload)
        assert await transport.receive() == payload
    await transport.aclose(4403, "enough")


async def test_it_dials_the_websockets_library() -> None:
    near, far = await handshake(await tcp_pair())
    server = websockets.server.ServerProtocol(
        subprotocols=[websockets.typing.Subprotocol(SUBPROTOCOL)], max_size=MESSAGE_BYTES_MAX
    )

    async def serve() -> None:
        (request,) = await next_events(far, server)
        assert isinstance(request, websockets.http11.Request)
        assert request.path == "/v1/tunnel"
        assert request.headers["Authorization"] == "Bearer secret"
        server.send_response(server.accept(request))
        await flush(far, server)
        await echo(far, server)
        assert server.close_rcvd == websockets.frames.Close(4403, "enough")
        await far.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        headers = [(b"authorization", b"Bearer secret")]
        async with dial_websocket(near, host="hub.test", target="/v1/tunnel", headers=headers) as transport:
            await exercise(transport)


async def test_it_accepts_the_websockets_library() -> None:
    near, far = await handshake(await tcp_pair())
    client = websockets.client.ClientProtocol(
        websockets.uri.parse_uri("wss://hub.test/v1/tunnel"),
        subprotocols=[websockets.typing.Subprotocol(SUBPROTOCOL)],
        max_size=MESSAGE_BYTES_MAX,
    )

    async def dial() -> None:
        client.send_request(client.connect())
        await flush(near, client)
        response, *frames = await next_events(near, client)
        assert isinstance(response, websockets.http11.Response)
        assert response.status_code == 101
        await echo(near, client, frames)
        assert client.close_rcvd == websockets.frames.Close(4403, "enough")
        await near.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dial)
        async with accepted(far) as transport:
            await exercise(transport)


async def test_fragments_of_the_websockets_library_arrive_as_one_message() -> None:
    near, far = memory_stream_pair()
    client = websockets.client.ClientProtocol(
        websockets.uri.parse_uri("ws://hub.test/v1/tunnel"),
        subprotocols=[websockets.typing.Subprotocol(SUBPROTOCOL)],
    )
    client.send_request(client.connect())
    await flush(near, client)
    async with accepted(far) as transport:
        await next_events(near, client)
        client.send_binary(b"one ", fin=False)
        client.send_ping(b"between")
        client.send_continuation(b"two ", fin=False)
        client.send_continuation(b"three", fin=True)
        client.send_binary(b"whole")
        await flush(near, client)
        assert await transport.receive() == b"one two three"
        assert await transport.receive() == b"whole"
        await near.aclose()


async def echo_until_closed(connection: trio_websocket.WebSocketConnection) -> None:
    with suppress(trio_websocket.ConnectionClosed):
        while True:
            await connection.send_message(await connection.get_message())


async def test_it_dials_trio_websocket() -> None:
    near, far = memory_stream_pair()

    async def serve() -> None:
        async with trio.open_nursery() as inner:
            request = await trio_websocket.wrap_server_stream(inner, far)
            async with await request.accept(subprotocol=SUBPROTOCOL) as connection:
                await echo_until_closed(connection)
                assert connection.closed is not None
                assert (connection.closed.code, connection.closed.reason) == (4403, "enough")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        async with dialled(near) as transport:
            await exercise(transport)


async def test_it_accepts_trio_websocket() -> None:
    near, far = memory_stream_pair()

    async def dial() -> None:
        async with trio.open_nursery() as inner:
            # The annotation asks for a socket, the code for a stream.
            connection = await trio_websocket.wrap_client_stream(
                inner,
                near,  # type: ignore[arg-type]
                "hub.test",
                "/v1/tunnel",
                subprotocols=[SUBPROTOCOL],
            )
            await echo_until_closed(connection)
            await near.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dial)
        async with accepted(far) as transport:
            await exercise(transport)
