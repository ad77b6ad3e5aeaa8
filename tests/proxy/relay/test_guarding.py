"""Stricter guardrails end the open requests that they deny, in both modes."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from auth.tokens import RelayClaims
from proxy.exchange.client import ClientConnection
from proxy.message.failure import Failure, Processed, StreamCode
from proxy.message.head import RequestHead
from proxy.message.rewrite import direct_request_head
from proxy.relay.direct_call import DirectCall
from proxy.relay.exchange import Upstream
from proxy.relay.guardrails import Guardrails
from proxy.relay.pool import open_pool
from proxy.relay.service_account import ClusterAccess
from tests.proxy.relay import ways
from tests.proxy.relay.apiserver import Connection, running
from tests.proxy.relay.guardrail_files import NO_SECRETS, guardrails
from tests.proxy.relay.ways import Answer, Way, direct_way, fresh, inner, open_way

both_modes = pytest.mark.parametrize("mode", ["tunnel", "direct"])

WITHIN_S = 2.0
BEGUN = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n"
SESSION = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nfirst"
UPGRADE = ((b"connection", b"Upgrade"), (b"upgrade", b"websocket"))
DENIED = "the guardrails of this cluster: watch of secrets in namespace a is denied by owner/no-secrets"


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.relay.guarding.CHECK_S", 0.02)


class Server:
    """Answers as a test says, holds every answer open, and says when the relay leaves one.

    A session is begun for who asks for one alone.
    """

    def __init__(self, says: bytes) -> None:
        self.says = says
        self.asked = trio.Event()
        self.heard = trio.Event()
        self.left = trio.Event()

    async def __call__(self, connection: Connection) -> None:
        head = await connection.request()
        if not head:
            return
        if self.says and (self.says is not SESSION or b"pgrade" in head):
            await connection.send(self.says)
        self.asked.set()
        while data := await connection.more():
            if data.endswith(b"more"):
                self.heard.set()
        self.left.set()


def tighten(folder: Path) -> None:
    (folder / "new").write_text(NO_SECRETS)
    (folder / "new").replace(folder / "guardrails.yaml")


def loose(folder: Path) -> Guardrails:
    return guardrails(folder, NO_SECRETS.replace("secrets]", "configmaps]"))


async def asked_and_tightened(
    way: Way, server: Server, folder: Path, head: RequestHead, body: bytes
) -> Answer:
    answers: list[Answer] = []
    begun = trio.Event()

    async def ask() -> None:
        answers.append(await way.ask(head, body, begun=begun))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await (begun if server.says else server.asked).wait()
            tighten(folder)
            with trio.fail_after(WITHIN_S):
                await server.left.wait()
    return answers[0]


@both_modes
@pytest.mark.parametrize("method", [b"GET", b"POST"])
async def test_an_answer_that_has_begun_is_cut_and_so_is_the_api_server(
    mode: str, method: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "hawse.relay")
    server = Server(BEGUN)
    length = ((b"content-length", b"4"),) if method == b"POST" else ()
    head = inner(b"/api/v1/namespaces/a/secrets?watch=1", *length, method=method)
    rails = loose(tmp_path)
    async with running(server, tmp_path) as upstream, open_way(mode, upstream.access, tmp_path, rails) as way:
        answer = await asked_and_tightened(way, server, tmp_path, head, b"body" if length else b"")
        denied = DENIED.replace("watch of", "create of") if method == b"POST" else DENIED
        # In direct mode the hub sees only a cut; this line alone gives the reason.
        told = f"/api/v1/namespaces/a/secrets of agent:probe: revoked, processed: maybe: {denied}"
        with trio.fail_after(WITHIN_S):
            while True:
                if told in caplog.text:
                    break
                await trio.lowlevel.checkpoint()
    assert (answer.status, answer.body) == (200, b"first")
    assert answer.failure is not None
    if mode == "tunnel":
        assert (answer.failure.code, answer.failure.processed) == (StreamCode.REVOKED, Processed.YES)
        assert answer.failure.reason.startswith(denied)


@both_modes
@pytest.mark.parametrize("method", [b"GET", b"DELETE", b"PUT"])
async def test_a_client_that_waits_for_an_answer_gets_the_reason(
    mode: str, method: bytes, tmp_path: Path
) -> None:
    server = Server(b"")
    length = ((b"content-length", b"4"),) if method == b"PUT" else ()
    head = inner(b"/api/v1/namespaces/a/secrets/x", *length, method=method)
    rails = loose(tmp_path)
    async with running(server, tmp_path) as upstream, open_way(mode, upstream.access, tmp_path, rails) as way:
        answer = await asked_and_tightened(way, server, tmp_path, head, b"body" if length else b"")
    assert answer.failure is not None
    # The API server may have done it: that is no plain denial.
    assert (answer.failure.code, answer.failure.processed) == (StreamCode.REVOKED, Processed.MAYBE)
    if mode == "tunnel":
        assert "is denied by owner/no-secrets" in answer.failure.reason
    else:
        assert answer.status == 403
        assert b"is denied by owner/no-secrets" in answer.body


@both_modes
async def test_a_session_is_cut(mode: str, tmp_path: Path) -> None:
    server = Server(SESSION)
    rails = loose(tmp_path)
    head = inner(b"/api/v1/namespaces/a/secrets/x/exec", *UPGRADE)
    async with running(server, tmp_path) as upstream, open_way(mode, upstream.access, tmp_path, rails) as way:
        with trio.fail_after(10):
            async with way.upgrade(head) as session:
                assert await session.receive_some() == b"first"
                (tmp_path / "new").write_text(NO_SECRETS.replace("[secrets]", '["secrets/*"]'))
                (tmp_path / "new").replace(tmp_path / "guardrails.yaml")
                with trio.fail_after(WITHIN_S):
                    await server.left.wait()
                    with pytest.raises(trio.BrokenResourceError):
                        await session.receive_some()


@both_modes
async def test_a_call_that_still_passes_goes_on(mode: str, tmp_path: Path) -> None:
    server = Server(SESSION)
    rails = loose(tmp_path)
    head = inner(b"/api/v1/namespaces/a/pods/x/exec", *UPGRADE)
    async with running(server, tmp_path) as upstream, open_way(mode, upstream.access, tmp_path, rails) as way:
        with trio.fail_after(10):
            async with way.upgrade(head) as session:
                assert await session.receive_some() == b"first"
                tighten(tmp_path)
                # Nothing answers it, so once it has ended the rules are in force, and all calls are judged by
                # them.
                await way.ask(inner(b"/api/v1/secrets"))
                assert (await way.ask(inner(b"/api/v1/secrets"))).status == 403
                await session.send_all(b"more")
                await server.heard.wait()


@both_modes
async def test_a_call_ends_when_a_guardrail_on_the_time_denies_it(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.relay.guarding.TIMED_EVERY_S", 0.05)
    ends_at = datetime.fromtimestamp(time.time() + 3600, UTC)
    rule = NO_SECRETS.replace(
        "reason:", f"when: 'now > timestamp(\"{ends_at:%Y-%m-%dT%H:%M:%SZ}\")', reason:"
    )
    file = tmp_path / "guardrails.yaml"
    file.write_text(rule)
    ahead_s = 0.0
    rails = Guardrails(file, clock=lambda: time.time() + ahead_s)
    assert rails.timed
    server = Server(BEGUN)
    head = inner(b"/api/v1/namespaces/a/secrets?watch=1")
    async with running(server, tmp_path) as upstream, open_way(mode, upstream.access, tmp_path, rails) as way:
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(way.ask, head)
                await server.asked.wait()
                ahead_s = 7200.0
                await server.left.wait()


@both_modes
async def test_a_call_ended_during_the_relays_dial_is_answered_at_once(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dialling = trio.Event()

    async def nobody(access: ClusterAccess) -> trio.abc.Stream:
        dialling.set()
        await trio.sleep_forever()
        raise AssertionError

    async def tighten_later() -> None:
        await dialling.wait()
        tighten(tmp_path)

    monkeypatch.setattr(ways, "open_pool", partial(open_pool, dial=nobody))
    rails = loose(tmp_path)
    head = inner(b"/api/v1/namespaces/a/secrets/x", method=b"DELETE")
    async with (
        running(Server(b""), tmp_path) as server,
        open_way(mode, server.access, tmp_path, rails) as way,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(tighten_later)
        with trio.fail_after(WITHIN_S):
            answer = await way.ask(head)
        assert answer.failure is not None
        # An unsent request has had no effect.
        assert (answer.failure.code, answer.failure.processed) == (StreamCode.REVOKED, Processed.NO)
        assert server.connections == []


async def test_a_call_that_has_ended_takes_no_other_answer_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[DirectCall] = []
    prepare = Upstream.prepare

    def noted(upstream: Upstream, request: RequestHead, claims: RelayClaims, _: object) -> DirectCall:
        made.append(prepare(upstream, request, claims, DirectCall))
        return made[-1]

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await connection.request()
        await connection.send(BEGUN)
        await revoked.wait()
        await connection.send(b"6\r\nsecond\r\n")

    monkeypatch.setattr(Upstream, "prepare", noted)
    revoked = trio.Event()
    async with running(script, tmp_path) as server, direct_way(server.access, tmp_path) as way:
        connection = ClientConnection(await way.connect())

        async def ask(target: bytes) -> bytes:
            await connection.send_request(direct_request_head(inner(target), b"relay", fresh()))
            assert (await connection.receive_head()).status == 200
            return await connection.receive_body()

        with trio.fail_after(5):
            assert await ask(b"/api/v1/namespaces/a/secrets/x") == b"ok"
            assert await connection.receive_body() == b""
            assert connection.end_exchange()
            assert await ask(b"/api/v1/pods?watch=1") == b"first"
            made[0].revoke(Failure(StreamCode.REVOKED, Processed.MAYBE, "denied"))
            revoked.set()
            assert await connection.receive_body() == b"second"
        await trio.aclose_forcefully(connection.stream)
