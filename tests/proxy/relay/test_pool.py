"""The relay's connections to the API server, and the requests that it sends again, by both modes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import trio

from proxy.exchange import engine
from proxy.exchange.pool import IDLE_S, SWEEP_S, UNUSED_S
from proxy.exchange.upstream_port import UpstreamPort
from proxy.message.failure import Failure, Processed, StreamCode
from proxy.message.head import RequestHead
from proxy.message.rewrite import IdentityLines, RewriteError, identity_lines, relay_request_head
from proxy.relay.pool import OWN_TOKEN_REFUSED, open_pool
from tests.proxy.exchange.fake_ports import FakePort
from tests.proxy.relay.apiserver import OK, Connection, headers, running
from tests.proxy.relay.ways import Way, fresh, inner, open_way
from tunnel.net.connect import tls_socket

both_modes = pytest.mark.parametrize("mode", ["tunnel", "direct"])

UNAUTHORIZED = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno"


UPGRADE = inner(b"/exec", (b"connection", b"Upgrade"), (b"upgrade", b"SPDY/3.1"))
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n"
IDENTITY = identity_lines(((b"impersonate-user", b"agent:a"), (b"impersonate-group", b"agents")))


async def ask(way: Way, method: bytes = b"GET", target: bytes = b"/api") -> tuple[int, bytes]:
    answer = await way.ask(inner(target, method=method))
    assert answer.failure is None, answer.failure
    return answer.status, answer.body


async def failure_of(way: Way, head: RequestHead, body: bytes = b"") -> Failure:
    failure = (await way.ask(head, body)).failure
    assert failure is not None
    return failure


async def answer_ok(connection: Connection) -> None:
    while await connection.request():
        await connection.send(OK)


@both_modes
async def test_requests_follow_one_another_on_one_connection_under_the_relays_token(
    mode: str, tmp_path: Path
) -> None:
    async with running(answer_ok, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        assert await ask(way) == (200, b"ok")
        assert await ask(way, b"POST") == (200, b"ok")
        assert len(server.connections) == 1
        assert way.pool.connections.idle_count == 1
        assert headers(server.received, "authorization") == ["Bearer relay-token-1"] * 2


@both_modes
async def test_concurrent_requests_have_a_connection_each(mode: str, tmp_path: Path) -> None:
    async def slow(connection: Connection) -> None:
        while await connection.request():
            if len(server.connections) == 5:
                gate.set()
            await gate.wait()
            await connection.send(OK)

    gate = trio.Event()
    async with running(slow, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask, way)
        assert len(server.connections) == 5
        assert way.pool.connections.idle_count == 5


@both_modes
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n",
    ],
)
async def test_a_connection_that_is_not_clean_is_not_kept(mode: str, tmp_path: Path, answer: bytes) -> None:
    async def script(connection: Connection) -> None:
        while await connection.request():
            await connection.send(answer)

    async with running(script, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        assert await ask(way) == (200, b"ok")
        assert way.pool.connections.idle_count == 0
        assert await ask(way) == (200, b"ok")
        assert len(server.connections) == 2


@both_modes
async def test_an_answer_that_was_not_read_to_its_end_costs_its_connection(mode: str, tmp_path: Path) -> None:
    left = trio.Event()

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(OK[:-1])
        if not await connection.more():
            left.set()

    async with running(script, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        async with trio.open_nursery() as nursery:
            begun = trio.Event()
            nursery.start_soon(partial(way.ask, inner(), begun=begun))
            with trio.fail_after(5):
                await begun.wait()
            nursery.cancel_scope.cancel()
        with trio.fail_after(5):
            await left.wait()
        await way.at_rest()
        assert way.pool.connections.idle_count == 0


async def test_a_port_that_is_closed_leaves_no_watch_behind_on_its_descriptor(tmp_path: Path) -> None:
    """The kernel gives the next connection the same one."""

    async def hang(connection: Connection) -> None:
        while await connection.more():
            pass

    async with running(hang, tmp_path) as server, open_pool(server.access) as pool:
        numbers = set()
        for _ in range(3):
            port = UpstreamPort(
                pool.connections, relay_request_head(inner(), b"api", "token", IDENTITY), long=False
            )
            exchange = engine.Exchange(FakePort(), port, lambda _: None, bodiless=True)
            assert await port.dial()
            assert port.connection is not None
            numbers.add(tls_socket(port.connection.stream).fileno())  # type: ignore[union-attr]
            exchange.start()
            exchange.end(Failure(StreamCode.CANCEL, Processed.MAYBE, "left"))
            assert port.connection is None
            port.close()
        assert len(numbers) < 3


# C13 (CVE-2018-1002105)


@both_modes
@pytest.mark.parametrize("status", [b"404 Not Found", b"200 OK", b"101 Switching Protocols"])
async def test_a_connection_that_carried_an_upgrade_is_never_used_again(
    mode: str, tmp_path: Path, status: bytes
) -> None:
    async def script(connection: Connection) -> None:
        while head := await connection.request():
            if b"upgrade" not in head.lower():
                await connection.send(OK)
                continue
            if status.startswith(b"101"):
                await connection.send(SWITCHED)
            else:
                await connection.send(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")
            while await connection.more():
                pass

    async with running(script, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        # The upgrade takes the kept connection with it.
        assert await ask(way) == (200, b"ok")
        async with way.exchange(UPGRADE, fresh(), eof=False) as client:
            assert (await client.receive_head()).status == int(status[:3])
            assert b"upgrade" in server.connections[0].received.lower()
        await way.at_rest()
        assert (await ask(way, b"GET", b"/api/v1/secrets"))[0] == 200
        assert b"secrets" not in server.connections[0].received
        # It may have dialled by itself, beside the dial ahead.
        assert any(b"secrets" in connection.received for connection in server.connections[1:])


# The connection that is dialled ahead after an upgrade


async def serve_upgrades(connection: Connection) -> None:
    while head := await connection.request():
        if b"upgrade" not in head.lower():
            await connection.send(OK)
            continue
        await connection.send(SWITCHED)
        while await connection.more():
            pass


async def upgrade_once(way: Way) -> None:
    """Upgrade, and leave once nothing moves any more."""
    async with way.exchange(UPGRADE, fresh(), eof=False) as client:
        assert (await client.receive_head()).status == 101
        await trio.testing.wait_all_tasks_blocked(0.02)
    await way.at_rest()


@both_modes
async def test_each_upgrade_finds_the_connection_that_the_one_before_it_left(
    mode: str, tmp_path: Path
) -> None:
    async with (
        running(serve_upgrades, tmp_path) as server,
        open_way(mode, server.access, tmp_path) as way,
    ):
        for number in range(1, 4):
            await upgrade_once(way)
            # One is dialled ahead, and no more.
            assert len(server.connections) == number + 1
            assert way.pool.connections.idle_count == 1
            assert server.connections[number].received == b""
        assert await ask(way) == (200, b"ok")
        assert len(server.connections) == 4


@both_modes
async def test_no_connection_is_dialled_ahead_while_another_one_is_kept(mode: str, tmp_path: Path) -> None:
    async def script(connection: Connection) -> None:
        if len(server.connections) == 2:
            both.set()
        await both.wait()
        await serve_upgrades(connection)

    both = trio.Event()
    async with running(script, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, way)
            nursery.start_soon(ask, way)
        await upgrade_once(way)
        assert len(server.connections) == 2
        assert way.pool.connections.idle_count == 1


@both_modes
@pytest.mark.parametrize("how", ["closed", "unasked bytes"])
async def test_a_connection_dialled_ahead_is_dropped_when_the_server_speaks(
    mode: str, how: str, tmp_path: Path
) -> None:
    async def script(connection: Connection) -> None:
        if connection.number == 1:
            await late.wait()
            if how == "closed":
                return
            await connection.send(OK)
        await serve_upgrades(connection)

    late = trio.Event()
    async with running(script, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        await upgrade_once(way)
        assert way.pool.connections.idle_count == 1
        late.set()
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert way.pool.connections.idle_count == 0
        # It is not replaced before the next upgrade, which dials.
        assert len(server.connections) == 2
        await upgrade_once(way)
        assert len(server.connections) == 4


@both_modes
async def test_a_connection_dialled_ahead_is_closed_before_the_server_gives_it_up(
    mode: str, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    autojump_clock.autojump_threshold = 0.05  # real sockets: give them a moment
    async with (
        running(serve_upgrades, tmp_path) as server,
        open_way(mode, server.access, tmp_path) as way,
    ):
        await upgrade_once(way)
        await trio.sleep(UNUSED_S - 1)
        assert way.pool.connections.idle_count == 1
        await trio.sleep(2)
        assert way.pool.connections.acquire_watched(pytest.fail) is None
        await trio.sleep(SWEEP_S)
        assert way.pool.connections.idle_count == 0


# A kept connection that the API server gave up


async def close_after_one(connection: Connection) -> None:
    """The first connection ends, without a word, when its second request comes; later ones serve on."""
    await connection.request()
    await connection.send(OK)
    while await connection.request():
        if connection.number == 0:
            return
        await connection.send(OK)


@both_modes
async def test_a_get_that_met_a_dead_connection_is_sent_again_once(mode: str, tmp_path: Path) -> None:
    async with running(close_after_one, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        await ask(way)
        assert await ask(way, b"GET", b"/again") == (200, b"ok")
        assert len(server.connections) == 2
        assert server.received.count(b"GET /again ") == 2


@both_modes
async def test_a_request_that_cannot_be_sent_again_may_have_been_seen(mode: str, tmp_path: Path) -> None:
    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(OK)
        await connection.request()
        # The API server has read the request, and is gone.
        server.access.port = 1

    async with running(script, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        await ask(way)
        failure = await failure_of(way, inner())
        assert (failure.code, failure.processed) == (StreamCode.DIAL_FAILED, Processed.MAYBE)


@both_modes
@pytest.mark.parametrize(
    "head",
    [
        inner(b"/api", method=b"POST"),
        inner(b"/api", method=b"DELETE"),
        inner(b"/api", (b"content-length", b"2")),
        UPGRADE,
    ],
    ids=["post", "delete", "get-with-body", "upgrade"],
)
async def test_what_may_have_had_an_effect_is_not_sent_again(
    mode: str, tmp_path: Path, head: RequestHead
) -> None:
    async with running(close_after_one, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        await ask(way)
        failure = await failure_of(way, head, b"ab" if head.body_length else b"")
        assert (failure.code, failure.processed) == (StreamCode.UPSTREAM_RESET, Processed.MAYBE)
        assert len(server.connections) == 1


@both_modes
async def test_a_fresh_connection_that_dies_is_the_answer(mode: str, tmp_path: Path) -> None:
    async def script(connection: Connection) -> None:
        await connection.request()

    async with running(script, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        assert (await failure_of(way, inner())).code is StreamCode.UPSTREAM_RESET
        assert len(server.connections) == 1


@both_modes
async def test_a_connection_that_was_closed_while_idle_is_not_taken(mode: str, tmp_path: Path) -> None:
    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(OK)
        if connection.number == 0:
            await connection.stream.aclose()
            closed.set()
            return
        while await connection.request():
            await connection.send(OK)

    closed = trio.Event()
    async with running(script, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        await ask(way)
        await closed.wait()
        # Not even a POST is lost to it.
        assert await ask(way, b"POST") == (200, b"ok")
        assert len(server.connections) == 2


@both_modes
async def test_an_idle_connection_is_closed_after_a_minute(
    mode: str, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    autojump_clock.autojump_threshold = 0.05  # real sockets: give them a moment
    async with running(answer_ok, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        await ask(way)
        await trio.sleep(IDLE_S - 1)
        assert way.pool.connections.idle_count == 1
        await trio.sleep(SWEEP_S + 2)
        assert way.pool.connections.idle_count == 0


# The token


@both_modes
async def test_a_rotated_token_is_used_after_a_401_without_the_agent_noticing(
    mode: str, tmp_path: Path
) -> None:
    async def script(connection: Connection) -> None:
        while head := await connection.request():
            await connection.send(
                OK if headers(head, "authorization") == ["Bearer relay-token-2"] else UNAUTHORIZED
            )

    async with running(script, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        server.rotate_token("relay-token-2")
        assert await ask(way, b"DELETE") == (200, b"ok")
        assert headers(server.received, "authorization") == ["Bearer relay-token-1", "Bearer relay-token-2"]


@both_modes
async def test_each_request_that_was_under_way_with_the_old_token_gets_the_new_one(
    mode: str, tmp_path: Path
) -> None:
    waiting = 0

    async def script(connection: Connection) -> None:
        nonlocal waiting
        while head := await connection.request():
            if headers(head, "authorization") == ["Bearer relay-token-2"]:
                await connection.send(OK)
                continue
            waiting += 1
            if waiting == 2:
                server.rotate_token("relay-token-2")
                rotated.set()
            await rotated.wait()
            await connection.send(UNAUTHORIZED)

    rotated = trio.Event()
    answers = []

    async def ask_once() -> None:
        answers.append(await ask(way))

    async with running(script, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(ask_once)
        # The first one finds it on the disk, and the other one that it was found.
        assert answers == [(200, b"ok")] * 2


@both_modes
async def test_a_request_whose_body_was_streamed_is_not_sent_again_after_a_401(
    mode: str, tmp_path: Path
) -> None:
    async def script(connection: Connection) -> None:
        while await connection.request():
            await connection.send(UNAUTHORIZED)

    async with running(script, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        server.rotate_token("relay-token-2")
        head = inner(b"/api", (b"content-length", b"2"), method=b"POST")
        failure = await failure_of(way, head, b"ab")
        assert (failure.code, failure.processed) == (StreamCode.DIAL_FAILED, Processed.NO)
        assert len(server.connections) == 1
        # ... but the next one has the new token.
        assert server.access.token() == "relay-token-2"


@both_modes
async def test_a_401_with_no_newer_token_is_the_relays_own_fault_and_says_so(
    mode: str, tmp_path: Path
) -> None:
    rotating = False

    async def script(connection: Connection) -> None:
        while await connection.request():
            if rotating:
                server.rotate_token(f"relay-token-{len(server.connections)}")
            await connection.send(UNAUTHORIZED)

    async with running(script, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        assert await failure_of(way, inner()) == OWN_TOKEN_REFUSED
        # A second new token is not tried within one request either.
        rotating = True
        assert await failure_of(way, inner()) == OWN_TOKEN_REFUSED
        assert len(server.connections) == 3


@both_modes
async def test_the_relays_own_401s_are_logged_once_a_second(
    mode: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def script(connection: Connection) -> None:
        while await connection.request():
            await connection.send(UNAUTHORIZED)

    async with running(script, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        for _ in range(5):
            assert await failure_of(way, inner()) == OWN_TOKEN_REFUSED
    assert 1 <= len([record for record in caplog.records if "own token" in record.message]) < 5


@both_modes
async def test_a_401_of_a_backend_is_passed_on(mode: str, tmp_path: Path) -> None:
    async def script(connection: Connection) -> None:
        while await connection.request():
            await connection.send(UNAUTHORIZED)

    async with running(script, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        assert await ask(way, b"GET", b"/api/v1/nodes/n/proxy/") == (401, b"no")


# Dialling


@both_modes
async def test_an_api_server_with_another_certificate_gets_no_byte(mode: str, tmp_path: Path) -> None:
    async with running(answer_ok, tmp_path) as server:
        other = tmp_path / "other"
        other.mkdir()
        async with running(answer_ok, other) as second:
            access = server.access
            access.port = second.access.port
            async with open_way(mode, access, tmp_path) as way:
                failure = await failure_of(way, inner())
            assert (failure.code, failure.processed) == (StreamCode.DIAL_FAILED, Processed.NO)
            assert second.received == b""


@both_modes
async def test_a_refused_connection_says_that_nothing_was_processed(mode: str, tmp_path: Path) -> None:
    async with running(answer_ok, tmp_path) as server:
        pass
    async with open_way(mode, server.access, tmp_path) as way:
        failure = await failure_of(way, inner())
        assert failure.processed is Processed.NO
        assert "127.0.0.1" in failure.reason
        assert failure.reason.endswith(": Connection refused")
        assert "Errno" not in failure.reason


async def test_a_request_without_an_identity_is_refused_before_any_connection(tmp_path: Path) -> None:
    async with running(answer_ok, tmp_path) as server, open_pool(server.access) as pool:
        with pytest.raises(RewriteError, match="no identity"):
            pool.port(inner(), IdentityLines(b""), False, False)
        assert server.connections == []


# C29


@both_modes
async def test_the_environment_cannot_send_the_token_elsewhere(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(answer_ok, tmp_path) as server:
        trap = tmp_path / "trap"
        trap.mkdir()
        async with running(answer_ok, trap) as proxy:
            url = f"https://127.0.0.1:{proxy.access.port}"
            for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "HTTP_PROXY"):
                monkeypatch.setenv(name, url)
            monkeypatch.delenv("NO_PROXY", raising=False)
            monkeypatch.setenv("SSL_CERT_FILE", str(trap / "ca.crt"))
            monkeypatch.setenv("SSL_CERT_DIR", str(trap))
            (tmp_path / ".netrc").write_text("default login a password b\n")
            monkeypatch.setenv("HOME", str(tmp_path))
            monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
            async with open_way(mode, server.access, tmp_path) as way:
                assert await ask(way) == (200, b"ok")
            assert proxy.connections == []
            assert headers(server.received, "authorization") == ["Bearer relay-token-1"]
