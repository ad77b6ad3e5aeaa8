from __future__ import annotations

import socket
import time
from collections.abc import Awaitable, Callable, Hashable
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from auth.key_rotation import ROTATIONS_MAX, issue_rotation
from auth.keys import SigningKey
from auth.principal import Principal
from proxy.exchange import inflight_memory
from proxy.exchange.client import ClientConnection
from proxy.exchange.parked_exchange import ParkedExchange
from proxy.exchange.wire import CONNECTION_BYTES
from proxy.kubernetes.statement import STATEMENT_TARGET, Statement
from proxy.listener import unauthenticated
from proxy.listener.unauthenticated import UnauthenticatedLimits
from proxy.message.failure import Failure, Processed, StreamCode
from proxy.message.head import RequestHead, ResponseHead
from proxy.message.relay_marks import FAILURE_HEADER
from proxy.relay import direct, pool
from proxy.relay.direct_call import DirectCall
from proxy.relay.service_account import ClusterAccess
from tests.proxy.exchange.clients import RawBytes
from tests.proxy.relay import ways
from tests.proxy.relay.apiserver import OK, Connection, headers, running
from tests.proxy.relay.ways import (
    HUB,
    KEY,
    PROBE,
    DirectWay,
    direct_way,
    exchange_raw,
    fresh,
    inner,
    inquiry,
    inquiry_request,
    token,
)
from tunnel import Memory
from tunnel.net.connect import TLSStream, tls_socket
from tunnel.net.fairness import fairness

MODEST = Principal(agent_id="0193-a2", name="modest", org="acme", teams=("sre",))
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
EXEC = inner(
    b"/api/v1/namespaces/dev/pods/p/exec?command=sh",
    (b"connection", b"Upgrade"),
    (b"upgrade", b"websocket"),
)


async def answer_ok(connection: Connection) -> None:
    while await connection.request():
        await connection.send(OK)


@pytest.mark.parametrize(
    "lines",
    [
        (),
        ((b"authorization", b""),),
        ((b"authorization", b"Basic YTpi"),),
        ((b"authorization", b"bearer x"),),
        ((b"authorization", b"Bearer x y"),),
        ((b"authorization", b"Bearer " + b"x" * 8193),),
        ((b"authorization", b"Bearer " + fresh().encode()), (b"authorization", b"Bearer x")),
        ((b"x-authorization", b"Bearer " + fresh().encode()),),
        ((b"cookie", b"token=" + fresh().encode()),),
    ],
)
async def test_without_exactly_one_bearer_token_there_is_a_marked_401_and_the_end(
    lines: tuple[tuple[bytes, bytes], ...], tmp_path: Path
) -> None:
    async with running(answer_ok, tmp_path) as server, direct_way(server.access, tmp_path) as way:
        request = b"".join(b"%s: %s\r\n" % line for line in lines)
        answer = await exchange_raw(way, b"GET /api HTTP/1.1\r\nHost: relay\r\n" + request + b"\r\n")
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert headers(answer, FAILURE_HEADER.decode())[0].startswith("6;0;")
        assert server.connections == []


