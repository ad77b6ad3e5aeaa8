from __future__ import annotations

from pathlib import Path

import pytest
import trio

from proxy.exchange import engine
from proxy.exchange.pool import IDLE_S, SWEEP_S
from proxy.exchange.upstream_port import UpstreamPort
from proxy.message.failure import Failure, OutboundBroken, Processed, StreamCode
from proxy.message.head import RequestHead
from proxy.message.rewrite import IdentityLines, RewriteError, identity_lines, relay_request_head
from proxy.relay.pool import Exchange, Pool, open_pool
from tests.proxy.exchange.fake_ports import FakePort
from tests.proxy.relay.apiserver import OK, Connection, headers, running
from tunnel.net.connect import tls_socket

UNAUTHORIZED = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno"


IDENTITY = identity_lines(((b"impersonate-user", b"agent:a"), (b"impersonate-group", b"agents")))


def inner(method: bytes = b"GET", target: bytes = b"/api", *headers: tuple[bytes, bytes]) -> RequestHead:
    return RequestHead.of(method, target, headers)


async def answer_of(exchange: Exchange) -> tuple[int, bytes]:
    try:
        head = await exchange.receive_head()
        body = b""
        while data := await exchange.receive_body():
            body += data
        return head.status, body
    finally:
        await exchange.aclose()


async def ask(
    pool: Pool, method: bytes = b"GET", target: bytes = b"/api", *, tail: bool = False
) -> tuple[int, bytes]:
    return await answer_of(await pool.exchange(inner(method, target), IDENTITY, tail))


async def answer_ok(connection: Connection) -> None:
    while await connection.request():
        await connection.send(OK)


async def test_requests_follow_one_another_on_one_connection_under_the_relays_token(tmp_path: Path) -> None:
    async with running(answer_ok, tmp_path) as server, open_pool(server.access) as pool:
        assert await ask(pool) == (200, b"ok")
        assert await ask(pool, b"POST") == (200, b"ok")
        assert len(server.connections) == 1
        assert pool.connections.idle_count == 1
        assert headers(server.received, "authorization") == ["Bearer relay-token-1"] * 2


async def test_concurrent_requests_have_a_connection_each(tmp_path: Path) -> None:
    async def slow(connection: Connection) -> None:
        while await connection.request():
            if len(server.connections) == 5:
                gate.set()
            await gate.wait()
            await connection.send(OK)

    gate = trio.Event()
    async with running(slow, tmp_path) as server, open_pool(server.access) as pool:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask, pool)
        assert len(server.connections) == 5
        assert pool.connections.idle_count == 5


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n",
    ],
)
async def test_a_connection_that_is_not_clean_is_not_kept(tmp_path: Path, answer: bytes) -> None:
    async def script(connection: Connection) -> None:
        while await connection.request():
            await connection.send(answer)

    async with running(script, tmp_path) as server, open_pool(server.access) as pool:
        assert await ask(pool) == (200, b"ok")
        assert pool.connections.idle_count == 0
        assert await ask(pool) == (200, b"ok")
        assert len(server.connections) == 2


async def test_an_answer_that_was_not_read_to_its_end_costs_its_connection(tmp_path: Path) -> None:
    async with running(answer_ok, tmp_path) as server, open_pool(server.access) as pool:
        exchange = await pool.exchange(inner(), IDENTITY)
        await exchange.receive_head()
        await exchange.aclose()
        await exchange.aclose()
        assert pool.connections.idle_count == 0


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


