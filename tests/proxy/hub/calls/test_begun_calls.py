"""What may happen to a call that was begun without its connection's task, and what is recorded of it."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from audit.recording.recorder import Recorder
from proxy.exchange.client_port import ClientPort
from proxy.exchange.next_pass import NextPass
from proxy.exchange.parked_exchange import ExchangeFault
from proxy.exchange.server import ServerConnection
from proxy.hub.admin.live_calls import LiveSessions
from proxy.hub.calls.calls import Calls
from proxy.hub.calls.forwarding import Forwarding
from proxy.hub.home.hub_instances import HubInstances
from proxy.message.relay_marks import DECISION_HEADER
from tests.proxy.hub.calls.bench import OK, Bench, fail, open_bench, relay_of
from tests.proxy.hub.calls.bench import read_all as read_to_end
from tests.proxy.hub.calls.line import PODS, POST, Commits, Line, next_of
from tests.proxy.hub.calls.talk import CHUNKED, SWITCHING, expect_reset
from tests.tunnel.pairs import read_all
from tests.tunnel.stream_pairs import handshake, tcp_pair
from tests.tunnel.trio_stream import TrioStream, accept
from tunnel import Processed, Stream, StreamCode
from tunnel.net.readiness import Readiness

EXEC = "GET /clusters/prod/api/v1/namespaces/dev/pods/p/exec?command=sh HTTP/1.1"
UPGRADE = ("Connection: Upgrade", "Upgrade: websocket")
PUT = "PUT /clusters/prod/api/v1/namespaces/dev/pods/p HTTP/1.1"
WATCH = "GET /clusters/prod/api/v1/pods?watch=1 HTTP/1.1"
FAULT = "the hub failed by a fault of its own"


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path, with_task=False) as bench:
        yield bench


async def watched(line: Line) -> TrioStream:
    """A watch whose answer has begun."""
    stream = await line.ask(WATCH)
    await stream.send_head(CHUNKED)
    await stream.send_all(b"first")
    await line.hear(b"first\r\n")
    return stream


async def cut(line: Line) -> None:
    """Wait until the client's connection breaks, without a clean end of the answer."""
    with trio.fail_after(2):
        assert not (await read_to_end(line.client)).endswith(b"0\r\n\r\n")


# -- another attempt


async def test_a_body_is_sent_whole_to_a_sibling_after_a_refusal(bench: Bench) -> None:
    body = bytes(range(256)) * 200
    async with relay_of(bench, "a") as a, relay_of(bench, "b") as b, bench.connected() as client:
        line = Line(bench, client, a)
        await line.send(PUT, f"Content-Length: {len(body)}")
        refusing = await next_of(a, b)
        await client.send_all(body[:30_000])
        assert await refusing.receive_some()
        refusing.reset(StreamCode.REFUSED, processed=Processed.NO, reason="not here")
        stream = await next_of(a, b)
        await client.send_all(body[30_000:])
        with trio.fail_after(2):
            assert await read_all(stream) == body
        stream.send_answer_nowait(OK, b"yes", eof=True)
        await line.hear(b"\r\n\r\nyes")
    assert (bench.handled, bench.carried_on) == (0, 1)
    intent, end = await bench.trail()
    assert (intent["eid"], intent["phase"], end["phase"]) == (end["eid"], "intent", "complete")
    assert end["req"]["body_bytes"] == len(body)
    assert end["resp"]["status"] == 200


