"""Requests that are served while the connection's task is parked, over real sockets and TLS."""

from __future__ import annotations

import gc
import logging
import math
import ssl
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from proxy.exchange.client_port import QUIET_S, ClientPort
from proxy.exchange.deadlines import IDLE_S, Deadlines
from proxy.exchange.engine import Exchange
from proxy.exchange.http_server import EARLY_BYTES_MAX
from proxy.exchange.next_pass import NextPass
from proxy.exchange.parked_connection import ParkedConnection
from proxy.exchange.server import HEAD_S, ServerConnection
from proxy.exchange.wire import CLIENT_BYTES_AT_ONCE
from proxy.message.failure import Failure, StreamCode
from proxy.message.head import LONG_HEAD_BYTES, RequestHead
from proxy.message.strict import BadRequest
from tests.proxy.exchange.fake_ports import LOST, Bug, Upstream
from tests.proxy.exchange.legs import swept
from tests.proxy.exchange.parking import (
    CHUNKED,
    GET,
    LAST_CHUNK,
    NOT_WHOLE,
    OTHER,
    POST,
    UPGRADE,
    Asked,
    Bench,
    ok,
    parking,
)
from tests.tunnel.passes import counted_passes
from tests.tunnel.stream_pairs import handshake, tcp_pair
from tunnel.net.fairness import TASKS_PER_PASS, fairness
from tunnel.net.readiness import Readiness
from tunnel.net.tls import TLSStream

# -- requests that are served while the task is parked -------------------------------------------------------


async def test_requests_are_served_while_the_task_is_parked() -> None:
    async with parking() as bench:
        for _ in range(3):
            asked = await bench.ask()
            assert asked.head.target == b"/one"
            asked.answer()
            assert (await bench.heard_answer()).endswith(b"\r\n\r\n3\r\nyes\r\n0\r\n\r\n")
            assert asked.complete
        assert bench.parked


@pytest.mark.parametrize("cut", [len(POST), len(POST) + 3, len(POST) + 8])
async def test_a_body_is_forwarded_that_follows_its_head_in_one_read_or_in_later_ones(cut: int) -> None:
    request = POST + b"12345678"
    async with parking() as bench:
        asked = await bench.ask(request[:cut])
        await wait_all_tasks_blocked(0.001)
        assert bytes(asked.upstream.out) == request[len(POST) : cut]
        for at in range(cut, len(request)):
            await bench.client.send_all(request[at : at + 1])
            await wait_all_tasks_blocked(0.001)
        assert bytes(asked.upstream.out) == b"12345678"
        assert asked.upstream.out_end
        asked.answer()
        await bench.heard_answer()
        assert asked.complete
        assert bench.parked
        await bench.ask()


async def test_a_body_is_forwarded_that_arrives_before_its_exchange() -> None:
    async with parking() as bench:
        bench.on_start = lambda _: None
        asked = await bench.ask(POST + b"1234")
        await bench.client.send_all(b"5678")
        await wait_all_tasks_blocked(0.001)
        asked.forward()
        assert bytes(asked.upstream.out) == b"12345678"
        assert asked.upstream.out_end
        asked.answer()
        await bench.heard_answer()
        assert bench.parked


async def test_a_client_that_expects_a_100_gets_it() -> None:
    async with parking() as bench:
        asked = await bench.ask(POST[:-2] + b"Expect: 100-continue\r\n\r\n")
        await bench.heard_answer(b"HTTP/1.1 100 \r\n\r\n")
        await bench.client.send_all(b"12345678")
        await wait_all_tasks_blocked(0.001)
        asked.answer()
        await bench.heard_answer()
        assert bench.parked


async def test_the_request_behind_a_body_wakes_the_task_after_the_answer() -> None:
    async with parking() as bench:
        asked = await bench.ask(POST + b"12345678" + OTHER)
        assert bytes(asked.upstream.out) == b"12345678"
        await wait_all_tasks_blocked(0.001)
        assert bench.parked
        asked.answer()
        head = await bench.came_back()
        assert isinstance(head, RequestHead)
        assert head.target == b"/two"
        assert bench.connection.take_begun() is None
        assert asked.complete