@pytest.mark.parametrize(
    "raw",
    [
        b"GET api HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://evil/api HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /api HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /api HTTP/1.1\nHost: a\n\n",
        b"POST /api HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /api HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    ],
)
async def test_what_is_no_clear_request_is_refused_and_marked(raw: bytes, tmp_path: Path) -> None:
    async with running(answer_ok, tmp_path) as server, direct_way(server.access, tmp_path) as way:
        answer = await exchange_raw(way, raw)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert headers(answer, FAILURE_HEADER.decode())[0].startswith("16;0;")
        assert server.connections == []


async def test_trailers_of_a_request_are_dropped(tmp_path: Path) -> None:
    async def script(connection: Connection) -> None:
        while not connection.received.endswith(b"0\r\n\r\n"):
            await connection.more()
        await connection.send(OK)

    async with running(script, tmp_path) as server, direct_way(server.access, tmp_path) as way:
        raw = (
            b"POST /api/v1/namespaces/a/pods HTTP/1.1\r\nHost: relay\r\nTransfer-Encoding: chunked\r\n"
            b"Trailer: Impersonate-User\r\nConnection: close\r\n"
            b"Authorization: Bearer " + fresh().encode() + b"\r\n\r\n"
            b"3\r\nabc\r\n0\r\nImpersonate-User: system:admin\r\nX: y\r\n\r\n"
        )
        assert (await exchange_raw(way, raw)).startswith(b"HTTP/1.1 200 ")
        assert server.received.endswith(b"\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
        assert headers(server.received, "impersonate-user") == ["agent:probe"]


async def test_one_connection_of_the_hub_carries_many_requests(tmp_path: Path) -> None:
    async with running(answer_ok, tmp_path) as server, direct_way(server.access, tmp_path) as way:
        connection = ClientConnection(await way.connect())
        for _ in range(3):
            own = ((b"host", b"relay"), (b"authorization", b"Bearer " + fresh().encode()))
            await connection.send_request(RequestHead.of(b"GET", b"/api", own + inner().headers))
            head: ResponseHead = await connection.receive_head()
            assert head.status == 200
            assert await connection.receive_body() == b"ok"
            assert await connection.receive_body() == b""
            assert connection.end_exchange()
        assert len(server.connections) == 1
        assert b"eyJ" not in server.received  # no token of the hub went on
        await connection.aclose()


async def test_a_stranger_that_says_nothing_is_shown_out(tmp_path: Path, autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05  # real sockets: give them a moment
    async with running(answer_ok, tmp_path) as server, direct_way(server.access, tmp_path) as way:
        tcp = await trio.open_tcp_stream("127.0.0.1", way.port)
        started = trio.current_time()
        assert await tcp.receive_some() == b""
        assert trio.current_time() - started == pytest.approx(direct.HANDSHAKE_S, abs=1)
        await tcp.aclose()


@pytest.mark.parametrize(
    ("owner", "cap"),
    [(UnauthenticatedLimits, "per_network_max"), (direct, "PENDING_MAX")],
    ids=["place", "all"],
)
async def test_strangers_above_the_cap_make_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, cap: str
) -> None:
    monkeypatch.setattr(owner, cap, 2)
    async with running(answer_ok, tmp_path) as server, direct_way(server.access, tmp_path) as way:
        silent = [await way.connect() for _ in range(2)]
        with pytest.raises((OSError, trio.BrokenResourceError)):
            await way.connect()
        monkeypatch.setattr(unauthenticated, "UNHURRIED_S", 0.0)
        silent.append(await way.connect())
        assert (await way.ask(inner())).status == 200
        # The oldest, for the third of them and for the hub.
        for ended in silent[:2]:
            with pytest.raises(trio.BrokenResourceError):
                await ended.receive_some()
        for each in silent:
            await trio.aclose_forcefully(each)


async def test_connections_that_say_nothing_make_room_for_the_hub_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(UnauthenticatedLimits, "per_network_max", 2)
    async with running(answer_ok, tmp_path) as server, direct_way(server.access, tmp_path) as way:
        silent = [await trio.open_tcp_stream("127.0.0.1", way.port) for _ in range(3)]
        assert (await way.ask(inner())).status == 200
        # The first for the third of them, and the second for the hub.
        for ended in silent[:2]:
            assert await ended.receive_some() == b""
        for each in silent:
            await each.aclose()


async def test_the_hub_is_no_stranger_once_it_has_shown_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(UnauthenticatedLimits, "per_network_max", 1)
    release = trio.Event()
    arrived = trio.Event()

    async def script(connection: Connection) -> None:
        await connection.request()
        arrived.set()
        await release.wait()
        await connection.send(OK)

    async with running(script, tmp_path) as server, direct_way(server.access, tmp_path) as way:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(way.ask, inner())
                with trio.fail_after(2):
                    await arrived.wait()
                arrived = trio.Event()
            release.set()


async def test_the_hub_waits_for_its_turn_behind_nobody_else(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(running(answer_ok, tmp_path))
        way = await stack.enter_async_context(direct_way(server.access, tmp_path))
        nursery = await stack.enter_async_context(trio.open_nursery())
        stream = await way.connect()
        # Its handshake has ended at the relay as well.
        await trio.testing.wait_all_tasks_blocked(0.01)
        common = fairness()
        common._tasks_left = 0
        for _ in range(300):
            nursery.start_soon(common.wait)
        await stream.send_all(b"GET /api HTTP/1.1\r\nHost: relay\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked(0.01)
        common._waiting.unpark(2)
        with trio.fail_after(2):
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 401 ")
        await trio.aclose_forcefully(stream)
        nursery.cancel_scope.cancel()


async def test_a_stranger_has_the_relay_look_at_no_more_statements_than_a_hub_has(tmp_path: Path) -> None:
    """They come before the token that they are about, so nobody has proved anything yet."""
    new, stranger = SigningKey.generate(), SigningKey.generate()
    now = time.time()

    def statement(old: SigningKey) -> str:
        return issue_rotation(old, issuer=HUB, successor=new.public, now=now, retires_at=now + 120)

    async with running(answer_ok, tmp_path) as server, direct_way(server.access, tmp_path) as way:
        assert isinstance(way, DirectWay)
        way.announce(statement(KEY))
        for _ in range(ROTATIONS_MAX):
            way.announce(statement(stranger))
        failure = (await way.ask(inner(), token=token(key=new))).failure
        assert failure is not None
        assert failure.code is StreamCode.UNAUTHENTICATED
        # As many as a hub says are all read.
        del way.succession[-1]
        assert (await way.ask(inner(), token=token(key=new))).status == 200


async def test_a_token_of_a_tunnels_session_is_refused(tmp_path: Path) -> None:
    async with running(answer_ok, tmp_path) as server, direct_way(server.access, tmp_path) as way:
        answer = await way.ask(inner(), token=token().in_tunnel)
        assert answer.failure is not None
        assert (answer.failure.code, answer.failure.processed) == (StreamCode.UNAUTHENTICATED, Processed.NO)
        assert "for a tunnel's session, and this relay is in direct mode" in answer.failure.reason
        assert (await way.ask(inner())).status == 200


SPEW = bytes(64 * 1024)


@attrs.define(eq=False)
class Account(Memory):
    """Tells when a call holds more than its two connections."""

    charged: trio.Event = attrs.field(init=False, factory=trio.Event)

    def charge_outside(self, count: int) -> None:
        if count > 2 * CONNECTION_BYTES:
            self.charged.set()
        super().charge_outside(count)


@pytest.mark.parametrize(("many", "silent"), [(18, False), (28, True)], ids=["unread", "silent"])
async def test_when_memory_is_short_the_agent_whose_calls_hold_the_most_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, many: int, silent: bool
) -> None:
    monkeypatch.setattr(inflight_memory, "LOOK_S", 0.05)
    caplog.set_level("INFO", "hawse.relay")
    cut: list[str] = []
    cut_first = trio.Event()

    async def script(connection: Connection) -> None:
        head = await connection.request()
        (user,) = headers(head, "impersonate-user")
        if b"/exec" not in head:
            await connection.send(OK)
            return
        await connection.send(SWITCHING)
        with suppress(trio.BrokenResourceError):
            while await connection.more() if silent else True:
                await connection.send(SPEW)
        cut.append(user)
        cut_first.set()

    async def open_call(who: Principal) -> RawBytes:
        exchange = way.exchange(EXEC, token(principal=who), eof=False)
        client = await stack.enter_async_context(exchange)
        assert (await client.receive_head()).status == 101
        return client.upgraded()

    memory = Account(2 * 1024 * 1024)
    async with (
        running(script, tmp_path) as server,
        direct_way(server.access, tmp_path, memory=memory) as way,
        AsyncExitStack() as stack,
    ):
        paused = await open_call(MODEST)
        if not silent:
            with trio.fail_after(10):
                await memory.charged.wait()
        for _ in range(many):
            await open_call(PROBE)
        with trio.fail_after(10):
            await cut_first.wait()
            # The first cut may not have made enough room.
            while memory.full:
                await trio.testing.wait_all_tasks_blocked(inflight_memory.LOOK_S)
        assert set(cut) == {"agent:probe"}
        assert memory.short
        monkeypatch.setattr(direct, "MODEST_USERS_MAX", 2)
        refused = (await way.ask(inner())).failure
        assert refused is not None
        assert (refused.code, refused.reason) == (StreamCode.REFUSED, "memory is short")
        assert (await way.ask(inner(), token=token(principal=MODEST))).status == 200
        # What was paused goes on.
        if not silent:
            for _ in range(100):
                assert await paused.receive_some()
        assert set(cut) == {"agent:probe"}
    assert "/exec of agent:probe: overloaded, processed: maybe: the relay's memory is full" in caplog.text


async def test_what_an_api_server_does_not_take_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inflight_memory, "LOOK_S", 0.05)

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(SWITCHING)
        await trio.sleep_forever()

    memory = Account(2**30)
    async with (
        running(script, tmp_path) as server,
        direct_way(server.access, tmp_path, memory=memory) as way,
        way.upgrade(EXEC) as stream,
        trio.open_nursery() as nursery,
    ):

        async def spew() -> None:
            while True:
                await stream.send_all(SPEW)

        nursery.start_soon(spew)
        with trio.fail_after(10):
            await memory.charged.wait()
        nursery.cancel_scope.cancel()


async def test_a_revoked_call_that_has_failed_is_cut_although_its_last_bytes_are_queued(
    tmp_path: Path,
) -> None:
    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(SWITCHING)
        with suppress(trio.BrokenResourceError):
            while True:
                await connection.send(SPEW)

    async with running(script, tmp_path) as server, direct_way(server.access, tmp_path) as way:
        async with way.upgrade(EXEC):
            (call,) = way.underway
            assert isinstance(call, DirectCall)
            assert call._client is not None
            hub = tls_socket(call._client._tls)
            assert hub is not None
            with trio.fail_after(10):
                while not call._exchange.answer.full:
                    await trio.testing.wait_all_tasks_blocked(0.01)
                # The kernel takes more than it reports room for, unless its buffer shrinks.
                hub.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
                while not call._exchange.answer.full:
                    await trio.testing.wait_all_tasks_blocked(0.01)
            call._exchange.end(Failure(StreamCode.UPSTREAM_RESET, Processed.YES, "lost"), drop=False)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert list(way.underway) == [call]
            call.revoke(Failure(StreamCode.REVOKED, Processed.MAYBE, "denied"))
            await way.at_rest()


async def test_a_hub_that_has_left_during_one_attempt_is_gone_in_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dials = 0
    asked, left, dialling, given_up = trio.Event(), trio.Event(), trio.Event(), trio.Event()

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(OK)
        await connection.request()
        asked.set()
        await left.wait()

    async def dial(access: ClusterAccess) -> trio.abc.Stream:
        nonlocal dials
        dials += 1
        if dials > 1:
            dialling.set()
            try:
                await trio.sleep_forever()
            finally:
                given_up.set()
        return await pool.dial_tls(access)

    monkeypatch.setattr(ways, "open_pool", partial(pool.open_pool, dial=dial))
    async with running(script, tmp_path) as server, direct_way(server.access, tmp_path) as way:
        assert (await way.ask(inner())).status == 200
        stream = await way.connect()
        assert isinstance(stream, TLSStream)
        await stream.send_all(inquiry_request(token(), b"/api"))
        with trio.fail_after(5):
            await asked.wait()
            # It could still read its answer.
            await stream.send_close_notify()
            await trio.testing.wait_all_tasks_blocked(0.01)
            left.set()
            await dialling.wait()
            await given_up.wait()
        await trio.aclose_forcefully(stream)


async def test_a_call_that_is_revoked_between_two_attempts_has_no_second_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(OK)
        await connection.request()

    run = ParkedExchange.run

    async def run_and_revoke(
        parked: ParkedExchange, peer: Hashable, open_upstream: Callable[[], Awaitable[object]] | None
    ) -> Failure | None:
        failure = await run(parked, peer, open_upstream)
        # As while the task waits for its share of a pass.
        for call in way.underway:
            call.revoke(Failure(StreamCode.REVOKED, Processed.MAYBE, "denied"))
        return failure

    async with running(script, tmp_path) as server, direct_way(server.access, tmp_path) as way:
        assert (await way.ask(inner())).status == 200
        monkeypatch.setattr(ParkedExchange, "run", run_and_revoke)
        answer = await way.ask(inner())
        assert answer.failure is not None
        assert (answer.failure.code, answer.failure.processed) == (StreamCode.REVOKED, Processed.MAYBE)
        assert len(server.connections) == 1


@pytest.mark.parametrize("awaited", ["a connection", "an answer", "its end"])
async def test_the_end_of_the_service_cuts_what_is_open(
    awaited: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reached, left = trio.Event(), trio.Event()

    async def script(connection: Connection) -> None:
        await connection.request()
        if awaited == "its end":
            await connection.send(OK[:-1])
        reached.set()
        if not await connection.more():
            left.set()

    async def dial(access: ClusterAccess) -> trio.abc.Stream:
        if awaited != "a connection":
            return await pool.dial_tls(access)
        reached.set()
        try:
            await trio.sleep_forever()
        finally:
            left.set()
        raise AssertionError

    monkeypatch.setattr(ways, "open_pool", partial(pool.open_pool, dial=dial))
    with trio.fail_after(10):
        async with running(script, tmp_path) as server, trio.open_nursery() as nursery:
            async with direct_way(server.access, tmp_path) as way:
                # It outlives the relay.
                ask = way.ask
                nursery.start_soon(ask, inner())
                await reached.wait()
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert way.underway.count == 1
            await left.wait()
            assert way.underway.count == 0
    assert not caplog.records


async def test_what_the_relay_states_is_for_its_hub_alone(tmp_path: Path) -> None:
    statement = Statement("1a2b", api_server=True)
    async with (
        running(answer_ok, tmp_path) as server,
        direct_way(server.access, tmp_path, statement=lambda: statement) as way,
    ):
        assert (await exchange_raw(way, inquiry_request(inquiry()))).endswith(b"\r\n\r\ncluster=1a2b api=up")
        statement = Statement("1a2b", api_server=False)
        assert (await exchange_raw(way, inquiry_request(inquiry()))).endswith(
            b"\r\n\r\ncluster=1a2b api=down"
        )
        for bearer in (
            token(),
            inquiry("another"),
            inquiry(issuer="https://evil.example"),
            inquiry(age_s=600),
        ):
            answer = await exchange_raw(way, inquiry_request(bearer))
            assert answer.startswith(b"HTTP/1.1 401 ")
            assert b"1a2b" not in answer
        # Nor does an inquiry open anything else.
        for request in (
            inquiry_request(inquiry(), b"/api"),
            inquiry_request(inquiry(), STATEMENT_TARGET + b"?x=1"),
        ):
            assert (await exchange_raw(way, request)).startswith(b"HTTP/1.1 401 ")
        assert server.connections == []
