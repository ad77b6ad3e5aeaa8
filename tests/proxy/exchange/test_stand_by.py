"""Requests that are served while the connection's task sleeps, over real sockets and TLS."""

from __future__ import annotations

import math
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from proxy.exchange.deadlines import IDLE_S, Deadlines
from proxy.exchange.http_connection import FramingFault
from proxy.exchange.http_server import EARLY_BYTES_MAX
from proxy.exchange.server import HEAD_S, ServerConnection
from proxy.exchange.stand_by import QUICK_ANSWER_BYTES_MAX, Begun
from proxy.exchange.wire import CLIENT_BYTES_AT_ONCE
from proxy.message.body import ChunkedBody
from proxy.message.failure import InboundBroken
from proxy.message.head import LONG_HEAD_BYTES, RequestHead, ResponseHead
from proxy.message.strict import BadRequest
from tests.proxy.exchange.legs import swept
from tests.tunnel.passes import counted_passes
from tests.tunnel.stream_pairs import handshake, tcp_pair
from tunnel.net.fairness import TASKS_PER_PASS, fairness
from tunnel.net.readiness import Readiness
from tunnel.net.tls import TLSStream

NOT_WHOLE = b"GET /one HTTP/1.1\r\nHost: a\r\n"
GET = NOT_WHOLE + b"\r\n"
OTHER = b"GET /two HTTP/1.1\r\nHost: a\r\n\r\n"


def ok(body: bytes) -> ResponseHead:
    return ResponseHead.of(200, b"OK", ((b"content-length", b"%d" % len(body)),))


@attrs.define(eq=False)
class Pending:
    """What was begun, and what became of it."""

    head: RequestHead
    given_up: bool = False
    peer: str = "relay"

    async def carry_on(self) -> None:
        """Whoever takes it answers by hand."""

    def give_up(self) -> None:
        self.given_up = True


@attrs.define(eq=False)
class Bench:
    client: TLSStream
    server: TLSStream
    connection: ServerConnection
    readiness: Readiness
    nursery: trio.Nursery
    willing: bool = True
    fault: Exception | None = None
    begun: list[Pending] = attrs.Factory(list)
    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)
    """Around the task, where only that is to be cancelled."""
    _news: trio.Event = attrs.Factory(trio.Event)
    _returned: list[object] = attrs.Factory(list)
    """What the task got out of `next_request`, and nobody has looked at."""

    def begin(self, connection: ServerConnection, head: RequestHead) -> Begun | None:
        assert connection is self.connection
        if self.fault is not None:
            raise self.fault
        if not self.willing:
            return None
        self.begun.append(Pending(head))
        self._news.set()
        return self.begun[-1]

    async def wait(self) -> None:
        """The task of the connection, for one request."""
        try:
            with trio.CancelScope() as self.scope:
                self._returned.append(await self.connection.next_request())
        except Exception as exc:
            self._returned.append(exc)
        self._news.set()

    def sleep(self) -> None:
        self.nursery.start_soon(self.wait)

    @property
    def asleep(self) -> bool:
        return not self._returned

    async def ask(self, data: bytes = GET) -> Pending:
        """Send a request, and see it begun."""
        begun = len(self.begun)
        await self.client.send_all(data)
        with trio.fail_after(2):
            while len(self.begun) == begun:
                await self._hear()
        return self.begun[-1]

    async def heard(self, size: int) -> bytes:
        data = b""
        with trio.fail_after(2):
            while len(data) < size:
                data += await self.client.receive_some()
        return data

    async def came_back(self) -> object:
        """What the task has to do, or with."""
        with trio.fail_after(2):
            while not self._returned:
                await self._hear()
        return self._returned.pop()

    async def _hear(self) -> None:
        await self._news.wait()
        self._news = trio.Event()