async def test_an_upgrade_is_served_to_its_end() -> None:
    async with parking() as bench:
        asked = await bench.ask(UPGRADE + b"early ")
        await wait_all_tasks_blocked(0.001)
        assert bytes(asked.upstream.out) == b""
        asked.upstream.say(b"", False, 101)
        await bench.client.send_all(b"frames")
        await wait_all_tasks_blocked(0.001)
        assert bytes(asked.upstream.out) == b"early frames"
        asked.upstream.say(b"back", True)
        await bench.heard_answer(b"back")
        assert await bench.client.receive_some() == b""
        assert bench.parked
        bench.client.send_close_notify_nowait()
        assert await bench.came_back() is None
        assert asked.complete


async def test_an_answer_that_the_client_is_slow_to_receive_completes_without_the_task() -> None:
    async with parking() as bench:
        asked = await bench.ask()
        asked.answer(bytes(2_000_000))
        await wait_all_tasks_blocked(0.001)
        assert not asked.complete
        await bench.heard_answer()
        await wait_all_tasks_blocked(0.001)
        assert asked.complete
        assert bench.parked
        # The watch for input continues.
        (await bench.ask(OTHER)).answer()
        await bench.heard_answer()


async def test_an_answer_that_is_complete_at_once_needs_no_task() -> None:
    def answered(asked: Asked) -> None:
        asked.answer()
        asked.forward()
        assert asked.complete

    async with parking() as bench:
        bench.on_start = answered
        for _ in range(3):
            await bench.ask()
            await bench.heard_answer()
            await bench.ask(POST + b"12345678")
            await bench.heard_answer()
        await wait_all_tasks_blocked(0.001)
        assert bench.parked


async def test_an_answer_that_is_complete_at_once_is_followed_by_the_next_request_of_the_same_read() -> None:
    def answered(asked: Asked) -> None:
        asked.answer()
        asked.forward()

    async with parking() as bench:
        bench.on_start = answered
        await bench.ask(GET + OTHER)
        head = await bench.came_back()
        assert isinstance(head, RequestHead)
        assert head.target == b"/two"
        assert bench.connection.take_begun() is None


async def test_an_early_answer_wakes_the_task_which_reads_the_rest_of_the_upload() -> None:
    async with parking() as bench:
        asked = await bench.ask(CHUNKED + b"3\r\nabc\r\n")
        asked.upstream.say(b"too large", True, 413)
        assert asked.complete
        data = await bench.heard_answer()
        assert b"\r\nConnection: close\r\n" in data
        # The task lingers: it reads, so that no reset overtakes the answer.
        for _ in range(10):
            await bench.client.send_all(b"1000\r\n" + bytes(4096) + b"\r\n")
            await wait_all_tasks_blocked(0.001)
        assert bench.parked
        await bench.client.send_all(LAST_CHUNK)
        assert await bench.came_back() is None
        assert await bench.client.receive_some() == b""


# -- requests that wake the task -----------------------------------------------------------------------------


async def test_a_request_that_is_not_begun_is_the_tasks() -> None:
    async with parking() as bench:
        bench.willing = False
        await bench.client.send_all(GET)
        head = await bench.came_back()
        assert isinstance(head, RequestHead)
        assert head.target == b"/one"
        assert bench.connection.take_begun() is None
        # It is answered, and after it the connection parks again.
        bench.willing = True
        await bench.connection.answer(ok(b"1"), b"1")
        await bench.heard(39)
        bench.park()
        (await bench.ask()).answer()
        await bench.heard_answer()
        assert bench.parked


@pytest.mark.parametrize("cut", range(1, len(GET)))
async def test_a_head_that_comes_in_parts_is_the_tasks(cut: int) -> None:
    async with parking() as bench:
        await bench.client.send_all(GET[:cut])
        await wait_all_tasks_blocked(0.001)
        assert bench.parked
        await bench.client.send_all(GET[cut:])
        head = await bench.came_back()
        assert isinstance(head, RequestHead)
        assert head.target == b"/one"


