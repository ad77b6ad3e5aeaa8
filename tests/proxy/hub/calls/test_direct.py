"""Calls in direct mode, between a client's socket and a relay: a real one, or a script."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from audit.ids import new_eid
from auth.key_rotation import TrustedKeys
from auth.keys import KeySet
from proxy.exchange.pool import Connections
from proxy.hub.calls.live import Ending, LiveCall
from proxy.hub.calls.outcome import CloseReason
from proxy.hub.relays.direct import DirectRequest
from proxy.kubernetes.statement import STATEMENT_TARGET
from proxy.message.failure import Failure, Processed, StreamCode
from proxy.message.relay_marks import failure_header
from tests.proxy.hub.calls.bench import ISSUER, Bench, open_bench, read_all
from tests.proxy.hub.relays.direct_relays import close_kept, enrol_far
from tests.proxy.relay.apiserver import OK, Connection, headers, running
from tests.proxy.relay.ways import direct_way

GET = "GET /clusters/far/api/v1/pods HTTP/1.1"
POST = "POST /clusters/far/api/v1/namespaces/dev/pods HTTP/1.1"
CANNOT = json.dumps({"message": 'User "relay" cannot impersonate resource "users"'}).encode()
REVOKED = Ending(CloseReason.REVOKED, "the policy has changed")


@attrs.define(eq=False)
class Far:
    """A cluster in direct mode. `answer` is the relay's part: it answers one request."""

    bench: Bench
    answer: Callable[[Connection, bytes], Awaitable[None]]
    heads: list[bytes] = attrs.Factory(list)
    """Those of the requests that the relay has read."""

    def request(self, line: str = GET, *lines: str, body: bytes = b"") -> bytes:
        return self.bench.request(line, *lines, body=body, token=self.bench.token("far"))

    async def ask(
        self, line: str = GET, *lines: str, body: bytes = b""
    ) -> tuple[int, dict[bytes, bytes], bytes]:
        with trio.fail_after(5):
            return await self.bench.ask(self.request(line, *lines, body=body))

    @property
    def connections(self) -> Connections:
        """The hub's connections to the relay."""
        [relay] = self.bench.calls.direct._relays.values()
        return relay.connections

    async def live(self) -> LiveCall:
        """The one call that is under way."""
        with trio.fail_after(5):
            while not self.bench.calls.live.count:  # noqa: ASYNC110 - a socket decides it
                await trio.sleep(0.005)
        [live] = self.bench.calls.live
        return live

    async def closing(self) -> dict[str, object]:
        """The closing event of the last call."""
        return [event for event in await self.bench.trail() if event.get("phase") == "complete"][-1]


async def answer_ok(connection: Connection, head: bytes) -> None:
    await connection.send(OK)


@pytest.fixture
async def far(tmp_path: Path) -> AsyncIterator[Far]:
    async def relay(connection: Connection) -> None:
        while head := await connection.request():
            if STATEMENT_TARGET in head:
                await connection.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                continue
            far.heads.append(head)
            await far.answer(connection, head)

    async with open_bench(tmp_path, with_task=False) as bench, running(relay, tmp_path) as server:
        await enrol_far(bench.directory, server.access.port, (tmp_path / "ca.crt").read_text())
        far = Far(bench, answer_ok)
        yield far
        await close_kept(bench.calls.direct)


@asynccontextmanager
async def asked(far: Far, data: bytes) -> AsyncIterator[trio.abc.Stream]:
    """A client that has sent a request."""
    async with far.bench.connected() as client:
        await client.send_all(data)
        yield client


async def test_the_trail_says_whom_the_api_server_saw(tmp_path: Path) -> None:
    heads: list[bytes] = []

    async def script(connection: Connection) -> None:
        while head := await connection.request():
            heads.append(head)
            await connection.send(OK)

    async with (
        open_bench(tmp_path, with_task=False) as bench,
        running(script, tmp_path) as server,
        direct_way(server.access, tmp_path) as way,
    ):
        await enrol_far(bench.directory, way.port, way.ca_pem)
        assert way.verifier is not None
        way.verifier.keys = TrustedKeys(KeySet([bench.key.public]), ISSUER)
        way.verifier.cluster_id = bench.directory.current.clusters_by_name["far"].id
        assert (await Far(bench, answer_ok).ask())[0] == 200
        await close_kept(bench.calls.direct)
        [head] = heads
        [event] = await bench.trail()
    assert [event["eid"]] == headers(head, "audit-id")
    assert event["relay"] == {"instance": "direct"}
    assert event["impersonated"] == {
        "user": "agent:ann",
        "groups": ["acme/sre"],
        "extra": {
            "hawse.dev/agent-id": headers(head, "impersonate-extra-hawse.dev%2fagent-id"),
            "hawse.dev/session": headers(head, "impersonate-extra-hawse.dev%2fsession"),
        },
    }