@asynccontextmanager
async def standing_by(deadlines: Deadlines | None = None) -> AsyncIterator[Bench]:
    """A connection whose first request was answered by its task, and that waits for the second one."""
    async with trio.open_nursery() as nursery:
        client, server = await handshake(await tcp_pair())
        readiness = Readiness()
        nursery.start_soon(readiness.run)
        connection = ServerConnection(server, deadlines)
        bench = Bench(client, server, connection, readiness, nursery)
        await client.send_all(b"GET /first HTTP/1.1\r\nHost: a\r\n\r\n")
        assert await connection.next_request() is not None
        await connection.answer(ok(b"1"), b"1")
        await bench.heard(1)
        connection.stand_by(server, readiness, bench.begin)
        bench.sleep()
        await wait_all_tasks_blocked()
        try:
            yield bench
        finally:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await connection.cut()
                await trio.aclose_forcefully(client)


async def test_requests_are_begun_and_answered_while_the_task_sleeps() -> None:
    async with standing_by() as bench:
        for _ in range(3):
            pending = await bench.ask()
            assert pending.head.target == b"/one"
            assert bench.connection.answer_nowait(ok(b"yes"), b"yes")
            assert (await bench.heard(39)).endswith(b"\r\n\r\nyes")
        assert bench.asleep
        assert not any(pending.given_up for pending in bench.begun)


async def test_what_nobody_could_begin_is_the_tasks() -> None:
    async with standing_by() as bench:
        bench.willing = False
        await bench.client.send_all(GET)
        head = await bench.came_back()
        assert isinstance(head, RequestHead)
        assert head.target == b"/one"
        assert bench.connection.take_begun() is None
        # It is answered, and after it the connection stands by again.
        bench.willing = True
        await bench.connection.answer(ok(b"1"), b"1")
        await bench.heard(39)
        bench.sleep()
        await bench.ask()
        assert bench.connection.answer_nowait(ok(b"2"), b"2")


@pytest.mark.parametrize(
    "head",
    [
        b"POST /one HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n",
        b"POST /one HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /one HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n",
    ],
)
async def test_a_body_or_an_upgrade_is_not_begun(head: bytes) -> None:
    async with standing_by() as bench:
        await bench.client.send_all(head)
        assert isinstance(await bench.came_back(), RequestHead)
        assert bench.begun == []


@pytest.mark.parametrize("cut", range(1, len(GET)))
async def test_a_head_that_comes_in_parts_is_the_tasks(cut: int) -> None:
    async with standing_by() as bench:
        await bench.client.send_all(GET[:cut])
        await wait_all_tasks_blocked(0.001)
        assert bench.asleep
        await bench.client.send_all(GET[cut:])
        head = await bench.came_back()
        assert isinstance(head, RequestHead)
        assert head.target == b"/one"


async def test_a_head_that_takes_long_to_read_is_the_tasks() -> None:
    async with standing_by() as bench:
        await bench.client.send_all(NOT_WHOLE + b"A: %s\r\n\r\n" % (b"a" * LONG_HEAD_BYTES))
        assert isinstance(await bench.came_back(), RequestHead)
        assert bench.begun == []


async def test_of_those_that_are_handed_over_at_once_some_go_on_in_a_pass() -> None:
    async with AsyncExitStack() as stack:
        benches = [await stack.enter_async_context(standing_by()) for _ in range(3 * TASKS_PER_PASS)]
        for bench in benches:
            await bench.ask()
        await wait_all_tasks_blocked()
        for bench in benches:
            bench.connection.hand_over()
        before = 0
        while before < len(benches):
            await trio.lowlevel.checkpoint()
            after = sum(not bench.asleep for bench in benches)
            # Where in a pass this task has its own turn is trio's choice, so that it sees parts of two.
            assert after - before <= 2 * TASKS_PER_PASS
            before = after


async def test_several_heads_at_once_are_answered_in_their_order() -> None:
    async with standing_by() as bench:
        await bench.client.send_all(GET + OTHER)
        for target in (b"/one", b"/two"):
            head = await bench.came_back()
            assert isinstance(head, RequestHead)
            assert head.target == target
            await bench.connection.answer(ok(b"1"), b"1")
            bench.sleep()
        assert bench.begun == []