@pytest.mark.parametrize("cut", range(1, len(GET)))
async def test_a_first_head_that_comes_in_parts_is_the_tasks(cut: int) -> None:
    client, server = await handshake(await tcp_pair())
    readiness = Readiness()
    connection = ServerConnection(server, readiness=readiness, passes=NextPass())
    connection.serve_parked(server, lambda connection, head: None)

    async def send() -> None:
        await client.send_all(GET[:cut])
        await wait_all_tasks_blocked(0.001)
        await client.send_all(GET[cut:])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(readiness.run)
        nursery.start_soon(send)
        head = await connection.next_request()
        nursery.cancel_scope.cancel()
    await connection.cut()
    await trio.aclose_forcefully(client)
    assert head is not None
    assert head.target == b"/one"


async def test_a_head_that_takes_long_to_read_is_the_tasks() -> None:
    async with parking() as bench:
        await bench.client.send_all(NOT_WHOLE + b"A: %s\r\n\r\n" % (b"a" * LONG_HEAD_BYTES))
        assert isinstance(await bench.came_back(), RequestHead)
        assert bench.begun == []


async def test_some_of_the_tasks_that_are_handed_a_request_at_once_continue_in_a_pass() -> None:
    async with AsyncExitStack() as stack:
        benches = [await stack.enter_async_context(parking()) for _ in range(3 * TASKS_PER_PASS)]
        for bench in benches:
            await bench.ask()
        await wait_all_tasks_blocked()
        for bench in benches:
            bench.begun[0].upstream.break_off(LOST)
        before = 0
        while before < len(benches):
            await trio.lowlevel.checkpoint()
            after = sum(not bench.parked for bench in benches)
            # trio chooses when in a pass this task runs, so it sees parts of two passes.
            assert after - before <= 2 * TASKS_PER_PASS
            before = after


async def test_several_heads_at_once_are_answered_in_their_order() -> None:
    async with parking() as bench:
        asked = await bench.ask(GET + OTHER + GET)
        asked.answer()
        await bench.heard_answer()
        for target in (b"/two", b"/one"):
            head = await bench.came_back()
            assert isinstance(head, RequestHead)
            assert head.target == target
            await bench.connection.answer(ok(b"1"), b"1")
            bench.park()
        assert len(bench.begun) == 1


async def test_a_request_before_the_answer_waits_for_it() -> None:
    async with parking() as bench:
        asked = await bench.ask(GET)
        await bench.client.send_all(OTHER)
        await wait_all_tasks_blocked(0.001)
        assert bench.parked
        assert len(bench.begun) == 1
        asked.answer()
        head = await bench.came_back()
        assert isinstance(head, RequestHead)
        assert head.target == b"/two"


async def test_a_request_before_the_exchange_of_the_one_before_waits_for_its_answer() -> None:
    async with parking() as bench:
        bench.on_start = lambda _: None
        asked = await bench.ask(GET)
        await bench.client.send_all(OTHER)
        await wait_all_tasks_blocked(0.001)
        asked.forward()
        assert bench.parked
        asked.answer()
        head = await bench.came_back()
        assert isinstance(head, RequestHead)
        assert head.target == b"/two"


@pytest.mark.parametrize("forwarded", [True, False])
async def test_early_bytes_are_bounded(forwarded: bool) -> None:
    async with parking() as bench:
        if not forwarded:
            bench.on_start = lambda _: None
        await bench.ask(GET)
        with trio.move_on_after(0.2):
            for _ in range(200):
                await bench.client.send_all(bytes(16 * 1024))
        assert EARLY_BYTES_MAX <= len(bench.connection.http) <= EARLY_BYTES_MAX + 96 * 1024