async def test_a_relay_that_the_hub_cannot_dial_is_an_offline_cluster(tmp_path: Path) -> None:
    async with open_bench(tmp_path, with_task=False) as bench:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))  # and does not listen
            await enrol_far(bench.directory, taken.getsockname()[1], None)
            status, fields, body = await Far(bench, answer_ok).ask()
        assert status == 503
        assert b"retry-after" not in fields
        assert json.loads(body)["message"].startswith(
            'cluster "far" is offline: cannot reach the relay of cluster far: '
        )
        [event] = await bench.trail()
        assert "relay" not in event


async def test_bodies_cross_and_are_counted_on_one_connection(far: Far) -> None:
    async def echo(connection: Connection, head: bytes) -> None:
        body = bytes(connection.received[connection._parsed :])
        while len(body) < 6:
            assert await connection.more()
            body = bytes(connection.received[connection._parsed :])
        connection._parsed += 6
        await connection.send(b"HTTP/1.1 201 Created\r\nContent-Length: 7\r\n\r\n" + body + b"!")

    far.answer = echo
    for _ in range(2):
        status, _, body = await far.ask(POST, "Content-Length: 6", body=b"create")
        assert (status, body) == (201, b"create!")
        event = await far.closing()
        assert (event["req"]["body_bytes"], event["resp"]["bytes"]) == (6, 7)  # type: ignore[index]
    assert far.connections.idle_count == 1


# -- the relay's own refusals


def refusal(failure: Failure) -> bytes:
    name, value = failure_header(failure)
    return b"HTTP/1.1 503 Refused\r\n%s: %s\r\nContent-Length: 6\r\n\r\nsecret" % (name, value)


async def test_a_token_that_the_relay_refuses_is_renewed_once_and_the_body_sent_again(far: Far) -> None:
    refused = refusal(Failure(StreamCode.UNAUTHENTICATED, Processed.NO, "expired"))

    async def refuse_first(connection: Connection, head: bytes) -> None:
        while not connection.received.endswith(b"create"):
            assert await connection.more()
        connection._parsed = len(connection.received)
        await connection.send(refused if len(far.heads) == 1 else OK)

    far.answer = refuse_first
    # Otherwise two tokens of the same second are the same.
    far.bench.calls.direct._new_id = new_eid
    status, _, body = await far.ask(POST, "Content-Length: 6", body=b"create")
    assert (status, body) == (200, b"ok")
    first, second = [headers(head, "authorization") for head in far.heads]
    assert first != second
    far.heads.clear()
    far.answer = lambda connection, head: connection.send(refused)
    status, _, body = await far.ask()
    # The agent's own token was in order.
    assert status == 503
    assert b"does not accept its hub: expired" in body
    assert b"secret" not in body
    assert len(far.heads) == 2


async def test_what_a_relay_says_of_its_api_server_makes_no_cluster_offline(far: Far) -> None:
    failed = Failure(StreamCode.DIAL_FAILED, Processed.NO, "no route to the API server")
    far.answer = lambda connection, head: connection.send(refusal(failed))
    status, fields, body = await far.ask()
    assert status == 503
    assert b"no route to the API server" in body
    assert b"offline" not in body
    assert b"hawse-relay-failure" not in fields


# -- a short 403