async def test_what_comes_before_the_answer_waits_for_it() -> None:
    async with standing_by() as bench:
        await bench.ask(GET)
        await bench.client.send_all(OTHER)
        await wait_all_tasks_blocked(0.001)
        assert bench.asleep
        assert len(bench.begun) == 1
        assert bench.connection.answer_nowait(ok(b"yes"), b"yes")
        head = await bench.came_back()
        assert isinstance(head, RequestHead)
        assert head.target == b"/two"


async def test_early_bytes_are_bounded() -> None:
    async with standing_by() as bench:
        await bench.ask(GET)
        with trio.move_on_after(0.2):
            for _ in range(200):
                await bench.client.send_all(bytes(16 * 1024))
        assert EARLY_BYTES_MAX <= len(bench.connection.http) <= EARLY_BYTES_MAX + 96 * 1024


async def test_others_run_while_tiny_records_are_taken_in(monkeypatch: pytest.MonkeyPatch) -> None:
    decrypt = TLSStream._decrypt_record

    def counting(stream: TLSStream, bytes_max: int) -> bytes:
        passes.note()
        return decrypt(stream, bytes_max)

    async with standing_by() as bench:
        await bench.ask()
        monkeypatch.setattr(TLSStream, "_decrypt_record", counting)
        for _ in range(3000):
            assert bench.client.send_nowait(b"x")
        with counted_passes() as passes:
            await wait_all_tasks_blocked(0.05)
        assert passes.noted.total() == 3000
        assert passes.most <= CLIENT_BYTES_AT_ONCE // 22


