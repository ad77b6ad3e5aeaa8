"""Requests by the tunnel: what each comes to on a kept connection, without a task, and on a new one."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from proxy.exchange import engine, http_connection
from proxy.exchange.client import ClientConnection
from proxy.exchange.engine import Exchange
from proxy.exchange.http_client import INTERIM_MAX
from proxy.exchange.pool import Connections
from proxy.exchange.tunnel_port import TunnelPort
from proxy.exchange.upstream_port import UpstreamPort
from proxy.exchange.wire import CONNECTION_BYTES
from proxy.message.body import ChunkedBody
from proxy.message.failure import Failure, OutboundBroken, Processed, StreamCode
from proxy.message.head import HEAD_BYTES_MAX, LONG_HEAD_BYTES, RequestHead
from proxy.relay import tunnelled
from proxy.relay.exchange import Upstream
from proxy.relay.tunnel_call import TunnelCall
from tests.proxy.relay.apiserver import OK, Connection, Script, headers
from tests.proxy.relay.rig import Rig, rig
from tests.proxy.relay.ways import Answer, inner, token
from tests.tunnel.passes import counted_passes
from tests.tunnel.protocol.joined import frames_of
from tests.tunnel.trio_stream import TrioStream
from tunnel import StreamReset
from tunnel.net.fairness import fairness
from tunnel.net.tcp import TCPStream
from tunnel.net.tls import TLSStream
from tunnel.protocol.frames import FrameType
from tunnel.websocket.transport import MemoryTransport

TARGET = b"/api/v1/namespaces/a/pods"


def answering(*pieces: bytes, then_close: bool = False) -> Script:
    """Answers each request by these pieces, each of which is received before the next one is sent."""

    async def script(connection: Connection) -> None:
        while await connection.request():
            for piece in pieces:
                await connection.send(piece)
                await trio.testing.wait_all_tasks_blocked(0.005)
            if then_close:
                await connection.stream.aclose()
                return

    return script


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n"
CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
WHOLE = {
    "length": [HEAD + b"abcdef"],
    "no body": [b"HTTP/1.1 204 No Content\r\n\r\n"],
    "not modified": [b"HTTP/1.1 304 Not Modified\r\nContent-Length: 6\r\n\r\n"],
    "empty": [b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"],
    "chunks": [CHUNKS + b"3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n"],
    "behind a 100": [b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + b"abcdef"],
    "torn head": [HEAD[:9], HEAD[9:] + b"abcdef"],
    "a 100, and then": [b"HTTP/1.1 100 Continue\r\n\r\n", HEAD + b"abcdef"],
    "an error": [b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno"],
}
IN_PIECES = {
    "body later": [HEAD, b"abcdef"],
    "torn body": [HEAD + b"abc", b"def"],
    "chunks later": [CHUNKS, b"6\r\nabcdef\r\n", b"0\r\n\r\n"],
    "last chunk later": [CHUNKS + b"6\r\nabcdef\r\n", b"0\r\n\r\n"],
    "large": [b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300000],
}
BROKEN = {
    "malformed head": [b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nContent-Length: 6\r\n\r\nabcdef"],
    "no HTTP": [b"\x16\x03\x01"],
    "malformed chunk": [CHUNKS + b"6\r\nabcdefgh\r\n"],
    "malformed chunk behind good ones": [CHUNKS + b"6\r\nabcdef\r\nzz\r\n"],
    "a 101 that nobody asked for": [b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"],
    "100s without end": [b"HTTP/1.1 100 Continue\r\n\r\n" * (INTERIM_MAX + 1)],
}
BROKEN_LATER = {
    "malformed chunk": [CHUNKS + b"6\r\nabcdef\r\n", b"zz\r\n"],
    "malformed chunk, nothing before": [CHUNKS, b"zz\r\n"],
}
CLOSED = {
    "up to the end": [b"HTTP/1.1 200 OK\r\n\r\nabcdef"],
    "within the body": [HEAD + b"abc"],
    "within the chunks": [CHUNKS + b"6\r\nabc"],
    "asked to close": [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"],
}


def parameters(*tables: dict[str, list[bytes]]) -> list[object]:
    return [pytest.param(pieces, id=name) for table in tables for name, pieces in table.items()]


async def by_a_dial_and_without(
    script: Script, folder: Path, head: RequestHead | None = None, body: bytes = b""
) -> tuple[Answer, Answer, list[str]]:
    """The answer on a new connection, that on a kept one, and the tasks that the second took after all."""
    head = head or inner(TARGET)
    for name in ("dial", "kept"):
        (folder / name).mkdir()
    async with rig(script, folder / "dial") as relay:
        # What breaks on a kept connection would be asked again, so this one is a fresh one.
        await relay.warm()
        await relay.pool.connections.aclose()
        with trio.fail_after(5):
            expected = await relay.way.ask(head, body)
        assert len(relay.tasks.names) == 1
    async with rig(script, folder / "kept") as relay:
        await relay.warm()
        with trio.fail_after(5):
            answer = await relay.way.ask(head, body)
        assert len(relay.server.connections) == 1
        await relay.at_rest()
        return expected, answer, relay.tasks.names


@pytest.mark.parametrize("pieces", parameters(WHOLE, IN_PIECES))
async def test_an_answer_on_a_kept_connection_is_the_one_on_a_new_connection(
    pieces: Sequence[bytes], tmp_path: Path
) -> None:
    expected, answer, tasks = await by_a_dial_and_without(answering(*pieces), tmp_path)
    assert answer == expected
    assert answer.failure is None
    assert tasks == []


@pytest.mark.parametrize("pieces", parameters(BROKEN))
async def test_an_answer_that_is_broken_from_the_start_fails(pieces: Sequence[bytes], tmp_path: Path) -> None:
    expected, answer, tasks = await by_a_dial_and_without(answering(*pieces), tmp_path)
    assert answer == expected
    assert answer.failure is not None
    assert tasks == []


@pytest.mark.parametrize("pieces", parameters(BROKEN_LATER))
async def test_an_answer_that_breaks_behind_its_head_is_cut(pieces: Sequence[bytes], tmp_path: Path) -> None:
    expected, answer, tasks = await by_a_dial_and_without(answering(*pieces), tmp_path)
    assert answer == expected
    assert answer.failure is not None
    assert tasks == []


@pytest.mark.parametrize("pieces", parameters(CLOSED))
async def test_a_connection_that_ends_with_its_answer_comes_to_the_same(
    pieces: Sequence[bytes], tmp_path: Path
) -> None:
    script = answering(*pieces, then_close=True)
    expected, answer, tasks = await by_a_dial_and_without(script, tmp_path)
    assert answer == expected
    assert tasks == []


async def test_a_body_is_read_as_its_own_head_says_and_not_as_the_one_before_it(tmp_path: Path) -> None:
    body = b"6\r\nabcdef\r\n"

    async def script(connection: Connection) -> None:
        for head, last in (CHUNKS, b"0\r\n\r\n"), (b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n", b""):
            await connection.request()
            for piece in filter(None, (head, body, last)):
                await connection.send(piece)
                await trio.testing.wait_all_tasks_blocked(0.005)

    async with rig(script, tmp_path) as relay:
        await relay.warm()
        assert [(await relay.ask()).body for _ in range(2)] == [b"abcdef", body]
        assert relay.tasks.names == []
        assert len(relay.server.connections) == 1


async def test_the_first_request_on_a_connection_has_a_task_for_the_dial(tmp_path: Path) -> None:
    async with rig(answering(HEAD, b"abcdef"), tmp_path) as relay:
        await relay.warm()
        await relay.pool.connections.aclose()
        client = relay.way.open(inner(TARGET), token(), eof=True)
        assert (await client.receive_head()).status == 200
        assert len(relay.tasks.names) == 1
        assert relay.tasks.running == 0
        assert await client.receive_body() == b"abcdef"
        await client.aclose()


async def test_the_events_of_a_watch_pass_without_a_task(tmp_path: Path) -> None:
    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(CHUNKS)
        for event in events:
            await more.wait()
            await connection.send(b"%x\r\n%s\r\n" % (len(event), event))
        await connection.more()

    events = [b"first\n", b"second\n" * 100]
    more = trio.Event()
    # What other tests have left is not what is looked for below.
    gc.collect()
    async with rig(script, tmp_path) as relay:
        await relay.warm()
        client = relay.way.open(inner(TARGET + b"?watch=1"), token(), eof=True)
        with trio.fail_after(5):
            assert (await client.receive_head()).status == 200
            more.set()
            received = b""
            while len(received) < sum(map(len, events)):
                received += await client.receive_body()
        assert received == b"".join(events)
        assert relay.tasks.names == []
        (call,) = relay.upstream.underway
        assert call.moved_bytes >= len(received)
        # Nor is the relay's token held for as long as that.
        heads = [held for held in gc.get_objects() if type(held) is RequestHead]
        assert heads
        assert not any(b"authorization" in b"".join(head.own) for head in heads)
        # Nor the lines of the answer, for a next one.
        assert isinstance(call, TunnelCall)
        assert call._port.connection is not None
        known = call._port.connection.http._lines
        assert not known
        assert not known._noted
        await client.aclose()
        await relay.at_rest()


@pytest.mark.parametrize("with_head", [False, True])
async def test_what_is_more_than_a_piece_does_not_wait_for_what_comes_next(
    with_head: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_connection, "BODY_BYTES_MAX", 5)

    async def script(connection: Connection) -> None:
        await connection.request()
        chunk = b"%x\r\n%s\r\n" % (len(event), event)
        if with_head:
            await connection.send(CHUNKS + chunk)
        else:
            await connection.send(CHUNKS)
            await asked.wait()
            await connection.send(chunk)
        await connection.more()

    event, asked = b"an event in many pieces\n", trio.Event()
    async with rig(script, tmp_path) as relay:
        await relay.warm()
        client = relay.way.open(inner(TARGET + b"?watch=1"), token(), eof=True)
        with trio.fail_after(5):
            assert (await client.receive_head()).status == 200
            asked.set()
            received = b""
            while len(received) < len(event):
                received += await client.receive_body()
        assert received == event
        assert relay.tasks.names == []
        await client.aclose()
        await relay.at_rest()


@pytest.mark.parametrize("by_task", [True, False])
async def test_a_head_that_has_no_room_for_the_identity_is_refused_and_not_sent(
    by_task: bool, tmp_path: Path
) -> None:
    async with rig(answering(*WHOLE["length"]), tmp_path) as relay:
        await relay.warm()
        if by_task:
            await relay.pool.connections.aclose()
        filler = HEAD_BYTES_MAX - len(inner(TARGET, (b"accept", b"")).encode())
        answer = await relay.ask(TARGET, (b"accept", b"x" * filler))
        assert answer.head is None
        assert answer.failure is not None
        assert (answer.failure.code, answer.failure.processed) == (StreamCode.TOO_LARGE, Processed.NO)
        assert len(relay.tasks.names) == by_task
        await relay.at_rest()
        assert (await relay.ask()).body == b"abcdef"


@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_a_reader_who_stops_holds_the_server_up_and_loses_nothing(framing: str, tmp_path: Path) -> None:
    size = 30_000_000
    sent = 0

    async def script(connection: Connection) -> None:
        nonlocal sent
        await connection.request()
        if framing == "length":
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        else:
            await connection.send(CHUNKS)
        while sent < size:
            piece = b"%07d," % (sent // 8) * 1250
            await connection.send(piece if framing == "length" else b"2710\r\n%s\r\n" % piece)
            sent += len(piece)
        if framing == "chunks":
            await connection.send(b"0\r\n\r\n")

    async with rig(script, tmp_path) as relay:
        await relay.warm()
        client = relay.way.open(inner(TARGET), token(), eof=True)
        with trio.fail_after(30):
            await client.receive_head()
            await trio.testing.wait_all_tasks_blocked(0.05)
            # Windows, queues and socket buffers are full, and no more.
            held_up_at = sent
            assert held_up_at < size
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert sent == held_up_at
            received = bytearray()
            while data := await client.receive_body():
                received += data
        assert len(received) == size
        assert all(
            received[at : at + 8] == b"%07d," % (at // 8 // 1250 * 1250) for at in range(0, size, 10_000)
        )
        await client.aclose()
        assert relay.tasks.names == []
        await relay.at_rest()


async def test_an_answer_that_breaks_while_nobody_reads_is_cut_behind_what_came(tmp_path: Path) -> None:
    size = 3_000_000
    body = b"".join(b"%07d," % at for at in range(size // 8))

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (size + 1) + body)

    async with rig(script, tmp_path) as relay:
        await relay.warm()
        client = relay.way.open(inner(TARGET), token(), eof=True)
        await client.receive_head()
        await trio.testing.wait_all_tasks_blocked(0.05)
        received = bytearray()
        failure: Failure | None = None
        with trio.fail_after(5):
            while failure is None:
                try:
                    received += await client.receive_body()
                except OutboundBroken as broken:
                    failure = broken.failure
        assert received == body
        assert failure.code is StreamCode.UPSTREAM_RESET
        assert relay.tasks.names == []
        await client.aclose()
        await relay.at_rest()


def endless() -> tuple[Script, trio.Event]:
    """A server that answers without end, and the event that it was cut."""

    async def script(connection: Connection) -> None:
        try:
            await connection.request()
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
            while True:
                await connection.send(bytes(100_000))
        except trio.BrokenResourceError:
            cut.set()

    cut = trio.Event()
    return script, cut


async def test_a_client_that_leaves_while_the_server_is_held_up_ends_the_request(tmp_path: Path) -> None:
    script, cut = endless()
    async with rig(script, tmp_path) as relay:
        await relay.warm()
        client = relay.way.open(inner(TARGET), token(), eof=True)
        await client.receive_head()
        await trio.testing.wait_all_tasks_blocked(0.05)
        client.leave()
        with trio.fail_after(5):
            await cut.wait()
        await relay.at_rest()


async def test_a_client_that_leaves_just_as_there_is_room_again_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    script, cut = endless()
    late: list[Callable[[], None]] = []
    async with rig(script, tmp_path) as relay:
        await relay.warm()
        client = relay.way.open(inner(TARGET), token(), eof=True)
        await client.receive_head()
        await trio.testing.wait_all_tasks_blocked(0.05)
        (call,) = relay.upstream.underway
        assert isinstance(call, TunnelCall)
        monkeypatch.setattr(call.server.passes, "soon", lambda _, due: late.append(due))
        with trio.fail_after(5):
            while not late:
                await client.receive_body()
        client.leave()
        await trio.testing.wait_all_tasks_blocked(0.005)
        assert len(late) == 2
        for due in late:
            due()
        with trio.fail_after(5):
            await cut.wait()
        await relay.at_rest()
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_the_requests_and_identities_on_one_connection_stay_their_own(tmp_path: Path) -> None:
    async def echo(connection: Connection) -> None:
        while head := await connection.request():
            body = head.split(b" ")[1] + headers(head, "impersonate-user")[0].encode()
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    async with rig(echo, tmp_path) as relay:
        await relay.warm()
        for number in range(20):
            answer = await relay.ask(b"/api/v1/namespaces/n%d" % number)
            assert answer.body == b"/api/v1/namespaces/n%dagent:probe" % number
        assert relay.tasks.names == []
        assert len(relay.server.connections) == 1


PUT = inner(TARGET + b"/p", (b"content-length", b"4"), method=b"PUT")
CHUNKED = inner(TARGET + b"/p", (b"transfer-encoding", b"chunked"), method=b"PUT")


def reading(count: int, *answer: bytes) -> Script:
    """Answers a request once it has read so many bytes behind its head."""

    async def script(connection: Connection) -> None:
        while head := await connection.request():
            at = bytes(connection.received).rindex(head) + len(head)
            while len(connection.received) < at + count:
                if not await connection.more():
                    return
            for piece in answer:
                await connection.send(piece)

    return script


@pytest.mark.parametrize(
    ("head", "body", "sent"),
    [
        (inner(TARGET, method=b"DELETE"), b"", b""),
        (inner(TARGET, (b"content-length", b"0"), method=b"POST"), b"", b""),
        (PUT, b"body", b"body"),
        (CHUNKED, b"body", b"4\r\nbody\r\n0\r\n\r\n"),
    ],
    ids=["delete", "post", "put", "chunks"],
)
async def test_a_write_has_no_task_on_a_kept_connection(
    head: RequestHead, body: bytes, sent: bytes, tmp_path: Path
) -> None:
    expected, answer, tasks = await by_a_dial_and_without(reading(len(sent), OK), tmp_path, head, body)
    assert answer == expected
    assert answer.body == b"ok"
    assert tasks == []


async def test_a_small_write_leaves_in_one_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bytes] = []
    send_nowait = ClientConnection.send_nowait

    def noted(connection: ClientConnection, data: bytes) -> bool:
        sent.append(data)
        return send_nowait(connection, data)

    async with rig(reading(4, OK), tmp_path) as relay:
        await relay.warm()
        monkeypatch.setattr(ClientConnection, "send_nowait", noted)
        session = relay.way.session
        context = session.add_context(1, token().in_tunnel.encode())
        stream = TrioStream(session.open_stream(PUT.encode(), context=context))
        stream.send_nowait(b"body", eof=True)
        with trio.fail_after(5):
            assert (await stream.receive_head()).startswith(b"HTTP/1.1 200 ")
        assert len(sent) == 1
        assert sent[0].endswith(b"\r\n\r\nbody")
        assert relay.tasks.names == []
        stream.close_nowait()


@pytest.mark.parametrize("size", [200_000, 20_000_000])
@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_a_large_body_has_no_task_either_and_arrives_whole(
    size: int, framing: str, tmp_path: Path
) -> None:
    got = 0

    async def script(connection: Connection) -> None:
        nonlocal got
        await connection.request()
        rest = bytes(connection.received[connection._parsed :])
        if framing == "length":
            got = len(rest)
            while got < size:
                got += len(await connection.stream.receive_some(65536))
        else:
            body, tail = ChunkedBody(), rest
            while not body.reached:
                got += len(body.feed(tail))
                if not body.reached:
                    tail = bytes(await connection.stream.receive_some(65536))
        await connection.send(OK)

    length = (b"content-length", b"%d" % size) if framing == "length" else (b"transfer-encoding", b"chunked")
    async with rig(script, tmp_path) as relay:
        await relay.warm()
        with trio.fail_after(30):
            answer = await relay.way.ask(inner(TARGET, length, method=b"POST"), bytes(size))
        assert answer.body == b"ok"
        assert got == size
        assert relay.tasks.names == []


async def test_a_server_that_stops_reading_holds_the_upload_up(tmp_path: Path) -> None:
    size = 30_000_000
    goes_on = trio.Event()

    async def script(connection: Connection) -> None:
        await connection.request()
        got = len(connection.received) - connection._parsed
        await goes_on.wait()
        while got < size:
            got += len(await connection.stream.receive_some(65536))
        await connection.send(OK)

    async with rig(script, tmp_path) as relay:
        await relay.warm()
        head = inner(TARGET, (b"content-length", b"%d" % size), method=b"POST")
        client = relay.way.open(head, token(), eof=False)
        sent = 0
        with trio.move_on_after(0.5):
            while True:
                await client.send_body(bytes(50_000))
                sent += 50_000
        # Windows, queues and socket buffers are full, and no more.
        assert 0 < sent < size - 1_000_000
        (call,) = relay.upstream.underway
        # What the kernel does not take is counted for the call.
        assert CONNECTION_BYTES < call.held_bytes < CONNECTION_BYTES + 1_000_000
        goes_on.set()
        with trio.fail_after(30):
            while sent < size:
                piece = min(50_000, size - sent)
                await client.send_body(bytes(piece))
                sent += piece
            await client.end_body()
            assert (await client.receive_head()).status == 200
        await client.aclose()


async def test_an_early_answer_ends_the_upload_and_costs_the_connection(tmp_path: Path) -> None:
    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        while await connection.more():
            pass
        cut.set()

    cut = trio.Event()
    async with rig(script, tmp_path) as relay:
        await relay.warm()
        head = inner(TARGET, (b"content-length", b"1000000"), method=b"POST")
        client = relay.way.open(head, token(), eof=False)
        await client.send_body(b"first")
        with trio.fail_after(5):
            assert (await client.receive_head()).status == 413
            assert await client.receive_body() == b"no"
            await cut.wait()
            await relay.at_rest()
        assert relay.pool.connections.idle_count == 0
        await client.aclose()


@pytest.mark.parametrize("sent", [b"bod", b"body and more"])
async def test_a_body_of_another_length_than_its_head_says_is_refused(sent: bytes, tmp_path: Path) -> None:
    async with rig(reading(4, OK), tmp_path) as relay:
        await relay.warm()
        answer = await relay.way.ask(PUT, sent)
        assert answer.failure is not None
        assert answer.failure.code is StreamCode.PROTOCOL
        await relay.at_rest()
        assert relay.pool.connections.idle_count == 0


async def test_a_request_of_which_the_kernel_takes_a_part_is_sent_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def send_a_part(stream: TCPStream, data: bytes) -> int:
        monkeypatch.undo()
        return stream.send_nowait(data[:10])

    async with rig(answering(OK), tmp_path) as relay:
        await relay.warm()
        monkeypatch.setattr(TCPStream, "send_nowait", send_a_part)
        assert (await relay.ask()).body == b"ok"
        assert (await relay.ask()).body == b"ok"
        assert relay.tasks.names == []
        assert len(relay.server.connections) == 1


async def test_a_kept_connection_that_dies_under_the_request_is_replaced_once(tmp_path: Path) -> None:
    async def script(connection: Connection) -> None:
        while await connection.request():
            if connection.number == 0:
                return
            await connection.send(OK)

    async with rig(script, tmp_path) as relay:
        await relay.warm()
        assert (await relay.ask()).body == b"ok"
        assert relay.server.received.count(b"GET " + TARGET) == 2
        assert len(relay.server.connections) == 2


async def test_a_kept_connection_that_ends_is_dropped_at_once(tmp_path: Path) -> None:
    async def script(connection: Connection) -> None:
        if connection.number == 0:
            await end.wait()
        else:
            await answering(OK)(connection)

    end = trio.Event()
    async with rig(script, tmp_path) as relay:
        await relay.warm()
        end.set()
        with trio.fail_after(2):
            while relay.pool.connections.idle_count:
                await trio.testing.wait_all_tasks_blocked(0.005)
        assert (await relay.ask(method=b"DELETE")).body == b"ok"


async def test_what_comes_on_a_kept_connection_answers_no_later_request(tmp_path: Path) -> None:
    async def script(connection: Connection) -> None:
        if connection.number == 0:
            await unasked.wait()
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother")
            await connection.more()
        else:
            await answering(OK)(connection)

    unasked = trio.Event()
    async with rig(script, tmp_path) as relay:
        await relay.warm()
        unasked.set()
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert relay.pool.connections.idle_count == 0
        assert (await relay.ask()).body == b"ok"


async def test_what_came_a_moment_before_a_request_is_not_taken_for_its_answer(tmp_path: Path) -> None:
    """Before the watch of the kept connection has had its turn."""
    sockets: list[int] = []

    async def script(connection: Connection) -> None:
        assert isinstance(connection.stream, TLSStream)
        below = connection.stream.transport_stream
        assert isinstance(below, trio.SocketStream)
        sockets.append(below.socket.fileno())
        await answering(OK)(connection)

    async with rig(script, tmp_path) as relay:
        await relay.warm()
        os.write(sockets[0], b"unasked")
        assert relay.pool.connections.acquire_watched(pytest.fail) is None
        assert (await relay.ask()).body == b"ok"
        assert len(sockets) == 2


async def test_an_old_token_is_replaced_without_the_agent_noticing(tmp_path: Path) -> None:
    async def script(connection: Connection) -> None:
        while head := await connection.request():
            if headers(head, "authorization") == ["Bearer relay-token-2"]:
                await connection.send(OK)
            else:
                await connection.send(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno")

    async with rig(script, tmp_path) as relay:
        await relay.warm()
        relay.server.rotate_token("relay-token-2")
        assert (await relay.ask()).body == b"ok"


async def test_an_exchange_that_is_over_is_forgotten_at_once(tmp_path: Path) -> None:
    """One that held itself would wait for a garbage collection."""

    async def script(connection: Connection) -> None:
        while True:
            await connection.request()
            await connection.send(OK)

    of_a_call = TunnelCall | UpstreamPort | TunnelPort | Exchange
    async with rig(script, tmp_path) as relay:
        await relay.warm()
        gc.collect()
        gc.disable()
        # Those that earlier tests still hold.
        before = {id(thing) for thing in gc.get_objects() if isinstance(thing, of_a_call)}
        try:
            for _ in range(3):
                assert (await relay.ask()).status == 200
            await relay.at_rest()
            assert relay.tasks.names == []
            found = [thing for thing in gc.get_objects() if isinstance(thing, of_a_call)]
            assert not [thing for thing in found if id(thing) not in before]
        finally:
            gc.enable()


@pytest.mark.parametrize("kept", [True, False])
async def test_a_client_that_leaves_ends_the_request_upstream(kept: bool, tmp_path: Path) -> None:
    async def script(connection: Connection) -> None:
        await connection.request()
        asked.set()
        while await connection.more():
            pass
        ended.set()

    asked, ended = trio.Event(), trio.Event()
    async with rig(script, tmp_path) as relay:
        await relay.warm()
        if not kept:
            await relay.pool.connections.aclose()
            # It has ended the first one's script.
            await asked.wait()
            await ended.wait()
            asked, ended = trio.Event(), trio.Event()
        client = relay.way.open(inner(TARGET), token(), eof=True)
        with trio.fail_after(2):
            await asked.wait()
        await trio.testing.wait_all_tasks_blocked(0.005)
        assert relay.upstream.underway.count == 1
        assert len(relay.tasks.names) == (not kept)
        assert relay.tasks.running == 0
        client.leave()
        with trio.fail_after(2):
            await ended.wait()
            assert await relay.upstream.underway.wait_drained(5)


async def test_an_event_that_comes_before_a_clients_leaving_is_seen_to_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(CHUNKS)
        await left.wait()
        await connection.send(b"6\r\nabcdef\r\n")
        while await connection.more():
            pass
        ended.set()

    left, ended = trio.Event(), trio.Event()
    late: list[Callable[[], None]] = []
    async with rig(script, tmp_path) as relay:
        await relay.warm()
        client = relay.way.open(inner(TARGET + b"?watch=1"), token(), eof=True)
        assert (await client.receive_head()).status == 200
        (call,) = relay.upstream.underway
        assert isinstance(call, TunnelCall)
        monkeypatch.setattr(call.server.passes, "soon", lambda _, due: late.append(due))
        client.leave()
        await trio.testing.wait_all_tasks_blocked(0.005)
        assert len(late) == 1
        left.set()
        with trio.fail_after(2):
            await ended.wait()
        await relay.at_rest()
        late[0]()
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("how", ["drained", "closed"])
async def test_the_end_of_the_service_cuts_what_is_awaited(how: str, tmp_path: Path) -> None:
    async def script(connection: Connection) -> None:
        while await connection.more():
            pass
        ended.set()

    ended = trio.Event()
    async with rig(script, tmp_path) as relay:
        await relay.warm()
        context = relay.way.session.add_context(1, token().in_tunnel.encode())
        stream = TrioStream(relay.way.session.open_stream(inner(TARGET).encode(), context=context, eof=True))
        await trio.testing.wait_all_tasks_blocked(0.005)
        assert relay.tasks.names == []
        if how == "drained":
            relay.serving.cancel()
            with pytest.raises(StreamReset) as caught, trio.fail_after(2):
                await stream.receive_head()
            assert (caught.value.code, caught.value.processed) == (StreamCode.DRAINING, Processed.MAYBE)
        else:
            relay.way.session.abandon("lost")
        with trio.fail_after(2):
            await ended.wait()
            assert await relay.upstream.underway.wait_drained(5)


async def test_a_connection_that_comes_as_the_service_ends_carries_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acquired, left = trio.Event(), trio.Event()
    acquire, leave = Connections.acquire, tunnelled.SessionServer.leave

    async def acquire_and_wait(self: Connections, *, fresh: bool) -> tuple[ClientConnection, bool]:
        found = await acquire(self, fresh=fresh)
        acquired.set()
        with trio.CancelScope(shield=True):
            await left.wait()
        return found

    def leave_first(self: tunnelled.SessionServer) -> None:
        leave(self)
        left.set()

    async def script(connection: Connection) -> None:
        while await connection.more():
            pass
        cut.set()

    cut = trio.Event()
    async with rig(script, tmp_path) as relay:
        await relay.warm()
        await relay.pool.connections.aclose()
        monkeypatch.setattr(Connections, "acquire", acquire_and_wait)
        monkeypatch.setattr(tunnelled.SessionServer, "leave", leave_first)
        session = relay.way.session
        context = session.add_context(1, token().in_tunnel.encode())
        session.open_stream(inner(TARGET).encode(), context=context, eof=True)
        with trio.fail_after(5):
            await acquired.wait()
            session.abandon("lost")
            await cut.wait()
        await relay.at_rest()
        assert relay.server.received.count(b"GET " + TARGET) == 0


@pytest.mark.parametrize("first", ["client", "server"])
async def test_of_a_raw_stream_one_side_alone_goes_on_for_a_moment_only(
    first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SPLICE_DRAIN_S", 0.05)

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nraw"
        )
        if first == "server":
            assert isinstance(connection.stream, TLSStream)
            await connection.stream.send_close_notify()
        while await connection.more():
            pass
        left.set()

    left = trio.Event()
    head = inner(TARGET + b"/p/exec", (b"connection", b"Upgrade"), (b"upgrade", b"websocket"))
    async with rig(script, tmp_path) as relay:
        await relay.warm()
        with trio.fail_after(5):
            async with relay.way.upgrade(head) as stream:
                assert await stream.receive_some() == b"raw"
                if first == "client":
                    await stream.send_eof()
                    with pytest.raises(trio.BrokenResourceError):
                        await stream.receive_some()
                else:
                    assert await stream.receive_some() == b""
                await left.wait()
                await relay.at_rest()


BUGS = {
    "request": "relay.pool.relay_request_head",
    "sending": "exchange.client.ClientConnection.send_nowait",
    "answer": "exchange.tunnel_port.Stream.send_answer_nowait",
    "watching": "exchange.pool.Connections.watch",
}


@pytest.mark.parametrize("where", BUGS)
async def test_a_bug_in_one_reaches_no_other(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def raise_once(*args: object, **kwargs: object) -> object:
        monkeypatch.undo()
        raise ZeroDivisionError

    async with rig(answering(OK), tmp_path) as relay:
        await relay.warm()
        monkeypatch.setattr(f"proxy.{BUGS[where]}", raise_once)
        with caplog.at_level(logging.ERROR, "hawse.relay"):
            if where == "watching":
                # Only a new connection is not watched yet.
                await relay.pool.connections.aclose()
            answer = await relay.ask()
        assert answer.failure is not None
        assert answer.failure.code is StreamCode.INTERNAL
        assert "ZeroDivisionError" in caplog.text
        assert relay.upstream.underway.count == 0
        assert (await relay.ask()).body == b"ok"


async def test_an_answer_leaves_where_it_was_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bytes] = []
    send_nowait = MemoryTransport.send_nowait

    def note(transport: MemoryTransport, message: bytes) -> bool:
        sent.append(message)
        return send_nowait(transport, message)

    monkeypatch.setattr(MemoryTransport, "send_nowait", note)
    async with rig(answering(HEAD + b"abcdef"), tmp_path) as relay:
        await relay.warm()
        sent.clear()
        assert (await relay.ask()).failure is None
        # By no task of the session.
        kinds = [kind for message in sent for kind, *_ in frames_of(message)]
        assert [kind for kind in kinds if kind != FrameType.ACK] == [FrameType.HEAD, FrameType.DATA]


def long_heads(relay: Rig, count: int) -> list[TrioStream]:
    """Open streams with long heads, which come in one message."""
    session = relay.way.session
    context = session.add_context(1, token().in_tunnel.encode())
    head = inner(TARGET, (b"accept", b"a" * LONG_HEAD_BYTES)).encode()
    return [TrioStream(session.open_stream(head, context=context, eof=True)) for _ in range(count)]


async def test_of_long_heads_that_come_together_one_is_served_in_a_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = Upstream.prepare

    def noted(*arguments: Any) -> Any:
        passes.note()
        return prepare(*arguments)

    async with rig(answering(OK), tmp_path) as relay:
        await relay.warm()
        monkeypatch.setattr(Upstream, "prepare", noted)
        with counted_passes() as passes:
            for stream in long_heads(relay, 12):
                with trio.fail_after(5):
                    assert (await stream.receive_head()).startswith(b"HTTP/1.1 200 ")
        assert passes.noted.total() == 12
        assert passes.most == 1


@pytest.mark.parametrize("how", ["left", "ended", "ended as its turn comes"])
async def test_a_long_head_whose_stream_ends_before_its_turn_is_not_served(how: str, tmp_path: Path) -> None:
    asked = 0

    async def script(connection: Connection) -> None:
        nonlocal asked
        while await connection.request():
            asked += 1
            await connection.send(OK)

    async with rig(script, tmp_path) as relay:
        await relay.warm()
        common = fairness()
        common._alone = True
        (stream,) = long_heads(relay, 1)
        await trio.testing.wait_all_tasks_blocked(0.005)
        if how == "left":
            stream.reset(StreamCode.CANCEL)
        else:
            if how == "ended as its turn comes":
                common._wake_next()
            relay.serving.cancel()
            with pytest.raises(StreamReset) as caught, trio.fail_after(2):
                await stream.receive_head()
            assert caught.value.code is StreamCode.DRAINING
        await trio.testing.wait_all_tasks_blocked(0.005)
        common._wake_next()
        await trio.testing.wait_all_tasks_blocked(0.005)
        assert asked == 0
        assert relay.upstream.underway.count == 0
