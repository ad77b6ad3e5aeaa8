from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from auth import tokens
from auth.keys import SigningKey
from proxy.message.failure import OutboundBroken, Processed, StreamCode
from proxy.message.head import RequestHead
from proxy.relay import tunnelled
from proxy.relay.config import CLOCK_BOUND_S
from proxy.relay.exchange import Upstream
from proxy.relay.pool import open_pool
from tests.proxy.exchange.clients import TunnelClient
from tests.proxy.relay.apiserver import OK, Connection, running
from tests.proxy.relay.ways import (
    CLUSTER_ID,
    HUB,
    KEY,
    NONCE,
    PROBE,
    hubs,
    inner,
    tell_time,
    token,
    tunnel_way,
)
from tests.tunnel.trio_stream import TrioStream
from tunnel import (
    Draining,
    Hello,
    Role,
    Session,
    SessionClosed,
    StreamReset,
    Welcome,
    memory_transport_pair,
    open_session,
)
from tunnel.dialing.backoff import SESSION_LIVED_S


async def answer_ok(connection: Connection) -> None:
    while await connection.request():
        await connection.send(OK)


async def hang(connection: Connection) -> None:
    while await connection.more():
        pass


# A time is signed in whole seconds.
BEHIND = "the hub's clock is 93[01] s behind this relay's, more than the 900 s"
AHEAD = "the hub's clock is 9(30|29) s ahead of this relay's, more than the 900 s"


def set_own_clock(monkeypatch: pytest.MonkeyPatch, ahead_s: float) -> None:
    """Set the relay's clock and leave the hub's alone, though both are in this process."""
    monkeypatch.setattr(tunnelled, "time", SimpleNamespace(time=lambda: time.time() + ahead_s))


@pytest.mark.parametrize("ahead_s", [-600, -90, 90, 600])
async def test_a_relay_whose_clock_is_wrong_goes_by_the_hubs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead_s: int
) -> None:
    set_own_clock(monkeypatch, ahead_s)
    async with running(answer_ok, tmp_path) as server, tunnel_way(server.access) as way:
        assert (await way.ask(inner())).status == 200
        # Its own clock is put right, or wrong in another way.
        set_own_clock(monkeypatch, -ahead_s)
        assert (await way.ask(inner())).status == 200


async def test_a_clock_that_differs_by_more_than_the_bound_ends_what_is_new_and_names_the_offset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(answer_ok, tmp_path) as server, tunnel_way(server.access) as way:
        stamped = token()
        assert (await way.ask(inner(), token=stamped)).status == 200
        # As of a machine that was suspended: the tokens of before are none of now.
        set_own_clock(monkeypatch, CLOCK_BOUND_S + 30)
        answer = await way.ask(inner(), token=stamped)
        assert answer.failure is not None
        assert answer.failure.code is StreamCode.UNAUTHENTICATED
        assert re.search(BEHIND, answer.failure.reason), answer.failure.reason
        set_own_clock(monkeypatch, 0)
        assert (await way.ask(inner(), token=stamped)).status == 200


@pytest.mark.parametrize("ahead_s", [-CLOCK_BOUND_S - 30, CLOCK_BOUND_S + 30])
async def test_a_session_is_refused_whose_hub_has_another_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead_s: int
) -> None:
    set_own_clock(monkeypatch, ahead_s)
    async with running(answer_ok, tmp_path) as server, tunnel_way(server.access) as way:
        with trio.fail_after(5):
            reason = await way.session.wait_closed()
        assert re.search(BEHIND if ahead_s > 0 else AHEAD, reason), reason
        assert "set the clock that is wrong" in reason


async def test_a_hub_that_signs_no_time_is_refused_and_is_to_be_upgraded(tmp_path: Path) -> None:
    """At its first token. Nothing of any request was processed, so the hub can try another relay."""
    async with running(answer_ok, tmp_path) as server, tunnel_way(server.access, timed=False) as way:
        for number in range(3):
            try:
                answer = await way.ask(inner())
            except Draining:
                assert number
                continue
            assert answer.failure is not None
            assert answer.failure.processed is Processed.NO
            assert answer.failure.code in (StreamCode.UNAUTHENTICATED, StreamCode.REFUSED)
            assert "upgrade the hub first" in answer.failure.reason or number
        with trio.fail_after(5):
            assert "upgrade the hub first" in await way.session.wait_closed()
        assert server.received == b""


async def test_a_hub_that_says_nothing_at_all_is_refused_before_the_dialer_takes_the_session_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tunnelled.FIRST_TIME_S < SESSION_LIVED_S
    monkeypatch.setattr(tunnelled, "FIRST_TIME_S", 0.2)
    async with running(answer_ok, tmp_path) as server, tunnel_way(server.access, timed=False) as way:
        with trio.fail_after(5):
            assert "upgrade the hub first" in await way.session.wait_closed()


async def test_a_time_that_was_held_up_is_not_taken_for_the_present(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnelled, "FIRST_TIME_S", 0.5)
    async with running(answer_ok, tmp_path) as server, tunnel_way(server.access, timed=False) as way:
        held_up = time.time()
        with trio.fail_after(5):
            await way.session.wait_closed()
        with pytest.raises(SessionClosed):
            tell_time(way.session, now=held_up)