@pytest.mark.parametrize("forwarded", [True, False])
async def test_other_tasks_run_while_tiny_records_are_read(
    monkeypatch: pytest.MonkeyPatch, forwarded: bool
) -> None:
    decrypt = TLSStream._decrypt_record

    def counting(stream: TLSStream, bytes_max: int) -> bytes:
        passes.note()
        return decrypt(stream, bytes_max)

    async with parking() as bench:
        if not forwarded:
            bench.on_start = lambda _: None
        await bench.ask()
        monkeypatch.setattr(TLSStream, "_decrypt_record", counting)
        for _ in range(3000):
            assert bench.client.send_nowait(b"x")
        with counted_passes() as passes:
            await wait_all_tasks_blocked(0.05)
        assert passes.noted.total() == 3000
        assert passes.most <= CLIENT_BYTES_AT_ONCE // 22


async def test_a_malformed_head_is_refused_by_the_task() -> None:
    async with parking() as bench:
        await bench.client.send_all(b"GET /one HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
        error = await bench.came_back()
        assert isinstance(error, BadRequest)
        assert error.status == 400
        await bench.connection.answer(ok(b"no"), b"no")
        assert await bench.connection.next_request() is None


async def test_the_task_continues_a_request_that_is_handed_over() -> None:
    async with parking() as bench:
        bench.on_start = lambda asked: asked.parked.hand_over()
        asked = await bench.ask()
        assert await bench.came_back() is asked.head
        assert bench.connection.take_begun() is asked
        assert bench.connection.take_begun() is None
        assert asked.ends == []
        await asked.carry_on()
        assert (await bench.heard_answer()).startswith(b"HTTP/1.1 502 ")
        bench.on_start = Asked.forward
        bench.park()
        (await bench.ask(OTHER)).answer()
        await bench.heard_answer()
        assert bench.parked


async def test_after_an_answer_that_closes_the_task_closes_the_connection() -> None:
    async with parking() as bench:
        asked = await bench.ask(NOT_WHOLE + b"Connection: close\r\n\r\n")
        asked.answer()
        assert await bench.came_back() is None
        assert b"\r\nConnection: close\r\n" in await bench.heard_answer()
        assert await bench.client.receive_some() == b""


# -- failures ------------------------------------------------------------------------------------------------


async def test_an_exchange_that_fails_before_its_head_is_handed_over() -> None:
    async with parking() as bench:
        asked = await bench.ask()
        asked.upstream.break_off(LOST)
        assert await bench.came_back() is asked.head
        assert bench.connection.take_begun() is asked
        assert asked.failure == LOST
        await asked.carry_on()
        assert (await bench.heard_answer()).startswith(b"HTTP/1.1 502 ")


async def test_an_exchange_that_fails_before_its_head_leaves_the_body_to_the_task() -> None:
    async with parking() as bench:
        asked = await bench.ask(POST + b"1234")
        asked.upstream.break_off(LOST)
        assert await bench.came_back() is asked.head
        assert bench.connection.take_begun() is asked
        await bench.client.send_all(b"5678")
        upstream = Upstream(drains_at_once=True)
        done: list[Failure | None] = []
        with bench.connection.as_port(begin=False) as port:
            assert port is not None
            assert port.whole
            port.rewind()
            Exchange(port, upstream, done.append).start()
            await wait_all_tasks_blocked(0.001)
            assert bytes(upstream.out) == b"12345678"
            upstream.say(b"yes", True, 200)
        assert done == [None]
        await bench.heard_answer()
        bench.park()
        await bench.ask()


async def test_an_exchange_that_fails_after_its_head_cuts_the_client_behind_the_queued_bytes() -> None:
    async with parking() as bench:
        asked = await bench.ask()
        asked.upstream.say(bytes(1_000_000), False, 200)
        asked.upstream.break_off(LOST)
        assert await bench.came_back() is asked.head
        assert bench.connection.take_begun() is asked
        # The socket is watched until the queued bytes are sent.
        assert bench.watched
        bench.nursery.start_soon(asked.carry_on)
        data = await bench.heard(1_000_000)
        with suppress(trio.BrokenResourceError), trio.fail_after(2):
            while True:
                data += await bench.client.receive_some()
        assert data.count(b"\0") == 1_000_000
        assert not data.endswith(LAST_CHUNK)
        await wait_all_tasks_blocked(0.001)
        assert not bench.watched
        assert await bench.connection.next_request() is None


async def test_a_client_that_is_cut_at_once_is_handed_over() -> None:
    async with parking() as bench:
        asked = await bench.ask()
        asked.upstream.say(b"part", False, 200)
        assert asked.exchange is not None
        asked.exchange.end(LOST)
        assert await bench.came_back() is asked.head
        assert bench.connection.take_begun() is asked
        assert not bench.watched
        assert await bench.connection.next_request() is None


async def test_a_fault_of_begin_is_raised_where_the_task_waits() -> None:
    async with parking() as bench:
        bench.fault = RuntimeError("a bug")
        await bench.client.send_all(GET)
        assert await bench.came_back() is bench.fault


async def test_a_fault_of_start_is_raised_where_the_task_waits() -> None:
    def fail(_: Asked) -> None:
        raise Bug

    async with parking() as bench:
        bench.on_start = fail
        asked = await bench.ask()
        assert isinstance(await bench.came_back(), Bug)
        assert asked.given_up


async def test_a_fault_that_is_handed_over_gives_the_request_up() -> None:
    async with parking() as bench:
        asked = await bench.ask()
        fault = RuntimeError("a bug")
        asked.parked.hand_over(fault)
        assert await bench.came_back() is fault
        assert asked.given_up


async def test_a_fault_is_raised_even_if_something_else_is_handed_over_after_it() -> None:
    async with parking() as bench:
        asked = await bench.ask()
        fault = RuntimeError("a bug")
        asked.parked.hand_over(fault)
        asked.parked.hand_over()
        assert await bench.came_back() is fault
        assert asked.given_up


# -- clients that leave --------------------------------------------------------------------------------------


async def test_a_client_that_leaves_before_its_answer_ends_the_exchange_at_once() -> None:
    async with parking() as bench:
        asked = await bench.ask()
        await trio.aclose_forcefully(bench.client)
        assert await bench.came_back() is asked.head
        assert asked.failure is not None
        assert asked.failure.code is StreamCode.CANCEL
        assert asked.upstream.was_cut is not None
        assert bench.connection.take_begun() is asked


async def test_a_request_whose_client_leaves_before_its_exchange_is_given_up() -> None:
    async with parking() as bench:
        bench.on_start = lambda _: None
        asked = await bench.ask()
        await trio.aclose_forcefully(bench.client)
        assert await bench.came_back() is None
        assert asked.ends == ["given up"]
        with pytest.raises(trio.ClosedResourceError):
            await bench.server.receive_some()


async def half_close(client: TLSStream) -> None:
    """Send close_notify without TCP's end."""
    with suppress(ssl.SSLError):
        client.ssl_object.unwrap()
    await client.transport_stream.send_all(client._outgoing.read())


@pytest.mark.parametrize("forwarded", [True, False])
async def test_a_client_that_has_half_closed_gets_its_answer(forwarded: bool) -> None:
    async with parking() as bench:
        if not forwarded:
            bench.on_start = lambda _: None
        asked = await bench.ask()
        await half_close(bench.client)
        await wait_all_tasks_blocked(0.001)
        assert bench.parked
        if not forwarded:
            asked.forward()
        asked.answer()
        await bench.heard_answer()
        assert asked.ends == ["complete"]
        assert await bench.came_back() is None


@pytest.mark.parametrize("forwarded", [True, False])
async def test_a_client_that_has_half_closed_is_gone_after_a_while(
    autojump_clock: MockClock, forwarded: bool
) -> None:
    async with parking() as bench:
        if not forwarded:
            bench.on_start = lambda _: None
        asked = await bench.ask()
        await half_close(bench.client)
        await wait_all_tasks_blocked(0.001)
        if not forwarded:
            asked.forward()
        await trio.sleep(QUIET_S * 1.1)
        assert asked.failure is not None
        assert asked.failure.code is StreamCode.CANCEL
        assert await bench.came_back() is asked.head


async def test_a_client_that_leaves_between_requests_ends_the_connection() -> None:
    async with parking() as bench:
        await bench.client.aclose()
        assert await bench.came_back() is None
        assert bench.begun == []


# -- cancellation and deadlines ------------------------------------------------------------------------------


@pytest.mark.parametrize("forwarded", [True, False])
async def test_a_cancelled_task_gives_the_request_up(forwarded: bool) -> None:
    async with parking() as bench:
        if not forwarded:
            bench.on_start = lambda _: None
        asked = await bench.ask()
        bench.scope.cancel()
        await wait_all_tasks_blocked()
        assert asked.ends == ["given up"]
        assert not bench.watched


async def test_a_request_that_is_begun_behind_a_cancellation_is_given_up() -> None:
    async with parking() as bench:
        parked = bench.connection.parked
        assert parked is not None
        await bench.client.send_all(GET)
        bench.scope.cancel()
        # The socket's callback comes before the task runs.
        parked.on_idle()
        (asked,) = bench.begun
        await wait_all_tasks_blocked()
        assert asked.ends == ["given up"]
        assert not bench.watched


async def test_a_request_whose_exchange_ends_while_its_task_waits_to_run_is_handed_over_once() -> None:
    async with parking() as bench:
        asked = await bench.ask()
        common = fairness()
        common._tasks_left = 0
        asked.upstream.break_off(LOST)
        await wait_all_tasks_blocked(0.001)
        assert bench.parked
        assert not bench.watched
        await bench.client.send_all(OTHER)
        await wait_all_tasks_blocked(0.001)
        common._waiting.unpark(1)
        assert await bench.came_back() is asked.head
        assert bench.connection.take_begun() is asked
        assert len(bench.begun) == 1


async def test_a_task_that_is_cancelled_while_it_waits_to_run_gives_the_request_up() -> None:
    async with parking() as bench:
        asked = await bench.ask()
        fairness()._tasks_left = 0
        asked.upstream.break_off(LOST)
        await wait_all_tasks_blocked(0.001)
        bench.scope.cancel()
        await wait_all_tasks_blocked(0.001)
        assert asked.ends == ["given up"]


async def test_an_end_that_arrives_with_the_request_ends_the_connection_after_the_answer() -> None:
    """The client keeps its socket open, so the kernel has nothing more to report."""
    async with parking() as bench:
        tls = bench.client
        tls._ssl.write(GET)
        tls._write_close_notify()
        await tls.transport_stream.send_all(tls._held)
        await wait_all_tasks_blocked(0.001)
        bench.begun[0].answer()
        assert await bench.came_back() is None


async def test_a_cancelled_task_leaves_no_watch_and_no_deadline(mock_clock: MockClock) -> None:
    async with swept() as deadlines, parking(deadlines) as bench:
        assert bench.connection.idle_until == IDLE_S
        bench.scope.cancel()
        await wait_all_tasks_blocked()
        assert bench.connection.idle_until == math.inf
        assert not bench.watched


async def test_the_first_head_has_its_own_deadline(mock_clock: MockClock) -> None:
    async with swept() as deadlines, trio.open_nursery() as nursery:
        client, server = await handshake(await tcp_pair())
        connection = ServerConnection(server, deadlines, readiness=Readiness(), passes=NextPass())
        connection.serve_parked(server, lambda connection, head: None)
        returned: list[RequestHead | None] = []

        async def wait() -> None:
            returned.append(await connection.next_request())

        nursery.start_soon(wait)
        await wait_all_tasks_blocked(0.001)
        mock_clock.jump(HEAD_S)
        await wait_all_tasks_blocked(0.001)
        assert returned == [None]
        await trio.aclose_forcefully(client)


async def test_a_connection_that_idles_for_too_long_is_closed(mock_clock: MockClock) -> None:
    async with swept() as deadlines, parking(deadlines) as bench:
        mock_clock.jump(IDLE_S - 1)
        await wait_all_tasks_blocked(0.001)
        assert bench.parked
        mock_clock.jump(1)
        assert await bench.came_back() is None
        assert deadlines.watched == 0


@pytest.mark.parametrize("forwarded", [True, False])
async def test_an_exchange_may_take_longer_than_a_connection_may_idle(
    mock_clock: MockClock, forwarded: bool
) -> None:
    async with swept() as deadlines, parking(deadlines) as bench:
        if not forwarded:
            bench.on_start = lambda _: None
        asked = await bench.ask()
        mock_clock.jump(3 * IDLE_S)
        await wait_all_tasks_blocked(0.001)
        assert bench.parked
        if not forwarded:
            asked.forward()
        asked.answer()
        mock_clock.jump(IDLE_S - 1)
        await wait_all_tasks_blocked(0.001)
        assert bench.parked
        mock_clock.jump(1)
        assert await bench.came_back() is None


async def test_a_request_that_waits_to_run_is_not_cut_as_an_idle_connection(
    autojump_clock: MockClock,
) -> None:
    deadlines = Deadlines()
    async with parking(deadlines) as bench:
        bench.nursery.start_soon(deadlines.run)
        bench.willing = False
        common = fairness()
        # For good: the budget is not renewed.
        common._tasks_left = 0
        await bench.client.send_all(GET)
        while not common._waiting._queues:
            await wait_all_tasks_blocked(0.001)
        bench.connection.end_idle()
        # A connection that is due is cut meanwhile.
        await trio.sleep(1)
        common._waiting.unpark(1)
        assert isinstance(await bench.came_back(), RequestHead)
        await bench.connection.answer(ok(b"x"), b"x")
        await bench.heard(1)


async def test_a_request_waits_to_run_behind_none_of_other_agents() -> None:
    async with parking() as bench:
        bench.willing = False
        common = fairness()
        common._tasks_left = 0
        for _ in range(300):
            bench.nursery.start_soon(common.wait)
        await wait_all_tasks_blocked()
        await bench.client.send_all(GET)
        await wait_all_tasks_blocked(0.01)
        assert bench.parked
        common._waiting.unpark(2)
        assert isinstance(await bench.came_back(), RequestHead)
        await bench.connection.answer(ok(b"x"), b"x")


# -- memory --------------------------------------------------------------------------------------------------


def alive() -> list[object]:
    kinds = (ServerConnection, ClientPort, ParkedConnection, Exchange)
    return [found for found in gc.get_objects() if type(found) in kinds]


async def answered(bench: Bench) -> None:
    for request in (GET, POST + b"12345678"):
        (await bench.ask(request)).answer()
        await bench.heard_answer()


async def failed(bench: Bench) -> None:
    asked = await bench.ask()
    asked.upstream.break_off(LOST)
    await bench.came_back()
    bench.connection.take_begun()
    await asked.carry_on()


async def cut(bench: Bench) -> None:
    asked = await bench.ask()
    asked.upstream.say(b"part", False, 200)
    asked.upstream.break_off(LOST)
    await bench.came_back()
    bench.connection.take_begun()


async def left(bench: Bench) -> None:
    await bench.ask()
    await trio.aclose_forcefully(bench.client)
    await bench.came_back()
    bench.connection.take_begun()


async def faulty(bench: Bench) -> None:
    asked = await bench.ask()
    asked.parked.hand_over(RuntimeError("a bug"))
    await bench.came_back()


async def cancelled(bench: Bench) -> None:
    await bench.ask()
    bench.scope.cancel()
    await wait_all_tasks_blocked()


@pytest.mark.parametrize("history", [answered, failed, cut, left, faulty, cancelled])
async def test_no_reference_cycle_keeps_a_closed_connection(
    history: Callable[[Bench], object], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    gc.collect()
    before = alive()
    gc.disable()
    try:
        async with parking() as bench:
            await history(bench)  # type: ignore[misc]
        # The benches of a test refer to one another.
        for asked in bench.begun:
            asked.upstream.inbox.clear()
            asked.exchange = None
        bench.begun.clear()
        del bench
        with suppress(UnboundLocalError):
            del asked
        await trio.lowlevel.checkpoint()
        known = {id(found) for found in before}
        assert [found for found in alive() if id(found) not in known] == []
    finally:
        gc.enable()
