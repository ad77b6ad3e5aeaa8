from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from proxy.exchange import OutboundBroken, Processed, StreamCode
from proxy.head import RequestHead
from proxy.relay import tunnelled
from proxy.relay.exchange import Upstream
from proxy.relay.pool import open_pool
from proxy.tunnelled import TunnelOutbound
from tests.proxy.relay.apiserver import OK, Connection, running
from tests.proxy.relay.ways import CLUSTER_ID, HUB, inner, token, trusting, tunnel_way
from tunnel import Hello, Role, Session, StreamReset, Welcome, memory_transport_pair, open_session


async def answer_ok(connection: Connection) -> None:
    while await connection.request():
        await connection.send(OK)


async def hang(connection: Connection) -> None:
    while await connection.more():
        pass


async def test_a_relay_whose_clock_is_wrong_goes_by_the_hubs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(answer_ok, tmp_path) as server, tunnel_way(server.access) as way:
        stamped = token()
        real, behind_s = time.time, 90
        monkeypatch.setattr("proxy.relay.tunnelled.time.time", lambda: real() - behind_s)
        with monkeypatch.context() as untold:
            untold.setattr(Session, "peer_wall_clock_s", None)
            answer = await way.ask(inner(), token=stamped)
            assert answer.failure is not None
            assert "in the future" in answer.failure.reason
        monkeypatch.setattr(Session, "peer_wall_clock_s", property(lambda _: real()))
        assert (await way.ask(inner(), token=stamped)).status == 200
        # Its own clock is put right, or wrong in another way.
        behind_s = -300
        assert (await way.ask(inner(), token=stamped)).status == 200


@pytest.mark.parametrize("set_by_s", [3600, -3600])
async def test_a_hub_whose_clock_was_set_is_refused_once_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_by_s: int
) -> None:
    async with running(answer_ok, tmp_path) as server, tunnel_way(server.access) as way:
        assert (await way.ask(inner(), token=token())).status == 200
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + set_by_s)
        stamped = token()
        answer = await way.ask(inner(), token=stamped)
        assert answer.failure is not None
        assert answer.failure.code is StreamCode.UNAUTHENTICATED
        assert (await way.ask(inner(), token=stamped)).status == 200


@pytest.mark.parametrize("head", [b"", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"GET  / HTTP/1.1\r\n\r\n"])
async def test_a_head_that_is_not_canonical_is_refused(head: bytes, tmp_path: Path) -> None:
    async with running(answer_ok, tmp_path) as server, tunnel_way(server.access) as way:
        context = way.session.add_context(1, token().encode())
        async with way.session.open_stream(head, context=context, eof=True) as stream:
            with pytest.raises(StreamReset) as caught:
                await stream.receive_head()
        assert (caught.value.code, caught.value.processed) == (StreamCode.PROTOCOL, Processed.NO)
        assert server.connections == []


async def test_the_end_of_the_session_ends_what_it_carried(tmp_path: Path) -> None:
    begun, ended = trio.Event(), trio.Event()

    async def script(connection: Connection) -> None:
        await connection.request()
        begun.set()
        await hang(connection)
        ended.set()

    async with running(script, tmp_path) as server:
        async with tunnel_way(server.access) as way, trio.open_nursery() as nursery:
            nursery.start_soon(way.ask, inner())
            with trio.fail_after(2):
                await begun.wait()
            nursery.cancel_scope.cancel()
        with trio.fail_after(2):
            await ended.wait()


@asynccontextmanager
async def served(upstream: Upstream) -> AsyncIterator[tuple[Session, trio.CancelScope]]:
    """The hub's end of a session that a relay serves, and what ends the service."""
    at_hub, at_relay = memory_transport_pair()
    serving = trio.CancelScope()

    async def run_relay() -> None:
        async with open_session(at_relay, Role.DIALER, hello=Hello()) as session:
            with serving:
                await tunnelled.serve_session(
                    session, upstream, hub_keys=trusting(), issuer=HUB, cluster_id=CLUSTER_ID
                )

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_relay)
        async with open_session(at_hub, Role.LISTENER, answer_hello=lambda _: Welcome()) as session:
            yield session, serving


def asked(session: Session, head: RequestHead, *, eof: bool = True) -> TunnelOutbound:
    context = session.add_context(1, token().encode())
    return TunnelOutbound(session.open_stream(head.encode(), context=context, eof=eof), head)


@pytest.mark.parametrize("method", [b"GET", b"POST"])
async def test_what_outlives_the_drain_is_told_so_and_is_no_clean_end(tmp_path: Path, method: bytes) -> None:
    begun = trio.Event()

    async def script(connection: Connection) -> None:
        await connection.request()
        begun.set()
        await hang(connection)

    # A body has a task that carries it, and what only asks has none.
    body = method == b"POST"
    length = ((b"content-length", b"4"),) if body else ()
    async with running(script, tmp_path) as server, open_pool(server.access) as pool:
        upstream = Upstream(pool)
        async with served(upstream) as (session, serving):
            outbound = asked(session, inner(b"/api/v1/pods", *length, method=method), eof=not body)
            if body:
                await outbound.send_body(b"body")
                await outbound.end_body()
            with trio.fail_after(2):
                await begun.wait()
            assert upstream.underway.count == 1
            serving.cancel()
            with pytest.raises(OutboundBroken) as caught, trio.fail_after(2):
                await outbound.receive_head()
            await outbound.aclose()
            assert caught.value.failure.code is StreamCode.DRAINING
            assert caught.value.failure.processed is Processed.MAYBE
            with trio.fail_after(2):
                assert await upstream.underway.wait_drained(2)


async def test_the_end_of_one_session_takes_no_answer_of_another_along(tmp_path: Path) -> None:
    goes_on = trio.Event()

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        await goes_on.wait()
        await connection.send(b"6\r\nsecond\r\n")
        await hang(connection)

    async with running(script, tmp_path) as server, open_pool(server.access) as pool:
        upstream = Upstream(pool)
        async with served(upstream) as (old, ends), served(upstream) as (new, _):
            leaves, stays = (asked(session, inner(b"/api/v1/pods?watch=1")) for session in (old, new))
            with trio.fail_after(2):
                for outbound in (leaves, stays):
                    assert (await outbound.receive_head()).status == 200
                    assert await outbound.receive_body() == b"first"
                ends.cancel()
                with pytest.raises(OutboundBroken):
                    await leaves.receive_body()
                goes_on.set()
                assert await stays.receive_body() == b"second"
            for outbound in (leaves, stays):
                await outbound.aclose()


async def test_a_hundred_requests_at_once_share_nothing_but_the_session(tmp_path: Path) -> None:
    async def echo_target(connection: Connection) -> None:
        while head := await connection.request():
            target = head.split(b" ")[1]
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(target), target))

    async with running(echo_target, tmp_path) as server, tunnel_way(server.access) as way:

        async def ask(number: int) -> None:
            target = b"/api/v1/namespaces/n%d/pods" % number
            assert (await way.ask(inner(target))).body == target

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(ask, number)
