"""One request through the relay, by both modes, against a server that shows every byte it gets."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from auth.principal import Principal
from proxy.message.failure import Failure, Processed, StreamCode
from proxy.message.relay_marks import FAILURE_HEADER
from proxy.relay import exchange, pool
from proxy.relay.service_account import ClusterAccess
from tests.proxy.relay import ways
from tests.proxy.relay.apiserver import OK, Connection, headers, running
from tests.proxy.relay.ways import Answer, TunnelWay, forged, inner, open_way, token
from tunnel.net.connect import tls_socket

both_modes = pytest.mark.parametrize("mode", ["tunnel", "direct"])
pytestmark = both_modes


async def answer_ok(connection: Connection) -> None:
    while await connection.request():
        await connection.send(OK)


def refused(answer: Answer) -> tuple[StreamCode, Processed]:
    assert answer.failure is not None, answer
    return answer.failure.code, answer.failure.processed


async def test_the_api_server_sees_the_agent_and_the_relays_own_token(mode: str, tmp_path: Path) -> None:
    async with running(answer_ok, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        answer = await way.ask(inner(b"/api/v1/pods?limit=500", (b"accept", b"application/json")))
        assert (answer.status, answer.body) == (200, b"ok")
        host = server.access.authority.decode()
        assert server.received.decode().split("\r\n") == [
            "GET /api/v1/pods?limit=500 HTTP/1.1",
            f"host: {host}",
            "authorization: Bearer relay-token-1",
            "impersonate-user: agent:probe",
            "impersonate-group: acme/platform",
            "impersonate-group: acme/sre",
            "impersonate-extra-hawse.dev%2fagent-id: 0193-a1",
            "impersonate-extra-hawse.dev%2fsession: s1",
            "audit-id: eid-1",
            "x-forwarded-for: 203.0.113.7",
            "accept: application/json",
            "",
            "",
        ]


async def test_a_flood_of_refusals_is_some_lines(
    mode: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "hawse.relay")
    monkeypatch.setattr(exchange, "TOLD_AT_ONCE", 3)
    async with running(answer_ok, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        for _ in range(10):
            assert refused(await way.ask(inner(b"/api/../v1")))[0] is StreamCode.PROTOCOL
    lines = [record.message for record in caplog.records if record.message.startswith("refused a request")]
    assert 3 <= len(lines) < 10


async def test_a_body_travels_whole(mode: str, tmp_path: Path) -> None:
    body = bytes(range(256)) * 1024

    async def script(connection: Connection) -> None:
        await connection.request()
        while not connection.received.endswith(body):
            await connection.more()
        await connection.send(OK)

    async with running(script, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        head = inner(b"/api/v1/namespaces/a/pods", (b"content-length", b"%d" % len(body)), method=b"POST")
        assert (await way.ask(head, body)).body == b"ok"


# C02, C03, C10: what a client says cannot change who acts, nor reach the API server


async def test_connection_options_and_foreign_identity_change_nothing(mode: str, tmp_path: Path) -> None:
    head = inner(
        b"/api/v1/pods",
        (b"connection", b"close, Impersonate-User, Impersonate-Group, Authorization, X-A"),
        (b"impersonate-user", b"system:admin"),
        (b"impersonate-group", b"system:masters"),
        (b"impersonate-uid", b"0"),
        (b"impersonate-extra-scopes", b"all"),
        (b"impersonate_user", b"system:admin"),
        (b"x-a", b"1"),
        (b"keep-alive", b"timeout=1"),
        (b"proxy-authorization", b"Basic x"),
        (b"te", b"trailers"),
        (b"trailer", b"impersonate-user"),
        (b"cookie", b"a=b"),
        (b"x-remote-user", b"admin"),
        (b"x-forwarded-access-token", b"x"),
        (b"x-real-ip", b"6.6.6.6"),
        (b"forwarded", b"for=6.6.6.6"),
        (b"user-agent", b"kubectl/v1.37"),
    )
    async with running(answer_ok, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        assert (await way.ask(head)).status == 200
        seen = server.received
        assert headers(seen, "impersonate-user") == ["agent:probe"]
        assert headers(seen, "impersonate-group") == ["acme/platform", "acme/sre"]
        assert headers(seen, "authorization") == ["Bearer relay-token-1"]
        names = {line.split(b":")[0].lower() for line in seen.split(b"\r\n")[1:] if line}
        assert names == {
            *(b"host", b"authorization", b"impersonate-user", b"impersonate-group", b"audit-id"),
            *(b"impersonate-extra-hawse.dev%2fagent-id", b"impersonate-extra-hawse.dev%2fsession"),
            *(b"x-forwarded-for", b"user-agent"),
        }


async def test_on_the_tail_of_a_proxy_path_only_the_backends_headers_cross(mode: str, tmp_path: Path) -> None:
    head = inner(
        b"/api/v1/namespaces/a/services/s/proxy/x//y?z",
        (b"x-backend", b"1"),
        (b"impersonate-user", b"system:admin"),
        (b"x-remote-user", b"admin"),
        (b"cookie", b"a=b"),
    )
    async with running(answer_ok, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        assert (await way.ask(head)).status == 200
        assert headers(server.received, "x-backend") == ["1"]
        assert headers(server.received, "impersonate-user") == ["agent:probe"]
        assert headers(server.received, "authorization") == ["Bearer relay-token-1"]
        assert headers(server.received, "cookie") == headers(server.received, "x-remote-user") == []


async def test_a_bearer_subprotocol_is_taken_out(mode: str, tmp_path: Path) -> None:
    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    head = inner(
        b"/api/v1/namespaces/a/pods/p/exec?command=id",
        (b"connection", b"Upgrade"),
        (b"upgrade", b"websocket"),
        (b"sec-websocket-protocol", b"base64url.bearer.authorization.k8s.io.c2VjcmV0, v5.channel.k8s.io"),
    )
    async with running(script, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        assert (await way.ask(head)).status == 403
        assert headers(server.received, "sec-websocket-protocol") == ["v5.channel.k8s.io"]


# C04, C05, C11, C31: a word that is not the hub's, or names nobody, costs no upstream byte

# Made when a test asks: one that was made at import would be refused for its age, and not for its fault.
BAD_TOKENS: dict[str, Callable[[], str]] = {
    "one character": lambda: "x",
    "garbage": lambda: "a.b.c",
    "tampered": lambda: token()[:-6] + "AAAAAA",
    "old": lambda: token(age_s=70),
    "of the future": lambda: token(age_s=-10),
    "another cluster": lambda: token(cluster_id="0193-c2"),
    "another issuer": lambda: forged(iss="https://hub.example.evil"),
    "a list of issuers": lambda: forged(iss=["https://hub.example"]),
    "a list of audiences": lambda: forged(aud=["urn:hawse:cluster:0193-c1"]),
    "no user": lambda: forged(sub=...),
    "an empty user": lambda: forged(sub=""),
    "a blank user": lambda: forged(sub=" "),
    "an agent without a name": lambda: forged(sub="agent:"),
    "a system user": lambda: forged(sub="system:admin"),
    "a service account": lambda: forged(sub="system:serviceaccount:hawse:relay"),
    "a look-alike": lambda: forged(sub="agent:\u017fystem"),
    "no groups": lambda: forged(groups=[]),
    "a system group": lambda: forged(groups=["system:masters"]),
    "groups in one": lambda: forged(groups=["acme/a,system:masters"]),
    "no expiry": lambda: forged(exp=...),
    "an hour": lambda: forged(exp=2**31),
}


@pytest.mark.parametrize("bad", BAD_TOKENS)
async def test_a_token_that_proves_nothing_is_refused_before_anything_is_dialled(
    mode: str, bad: str, tmp_path: Path
) -> None:
    async with running(answer_ok, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        answer = await way.ask(inner(), token=BAD_TOKENS[bad]())
        assert refused(answer) == (StreamCode.UNAUTHENTICATED, Processed.NO)
        if mode == "direct":
            assert answer.status == 401
        assert server.connections == []


async def test_a_fault_in_the_identity_code_never_becomes_a_request(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(exchange, "impersonation_headers", broken)
    async with running(answer_ok, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        answer = await way.ask(inner())
        assert answer.head is None
        assert server.connections == []
        assert "a bug" in caplog.text
        # ... and ends no other request.
        monkeypatch.undo()
        assert (await way.ask(inner())).status == 200


@pytest.mark.parametrize("lines", [(), ((b"impersonate-group", b"acme/a"),), ((b"impersonate-user", b""),)])
async def test_an_identity_that_got_lost_on_the_way_is_an_error(
    mode: str, lines: tuple[tuple[bytes, bytes], ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "impersonation_headers", lambda *_: lines)
    async with running(answer_ok, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        assert refused(await way.ask(inner())) == (StreamCode.INTERNAL, Processed.NO)
        assert server.connections == []


async def test_two_agents_on_one_connection_stay_two(mode: str, tmp_path: Path) -> None:
    other = Principal(agent_id="0193-a2", name="other", org="acme", teams=("sre",))
    async with running(answer_ok, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        for _ in range(2):
            await way.ask(inner())
            await way.ask(inner(), token=token(principal=other))
        assert len(server.connections) == 1
        assert headers(server.received, "impersonate-user") == ["agent:probe", "agent:other"] * 2
        groups = ["acme/platform", "acme/sre", "acme/sre"] * 2
        assert headers(server.received, "impersonate-group") == groups


# C20: the relay parses once more, whatever the hub let through


@pytest.mark.parametrize(
    "target", [b"/api/v1/namespaces/a/../b/secrets", b"/api//v1", b"/api/v1/a%2fb", b"/%2e"]
)
async def test_an_ambiguous_target_goes_no_further(mode: str, target: bytes, tmp_path: Path) -> None:
    async with running(answer_ok, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        assert refused(await way.ask(inner(target))) == (StreamCode.PROTOCOL, Processed.NO)
        assert server.connections == []


# Answers


async def test_nothing_from_upstream_can_pass_for_the_relays_own_word(mode: str, tmp_path: Path) -> None:
    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nHawse-Relay-Failure: 6;0;no\r\nHAWSE-X: 1\r\n"
            b"Connection: keep-alive, X-Hop\r\nKeep-Alive: timeout=9\r\nX-Hop: a\r\nWarning: 299 - x\r\n"
            b"\r\nok"
        )

    async with running(script, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        answer = await way.ask(inner())
        assert answer.failure is None
        assert answer.head is not None
        assert answer.head.header(FAILURE_HEADER) is answer.head.header(b"hawse-x") is None
        assert answer.head.header(b"keep-alive") is answer.head.header(b"x-hop") is None
        assert answer.head.header(b"warning") == b"299 - x"


async def test_an_answer_that_breaks_off_is_never_a_clean_end(
    mode: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "hawse.relay")

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nlog1\r\n")

    async with running(script, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        answer = await way.ask(inner())
        assert answer.status == 200
        assert answer.failure is not None
    if mode == "tunnel":
        # In direct mode it may still be on its way: the cut comes first.
        assert "GET /api/v1/pods of agent:probe: upstream_reset, processed: yes: " in caplog.text


async def test_a_write_whose_answer_never_comes_may_have_been_done(
    mode: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def script(connection: Connection) -> None:
        await connection.request()

    caplog.set_level(logging.INFO, "hawse.relay")
    async with running(script, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        answer = await way.ask(inner(b"/api/v1/pods", (b"content-length", b"4"), method=b"POST"), b"body")
        assert refused(answer) == (StreamCode.UPSTREAM_RESET, Processed.MAYBE)
        if mode == "direct":
            assert answer.status == 504
    assert "POST /api/v1/pods of agent:probe: upstream_reset, processed: maybe: " in caplog.text


async def test_an_api_server_that_is_away_is_said_to_have_seen_nothing(mode: str, tmp_path: Path) -> None:
    async with running(answer_ok, tmp_path) as server:
        pass
    async with open_way(mode, server.access, tmp_path) as way:
        answer = await way.ask(inner(method=b"POST"))
        assert refused(answer) == (StreamCode.DIAL_FAILED, Processed.NO)
        if mode == "direct":
            assert answer.status == 503
            assert answer.head is not None
            assert answer.head.header(b"retry-after") is None


async def test_a_rotated_token_is_used_by_the_next_request(mode: str, tmp_path: Path) -> None:
    async def script(connection: Connection) -> None:
        while head := await connection.request():
            old = headers(head, "authorization") != ["Bearer relay-token-2"]
            await connection.send(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n" if old else OK)

    async with running(script, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        server.rotate_token("relay-token-2")
        assert (await way.ask(inner())).status == 200


@pytest.mark.parametrize("method", [b"TRACE", b"CONNECT"])
async def test_a_method_that_echoes_or_opens_a_tunnel_is_refused(
    mode: str, method: bytes, tmp_path: Path
) -> None:
    async with running(answer_ok, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        answer = await way.ask(inner(b"/api/v1/namespaces/a/services/s/proxy/", method=method))
        assert refused(answer) == (StreamCode.PROTOCOL, Processed.NO)
        assert server.received == b""


# Upgrades

UPGRADE = inner(
    b"/api/v1/namespaces/a/pods/p/exec?command=cat",
    (b"connection", b"Upgrade"),
    (b"upgrade", b"SPDY/3.1"),
    (b"content-length", b"0"),
    (b"x-stream-protocol-version", b"v5.channel.k8s.io"),
    (b"x-stream-protocol-version", b"v4.channel.k8s.io"),
    method=b"POST",
)
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n"


async def test_after_a_101_bytes_go_both_ways_the_first_ones_too(mode: str, tmp_path: Path) -> None:
    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(SWITCH + b"hello")
        while data := await connection.more():
            await connection.send(data.upper())

    async with running(script, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        async with way.upgrade(UPGRADE) as stream:
            assert await stream.receive_some() == b"hello"
            await stream.send_all(b"abc")
            assert await stream.receive_some() == b"ABC"
        assert headers(server.received, "x-stream-protocol-version") == [
            "v5.channel.k8s.io",
            "v4.channel.k8s.io",
        ]
        assert headers(server.received, "connection") == ["Upgrade"]
        assert headers(server.received, "content-length") == ["0"]


async def test_the_end_of_the_upstream_is_the_end(mode: str, tmp_path: Path) -> None:
    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(SWITCH + b"last words")
        await connection.stream.aclose()

    async with running(script, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        async with way.upgrade(UPGRADE) as stream:
            assert await stream.receive_some() == b"last words"
            assert await stream.receive_some() == b""


@pytest.mark.parametrize("asked", [b"h2c", b"foo/1", b"SPDY/3.1, h2c"])
async def test_another_upgrade_is_asked_for_as_a_plain_request(
    mode: str, asked: bytes, tmp_path: Path
) -> None:
    """A hub in order asks for none, but a relay does not rest on that."""
    head = inner(b"/api/v1/namespaces/a/services/s/proxy/", (b"connection", b"Upgrade"), (b"upgrade", asked))
    async with running(answer_ok, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        assert (await way.ask(head)).status == 200
        assert headers(server.received, "connection") == headers(server.received, "upgrade") == []


@pytest.mark.parametrize(
    "lie",
    [
        b"Connection: Upgrade",
        b"Connection: Upgrade\r\nUpgrade: websocket",
        b"Connection: Upgrade\r\nUpgrade: SPDY/3.1, websocket",
        b"Upgrade: SPDY/3.1",
        b"Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0",
    ],
)
async def test_a_101_to_another_protocol_opens_nothing(mode: str, lie: bytes, tmp_path: Path) -> None:
    left = trio.Event()

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 101 Switching Protocols\r\n" + lie + b"\r\n\r\nraw")
        with suppress(trio.BrokenResourceError):
            await connection.more()
        left.set()

    async with running(script, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        assert refused(await way.ask(UPGRADE)) == (StreamCode.PROTOCOL, Processed.MAYBE)
        with trio.fail_after(5):
            await left.wait()


# C13: what follows a refused upgrade never reaches the API server


async def test_a_refused_upgrade_leaves_nothing_to_speak_on(mode: str, tmp_path: Path) -> None:
    async def script(connection: Connection) -> None:
        head = await connection.request()
        if b"upgrade" in head.lower():
            await connection.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            await connection.more()
        else:
            await connection.send(OK)

    async with running(script, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        smuggled = b"GET /api/v1/secrets HTTP/1.1\r\nHost: k\r\n\r\n"
        if isinstance(way, TunnelWay):
            client = way.open(UPGRADE, token(), eof=False)
            await client.send_body(smuggled)
            assert (await client.receive_head()).status == 404
            await client.aclose()
        else:
            assert (await way.ask(UPGRADE)).status == 404
        assert (await way.ask(inner())).status == 200
        assert b"secrets" not in server.received
        assert len(server.connections) == 2
        assert server.received.count(b"impersonate-user: agent:probe") == 2


async def test_a_client_that_leaves_ends_the_request_upstream(mode: str, tmp_path: Path) -> None:
    begun, gone = trio.Event(), trio.Event()

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nlog1\r\n")
        begun.set()
        if not await connection.more():
            gone.set()

    async with running(script, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(way.ask, inner(b"/api/v1/namespaces/a/pods/p/log?follow=true"))
            with trio.fail_after(10):
                await begun.wait()
            nursery.cancel_scope.cancel()
        with trio.fail_after(2):
            await gone.wait()


@pytest.mark.parametrize("method", [b"GET", b"DELETE"])
async def test_what_is_taken_back_while_the_api_server_is_dialled_is_not_sent(
    mode: str, method: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dialling, given_up = trio.Event(), trio.Event()

    async def nobody(connection: Connection) -> None:
        raise AssertionError("nothing is sent")

    async def dial_slowly(access: ClusterAccess) -> trio.abc.Stream:
        dialling.set()
        try:
            await trio.sleep_forever()
        finally:
            given_up.set()

    monkeypatch.setattr(ways, "open_pool", partial(pool.open_pool, dial=dial_slowly))
    async with running(nobody, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(way.ask, inner(b"/api/v1/namespaces/a/pods/p", method=method))
            with trio.fail_after(5):
                await dialling.wait()
            nursery.cancel_scope.cancel()
        with trio.fail_after(5):
            await given_up.wait()
        assert server.received == b""


@pytest.mark.parametrize("shielded", [False, True], ids=["cancelled", "too late"])
@pytest.mark.parametrize("attempt", ["the first", "after a dead connection", "after a 401"])
async def test_of_what_is_taken_back_no_attempt_is_sent_whose_connection_comes_later(
    mode: str, attempt: str, shielded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dial may succeed at the moment when its wait is cancelled; `shielded` makes it."""
    dials = 0
    quick = 0 if attempt == "the first" else 1
    dialling, proceed, given_up = trio.Event(), trio.Event(), trio.Event()
    made: list[socket.socket | None] = []

    async def script(connection: Connection) -> None:
        if connection.number < quick:
            await connection.request()
            if attempt == "after a 401":
                server.rotate_token("relay-token-2")
                await connection.send(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
            else:
                await connection.send(OK)
                await connection.request()
                return
        await connection.more()

    async def dial(access: ClusterAccess) -> trio.abc.Stream:
        nonlocal dials
        dials += 1
        if dials > quick:
            dialling.set()
            try:
                with trio.CancelScope(shield=shielded):
                    await proceed.wait()
                    stream = await pool.dial_tls(access)
                    made.append(tls_socket(stream))
                    return stream
            finally:
                given_up.set()
        return await pool.dial_tls(access)

    monkeypatch.setattr(ways, "open_pool", partial(pool.open_pool, dial=dial))
    async with running(script, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        if attempt == "after a dead connection":
            assert (await way.ask(inner())).status == 200
        async with trio.open_nursery() as nursery:
            nursery.start_soon(way.ask, inner(b"/api/v1/namespaces/a/pods/p"))
            with trio.fail_after(5):
                await dialling.wait()
            nursery.cancel_scope.cancel()
        with trio.fail_after(5):
            if shielded:
                while any(not call._exchange.over for call in way.underway):
                    await trio.testing.wait_all_tasks_blocked(0.01)
                proceed.set()
            await given_up.wait()
            await way.at_rest()
            assert len(made) == shielded
            while any(each is None or each.fileno() >= 0 for each in made):
                await trio.testing.wait_all_tasks_blocked(0.01)
        assert [bytes(connection.received) for connection in server.connections[quick:]] in ([], [b""])
        assert way.pool.connections.idle_count == 0


async def test_an_attempt_that_is_revoked_while_another_is_dialled_may_have_been_seen(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dials = 0
    dialling = trio.Event()

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(OK)
        await connection.request()

    async def dial(access: ClusterAccess) -> trio.abc.Stream:
        nonlocal dials
        dials += 1
        if dials > 1:
            dialling.set()
            await trio.sleep_forever()
        return await pool.dial_tls(access)

    async def revoke() -> None:
        await dialling.wait()
        for call in way.underway:
            call.revoke(Failure(StreamCode.REVOKED, Processed.MAYBE, "denied"))

    monkeypatch.setattr(ways, "open_pool", partial(pool.open_pool, dial=dial))
    async with running(script, tmp_path) as server, open_way(mode, server.access, tmp_path) as way:
        assert (await way.ask(inner())).status == 200
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(revoke)
                assert refused(await way.ask(inner())) == (StreamCode.REVOKED, Processed.MAYBE)
