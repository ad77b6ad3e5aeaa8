"""The loopback proxy, with a scripted hub: authentication, forwarding, token renewal."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing
import trustme
from cryptography import x509

from proxy.agent.connect.certificate import loopback_context
from proxy.agent.connect.proxy import CONNECTIONS_MAX, HubSide, NotAllowedError
from proxy.agent.connect.tokens import REPLACED_AFTER_S, Tokens
from proxy.agent.local.account import Account, find_account, logins_path, remove_account, save_account
from proxy.agent.local.errors import AgentError
from proxy.agent.token.answers import machine_started_s
from proxy.agent.token.credential import Cached
from proxy.exchange.server import ServerConnection
from proxy.message.head import RequestHead, ResponseHead
from tests.proxy.agent.connect.loopback import GOOD, GUARD, OWN, PORT, Bench, answer_ok, open_bench
from tunnel.net.connect import HandshakeFailed, wrap_server
from tunnel.net.egress import ProxySettings
from tunnel.net.tcp import TCPStream


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with open_bench() as bench:
        yield bench


def head_of(*headers: tuple[bytes, bytes], target: bytes = b"/clusters/prod/api") -> RequestHead:
    return RequestHead.of(b"GET", target, headers)


HOST = (b"host", b"127.0.0.1:%d" % PORT)
BEARER = (b"authorization", b"Bearer own-token")


@pytest.mark.parametrize(
    "headers",
    [
        (HOST, BEARER),
        ((b"host", b"LocalHost:%d" % PORT), BEARER),
        # websocket-client, and so the official Python client, sends the server as its Origin.
        (HOST, BEARER, (b"origin", b"https://127.0.0.1:%d" % PORT)),
        (HOST, BEARER, (b"origin", b"https://localhost:%d" % PORT)),
    ],
)
def test_the_holder_of_the_token_is_admitted(headers: tuple[tuple[bytes, bytes], ...]) -> None:
    assert GUARD.admit(head_of(*headers)) == "prod"
    assert GUARD.admit(head_of(*headers, target=b"/clusters/prod?x")) == "prod"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (((b"host", b"evil.example:%d" % PORT), BEARER), 403),
        (((b"host", b"127.0.0.1"), BEARER), 403),
        (((b"host", b"127.0.0.1:1"), BEARER), 403),
        (((b"host", b"127.0.0.1:%d.evil.example" % PORT), BEARER), 403),
        ((HOST, HOST, BEARER), 403),
        ((BEARER,), 403),
        ((HOST, BEARER, (b"origin", b"https://evil.example")), 403),
        ((HOST, BEARER, (b"origin", b"null")), 403),
        ((HOST, BEARER, (b"origin", b"http://127.0.0.1:%d" % PORT)), 403),
        ((HOST, BEARER, (b"origin", b"https://127.0.0.1")), 403),
        ((HOST,), 401),
        ((HOST, (b"authorization", b"Bearer other")), 401),
        ((HOST, (b"authorization", b"Bearer own-token2")), 401),
        ((HOST, (b"authorization", b"Basic own-token")), 401),
        ((HOST, BEARER, BEARER), 401),
        ((HOST, (b"cookie", b"token=own-token")), 401),
    ],
)
def test_c40_pages_and_strangers_are_turned_away(
    headers: tuple[tuple[bytes, bytes], ...], status: int
) -> None:
    with pytest.raises(NotAllowedError) as refused:
        GUARD.admit(head_of(*headers))
    assert refused.value.status == status


@pytest.mark.parametrize(
    "target", [b"/", b"/clusters/dev/api", b"/clusters/prod-2/api", b"/api", b"/oauth/token", b"/v1/clusters"]
)
def test_nothing_but_its_clusters_is_served(target: bytes) -> None:
    with pytest.raises(NotAllowedError) as refused:
        GUARD.admit(head_of(HOST, BEARER, target=target))
    assert refused.value.status == 404


@pytest.mark.parametrize("cluster", [b"stage", b"prod"])
def test_a_token_of_one_cluster_is_good_for_no_other(cluster: bytes) -> None:
    stage = (b"authorization", b"Bearer token-of-stage")
    shown = BEARER if cluster == b"stage" else stage
    with pytest.raises(NotAllowedError) as refused:
        GUARD.admit(head_of(HOST, shown, target=b"/clusters/%b/api" % cluster))
    assert refused.value.status == 403
    assert GUARD.admit(head_of(HOST, stage, target=b"/clusters/stage/api")) == "stage"


async def test_a_request_goes_on_under_the_agents_token_and_its_own_never_does(bench: Bench) -> None:
    answer = await bench.ask(
        *GOOD,
        f"Origin: https://127.0.0.1:{PORT}",
        "Cookie: a=b",
        "Accept: application/json",
        "X-Backend: kept",
        "Impersonate-User: admin",
    )
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\n\r\nok")
    [seen] = bench.hub.seen
    assert seen.target == b"/clusters/prod/api"
    assert seen.header_values(b"host") == [b"hub.example"]
    assert seen.header_values(b"authorization") == [b"Bearer token-1"]
    # The hub judges headers for the cluster, even those for impersonation.
    assert [seen.header(name) for name in (b"accept", b"x-backend", b"impersonate-user")] == [
        b"application/json",
        b"kept",
        b"admin",
    ]
    assert [seen.header(name) for name in (b"origin", b"cookie")] == [None, None]
    assert OWN.encode() not in seen.encode()


async def test_a_stranger_is_told_why_and_reaches_nobody(bench: Bench) -> None:
    answer = await bench.ask(f"Host: 127.0.0.1:{PORT}", "Authorization: Bearer guess")
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"use the kubeconfig that the proxy wrote" in answer
    assert bench.hub.seen == []


async def test_a_refused_token_is_replaced_once_and_unseen(bench: Bench) -> None:
    async def refuse_first(connection: ServerConnection, head: RequestHead) -> None:
        if head.header(b"authorization") == b"Bearer token-1":
            await connection.answer(ResponseHead.of(401, b"", ((b"content-length", b"2"),)), b"no")
        else:
            await answer_ok(connection, head)

    bench.hub.script = refuse_first
    assert (await bench.ask()).endswith(b"ok")
    assert len(bench.hub.seen) == 2
    # A request with a body can't be sent twice. The next request gets the new token.
    bench.tokens.number = 1
    assert (await bench.ask(*GOOD, body=b"{}")).startswith(b"HTTP/1.1 401 ")
    assert (await bench.ask(*GOOD, body=b"{}")).endswith(b"ok")
    assert len(bench.hub.seen) == 4

    async def refuse_and_give_no_more(connection: ServerConnection, head: RequestHead) -> None:
        bench.tokens.down = True
        await connection.answer(ResponseHead.of(401, b"", ((b"content-length", b"2"),)), b"no")

    # The server may have acted on it before it answered.
    bench.hub.script = refuse_and_give_no_more
    assert (await bench.ask(*GOOD, body=b"{}")).endswith(b"no")


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        (b"https://hub.example/clusters/prod/x", b"location: /clusters/prod/x"),
        (b"https://127.0.0.1:%d/clusters/other/x" % PORT, None),
        (b"https://localhost:%d/clusters/other/x" % PORT, None),
    ],
)
async def test_no_answer_leads_from_one_of_its_clusters_to_another(
    bench: Bench, location: bytes, expected: bytes | None
) -> None:
    async def redirect(connection: ServerConnection, head: RequestHead) -> None:
        headers = ((b"location", location), (b"content-length", b"0"))
        await connection.answer(ResponseHead.of(302, b"Found", headers), b"")

    bench.hub.script = redirect
    lines = (await bench.ask()).lower().split(b"\r\n")
    assert lines[0].startswith(b"http/1.1 302 ")
    assert [line for line in lines if line.startswith(b"location")] == ([expected] if expected else [])


async def test_a_hub_that_refuses_every_token_is_asked_twice_and_believed(bench: Bench) -> None:
    async def refuse(connection: ServerConnection, head: RequestHead) -> None:
        await connection.answer(ResponseHead.of(401, b"", ((b"content-length", b"2"),)), b"no")

    bench.hub.script = refuse
    assert (await bench.ask()).startswith(b"HTTP/1.1 401 ")
    assert len(bench.hub.seen) == 2


async def test_without_a_token_or_a_hub_the_client_is_told_so(bench: Bench) -> None:
    bench.tokens.down = True
    answer = await bench.ask()
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"cannot get a token from the hub: cannot reach the hub" in answer
    bench.tokens.down = False

    async def fail() -> trio.abc.Stream:
        raise OSError("connection refused")

    bench.proxy.connections._dial = fail
    answer = await bench.ask()
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"connection refused" in answer


async def test_a_hub_that_goes_before_it_answers_leaves_no_client_waiting(bench: Bench) -> None:
    async def go(connection: ServerConnection, head: RequestHead) -> None:
        await connection.cut()

    bench.hub.script = go
    answer = await bench.ask()
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"between this machine and " in answer

    async def refuse_and_give_no_more(connection: ServerConnection, head: RequestHead) -> None:
        bench.tokens.down = True
        await connection.answer(ResponseHead.of(401, b"", ((b"content-length", b"2"),)), b"no")

    bench.hub.script = refuse_and_give_no_more
    answer = await bench.ask()
    # A 401 would blame the client's own token, which is valid.
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b'"cannot get a token from the hub: cannot reach the hub"' in answer


async def test_what_is_no_request_is_refused_and_reaches_nobody(bench: Bench) -> None:
    answer = await bench.ask(*GOOD, "Content-Length: 1", "Content-Length: 2")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert bench.hub.seen == []


async def test_a_cut_answer_stays_one(bench: Bench) -> None:
    async def cut(connection: ServerConnection, head: RequestHead) -> None:
        await connection.send_head(ResponseHead.of(200, b"OK"), b"part")
        await connection.cut()

    bench.hub.script = cut
    tls = await bench.connect()
    await tls.send_all(("GET /clusters/prod/api HTTP/1.1\r\n" + "\r\n".join(GOOD) + "\r\n\r\n").encode())
    received = b""
    with trio.fail_after(5):
        while b"part" not in received:
            received += await tls.receive_some()
        with pytest.raises(trio.BrokenResourceError):
            await tls.receive_some()
    assert not received.endswith(b"0\r\n\r\n")
    await trio.aclose_forcefully(tls)


async def test_an_upgrade_is_carried_both_ways(bench: Bench) -> None:
    async def echo(connection: ServerConnection, head: RequestHead) -> None:
        assert head.upgrade == b"websocket"
        await connection.send_head(
            ResponseHead.of(101, b"", ((b"upgrade", b"websocket"), (b"connection", b"Upgrade")))
        )
        stream, _ = connection.detach()
        while data := await stream.receive_some():
            await stream.send_all(data)

    bench.hub.script = echo
    tls = await bench.connect()
    lines = [*GOOD, "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Key: abc"]
    await tls.send_all(("GET /clusters/prod/exec HTTP/1.1\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode())
    received = b""
    with trio.fail_after(5):
        while b"\r\n\r\n" not in received:
            received += await tls.receive_some()
        assert received.startswith(b"HTTP/1.1 101 ")
        await tls.send_all(b"keystroke")
        assert await tls.receive_some() == b"keystroke"
    [seen] = bench.hub.seen
    assert seen.header(b"sec-websocket-key") == b"abc"
    await trio.aclose_forcefully(tls)


def test_its_certificate_outlives_a_clock_that_is_set() -> None:
    certificate = x509.load_pem_x509_certificate(loopback_context()[1].encode())
    nearly_a_year, now = timedelta(days=364), datetime.now(UTC)
    assert certificate.not_valid_before_utc < now - nearly_a_year
    assert now + nearly_a_year < certificate.not_valid_after_utc
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc <= timedelta(days=825)


async def test_connections_are_bounded(bench: Bench) -> None:
    bench.proxy.connection_limit.open = CONNECTIONS_MAX
    with pytest.raises((trio.BrokenResourceError, ssl.SSLError)):
        await bench.connect()
    bench.proxy.connection_limit.open = 0
    assert (await bench.ask()).endswith(b"ok")
    assert bench.proxy.connection_limit.open == 0


async def test_who_has_not_shown_the_token_makes_room_and_nobody_else(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.agent.connect.proxy.CONNECTIONS_MAX", 2)
    known = await bench.connect()
    request = "\r\n".join(["GET /clusters/prod/api HTTP/1.1", *GOOD, "", ""]).encode()
    await known.send_all(request)
    assert (await known.receive_some()).startswith(b"HTTP/1.1 200 ")
    for _ in range(3):
        silent = await bench.connect()
        # The newest connection is admitted each time, and the authenticated one is kept.
        assert (await bench.ask()).endswith(b"ok")
        with pytest.raises(trio.BrokenResourceError):
            await silent.receive_some()
        await trio.aclose_forcefully(silent)
        await known.send_all(request)
        assert (await known.receive_some()).startswith(b"HTTP/1.1 200 ")
    await trio.aclose_forcefully(known)


async def test_tokens_are_held_until_they_are_nearly_over(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    asked: list[tuple[str, str]] = []
    life_s = 50.0

    def fetch(environment: object, account: object, cluster: str, *, refused: str = "") -> Cached:
        asked.append((cluster, refused))
        return Cached(f"token-{len(asked)}", time.time() + life_s, machine_started_s(), "")

    monkeypatch.setattr("proxy.agent.connect.tokens.cached_token", fetch)
    tokens = Tokens({}, Account("https://hub.example", "robot", "k", None, "s"))
    found: list[str] = []

    async def take() -> None:
        found.append(await tokens.token("prod"))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(take)
    assert set(found) == {"token-1"}
    assert asked == [("prod", "")]
    # A new token is refused for another reason than its age.
    assert not tokens.replaces("prod", "token-1")
    assert await tokens.token("prod", refused="token-1") == "token-1"
    await trio.sleep(REPLACED_AFTER_S)
    assert tokens.replaces("prod", "token-1")
    assert await tokens.token("prod", refused="token-1") == "token-2"
    # It was replaced for another request meanwhile.
    assert tokens.replaces("prod", "token-1")
    assert await tokens.token("prod", refused="token-1") == "token-2"
    assert await tokens.token("dev") == "token-3"
    life_s = 3.0
    await trio.sleep(REPLACED_AFTER_S)
    assert await tokens.token("prod", refused="token-2") == "token-4"
    assert await tokens.token("prod") == "token-5"
    life_s = 50.0
    assert await tokens.token("prod") == "token-6"
    # Runs at each request, so it must not read a file.
    with monkeypatch.context() as patched:
        patched.setattr("builtins.open", None)
        assert await tokens.token("prod") == "token-6"
    # After a change of the clock, the token's age is unknown.
    real = time.time
    monkeypatch.setattr("time.time", lambda: real() - 20)
    assert [await tokens.token("prod") for _ in range(2)] == ["token-7"] * 2


@attrs.define(eq=False)
class EgressProxy:
    """A CONNECT proxy on loopback that leads to one TLS server, regardless of the requested host."""

    port: int = 0
    status: int = 200
    asked: list[bytes] = attrs.Factory(list)

    async def serve(self, nursery: trio.Nursery, certificate: trustme.LeafCert) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)

        async def handle(stream: trio.SocketStream) -> None:
            head = b""
            while b"\r\n\r\n" not in head:
                head += await stream.receive_some()
            self.asked.append(head)
            await stream.send_all(b"HTTP/1.1 %d x\r\n\r\n" % self.status)
            if self.status == 200:
                tls = wrap_server(TCPStream.take_over(stream), context)
                with suppress(trio.BrokenResourceError):
                    await tls.do_handshake()
                    await tls.send_all(b"the hub")
                await trio.aclose_forcefully(tls)
            await trio.aclose_forcefully(stream)

        listeners = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
        self.port = listeners[0].socket.getsockname()[1]


async def test_the_hub_is_reached_through_the_environments_proxy() -> None:
    ca = trustme.CA()
    egress = EgressProxy()
    async with trio.open_nursery() as nursery:
        await egress.serve(nursery, ca.issue_cert("hub.example"))
        settings = ProxySettings.from_environment({"HTTPS_PROXY": f"http://u:p@127.0.0.1:{egress.port}"})
        account = Account("https://hub.example:8443", "robot", "k", ca.cert_pem.bytes().decode(), "s")
        with trio.fail_after(5):
            stream = await HubSide(account, settings).dial()
            assert await stream.receive_some() == b"the hub"
            await trio.aclose_forcefully(stream)
        assert egress.asked[0].startswith(b"CONNECT hub.example:8443 HTTP/1.1\r\n")
        assert b"Proxy-Authorization: Basic dTpw" in egress.asked[0]
        # The certificate is still the hub's, even through a proxy.
        with trio.fail_after(5), pytest.raises(HandshakeFailed):
            await HubSide(account._replace(hub="https://else.example"), settings).dial()
        egress.status = 407
        with trio.fail_after(5), pytest.raises(OSError, match="407") as refused:
            await HubSide(account, settings).dial()
        assert ":p@" not in str(refused.value)
        nursery.cancel_scope.cancel()


def test_a_stored_ca_that_is_none_names_the_next_step() -> None:
    with pytest.raises(AgentError, match="hawse login"):
        HubSide(Account("https://hub.example", "robot", "k", "no PEM", "s"), ProxySettings())


async def test_a_new_login_of_the_agent_is_what_the_next_token_is_asked_by(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    environment = {"HOME": str(tmp_path)}
    asked: list[str | None] = []

    def fetch(_: object, account: Account, cluster: str, *, refused: str = "") -> Cached:
        asked.append(account.api_key)
        return Cached(f"token-{len(asked)}", time.time() + 50, machine_started_s(), "")

    monkeypatch.setattr("proxy.agent.connect.tokens.cached_token", fetch)
    first = Account("https://hub.example", "robot", "first", None, "s")
    tokens = Tokens(environment, first)
    for login in (
        first._replace(api_key="second"),
        # An unfinished enrolment or another agent's login: this process keeps its identity.
        first._replace(api_key="third", agent=""),
        first._replace(api_key="fourth", agent="other"),
    ):
        save_account(environment, login)
        refused = await tokens.token("prod")
        await trio.sleep(REPLACED_AFTER_S)
        await tokens.token("prod", refused=refused)
    # If the file is missing, the process goes on with its login.
    path = logins_path(environment)
    os.rename(path, f"{path}.away")
    await tokens.token("dev")
    os.rename(f"{path}.away", path)
    # A logout stops it.
    remove_account(environment, find_account(environment, first.hub))
    with pytest.raises(AgentError, match=r"not logged in to https://hub\.example: run"):
        await tokens.token("third")
    assert asked == ["second"] * len(asked)