async def test_a_malformed_head_is_refused_by_the_task() -> None:
    async with standing_by() as bench:
        await bench.client.send_all(b"GET /one HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
        error = await bench.came_back()
        assert isinstance(error, BadRequest)
        assert error.status == 400
        await bench.connection.answer(ok(b"no"), b"no")
        assert await bench.connection.next_request() is None


async def test_a_fault_is_raised_where_the_task_waits() -> None:
    async with standing_by() as bench:
        bench.fault = RuntimeError("a bug")
        await bench.client.send_all(GET)
        assert await bench.came_back() is bench.fault


async def test_a_client_that_leaves_before_its_answer_is_told_at_once() -> None:
    async with standing_by() as bench:
        await bench.ask()
        await trio.aclose_forcefully(bench.client)
        assert await bench.came_back() is None
        assert bench.begun[0].given_up
        with pytest.raises(trio.ClosedResourceError):
            await bench.server.receive_some()


async def test_a_client_that_has_said_all_gets_its_answer_from_the_task() -> None:
    async with standing_by() as bench:
        await bench.ask()
        with suppress(ssl.SSLError):
            bench.client.ssl_object.unwrap()
        await bench.client.transport_stream.send_all(bench.client._outgoing.read())
        assert await bench.came_back() is bench.begun[0].head
        assert bench.connection.take_begun() is bench.begun[0]
        assert not bench.begun[0].given_up
        await bench.connection.answer(ok(b"yes"), b"yes")
        assert (await bench.heard(39)).endswith(b"yes")


async def test_a_client_that_leaves_between_requests_ends_the_connection() -> None:
    async with standing_by() as bench:
        await bench.client.aclose()
        assert await bench.came_back() is None
        assert bench.begun == []


async def test_a_cancelled_task_gives_up_what_was_begun() -> None:
    async with standing_by() as bench:
        await bench.ask()
        bench.nursery.cancel_scope.cancel()
        await trio.lowlevel.cancel_shielded_checkpoint()
        with trio.CancelScope(shield=True):
            await wait_all_tasks_blocked()
        assert bench.begun[0].given_up


async def test_a_cancelled_task_leaves_no_watch_and_no_deadline(mock_clock: MockClock) -> None:
    async with swept() as deadlines, standing_by(deadlines) as bench:
        assert bench.connection.idle_until == IDLE_S
        bench.scope.cancel()
        await wait_all_tasks_blocked()
        assert bench.connection.idle_until == math.inf
        bench.readiness.watch(bench.server.transport_stream.socket.fileno(), lambda: None).end()  # type: ignore[attr-defined]


async def test_the_first_head_has_its_own_deadline(mock_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        client, server = await handshake(await tcp_pair())
        connection = ServerConnection(server)
        connection.stand_by(server, Readiness(), lambda connection, head: None)
        returned: list[RequestHead | None] = []

        async def wait() -> None:
            returned.append(await connection.next_request())

        nursery.start_soon(wait)
        await wait_all_tasks_blocked(0.001)
        mock_clock.jump(HEAD_S)
        await wait_all_tasks_blocked(0.001)
        assert returned == [None]
        await trio.aclose_forcefully(client)


async def test_the_task_goes_on_with_what_is_handed_to_it() -> None:
    async with standing_by() as bench:
        await bench.ask()
        bench.connection.hand_over()
        assert await bench.came_back() is bench.begun[0].head
        assert bench.connection.take_begun() is bench.begun[0]
        assert bench.connection.take_begun() is None
        assert not bench.begun[0].given_up
        await bench.connection.answer(ok(b"yes"), b"yes")
        assert (await bench.heard(39)).endswith(b"yes")


async def test_a_fault_that_is_handed_over_gives_up_what_was_begun() -> None:
    async with standing_by() as bench:
        await bench.ask()
        fault = RuntimeError("a bug")
        bench.connection.hand_over(fault)
        assert await bench.came_back() is fault
        assert bench.begun[0].given_up


async def test_a_fault_is_raised_although_something_else_is_handed_over_behind_it() -> None:
    async with standing_by() as bench:
        await bench.ask()
        fault = RuntimeError("a bug")
        bench.connection.hand_over(fault)
        bench.connection.hand_over()
        assert await bench.came_back() is fault
        assert bench.begun[0].given_up


async def test_after_an_answer_that_closes_the_task_closes_the_connection() -> None:
    async with standing_by() as bench:
        await bench.ask(NOT_WHOLE + b"Connection: close\r\n\r\n")
        assert bench.connection.answer_nowait(ok(b"yes"), b"yes")
        assert await bench.came_back() is None
        data = await bench.heard(39)
        assert b"\r\nConnection: close\r\n" in data
        assert await bench.client.receive_some() == b""


async def test_an_answer_that_the_client_is_slow_to_take_is_flushed_by_the_task() -> None:
    async with standing_by() as bench:
        body = bytes(QUICK_ANSWER_BYTES_MAX)
        sent = 0
        whole = True
        while whole:
            await bench.ask()
            whole = bench.connection.answer_nowait(ok(body), body)
            sent += 1
        bench.connection.hand_over()
        assert await bench.came_back() is bench.begun[-1].head
        bench.connection.take_begun()
        bench.nursery.start_soon(bench.connection.flush)
        await bench.heard(sent * len(body))
        await wait_all_tasks_blocked(0.001)
        bench.sleep()
        await bench.ask(OTHER)
        assert bench.connection.answer_nowait(ok(b"yes"), b"yes")


async def test_pieces_are_sent_without_a_wait_while_the_client_takes_them() -> None:
    async with standing_by() as bench:
        bench.willing = False
        await bench.client.send_all(GET)
        assert await bench.came_back() is not None
        connection = bench.connection
        await connection.send_head(ResponseHead.of(200))
        sent = b""
        piece = bytes(range(256)) * 256
        while connection.send_body_nowait(piece):
            sent += piece
        # Nothing overtakes the rest of it.
        assert not connection.send_body_nowait(b"next")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: connection.send_body(piece, end=True))
            body = ChunkedBody()
            data = await bench.heard(1)
            received = body.feed(data.partition(b"\r\n\r\n")[2])
            while not body.reached:
                received += body.feed(await bench.heard(1))
        assert received == sent + piece
        bench.sleep()
        await bench.client.send_all(OTHER)
        assert await bench.came_back() is not None


async def test_what_cannot_be_sent_without_a_wait_is_left_to_who_can_say_why() -> None:
    async with standing_by() as bench:
        bench.willing = False
        await bench.client.send_all(GET)
        await bench.came_back()
        await bench.connection.send_head(ok(b"four"))
        assert bench.connection.send_body_nowait(b"fo")
        bench.server.transport_stream.socket.shutdown(1)  # type: ignore[attr-defined]
        assert not bench.connection.send_body_nowait(b"ur")
        with pytest.raises(InboundBroken):
            await bench.connection.send_body(b"ur", end=True)


async def test_a_piece_beyond_the_answers_length_is_a_fault_and_not_sent() -> None:
    async with standing_by() as bench:
        bench.willing = False
        await bench.client.send_all(GET)
        await bench.came_back()
        await bench.connection.send_head(ok(b"four"))
        with pytest.raises(FramingFault):
            bench.connection.send_body_nowait(b"and more")
        await bench.connection.aclose()
        assert (await bench.heard(1)).endswith(b"\r\n\r\n")
        with pytest.raises(trio.BrokenResourceError):
            await bench.client.receive_some()


async def test_an_answer_to_a_client_that_is_gone_is_no_answer() -> None:
    async with standing_by() as bench:
        await bench.ask()
        bench.server.transport_stream.socket.shutdown(1)  # type: ignore[attr-defined]
        with pytest.raises(InboundBroken):
            bench.connection.answer_nowait(ok(b"yes"), b"yes")
        assert await bench.came_back() is None
        # Whoever answered knows it already.
        assert not bench.begun[0].given_up


async def test_a_connection_that_idles_for_too_long_is_closed(mock_clock: MockClock) -> None:
    async with swept() as deadlines, standing_by(deadlines) as bench:
        mock_clock.jump(IDLE_S - 1)
        await wait_all_tasks_blocked(0.001)
        assert bench.asleep
        mock_clock.jump(1)
        assert await bench.came_back() is None
        assert deadlines.watched == 0


async def test_an_exchange_may_take_longer_than_a_connection_may_idle(mock_clock: MockClock) -> None:
    async with swept() as deadlines, standing_by(deadlines) as bench:
        await bench.ask()
        mock_clock.jump(3 * IDLE_S)
        await wait_all_tasks_blocked(0.001)
        assert bench.asleep
        assert bench.connection.answer_nowait(ok(b"yes"), b"yes")
        mock_clock.jump(IDLE_S - 1)
        await wait_all_tasks_blocked(0.001)
        assert bench.asleep
        mock_clock.jump(1)
        assert await bench.came_back() is None


async def test_a_request_that_waits_for_its_turn_is_not_cut_as_an_idle_connection(
    autojump_clock: MockClock,
) -> None:
    deadlines = Deadlines()
    async with standing_by(deadlines) as bench:
        bench.nursery.start_soon(deadlines.run)
        bench.willing = False
        common = fairness()
        # For good: no pass is the next one.
        common._tasks_left = 0
        await bench.client.send_all(GET)
        while not common._waiting._queues:
            await wait_all_tasks_blocked(0.001)
        bench.connection.end_idle()
        # Whoever is due is cut meanwhile.
        await trio.sleep(1)
        common._waiting.unpark(1)
        assert isinstance(await bench.came_back(), RequestHead)
        await bench.connection.answer(ok(b"x"), b"x")
        await bench.heard(1)


async def test_a_request_waits_for_its_turn_behind_none_of_other_agents() -> None:
    async with standing_by() as bench:
        bench.willing = False
        bench.connection.peer = "agent"
        common = fairness()
        common._tasks_left = 0
        for _ in range(300):
            bench.nursery.start_soon(common.wait)
        await wait_all_tasks_blocked()
        await bench.client.send_all(GET)
        await wait_all_tasks_blocked(0.01)
        assert bench.asleep
        common._waiting.unpark(2)
        assert isinstance(await bench.came_back(), RequestHead)
        await bench.connection.answer(ok(b"x"), b"x")
