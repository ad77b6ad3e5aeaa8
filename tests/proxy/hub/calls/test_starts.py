"""Rows of reads that last: which calls have one and when, and that each call has one end all the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import attrs
import pytest
import trio
from trio.testing import MockClock

from audit.recording.recorder import Recorder
from proxy.exchange.server import ServerConnection
from proxy.hub.authorize.admission import Call
from proxy.hub.calls import starts as starts_module
from proxy.hub.calls.calls import Calls
from proxy.hub.calls.live import LiveCall, LiveCalls
from proxy.hub.calls.starts import CHECK_EVERY_S, STARTED_AFTER_S, STARTS_PER_CHECK_MAX, Starts
from proxy.message.head import ResponseHead
from tests.proxy.hub.calls.bench import Bench, open_bench, relay_of
from tests.proxy.hub.calls.talk import CHUNKED, exec_request
from tests.tunnel.trio_stream import accept

WATCH = "GET /clusters/prod/api/v1/namespaces/dev/secrets?watch=1 HTTP/1.1"


@attrs.define
class FakeRecorder:
    queued: list[int] = attrs.Factory(list)
    healthy: bool = True

    def complete(self, event: int) -> None:
        self.queued.append(event)


@attrs.define
class FakeCalls:
    live: LiveCalls
    recorder: FakeRecorder = attrs.Factory(FakeRecorder)

    def start(self, live: LiveCall) -> int:
        return int(live.eid)


@attrs.frozen
class Kind:
    durable: bool = False


READ, WRITE = Kind(), Kind(durable=True)


def begin(calls: FakeCalls, number: int, kind: Kind, age_s: float, clock: MockClock) -> LiveCall:
    began_s = clock.current_time() - age_s
    live = LiveCall(cast(Call, kind), str(number), cast(ServerConnection, None), 0.0, began_s)
    calls.live.enter(live)
    return live


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> FakeCalls:
    monkeypatch.setattr("proxy.hub.calls.starts.time.monotonic", autojump_clock.current_time)
    return FakeCalls(LiveCalls(lambda live: None))


async def test_each_read_that_lasts_has_one_row_and_no_other_call(
    calls: FakeCalls, autojump_clock: MockClock
) -> None:
    starts = Starts(cast(Calls, calls))
    begin(calls, 1, READ, 7.0, autojump_clock)
    begin(calls, 2, WRITE, 6.0, autojump_clock)
    over = begin(calls, 3, READ, 5.5, autojump_clock)
    begin(calls, 4, READ, STARTED_AFTER_S - 0.5, autojump_clock)
    begin(calls, 5, WRITE, 1.0, autojump_clock)
    calls.live.leave(over)
    await starts.look()
    assert calls.recorder.queued == [1]
    # An older one than one that has its row has had its own look.
    await trio.sleep(CHECK_EVERY_S)
    begin(calls, 6, READ, 0.0, autojump_clock)
    await starts.look()
    assert calls.recorder.queued == [1, 4]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(starts.run)
        await trio.sleep(STARTED_AFTER_S - CHECK_EVERY_S / 2)
        assert calls.recorder.queued == [1, 4]
        await trio.sleep(CHECK_EVERY_S)
        assert calls.recorder.queued == [1, 4, 6]
        nursery.cancel_scope.cancel()


async def test_many_calls_that_begin_at_once_get_their_rows_in_several_checks(
    calls: FakeCalls, autojump_clock: MockClock
) -> None:
    most = STARTS_PER_CHECK_MAX + 500
    for number in range(most):
        begin(calls, number, READ, 6.0, autojump_clock)
    starts = Starts(cast(Calls, calls))
    await starts.look()
    assert calls.recorder.queued == list(range(STARTS_PER_CHECK_MAX))
    await starts.look()
    await starts.look()
    assert calls.recorder.queued == list(range(most))


async def test_while_the_trail_is_down_no_row_is_queued_and_none_is_forgotten(
    calls: FakeCalls, autojump_clock: MockClock
) -> None:
    begin(calls, 1, READ, 6.0, autojump_clock)
    starts = Starts(cast(Calls, calls))
    calls.recorder.healthy = False
    await starts.look()
    assert calls.recorder.queued == []
    calls.recorder.healthy = True
    await starts.look()
    assert calls.recorder.queued == [1]


@pytest.fixture(params=["with a task", "without a task"])
async def bench(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Bench]:
    monkeypatch.setattr(starts_module, "STARTED_AFTER_S", 0.0)
    async with open_bench(tmp_path, with_task=request.param == "with a task") as bench:
        yield bench


@pytest.mark.parametrize("line", [WATCH, "GET /clusters/prod/api/v1/namespaces/dev/secrets HTTP/1.1"])
async def test_a_read_that_lasts_has_a_start_with_all_that_is_known_and_one_end(
    bench: Bench, line: str
) -> None:
    starts = Starts(bench.calls)
    async with relay_of(bench) as relay, trio.open_nursery() as nursery:
        nursery.start_soon(bench.ask, bench.request(line))
        async with await accept(relay) as stream:
            for _ in range(2):
                await starts.look()
            [start] = await bench.trail()
            await stream.send_head(CHUNKED, eof=True)
    [_, end] = await bench.trail()
    assert (start["phase"], end["phase"]) == ("start", "complete")
    told = ["eid", "kind", "actor", "client", "cluster", "req", "decision", "org"]
    assert [start[name] for name in told] == [end[name] for name in told]
    assert "resp" not in start
    assert start["relay"] == end["relay"]
    assert start["impersonated"] == end["impersonated"]
    assert len(bench.observed) == 1


async def test_an_upgrade_has_its_intent_and_no_start(bench: Bench) -> None:
    async with relay_of(bench) as relay, trio.open_nursery() as nursery:
        nursery.start_soon(bench.ask, exec_request(bench))
        async with await accept(relay):
            await Starts(bench.calls).look()
            assert [event["phase"] for event in await bench.trail()] == ["intent"]
        nursery.cancel_scope.cancel()
    assert [event["phase"] for event in await bench.trail()] == ["intent", "complete"]


async def test_no_start_comes_behind_the_end_of_a_read_that_is_refused_while_the_trail_is_down(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client takes its time to read the answer, and the trail comes back meanwhile."""
    healthy, answer = False, ServerConnection.answer
    monkeypatch.setattr(Recorder, "healthy", property(lambda _: healthy))

    async def answer_slowly(connection: ServerConnection, head: ResponseHead, body: bytes = b"") -> None:
        nonlocal healthy
        healthy = True
        await Starts(bench.calls).look()
        await answer(connection, head, body)

    monkeypatch.setattr(ServerConnection, "answer", answer_slowly)
    await bench.ask(bench.request(WATCH))
    assert [event["phase"] for event in await bench.trail()] == ["start", "complete"]
    # It is not among those that have no end, which nothing but a restart ends.
    assert bench.calls.recorder._store._open_intents == {}
