"""The relay's own two requests over real sockets: their exact bytes, and hostile answers."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from proxy.kubernetes.statement import Statement
from proxy.relay import own_requests, probe
from proxy.relay.own_requests import NAMESPACE, READYZ, NoAnswerError, ask_cluster_uid, ask_readyz
from proxy.relay.probe import Probe
from tests.proxy.relay.apiserver import OK, UID, Connection, answer, namespace_answer, running


def scripted(answers: dict[bytes, bytes]) -> Callable[[Connection], Awaitable[None]]:
    """A server that answers a target by what stands there now; by nothing where nothing does."""

    async def script(connection: Connection) -> None:
        while head := await connection.request():
            said = answers.get(head.split(b" ")[1])
            if said is None:
                await trio.sleep_forever()
            else:
                await connection.send(said)

    return script


async def test_each_is_constant_but_for_host_and_token_and_alone_on_its_connection(tmp_path: Path) -> None:
    async with running(scripted({READYZ: OK, NAMESPACE: namespace_answer()}), tmp_path) as server:
        server.rotate_token("relay-token-2")
        server.access.refresh_token()
        assert await ask_readyz(server.access) == 200
        assert await ask_cluster_uid(server.access) == (200, UID)
        assert [bytes(connection.received) for connection in server.connections] == [
            b"GET %b HTTP/1.1\r\nhost: 127.0.0.1:%d\r\nauthorization: Bearer relay-token-2\r\n"
            b"accept: application/json\r\nuser-agent: hawse-relay\r\n\r\n" % (target, server.access.port)
            for target in (READYZ, NAMESPACE)
        ]


async def test_there_is_no_third_one(tmp_path: Path) -> None:
    async with running(scripted({}), tmp_path) as server:
        with pytest.raises(AssertionError):
            own_requests.own_request(b"/api/v1/secrets", server.access)


def test_nothing_else_in_the_relay_takes_its_token() -> None:
    """What sends it writes a head: the pool by proxy.message.rewrite, which demands an identity, and these
    two."""
    folder = Path(own_requests.__file__).parent
    takers = {file.name for file in folder.glob("*.py") if "access.token()" in file.read_text()}
    assert takers == {"own_requests.py", "pool.py"}


async def test_a_redirect_is_an_answer_and_is_not_followed(tmp_path: Path) -> None:
    elsewhere = answer(302, b"", b"Location: /api/v1/namespaces/kube-system/secrets")
    async with running(scripted({READYZ: elsewhere, NAMESPACE: elsewhere}), tmp_path) as server:
        assert await ask_readyz(server.access) == 302
        assert await ask_cluster_uid(server.access) == (302, "")
        assert len(server.connections) == 2


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"[" * 5000, b'{"metadata":[]}', b'{"metadata":{}}', b'{"metadata":{"uid":7}}']
    + [json.dumps({"metadata": {"uid": uid}}).encode() for uid in ("", "a b", "a\nb", "a" * 65, "\u00e9")],
)
async def test_an_answer_without_a_valid_uid_gives_none(tmp_path: Path, body: bytes) -> None:
    async with running(scripted({NAMESPACE: answer(200, body)}), tmp_path) as server:
        assert await ask_cluster_uid(server.access) == (200, "")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 70000\r\n\r\n" + bytes(70000), "more than 65536 bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "Content-Length"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n", "101"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "first line|malformed|answer"),
    ],
)
async def test_an_answer_that_is_not_plain_and_bounded_is_an_error(
    tmp_path: Path, said: bytes, why: str
) -> None:
    async with running(scripted({NAMESPACE: said}), tmp_path) as server:
        with pytest.raises(NoAnswerError, match=why):
            await ask_cluster_uid(server.access)


async def test_an_api_server_that_says_nothing_has_ten_seconds(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    autojump_clock.autojump_threshold = 0.2  # real sockets: give them a moment
    async with running(scripted({}), tmp_path) as server:
        began = trio.current_time()
        with pytest.raises(NoAnswerError, match="no answer within 10 s"):
            await ask_readyz(server.access)
        assert trio.current_time() - began == pytest.approx(10.0, abs=0.5)


@pytest.mark.parametrize(
    ("status", "up"),
    [(200, True), (401, True), (403, True), (404, True), (429, True), (500, False), (503, False)],
)
async def test_any_answer_counts_but_a_5xx(tmp_path: Path, status: int, up: bool) -> None:
    async with running(scripted({READYZ: answer(status), NAMESPACE: namespace_answer()}), tmp_path) as server:
        looking = Probe(server.access)
        await looking.look()
        assert looking.answers is up
        assert looking.statement == Statement(UID if up else "", api_server=up)


async def test_it_is_asked_every_30_s_and_every_5_while_it_is_down(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    autojump_clock.autojump_threshold = 0.2  # real sockets: give them a moment
    caplog.set_level("INFO", "hawse.relay")
    answers = {READYZ: OK, NAMESPACE: namespace_answer()}
    told: list[tuple[float, str]] = []
    async with running(scripted(answers), tmp_path) as server, trio.open_nursery() as nursery:
        looking = Probe(server.access)
        looking.on_change = lambda statement: told.append((trio.current_time(), str(statement)))
        nursery.start_soon(looking.run)
        await looking.probed.wait()
        answers[READYZ] = answer(500)
        await trio.sleep(probe.PROBE_EVERY_S + 1)
        assert not looking.answers
        answers[READYZ] = OK
        await trio.sleep(probe.PROBE_DOWN_EVERY_S)
        assert looking.answers
        nursery.cancel_scope.cancel()
    up = f"cluster={UID} api=up"
    assert [text for _, text in told] == [up, f"cluster={UID} api=down", up]
    assert told[1][0] - told[0][0] == pytest.approx(30.0, abs=0.5)
    assert told[2][0] - told[1][0] == pytest.approx(5.0, abs=0.5)
    assert "the API server does not answer: /readyz is answered with 500" in caplog.text
    assert "the API server answers again" in caplog.text


async def test_a_token_that_is_not_accepted_is_no_question_of_roles(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(scripted({READYZ: OK, NAMESPACE: answer(401, b"{}")}), tmp_path) as server:
        await Probe(server.access).look()
        [line] = [line for line in caplog.messages if "kube-system" in line]
        assert "401" in line
        assert "renew that of its kubeconfig or service account" in line
        assert "rbac" not in line


async def test_without_the_permission_the_relay_goes_on_and_names_it_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answers = {READYZ: OK, NAMESPACE: answer(403, b"{}")}
    async with running(scripted(answers), tmp_path) as server:
        looking = Probe(server.access)
        for _ in range(3):
            await looking.look()
        assert looking.statement == Statement(api_server=True)
        [line] = [line for line in caplog.messages if "kube-system" in line]
        assert "403" in line
        assert "hawse admin cluster rbac" in line
        # The right is given, and then another cluster stands there.
        answers[NAMESPACE] = namespace_answer()
        await looking.look()
        assert looking.statement.cluster_uid == UID
        # One missing answer makes no known fact unknown.
        answers[NAMESPACE] = answer(503)
        await looking.look()
        assert looking.statement == Statement(UID, api_server=True)
        answers[NAMESPACE] = namespace_answer("another")
        await looking.look()
        assert looking.statement == Statement("another", api_server=True)