@pytest.mark.parametrize("status", [b"404 Not Found", b"200 OK", b"101 Switching Protocols"])
async def test_a_connection_that_carried_an_upgrade_is_never_used_again(
    tmp_path: Path, status: bytes
) -> None:
    async def script(connection: Connection) -> None:
        while head := await connection.request():
            if b"upgrade" not in head.lower():
                await connection.send(OK)
                continue
            if status.startswith(b"101"):
                await connection.send(
                    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n"
                )
            else:
                await connection.send(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")
            while await connection.more():
                pass

    async with running(script, tmp_path) as server, open_pool(server.access) as pool:
        # One kept connection is there, and an upgrade does not take it either.
        assert await ask(pool) == (200, b"ok")
        upgrade = inner(b"GET", b"/exec", (b"connection", b"Upgrade"), (b"upgrade", b"SPDY/3.1"))
        exchange = await pool.exchange(upgrade, IDENTITY)
        head = await exchange.receive_head()
        assert head.status == int(status[:3])
        assert len(server.connections) == 2
        await exchange.aclose()
        assert (await ask(pool, b"GET", b"/api/v1/secrets"))[0] == 200
        assert b"secrets" in server.connections[0].received
        assert b"secrets" not in server.connections[1].received


# A kept connection that the API server gave up


async def close_after_one(connection: Connection) -> None:
    """The first connection ends, without a word, when its second request comes; later ones serve on."""
    await connection.request()
    await connection.send(OK)
    while await connection.request():
        if connection.number == 0:
            return
        await connection.send(OK)


async def test_a_get_that_met_a_dead_connection_is_sent_again_once(tmp_path: Path) -> None:
    async with running(close_after_one, tmp_path) as server, open_pool(server.access) as pool:
        await ask(pool)
        assert await ask(pool, b"GET", b"/again") == (200, b"ok")
        assert len(server.connections) == 2
        assert server.received.count(b"GET /again ") == 2


@pytest.mark.parametrize(
    "head",
    [inner(b"POST"), inner(b"DELETE"), inner(b"GET", b"/", (b"content-length", b"2"))],
    ids=["post", "delete", "get-with-body"],
)
async def test_what_may_have_had_an_effect_is_not_sent_again(tmp_path: Path, head: RequestHead) -> None:
    async with running(close_after_one, tmp_path) as server, open_pool(server.access) as pool:
        await ask(pool)
        exchange = await pool.exchange(head, IDENTITY)
        with pytest.raises(OutboundBroken) as caught:
            await exchange.receive_head()
        await exchange.aclose()
        assert caught.value.failure.code is StreamCode.UPSTREAM_RESET
        assert caught.value.failure.processed is Processed.MAYBE
        assert len(server.connections) == 1


async def test_a_fresh_connection_that_dies_is_the_answer(tmp_path: Path) -> None:
    async def script(connection: Connection) -> None:
        await connection.request()

    async with running(script, tmp_path) as server, open_pool(server.access) as pool:
        with pytest.raises(OutboundBroken):
            await ask(pool)
        assert len(server.connections) == 1


async def test_a_connection_that_was_closed_while_idle_is_not_taken(tmp_path: Path) -> None:
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
    async with running(script, tmp_path) as server, open_pool(server.access) as pool:
        await ask(pool)
        await closed.wait()
        # Not even a POST is lost to it.
        assert await ask(pool, b"POST") == (200, b"ok")
        assert len(server.connections) == 2


async def test_an_idle_connection_is_closed_after_a_minute(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    autojump_clock.autojump_threshold = 0.05  # real sockets: give them a moment
    async with running(answer_ok, tmp_path) as server, open_pool(server.access) as pool:
        await ask(pool)
        await trio.sleep(IDLE_S - 1)
        assert pool.connections.idle_count == 1
        await trio.sleep(SWEEP_S + 2)
        assert pool.connections.idle_count == 0


# The token


async def test_a_rotated_token_is_used_after_a_401_without_the_agent_noticing(tmp_path: Path) -> None:
    async def script(connection: Connection) -> None:
        while head := await connection.request():
            await connection.send(
                OK if headers(head, "authorization") == ["Bearer relay-token-2"] else UNAUTHORIZED
            )

    async with running(script, tmp_path) as server, open_pool(server.access) as pool:
        server.rotate_token("relay-token-2")
        assert await ask(pool, b"DELETE") == (200, b"ok")
        assert headers(server.received, "authorization") == ["Bearer relay-token-1", "Bearer relay-token-2"]


async def test_each_request_that_was_under_way_with_the_old_token_gets_the_new_one(tmp_path: Path) -> None:
    refused = trio.Event()

    async def script(connection: Connection) -> None:
        while head := await connection.request():
            if headers(head, "authorization") == ["Bearer relay-token-2"]:
                await connection.send(OK)
            else:
                await refused.wait()
                await connection.send(UNAUTHORIZED)

    async with running(script, tmp_path) as server, open_pool(server.access) as pool:
        exchanges = [await pool.exchange(inner(), IDENTITY) for _ in range(2)]
        server.rotate_token("relay-token-2")
        refused.set()
        # The first one finds it on the disk, and the other one that it was found.
        assert [await answer_of(exchange) for exchange in exchanges] == [(200, b"ok")] * 2


async def test_a_request_whose_body_was_streamed_is_not_sent_again_after_a_401(tmp_path: Path) -> None:
    async def script(connection: Connection) -> None:
        while await connection.request():
            await connection.send(UNAUTHORIZED)

    async with running(script, tmp_path) as server, open_pool(server.access) as pool:
        server.rotate_token("relay-token-2")
        exchange = await pool.exchange(inner(b"POST", b"/api", (b"content-length", b"2")), IDENTITY)
        await exchange.send_body(b"ab")
        with pytest.raises(OutboundBroken) as caught:
            await exchange.receive_head()
        await exchange.aclose()
        failure = caught.value.failure
        assert (failure.code, failure.processed) == (StreamCode.DIAL_FAILED, Processed.NO)
        assert len(server.connections) == 1
        # ... but the next one has the new token.
        assert server.access.token() == "relay-token-2"


async def test_a_401_with_no_newer_token_is_the_relays_own_fault_and_says_so(tmp_path: Path) -> None:
    async def script(connection: Connection) -> None:
        while await connection.request():
            await connection.send(UNAUTHORIZED)

    async with running(script, tmp_path) as server, open_pool(server.access) as pool:
        with pytest.raises(OutboundBroken, match="refuses the relay's own service-account token"):
            await ask(pool)
        # A second new token is not tried within one request either.
        server.rotate_token("relay-token-2")
        with pytest.raises(OutboundBroken, match="refuses the relay's own"):
            await ask(pool)
        assert len(server.connections) == 3


async def test_the_relays_own_401s_are_logged_once_a_second(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def script(connection: Connection) -> None:
        while await connection.request():
            await connection.send(UNAUTHORIZED)

    async with running(script, tmp_path) as server, open_pool(server.access) as pool:
        for _ in range(5):
            with pytest.raises(OutboundBroken, match="refuses the relay's own service-account token"):
                await ask(pool)
    assert 1 <= len([record for record in caplog.records if "own token" in record.message]) < 5


async def test_a_401_of_a_backend_is_passed_on(tmp_path: Path) -> None:
    async def script(connection: Connection) -> None:
        while await connection.request():
            await connection.send(UNAUTHORIZED)

    async with running(script, tmp_path) as server, open_pool(server.access) as pool:
        assert await ask(pool, b"GET", b"/api/v1/nodes/n/proxy/", tail=True) == (401, b"no")


# Dialling


async def test_an_api_server_with_another_certificate_gets_no_byte(tmp_path: Path) -> None:
    async with running(answer_ok, tmp_path) as server:
        other = tmp_path / "other"
        other.mkdir()
        async with running(answer_ok, other) as second:
            access = server.access
            access.port = second.access.port
            async with open_pool(access) as pool:
                with pytest.raises(OutboundBroken) as caught:
                    await ask(pool)
            assert caught.value.failure.code is StreamCode.DIAL_FAILED
            assert caught.value.failure.processed is Processed.NO
            assert second.received == b""


async def test_a_refused_connection_says_that_nothing_was_processed(tmp_path: Path) -> None:
    async with running(answer_ok, tmp_path) as server:
        pass
    async with open_pool(server.access) as pool:
        with pytest.raises(OutboundBroken) as caught:
            await ask(pool)
        assert caught.value.failure.processed is Processed.NO
        assert "127.0.0.1" in caught.value.failure.reason
        assert caught.value.failure.reason.endswith(": Connection refused")
        assert "Errno" not in caught.value.failure.reason


async def test_a_request_without_an_identity_is_refused_before_any_connection(tmp_path: Path) -> None:
    async with running(answer_ok, tmp_path) as server, open_pool(server.access) as pool:
        with pytest.raises(RewriteError, match="no identity"):
            await pool.exchange(inner(), IdentityLines(b""))
        assert server.connections == []


# C29


async def test_the_environment_cannot_send_the_token_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
            async with open_pool(server.access) as pool:
                assert await ask(pool) == (200, b"ok")
            assert proxy.connections == []
            assert headers(server.received, "authorization") == ["Bearer relay-token-1"]
