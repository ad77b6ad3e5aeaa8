"""Small requests on a kept connection, which have no task: each must come to what it comes to with one.

A connection that is not kept yet is dialled by a task, so the first request of each test has one and those
behind it do not, unless something asks for it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from proxy.client import INTERIM_MAX
from proxy.exchange import Processed, StreamCode
from proxy.relay import tunnelled
from proxy.relay.exchange import Upstream
from proxy.relay.pool import Pool, open_pool
from tests.proxy.relay.apiserver import OK, ApiServer, Connection, Script, headers, running
from tests.proxy.relay.ways import CLUSTER_ID, HUB, Answer, TunnelWay, inner, token, trusting
from tunnel import Hello, Role, StreamReset, Welcome, memory_transport_pair, open_session

TARGET = b"/api/v1/namespaces/a/pods"


@attrs.define(eq=False)
class Tasks(trio.abc.Instrument):
    """The streams that got a task."""

    names: list[str] = attrs.Factory(list)

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        if task.name.endswith("handle_stream"):
            self.names.append(task.name)


@attrs.frozen
class Rig:
    way: TunnelWay
    server: ApiServer
    pool: Pool
    upstream: Upstream
    serving: trio.CancelScope
    tasks: Tasks

    async def warm(self) -> None:
        """Leave one kept connection behind."""
        assert (await self.way.ask(inner(b"/warm"))).status == 200
        await trio.testing.wait_all_tasks_blocked()
        assert self.pool.connections.idle_count == 1
        self.tasks.names.clear()

    async def ask(
        self, target: bytes = TARGET, *extra: tuple[bytes, bytes], method: bytes = b"GET"
    ) -> Answer:
        with trio.fail_after(5):
            return await self.way.ask(inner(target, *extra, method=method))


@asynccontextmanager
async def rig(script: Script, folder: Path) -> AsyncIterator[Rig]:
    """A relay in front of an API server that answers `/warm`, and then does as the script says."""
    warmed = 0

    async def scripted(connection: Connection) -> None:
        nonlocal warmed
        if warmed == 0:
            warmed = 1
            await connection.request()
            await connection.send(OK)
        await script(connection)

    tasks = Tasks()
    async with running(scripted, folder) as server, open_pool(server.access) as pool:
        at_hub, at_relay = memory_transport_pair()
        upstream, serving = Upstream(pool), trio.CancelScope()

        async def run_relay() -> None:
            async with open_session(at_relay, Role.DIALER, hello=Hello()) as session:
                with serving:
                    await tunnelled.serve_session(
                        session, upstream, hub_keys=trusting(), issuer=HUB, cluster_id=CLUSTER_ID
                    )

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_relay)
            async with open_session(at_hub, Role.LISTENER, answer_hello=lambda _: Welcome()) as session:
                trio.lowlevel.add_instrument(tasks)
                try:
                    yield Rig(TunnelWay(session), server, pool, upstream, serving, tasks)
                finally:
                    trio.lowlevel.remove_instrument(tasks)
            nursery.cancel_scope.cancel()


def answering(*pieces: bytes, then_close: bool = False) -> Script:
    """Answers each request by these pieces, each of which is received before the next one is sent."""

    async def script(connection: Connection) -> None:
        while await connection.request():
            for piece in pieces:
                await connection.send(piece)
                await trio.testing.wait_all_tasks_blocked(0.005)
            if then_close:
                await connection.stream.aclose()
                return

    return script


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n"
CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
WHOLE = {
    "length": [HEAD + b"abcdef"],
    "no body": [b"HTTP/1.1 204 No Content\r\n\r\n"],
    "not modified": [b"HTTP/1.1 304 Not Modified\r\nContent-Length: 6\r\n\r\n"],
    "empty": [b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"],
    "chunks": [CHUNKS + b"3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n"],
    "behind a 100": [b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + b"abcdef"],
    "torn head": [HEAD[:9], HEAD[9:] + b"abcdef"],
    "a 100, and then": [b"HTTP/1.1 100 Continue\r\n\r\n", HEAD + b"abcdef"],
    "an error": [b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno"],
}
IN_PIECES = {
    "body later": [HEAD, b"abcdef"],
    "torn body": [HEAD + b"abc", b"def"],
    "chunks later": [CHUNKS, b"6\r\nabcdef\r\n", b"0\r\n\r\n"],
    "last chunk later": [CHUNKS + b"6\r\nabcdef\r\n", b"0\r\n\r\n"],
    "large": [b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300000],
}
BROKEN = {
    "malformed head": [b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nContent-Length: 6\r\n\r\nabcdef"],
    "no HTTP": [b"\x16\x03\x01"],
    "malformed chunk": [CHUNKS + b"6\r\nabcdefgh\r\n"],
    "malformed chunk behind good ones": [CHUNKS + b"6\r\nabcdef\r\nzz\r\n"],
    "a 101 that nobody asked for": [b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"],
    "100s without end": [b"HTTP/1.1 100 Continue\r\n\r\n" * (INTERIM_MAX + 1)],
}
CLOSED = {
    "up to the end": [b"HTTP/1.1 200 OK\r\n\r\nabcdef"],
    "within the body": [HEAD + b"abc"],
    "within the chunks": [CHUNKS + b"6\r\nabc"],
    "asked to close": [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"],
}


def parameters(*tables: dict[str, list[bytes]]) -> list[object]:
    return [pytest.param(pieces, id=name) for table in tables for name, pieces in table.items()]


async def cold_and_warm(script: Script, folder: Path) -> tuple[Answer, Answer, list[str]]:
    """The answer of a fresh connection, that of a kept one, and the tasks that it took."""
    (folder / "cold").mkdir()
    (folder / "warm").mkdir()
    async with rig(script, folder / "cold") as cold:
        # An upgrade would do, too: whatever is not safe on a kept connection is dialled for.
        await cold.warm()
        await cold.pool.connections.aclose()
        expected = await cold.ask()
    async with rig(script, folder / "warm") as warm:
        await warm.warm()
        answer = await warm.ask()
        assert len(warm.server.connections) == 1
        with trio.fail_after(2):
            assert await warm.upstream.underway.wait_drained(5)
        return expected, answer, warm.tasks.names


@pytest.mark.parametrize("pieces", parameters(WHOLE))
async def test_a_small_answer_takes_no_task_and_leaves_its_connection(
    pieces: Sequence[bytes], tmp_path: Path
) -> None:
    expected, answer, tasks = await cold_and_warm(answering(*pieces), tmp_path)
    assert answer == expected
    assert answer.failure is None
    assert tasks == []


@pytest.mark.parametrize("pieces", parameters(IN_PIECES, BROKEN))
async def test_an_answer_that_needs_a_task_comes_to_the_same(pieces: Sequence[bytes], tmp_path: Path) -> None:
    expected, answer, tasks = await cold_and_warm(answering(*pieces), tmp_path)
    assert answer == expected
    assert len(tasks) == 1


@pytest.mark.parametrize("pieces", parameters(CLOSED))
async def test_a_connection_that_ends_with_its_answer_comes_to_the_same(
    pieces: Sequence[bytes], tmp_path: Path
) -> None:
    expected, answer, _ = await cold_and_warm(answering(*pieces, then_close=True), tmp_path)
    assert answer == expected


async def test_the_requests_and_identities_on_one_connection_stay_their_own(tmp_path: Path) -> None:
    async def echo(connection: Connection) -> None:
        while head := await connection.request():
            body = head.split(b" ")[1] + headers(head, "impersonate-user")[0].encode()
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    async with rig(echo, tmp_path) as relay:
        await relay.warm()
        for number in range(20):
            answer = await relay.ask(b"/api/v1/namespaces/n%d" % number)
            assert answer.body == b"/api/v1/namespaces/n%dagent:probe" % number
        assert relay.tasks.names == []
        assert len(relay.server.connections) == 1


@pytest.mark.parametrize(
    ("extra", "method"),
    [((), b"DELETE"), (((b"content-length", b"0"),), b"POST")],
    ids=["delete", "post"],
)
async def test_what_may_have_an_effect_has_a_task_and_a_connection_that_was_looked_at(
    extra: tuple[tuple[bytes, bytes], ...], method: bytes, tmp_path: Path
) -> None:
    async with rig(answering(OK), tmp_path) as relay:
        await relay.warm()
        assert (await relay.ask(TARGET, *extra, method=method)).body == b"ok"
        assert len(relay.tasks.names) == 1
        assert len(relay.server.connections) == 1
        # And its connection serves on without one.
        assert (await relay.ask()).body == b"ok"
        assert len(relay.tasks.names) == 1


async def test_a_kept_connection_that_dies_under_the_request_is_replaced_once(tmp_path: Path) -> None:
    async def script(connection: Connection) -> None:
        while await connection.request():
            if connection.number == 0:
                return
            await connection.send(OK)

    async with rig(script, tmp_path) as relay:
        await relay.warm()
        assert (await relay.ask()).body == b"ok"
        assert relay.server.received.count(b"GET " + TARGET) == 2
        assert len(relay.server.connections) == 2


async def test_a_kept_connection_that_ends_is_dropped_at_once(tmp_path: Path) -> None:
    async def script(connection: Connection) -> None:
        if connection.number == 0:
            await end.wait()
        else:
            await answering(OK)(connection)

    end = trio.Event()
    async with rig(script, tmp_path) as relay:
        await relay.warm()
        end.set()
        with trio.fail_after(2):
            while relay.pool.connections.idle_count:
                await trio.testing.wait_all_tasks_blocked(0.005)
        assert (await relay.ask(method=b"DELETE")).body == b"ok"


async def test_what_comes_on_a_kept_connection_answers_no_later_request(tmp_path: Path) -> None:
    async def script(connection: Connection) -> None:
        if connection.number == 0:
            await unasked.wait()
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother")
            await connection.more()
        else:
            await answering(OK)(connection)

    unasked = trio.Event()
    async with rig(script, tmp_path) as relay:
        await relay.warm()
        unasked.set()
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert relay.pool.connections.idle_count == 0
        assert (await relay.ask()).body == b"ok"


async def test_an_old_token_is_replaced_without_the_agent_noticing(tmp_path: Path) -> None:
    async def script(connection: Connection) -> None:
        while head := await connection.request():
            if headers(head, "authorization") == ["Bearer relay-token-2"]:
                await connection.send(OK)
            else:
                await connection.send(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno")

    async with rig(script, tmp_path) as relay:
        await relay.warm()
        relay.server.rotate_token("relay-token-2")
        assert (await relay.ask()).body == b"ok"


async def test_a_client_that_leaves_ends_the_request_upstream(tmp_path: Path) -> None:
    async def script(connection: Connection) -> None:
        while await connection.more():
            pass
        ended.set()

    ended = trio.Event()
    async with rig(script, tmp_path) as relay:
        await relay.warm()
        outbound = relay.way.open(inner(TARGET), token(), eof=True)
        await trio.testing.wait_all_tasks_blocked(0.005)
        assert relay.upstream.underway.count == 1
        assert relay.tasks.names == []
        await outbound.abandon()
        with trio.fail_after(2):
            await ended.wait()
            assert await relay.upstream.underway.wait_drained(5)


@pytest.mark.parametrize("how", ["drained", "closed"])
async def test_the_end_of_the_service_cuts_what_is_awaited(how: str, tmp_path: Path) -> None:
    async def script(connection: Connection) -> None:
        while await connection.more():
            pass
        ended.set()

    ended = trio.Event()
    async with rig(script, tmp_path) as relay:
        await relay.warm()
        stream = relay.way.session.open_stream(
            inner(TARGET).encode(), context=relay.way.session.add_context(1, token().encode()), eof=True
        )
        await trio.testing.wait_all_tasks_blocked(0.005)
        assert relay.tasks.names == []
        if how == "drained":
            relay.serving.cancel()
            with pytest.raises(StreamReset) as caught, trio.fail_after(2):
                await stream.receive_head()
            assert (caught.value.code, caught.value.processed) == (StreamCode.DRAINING, Processed.MAYBE)
        else:
            relay.way.session._die(None, "lost", lost=True)
        with trio.fail_after(2):
            await ended.wait()
            assert await relay.upstream.underway.wait_drained(5)


@pytest.mark.parametrize("where", ["request", "answer"])
async def test_a_bug_in_one_reaches_no_other(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def raise_once(*args: object, **kwargs: object) -> object:
        monkeypatch.undo()
        raise ZeroDivisionError

    name = "relay_request_head" if where == "request" else "relay_response_head"
    async with rig(answering(OK), tmp_path) as relay:
        await relay.warm()
        monkeypatch.setattr(f"proxy.relay.exchange.{name}", raise_once)
        with caplog.at_level(logging.ERROR, "hawse.relay"):
            answer = await relay.ask()
        assert answer.failure is not None
        assert answer.failure.code is StreamCode.INTERNAL
        assert "ZeroDivisionError" in caplog.text
        assert relay.upstream.underway.count == 0
        assert (await relay.ask()).body == b"ok"