@pytest.mark.parametrize(
    ("text", "explained"), [(CANNOT, True), (b'{"message": "pods is forbidden"}', False)]
)
@pytest.mark.parametrize("in_pieces", [False, True])
async def test_a_403_that_the_operator_can_mend_says_how(
    far: Far, text: bytes, explained: bool, in_pieces: bool
) -> None:
    async def forbid(connection: Connection, head: bytes) -> None:
        answer = b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n" % len(text)
        pieces = [answer, text[:9], text[9:-1], text[-1:]] if in_pieces else [answer + text]
        for piece in pieces if not head.startswith(b"HEAD") else [answer]:
            await connection.send(piece)
            await wait_all_tasks_blocked(0.005)

    far.answer = forbid
    status, fields, body = await far.ask()
    assert (status, body) == (403, text)
    assert (b"hawse admin cluster check far" in fields.get(b"warning", b"")) == explained
    assert (await far.closing())["resp"]["bytes"] == len(text)  # type: ignore[index]
    status, fields, body = await far.ask(GET.replace("GET", "HEAD"))
    assert (status, body, b"warning" in fields) == (403, b"", False)
    assert far.connections.idle_count == 1


async def test_a_403_that_breaks_off_is_no_answer(far: Far) -> None:
    async def break_off(connection: Connection, head: bytes) -> None:
        await connection.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 50\r\n\r\ncannot impersonate")
        raise trio.BrokenResourceError

    far.answer = break_off
    status, _, body = await far.ask()
    assert status == 503
    assert b"impersonate" not in body


# -- a kept connection that the relay gave up


@pytest.mark.parametrize("line", [GET, POST])
async def test_a_kept_connection_that_the_relay_had_closed_is_replaced_once(far: Far, line: str) -> None:
    assert (await far.ask())[0] == 200

    async def close_once(connection: Connection, head: bytes) -> None:
        if len(far.heads) == 2:
            raise trio.BrokenResourceError
        await connection.send(OK)

    far.answer = close_once
    status, *_ = await far.ask(line)
    # What is not safe may have been carried out.
    assert status == (200 if line == GET else 504)
    assert len(far.heads) == (3 if line == GET else 2)


async def test_a_request_that_a_kept_connection_may_have_carried_is_recorded_so_if_no_other_follows(
    far: Far,
) -> None:
    assert (await far.ask())[0] == 200

    async def no_dial() -> trio.abc.Stream:
        raise OSError("no route")

    async def close(connection: Connection, head: bytes) -> None:
        far.connections._dial = no_dial
        raise trio.BrokenResourceError

    far.answer = close
    status, _, body = await far.ask()
    assert status == 503
    assert b"no route" in body
    assert len(far.heads) == 2
    assert (await far.closing())["resp"]["processed"] == "maybe"  # type: ignore[index]


async def test_a_new_connection_that_the_relay_closes_is_not_replaced(far: Far) -> None:
    async def close(connection: Connection, head: bytes) -> None:
        raise trio.BrokenResourceError

    far.answer = close
    assert (await far.ask())[0] == 503
    assert len(far.heads) == 1


# -- the end of a call while it waits


@attrs.define(eq=False)
class SlowDial:
    """A dial that takes until `gate` is set, in the place of the hub's own."""

    far: Far
    begun: trio.Event = attrs.Factory(trio.Event)
    cancelled: bool = False

    async def __call__(self) -> trio.abc.Stream:
        self.begun.set()
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            self.cancelled = True
            raise

    async def set_up(self) -> None:
        """Meet the relay first, so that requests do not wait for its statement."""
        assert (await self.far.ask())[0] == 200
        self.far.heads.clear()
        await self.far.connections.aclose()
        self.far.connections._dial = self


async def test_a_call_that_is_ended_during_the_dial_is_told_at_once(far: Far) -> None:
    dial = SlowDial(far)
    await dial.set_up()
    async with asked(far, far.request()) as client:
        await dial.begun.wait()
        (await far.live()).end(REVOKED)
        with trio.fail_after(2):
            answer = await read_all(client)
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert REVOKED.reason.encode() in answer
    assert dial.cancelled
    assert far.heads == []


async def test_a_call_whose_relay_has_not_stated_its_cluster_is_ended_too(tmp_path: Path) -> None:
    # It accepts, and never says anything.
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with open_bench(tmp_path, with_task=False) as bench:
        await enrol_far(bench.directory, listener.socket.getsockname()[1], None)
        async with asked(Far(bench, answer_ok), bench.request(GET, token=bench.token("far"))) as client:
            dialled = await listener.accept()
            await bench.directory.change(lambda store: store.lock_agent("ann"))
            with trio.fail_after(2):
                assert (await read_all(client)).startswith(b"HTTP/1.1 403 ")
            await dialled.aclose()
        [closing] = await bench.trail()
        assert closing["kind"] == "session.killed"
    await listener.aclose()