async def test_a_session_is_trusted_once_the_hub_has_signed_its_time(tmp_path: Path) -> None:
    trusted = trio.Event()
    async with running(answer_ok, tmp_path) as server, open_pool(server.access) as pool:
        async with served(Upstream(pool), timed=False, trusted=lambda _: trusted.set()) as (session, serving):
            tell_time(session, nonce="f" * 32)
            await trio.testing.wait_all_tasks_blocked()
            assert not trusted.is_set()
            serving.cancel()
        async with served(Upstream(pool), timed=False, trusted=lambda _: trusted.set()) as (session, serving):
            tell_time(session)
            with trio.fail_after(2):
                await trusted.wait()
            serving.cancel()


async def test_a_hub_whose_clock_is_set_ahead_tells_it_before_its_next_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(answer_ok, tmp_path) as server, tunnel_way(server.access) as way:
        assert (await way.ask(inner())).status == 200
        tell_time(way.session, now=time.time() + 600)
        assert (await way.ask(inner(), token=token(age_s=-600))).status == 200
        # For one hub the clock does not go back: what it minted before has expired.
        tell_time(way.session)
        answer = await way.ask(inner())
        assert answer.failure is not None
        assert "expired" in answer.failure.reason


UNBELIEVED: dict[str, dict[str, object]] = {
    "beyond the bound": {"now": 3600},
    "another key": {"key": SigningKey.generate()},
    "another session": {"nonce": "f" * 32},
    "another hub": {"hub": "hub-2"},
    "another issuer": {"issuer": "https://hub.example.evil"},
}


@pytest.mark.parametrize("kind", UNBELIEVED)
async def test_a_time_that_is_not_believed_changes_nothing_and_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    how: dict[str, Any] = {"now": 600, **UNBELIEVED[kind]}
    async with running(answer_ok, tmp_path) as server, tunnel_way(server.access) as way:
        tell_time(way.session, **{**how, "now": time.time() + how["now"]})
        assert (await way.ask(inner())).status == 200
    assert "the hub's time is not believed" in caplog.text


async def test_a_token_of_another_session_is_refused(tmp_path: Path) -> None:
    async with running(answer_ok, tmp_path) as server, tunnel_way(server.access) as way:
        of_another = tokens.issue_relay(
            KEY,
            issuer=HUB,
            cluster_id=CLUSTER_ID,
            principal=PROBE,
            session="s1",
            jti="j1",
            now=time.time(),
            nonce="f" * 32,
        )
        answer = await way.ask(inner(), token=of_another)
        assert answer.failure is not None
        assert (answer.failure.code, answer.failure.processed) == (StreamCode.UNAUTHENTICATED, Processed.NO)
        assert answer.failure.reason == "the token is for another session"
        # And one that is for none, as in direct mode.
        answer = await way.ask(inner(), token=str(token()))
        assert answer.failure is not None
        assert "upgrade the hub first" in answer.failure.reason
        assert server.received == b""


@pytest.mark.parametrize("head", [b"", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"GET  / HTTP/1.1\r\n\r\n"])
async def test_a_head_that_is_not_canonical_is_refused(head: bytes, tmp_path: Path) -> None:
    async with running(answer_ok, tmp_path) as server, tunnel_way(server.access) as way:
        context = way.session.add_context(1, token().in_tunnel.encode())
        async with TrioStream(way.session.open_stream(head, context=context, eof=True)) as stream:
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
async def served(
    upstream: Upstream,
    *,
    timed: bool = True,
    trusted: Callable[[tunnelled.ClockFault], None] = lambda _: None,
) -> AsyncIterator[tuple[Session, trio.CancelScope]]:
    """The hub's end of a session that a relay serves, and what ends the service."""
    at_hub, at_relay = memory_transport_pair()
    serving = trio.CancelScope()

    async def run_relay() -> None:
        async with open_session(at_relay, Role.DIALER, hello=Hello(nonce=NONCE)) as session:
            with serving:
                await tunnelled.serve_session(session, upstream, hubs=hubs(), trusted=trusted)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_relay)
        async with open_session(at_hub, Role.LISTENER, answer_hello=lambda _: Welcome()) as session:
            if timed:
                tell_time(session)
            yield session, serving


def asked(session: Session, head: RequestHead, *, eof: bool = True) -> TunnelClient:
    context = session.add_context(1, token().in_tunnel.encode())
    return TunnelClient(TrioStream(session.open_stream(head.encode(), context=context, eof=eof)))


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
            client = asked(session, inner(b"/api/v1/pods", *length, method=method), eof=not body)
            if body:
                await client.send_body(b"body")
                await client.end_body()
            with trio.fail_after(2):
                await begun.wait()
            assert upstream.underway.count == 1
            serving.cancel()
            with pytest.raises(OutboundBroken) as caught, trio.fail_after(2):
                await client.receive_head()
            await client.aclose()
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
                for client in (leaves, stays):
                    assert (await client.receive_head()).status == 200
                    assert await client.receive_body() == b"first"
                ends.cancel()
                with pytest.raises(OutboundBroken):
                    await leaves.receive_body()
                goes_on.set()
                assert await stays.receive_body() == b"second"
            for client in (leaves, stays):
                await client.aclose()


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