async def test_a_write_whose_relay_goes_before_its_intent_is_durable_is_not_forwarded(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = Commits(monkeypatch)
    async with bench.connected() as client:
        async with relay_of(bench) as relay:
            line = Line(bench, client, relay)
            await line.send(POST, "Content-Length: 0")
            await wait_all_tasks_blocked(0.01)
        commits.let_go()
        answer = await line.hear(b"}")
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"offline" in answer
    end = (await bench.trail())[-1]
    assert (end["resp"]["status"], end["resp"]["processed"]) == (503, "no")


async def test_a_write_whose_relay_goes_before_its_intent_is_durable_goes_to_a_sibling(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = Commits(monkeypatch)
    async with relay_of(bench, "b") as b, bench.connected() as client:
        async with relay_of(bench, "a") as a:
            monkeypatch.setattr(bench.registry, "session", lambda _: relay_a)
            [relay_a] = [relay for relay in bench.registry.relays() if relay.instance == "a"]
            line = Line(bench, client, a)
            await line.send(POST, "Content-Length: 6")
            await client.send_all(b"create")
            await wait_all_tasks_blocked(0.01)
        monkeypatch.undo()
        commits.let_go()
        stream = await next_of(b)
        with trio.fail_after(2):
            assert await read_all(stream) == b"create"
        stream.send_answer_nowait(OK, b"yes", eof=True)
        await line.hear(b"\r\n\r\nyes")
    assert bench.carried_on == 1
    end = (await bench.trail())[-1]
    assert end["relay"]["instance"] == "b"


# -- the client's end during the intent


async def test_a_client_that_ends_its_direction_during_the_intent_gets_its_answer(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = Commits(monkeypatch)
    await line.send(POST, "Content-Length: 6")
    await line.client.send_all(b"create")
    line.client.send_close_notify_nowait()
    await wait_all_tasks_blocked(0.01)
    commits.let_go()
    with trio.fail_after(2):
        stream = await accept(line.relay)
        assert await read_all(stream) == b"create"
    stream.send_answer_nowait(OK, b"yes", eof=True)
    await line.hear(b"\r\n\r\nyes")
    assert await line.bench.calls.live.wait_drained(5)
    end = (await line.bench.trail())[-1]
    assert (end["resp"]["status"], end["resp"]["processed"]) == (200, "yes")


async def test_a_client_that_ends_its_direction_within_its_body_is_gone(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = Commits(monkeypatch)
    await line.send(POST, "Content-Length: 6")
    await line.client.send_all(b"cre")
    line.client.send_close_notify_nowait()
    await wait_all_tasks_blocked(0.01)
    commits.let_go()
    assert await line.bench.calls.live.wait_drained(5)
    end = (await line.bench.trail())[-1]
    assert end["resp"]["reason"] == "the client is gone"


async def test_the_end_of_an_execs_input_is_passed_on_if_it_arrives_with_the_input(line: Line) -> None:
    stream = await line.ask(EXEC, *UPGRADE)
    await stream.send_head(SWITCHING)
    await line.hear(b"\r\n\r\n")
    # The client's TCP connection stays open, so the socket reports nothing more.
    line.client.send_nowait(b"exit")
    line.client.send_close_notify_nowait()
    with trio.fail_after(2):
        assert await read_all(stream) == b"exit"
    await stream.send_eof()
    assert await line.bench.calls.live.wait_drained(5)
    end = (await line.bench.trail())[-1]
    assert end["stream"]["close_reason"] == "complete"


# -- whole calls without the task


async def test_an_exec_is_recorded_with_its_bytes(line: Line) -> None:
    stream = await line.ask(EXEC, *UPGRADE)
    await stream.send_head(SWITCHING)
    await stream.send_all(b"hello")
    await line.hear(b"hello")
    await line.client.send_all(b"exit")
    assert await stream.receive_some() == b"exit"
    await stream.send_eof()
    assert await line.client.receive_some() == b""
    await line.client.aclose()
    assert await line.bench.calls.live.wait_drained(5)
    assert (line.bench.handled, line.bench.carried_on) == (0, 0)
    intent, end = await line.bench.trail()
    assert (intent["phase"], end["phase"], end["kind"]) == ("intent", "complete", "call")
    recorded = end["stream"]
    expected = {"bytes_in": 4, "bytes_out": 5, "close_reason": "complete"}
    assert recorded == {**recorded, **expected}
    assert end["resp"]["status"] == 101


async def test_a_large_upload_needs_no_task(line: Line) -> None:
    body = bytes(300_000)
    stream = await line.ask(PUT, f"Content-Length: {len(body)}")
    received: list[bytes] = []

    async def answer() -> None:
        received.append(await read_all(stream))
        stream.send_answer_nowait(OK, b"yes", eof=True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        await line.client.send_all(body)
        await line.hear(b"\r\n\r\nyes")
    assert received == [body]
    assert (line.bench.handled, line.bench.carried_on) == (0, 0)
    end = (await line.bench.trail())[-1]
    assert end["req"]["body_bytes"] == len(body)


@pytest.mark.parametrize(("status", "effect"), [(401, "allow"), (403, "deny")])
async def test_a_refusal_behind_the_relay_is_passed_on(line: Line, status: int, effect: str) -> None:
    stream = await line.ask(POST, "Content-Length: 0")
    mark = DECISION_HEADER + b": guardrails no-secrets\r\n"
    head = b"HTTP/1.1 %d No\r\ncontent-length: 2\r\n%b\r\n" % (status, mark)
    stream.send_answer_nowait(head, b"{}", eof=True)
    received = await line.hear(b"\r\n\r\n{}")
    assert received.startswith(b"HTTP/1.1 %d " % status)
    assert DECISION_HEADER not in received
    assert line.bench.carried_on == 0
    end = (await line.bench.trail())[-1]
    assert (end["decision"]["effect"], end["resp"]["status"]) == (effect, status)


async def test_a_call_that_is_held_moves_nothing_until_it_is_released(line: Line) -> None:
    stream = await watched(line)
    [live] = line.bench.calls.live
    live.hold()
    await stream.send_all(b"second")
    with trio.move_on_after(0.05) as patience:
        await line.client.receive_some()
    assert patience.cancelled_caught
    live.release()
    await line.hear(b"second\r\n")
    await stream.send_eof()
    await line.hear(b"0\r\n\r\n")
    assert line.bench.carried_on == 0


# -- the hub ends it


async def test_an_operator_cuts_a_watch_at_once(line: Line, tmp_path: Path) -> None:
    stream = await watched(line)
    sessions = LiveSessions(line.bench.calls.live, HubInstances(tmp_path / "boots"), "new")
    await sessions.kill(session_id=None, agent="ann", cluster=None, reason="enough")
    assert (await expect_reset(stream)).reason == "enough"
    await cut(line)
    assert await line.bench.calls.live.wait_drained(5)
    [event] = await line.bench.trail()
    assert event["kind"] == "session.killed"
    assert (event["stream"]["close_reason"], event["stream"]["bytes_out"]) == ("killed", 5)
    assert event["relay"]["instance"] == "relay-1"


async def test_a_revocation_cuts_a_watch_at_once(line: Line) -> None:
    stream = await watched(line)
    await line.bench.directory.change(lambda store: store.lock_agent("ann"))
    assert (await expect_reset(stream)).code is StreamCode.REVOKED
    await cut(line)
    assert await line.bench.calls.live.wait_drained(5)
    [event] = await line.bench.trail()
    assert event["stream"]["close_reason"] == "revoked"


@pytest.mark.parametrize("kind", ["watch", "exec", "write", "intent"])
async def test_the_hubs_end_is_recorded_of_each_call(
    bench: Bench, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with relay_of(bench) as relay:
        async with bench.connected() as client:
            line = Line(bench, client, relay)
            if kind == "watch":
                await watched(line)
            elif kind == "exec":
                stream = await line.ask(EXEC, *UPGRADE)
                await stream.send_head(SWITCHING)
                await line.hear(b"\r\n\r\n")
            elif kind == "write":
                await line.ask(POST, "Content-Length: 6")
            else:
                commits = Commits(monkeypatch)
                await line.send(POST, "Content-Length: 6")
                await wait_all_tasks_blocked(0.01)
        assert bench.calls.live.count == 0
        if kind == "intent":
            commits.let_go()
    events = await bench.trail()
    assert [event["phase"] for event in events] == (["intent"] if kind != "watch" else []) + ["complete"]
    seen = {"watch": "yes", "exec": "yes", "write": "maybe", "intent": "no"}
    assert events[-1]["resp"]["processed"] == seen[kind]
    assert bench.calls.recorder._store._open_intents == {}


# -- faults of ours


@pytest.mark.parametrize("where", ["open_stream", "open_stream of a write", "pass_head", "write", "close"])
async def test_a_fault_ends_this_call_alone_and_is_recorded_as_the_hubs(
    line: Line, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    other = await line.ask()
    faults = pytest.RaisesExc((RuntimeError, ExchangeFault))
    with pytest.RaisesGroup(faults, flatten_subgroups=True):
        async with line.bench.connected() as client:
            failing = attrs.evolve(line, client=client)
            match where:
                case "open_stream":
                    monkeypatch.setattr(Forwarding, "open_stream", fail)
                    await failing.send()
                case "open_stream of a write":
                    monkeypatch.setattr(Forwarding, "open_stream", fail)
                    await failing.send(POST, "Content-Length: 0")
                case "pass_head":
                    stream = await failing.ask()
                    monkeypatch.setattr("proxy.message.head.ResponseHead.without_hop", fail)
                    stream.send_answer_nowait(OK, b"yes", eof=True)
                case "write":
                    stream = await failing.ask()
                    await stream.send_head(OK)
                    await failing.hear(b"\r\n\r\n")
                    monkeypatch.setattr(ClientPort, "write", fail)
                    stream.send_nowait(b"yes")
                case "close":
                    stream = await failing.ask()
                    monkeypatch.setattr(Stream, "close_nowait", fail_once(Stream.close_nowait))
                    stream.send_answer_nowait(OK, b"yes", eof=True)
            await trio.sleep_forever()
    monkeypatch.undo()
    other.send_answer_nowait(OK, b"yes", eof=True)
    await line.hear(b"\r\n\r\nyes")
    assert line.bench.calls.live.count == 0
    failed, answered = (await line.bench.trail())[-2:]
    assert failed["resp"]["reason"] == FAULT
    assert "reason" not in answered["resp"]


def fail_once(method: Callable[[Stream], None]) -> Callable[[Stream], None]:
    """A method whose first call fails."""
    calls = iter([fail])

    def called(stream: Stream) -> None:
        next(calls, method)(stream)

    return called


async def test_a_fault_in_the_record_of_an_answer_ends_this_connection_alone(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = await line.ask()
    with pytest.RaisesGroup(RuntimeError, flatten_subgroups=True):
        async with line.bench.connected() as client:
            failing = attrs.evolve(line, client=client)
            stream = await failing.ask()
            monkeypatch.setattr(Calls, "close_read", fail)
            stream.send_answer_nowait(OK, b"yes", eof=True)
            await trio.sleep_forever()
    monkeypatch.undo()
    other.send_answer_nowait(OK, b"yes", eof=True)
    await line.hear(b"\r\n\r\nyes")
    assert line.bench.calls.live.count == 0


async def test_a_fault_of_the_recorder_ends_this_call_alone(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.RaisesGroup(RuntimeError, flatten_subgroups=True):
        async with line.bench.connected() as client:
            monkeypatch.setattr(Recorder, "begin_intent", fail)
            await attrs.evolve(line, client=client).send(POST, "Content-Length: 0")
            await trio.sleep_forever()
    monkeypatch.undo()
    assert line.bench.calls.live.count == 0
    event = (await line.bench.trail())[-1]
    assert event["resp"]["reason"] == FAULT
    stream = await line.ask(PODS)
    stream.send_answer_nowait(OK, b"yes", eof=True)
    await line.hear(b"\r\n\r\nyes")
    assert await line.bench.calls.live.wait_drained(math.inf)


async def test_a_connection_that_was_cut_by_its_first_request_serves_no_others() -> None:
    client, server = await handshake(await tcp_pair())
    connection = ServerConnection(server, None, server, Readiness(), NextPass())
    await connection.cut()
    connection.serve_parked(server, lambda connection, head: None)
    assert connection.parked is None
    await trio.aclose_forcefully(client)