async def test_a_request_whose_client_leaves_during_the_dial_is_never_sent(far: Far) -> None:
    dial = SlowDial(far)
    await dial.set_up()
    async with asked(far, far.request()) as client:
        await dial.begun.wait()
        await trio.aclose_forcefully(client)
        with trio.fail_after(2):
            while far.bench.calls.live.count:  # noqa: ASYNC110 - a socket decides it
                await trio.sleep(0.005)
    assert dial.cancelled
    assert far.heads == []
    assert (await far.closing())["resp"]["processed"] == "maybe"  # type: ignore[index]


@pytest.mark.parametrize("begun", [False, True])
async def test_a_call_that_is_ended_cuts_the_relays_connection(far: Far, begun: bool) -> None:
    gone = trio.Event()

    async def hang(connection: Connection, head: bytes) -> None:
        if begun:
            await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n")
        while await connection.more():
            pass
        gone.set()

    far.answer = hang
    async with asked(far, far.request()) as client:
        received = b""
        while begun and b"some" not in received:
            received += await client.receive_some()
        live = await far.live()
        while not far.heads:  # noqa: ASYNC110 - a socket decides it
            await trio.sleep(0.005)
        assert live.held_bytes > 0
        assert live.moved_bytes == (4 if begun else 0)
        assert not live.evicted
        live.end(REVOKED)
        with trio.fail_after(2):
            await gone.wait()
            received += await read_all(client)
    assert not received.endswith(b"0\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 200" if begun else b"HTTP/1.1 403")
    event = await far.closing()
    assert (event["kind"], event["resp"]["reason"]) == ("session.killed", REVOKED.reason)  # type: ignore[index]
    assert far.connections.idle_count == 0


async def test_a_call_that_is_held_moves_nothing_until_it_is_released(far: Far) -> None:
    async def answer_in_two(connection: Connection, head: bytes) -> None:
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsome")
        await gate.wait()
        await connection.send(b"more")

    gate = trio.Event()
    far.answer = answer_in_two
    async with asked(far, far.request()) as client:
        received = b""
        while b"some" not in received:
            received += await client.receive_some()
        live = await far.live()
        live.hold()
        gate.set()
        with trio.move_on_after(0.1) as patience:
            await client.receive_some()
        assert patience.cancelled_caught
        live.release()
        with trio.fail_after(2):
            assert await client.receive_some() == b"more"


async def test_an_upgrade_takes_a_kept_connection_with_it_and_is_carried_both_ways(far: Far) -> None:
    async def echo(connection: Connection, head: bytes) -> None:
        if b"exec" not in head:
            await connection.send(OK)
            return
        await connection.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        )
        while data := await connection.more():
            await connection.send(data.upper())

    far.answer = echo
    await far.ask()
    line = "GET /clusters/far/api/v1/namespaces/dev/pods/p/exec?command=sh HTTP/1.1"
    data = far.request(line, "Upgrade: websocket", "Sec-WebSocket-Key: x", "Sec-WebSocket-Version: 13")
    async with asked(far, data.replace(b"Connection: close", b"Connection: Upgrade")) as client:
        received = b""
        with trio.fail_after(5):
            while b"\r\n\r\n" not in received:
                received += await client.receive_some()
            assert received.startswith(b"HTTP/1.1 101 ")
            await client.send_all(b"keystroke")
            assert await client.receive_some() == b"KEYSTROKE"
            live = await far.live()
            assert live.moved_bytes == 18
            live.end(REVOKED)
            assert await read_all(client) == b""
    assert far.connections.idle_count == 0


async def test_a_call_in_direct_mode_whose_dial_took_too_long_is_not_forwarded(
    far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    dial = DirectRequest.open

    async def dial_slowly(request: DirectRequest, *args: object, **named: object) -> None:
        await dial(request, *args, **named)  # type: ignore[arg-type]
        far.bench.age(10.0)

    monkeypatch.setattr(DirectRequest, "open", dial_slowly)
    status, _, body = await far.ask()
    assert status == 503
    assert b"cannot confirm its state with the database" in body
    assert far.heads == []
