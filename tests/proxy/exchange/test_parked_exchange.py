"""One exchange of ports that a task runs, over a real socket; the upstream is a fake."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from proxy.exchange.client_port import CUT_WITHIN_S, QUIET_S
from proxy.exchange.next_pass import NextPass
from proxy.exchange.parked_exchange import ExchangeFault, ParkedExchange
from proxy.exchange.server import ServerConnection
from proxy.message.failure import Failure, Processed, StreamCode
from proxy.message.head import ResponseHead
from tests.proxy.exchange.fake_ports import LOST, REVOKED, Upstream
from tests.proxy.exchange.legs import read_all, read_until
from tests.tunnel.stream_pairs import handshake, tcp_pair
from tunnel.net.readiness import Readiness
from tunnel.net.tls import TLSStream

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n"
UPGRADE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


@attrs.define(eq=False)
class Bench:
    client: TLSStream
    connection: ServerConnection
    upstream: Upstream = attrs.Factory(lambda: Upstream(drains_at_once=True))
    parked: ParkedExchange | None = None
    outcome: Failure | BaseException | None = None
    ran: trio.Event = attrs.Factory(trio.Event)
    """The exchange is over, and `outcome` its failure or what `run` has raised."""

    async def run(self, open_upstream: Callable[[], Awaitable[object]] | None = None) -> None:
        """Serve one request, as the task of its connection."""
        request = await self.connection.next_request()
        assert request is not None
        try:
            with self.connection.as_port(keep_body=True) as port:
                self.parked = ParkedExchange(self.connection, port, self.upstream, request)
                self.outcome = await self.parked.run("peer", open_upstream)
        except (ExchangeFault, ZeroDivisionError) as error:
            self.outcome = error
        self.ran.set()

    async def over(self) -> Failure | BaseException | None:
        with trio.fail_after(5):
            await self.ran.wait()
        return self.outcome


@asynccontextmanager
async def opened() -> AsyncIterator[tuple[Bench, trio.Nursery]]:
    near, far = await tcp_pair()
    far.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
    near.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    async with trio.open_nursery() as nursery:
        client, server = await handshake((near, far))
        readiness, passes = Readiness(), NextPass()
        nursery.start_soon(readiness.run)
        nursery.start_soon(passes.run)
        connection = ServerConnection(server, readiness=readiness, passes=passes)
        try:
            yield Bench(client, connection), nursery
        finally:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await connection.cut()
                await trio.aclose_forcefully(client)
            assert not readiness._watches


async def test_an_exchange_runs_to_its_end_and_the_next_request_follows() -> None:
    async with opened() as (bench, nursery):
        for _ in range(2):
            bench.ran = trio.Event()
            bench.upstream = Upstream(drains_at_once=True)
            await bench.client.send_all(POST + b"body")
            nursery.start_soon(bench.run)
            await wait_all_tasks_blocked()
            assert bytes(bench.upstream.out) == b"body"
            bench.upstream.say(b"yes", True, 200)
            assert await bench.over() is None
            assert (await read_until(bench.client, LAST_CHUNK)).endswith(b"\r\n\r\n3\r\nyes\r\n" + LAST_CHUNK)


async def test_the_memory_of_a_connection_has_the_body_that_is_kept_for_another_attempt() -> None:
    async with opened() as (bench, nursery):
        await bench.client.send_all(POST)
        nursery.start_soon(bench.run)
        await wait_all_tasks_blocked()
        held_bytes = bench.connection.held_bytes
        await bench.client.send_all(b"bod")
        await wait_all_tasks_blocked()
        assert bytes(bench.upstream.out) == b"bod"
        assert bench.connection.held_bytes == held_bytes + len(b"bod")


async def test_a_failure_before_the_head_leaves_the_answer_to_the_task() -> None:
    async with opened() as (bench, nursery):
        await bench.client.send_all(GET)
        nursery.start_soon(bench.run)
        await wait_all_tasks_blocked()
        bench.upstream.break_off(LOST)
        assert await bench.over() is LOST
        assert bench.parked is not None
        assert not bench.parked.by_client
        await bench.connection.answer(ResponseHead.of(503, b"", ((b"content-length", b"2"),)), b"no")
        assert (await read_until(bench.client, b"no")).startswith(b"HTTP/1.1 503 ")


async def test_a_failure_after_the_head_ends_the_run_once_the_client_has_the_queued_bytes() -> None:
    async with opened() as (bench, nursery):
        size = 4_000_000
        await bench.client.send_all(GET)
        nursery.start_soon(bench.run)
        await wait_all_tasks_blocked()
        bench.upstream.say(bytes(size), False, 200)
        bench.upstream.break_off(LOST)
        await wait_all_tasks_blocked(0.01)
        assert not bench.ran.is_set()
        data, clean = await read_all(bench.client)
        failure = await bench.over()
        assert isinstance(failure, Failure)
        assert (failure.code, failure.processed) == (StreamCode.UPSTREAM_RESET, Processed.YES)
        assert len(data) > size
        assert not clean


async def test_a_client_that_takes_no_bytes_does_not_hold_a_failed_run(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with opened() as (bench, nursery):
        await bench.client.send_all(GET)
        nursery.start_soon(bench.run)
        await wait_all_tasks_blocked(0.001)
        bench.upstream.say(bytes(4_000_000), False, 200)
        bench.upstream.break_off(LOST)
        await wait_all_tasks_blocked(0.001)
        mock_clock.jump(CUT_WITHIN_S - 1)
        await wait_all_tasks_blocked(0.001)
        assert not bench.ran.is_set()
        mock_clock.jump(1)
        await wait_all_tasks_blocked(0.001)
        assert bench.ran.is_set()


@pytest.mark.parametrize("rest", [(), (b"bo",), (b"bo", b"dy")], ids=["head", "part", "whole"])
async def test_a_client_that_leaves_ends_the_wait_for_the_upstream_and_nothing_is_sent(
    rest: tuple[bytes, ...],
) -> None:
    opening: list[str] = []

    async def open_upstream() -> None:
        opening.append("begun")
        try:
            await trio.sleep_forever()
        finally:
            opening.append("cancelled")

    async with opened() as (bench, nursery):
        await bench.client.send_all(POST if rest else GET)
        nursery.start_soon(bench.run, open_upstream)
        await wait_all_tasks_blocked()
        assert opening == ["begun"]
        for piece in rest:
            await bench.client.send_all(piece)
            await wait_all_tasks_blocked()
        await trio.aclose_forcefully(bench.client)
        failure = await bench.over()
        assert isinstance(failure, Failure)
        assert failure.code is StreamCode.CANCEL
        assert bench.parked is not None
        assert bench.parked.by_client
        assert opening == ["begun", "cancelled"]
        assert "resume" not in bench.upstream.calls


async def test_an_exchange_that_is_ended_during_the_wait_for_the_upstream_never_starts() -> None:
    async with opened() as (bench, nursery):
        await bench.client.send_all(GET)
        nursery.start_soon(bench.run, trio.sleep_forever)
        await wait_all_tasks_blocked()
        assert bench.parked is not None
        bench.parked.exchange.end(REVOKED)
        assert await bench.over() is REVOKED
        assert not bench.parked.by_client
        assert "resume" not in bench.upstream.calls
        # The client had no part of an answer, so the task may give the reason.
        assert bench.connection.awaits_answer


async def test_an_error_of_the_upstreams_opening_is_raised_and_ends_the_exchange() -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    async with opened() as (bench, nursery):
        await bench.client.send_all(GET)
        nursery.start_soon(bench.run, fail)
        assert isinstance(await bench.over(), ZeroDivisionError)
        assert bench.parked is not None
        assert bench.parked.exchange.over
        assert bench.upstream.was_cut is not None


async def test_an_internal_fault_is_raised_where_the_task_waits(caplog: pytest.LogCaptureFixture) -> None:
    async with opened() as (bench, nursery):
        bench.upstream.raises_in = "write"
        await bench.client.send_all(POST)
        nursery.start_soon(bench.run)
        await wait_all_tasks_blocked()
        await bench.client.send_all(b"body")
        assert isinstance(await bench.over(), ExchangeFault)
        assert "Bug: write" in caplog.text


async def test_a_raw_stream_has_a_bounded_time_once_one_side_has_ended(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with opened() as (bench, nursery):
        await bench.client.send_all(UPGRADE)
        nursery.start_soon(bench.run)
        await wait_all_tasks_blocked(0.001)
        bench.upstream.say(b"raw", False, 101)
        assert (await read_until(bench.client, b"raw")).startswith(b"HTTP/1.1 101 ")
        bench.upstream.say(b"", True)
        mock_clock.jump(QUIET_S)
        await wait_all_tasks_blocked(0.001)
        assert not bench.ran.is_set()
        mock_clock.jump(60)
        await wait_all_tasks_blocked(0.001)
        assert bench.ran.is_set()


@pytest.mark.parametrize("kind", ["answer", "raw"])
async def test_cancelled_in_any_pass_everything_closes_and_nothing_looks_whole(kind: str) -> None:
    whole = 0
    for steps in range(30):
        async with opened() as (bench, nursery):
            scope = trio.CancelScope()

            async def serve(bench: Bench = bench, scope: trio.CancelScope = scope) -> None:
                with scope:
                    try:
                        await bench.run()
                    finally:
                        await bench.connection.aclose()

            async def answer(bench: Bench = bench) -> None:
                # Pass by pass, so that each number of steps cancels at another point.
                for _ in range(1000):
                    await trio.lowlevel.checkpoint()
                    if bench.parked is not None and "resume" in bench.upstream.calls:
                        break
                await trio.lowlevel.checkpoint()
                bench.upstream.say(b"part", False, 101 if kind == "raw" else 200)
                for end in (False, True):
                    await trio.lowlevel.checkpoint()
                    bench.upstream.say(b"more", end)

            await bench.client.send_all(UPGRADE if kind == "raw" else GET)
            nursery.start_soon(serve)
            nursery.start_soon(answer)
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            scope.cancel()
            with trio.fail_after(5):
                data, clean = await read_all(bench.client)
            complete = data.endswith(b"partmoremore" if kind == "raw" else LAST_CHUNK)
            assert complete or not clean
            whole += complete
            if bench.parked is not None:
                assert bench.parked.exchange.over
    assert 3 < whole < 30
