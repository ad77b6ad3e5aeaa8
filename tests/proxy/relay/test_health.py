from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from proxy.relay import health
from proxy.relay.health import HealthServer
from tests.proxy.relay.health_probe import probe


@asynccontextmanager
async def serving(server: HealthServer) -> AsyncIterator[int]:
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(trio.serve_listeners, server.handle_connection, listeners)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def test_alive_means_that_the_loop_runs_and_ready_that_a_request_can_come_and_go_on() -> None:
    fault = "no hub"
    async with serving(HealthServer(lambda: fault, str)) as port:
        assert (await probe(port, "/healthz")).startswith(b"HTTP/1.1 200 ")
        refused = await probe(port, "/readyz?verbose")
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert refused.endswith(b"\r\n\r\nno hub\n")
        fault = ""
        assert (await probe(port, "/readyz")).startswith(b"HTTP/1.1 200 ")
        assert (await probe(port, "/readyz", "HEAD")).startswith(b"HTTP/1.1 200 ")


async def test_prometheus_gets_the_metrics_of_now() -> None:
    used = 1
    async with serving(HealthServer(str, lambda: f"used {used}\n")) as port:
        used = 2
        head, _, body = (await probe(port, "/metrics")).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b"\r\ncontent-type: text/plain; version=0.0.4\r\n" in head
        assert body == b"used 2\n"


@pytest.mark.parametrize(
    ("path", "method", "status"), [("/", "GET", 404), ("/healthz", "POST", 404), ("x", "GET", 400)]
)
async def test_it_answers_probes_and_nothing_else(path: str, method: str, status: int) -> None:
    async with serving(HealthServer(str, str)) as port:
        assert (await probe(port, path, method)).startswith(b"HTTP/1.1 %d " % status)


async def test_a_prober_that_stays_is_shown_out(autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05  # real sockets: give them a moment
    async with serving(HealthServer(str, str)) as port:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            assert await stream.receive_some() == b""
        assert trio.current_time() >= health.PROBE_DEADLINE_S


async def test_the_oldest_connection_is_closed_for_a_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "CONNECTIONS_MAX", 2)
    async with serving(HealthServer(str, str)) as port:
        held = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(2)]
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert (await probe(port, "/healthz")).startswith(b"HTTP/1.1 200 ")
        # The oldest one.
        assert await held[0].receive_some() == b""
        for stream in held:
            await stream.aclose()
