"""Ending calls that are under way: the table of them on virtual time, and whole calls over a real tunnel."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import attrs
import pytest
import trio
import trio.testing
from trio.testing import MockClock, wait_all_tasks_blocked

from audit.record import Event
from audit.recording.queued import Settled
from audit.recording.recorder import Recorder
from proxy.exchange import inflight_memory
from proxy.exchange.inflight_memory import HeldUp
from proxy.exchange.wire import CONNECTION_BYTES
from proxy.hub.admin import live_calls
from proxy.hub.admin.live_calls import CallsPage, LiveSessions
from proxy.hub.calls.live import (
    END_S,
    ENDED_PER_PASS,
    ENDED_PER_PASS_MAX,
    SWEEP_S,
    Ending,
    LiveCall,
    LiveCalls,
)
from proxy.hub.calls.outcome import CloseReason
from proxy.hub.home.hub_instances import HubInstances
from proxy.hub.store.store import Store
from proxy.message.failure import Failure, Processed, StreamCode
from tests.proxy.hub.calls.bench import Bench, Change, open_bench, relay_of
from tests.proxy.hub.calls.fake_live_calls import REVOKED, exchanging_call, live_call
from tests.proxy.hub.calls.talk import CHUNKED, SWITCHING, exec_request, expect_reset, talk
from tests.tunnel.passes import counted_passes
from tests.tunnel.trio_stream import TrioStream, accept
from tunnel import Interruptions, Memory
from tunnel import Processed as StreamProcessed
from tunnel.stream import StreamReset


def test_ending_a_call_cuts_a_begun_answer_and_leaves_another_to_its_task() -> None:
    begun, begun_client, begun_relay = exchanging_call(begun=True)
    waiting, waiting_client, waiting_relay = exchanging_call()
    for live in (begun, waiting):
        live.end(REVOKED)
        live.end(Ending(CloseReason.KILLED, "too late"))
        assert live.ended is REVOKED
    yes = Failure(StreamCode.REVOKED, Processed.YES, REVOKED.reason)
    assert begun_relay.cuts == begun_client.cuts == [(yes, True)]
    assert waiting_relay.cuts == [(attrs.evolve(yes, processed=Processed.MAYBE), True)]
    assert waiting_client.cuts == []


def test_a_held_call_that_is_ended_moves_nothing_more() -> None:
    live, client, relay = exchanging_call()
    exchange = live.exchange
    assert exchange is not None
    live.hold()
    client.say(b"create", True)
    live.end(REVOKED)
    assert exchange.over
    assert not live.held
    assert bytes(relay.out) == b""


def test_queued_bytes_of_a_failed_answer_are_dropped_once_the_call_is_ended() -> None:
    live, client, _ = exchanging_call(begun=True)
    assert live.exchange is not None
    live.exchange.end(Failure(StreamCode.UPSTREAM_RESET, Processed.YES, "lost"), drop=False)
    client.cutting = True
    live.end(REVOKED)
    [(first, first_drop), (second, second_drop)] = client.cuts
    assert (first.reason, first_drop) == ("lost", False)
    assert (second.reason, second_drop) == (REVOKED.reason, True)


async def test_a_call_that_is_held_before_its_relay_has_it_is_held_there(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    intent, begin_intent = Recorder.intent, Recorder.begin_intent

    async def hold_within_intent(recorder: Recorder, event: Event) -> None:
        await intent(recorder, event)
        [live] = bench.calls.live
        live.hold()

    def begin_and_hold(recorder: Recorder, event: Event, settled: Settled) -> None:
        begin_intent(recorder, event, settled)
        [live] = bench.calls.live
        live.hold()

    monkeypatch.setattr(Recorder, "intent", hold_within_intent)
    monkeypatch.setattr(Recorder, "begin_intent", begin_and_hold)
    async with relay_of(bench) as relay, trio.open_nursery() as nursery:
        data = bench.request(
            "POST /clusters/prod/api/v1/namespaces/dev/pods HTTP/1.1", "Content-Length: 6", body=b"create"
        )
        nursery.start_soon(bench.ask, data)
        stream = await accept(relay)
        with trio.move_on_after(0.1) as patience:
            await stream.receive_some()
        assert patience.cancelled_caught
        [live] = bench.calls.live
        live.release()
        with trio.fail_after(2):
            assert await stream.receive_some() == b"create"
            stream.send_answer_nowait(b"HTTP/1.1 204 No Content\r\n\r\n", b"", eof=True)


def test_a_call_that_never_had_a_session_has_gone_through_nothing() -> None:
    live = live_call()
    assert (live.session, live.before) == (None, Interruptions())


async def test_a_wait_for_something_else_is_over_when_the_call_is_ended(autojump_clock: MockClock) -> None:
    live = live_call()

    async def end() -> None:
        live.end(REVOKED)

    async with trio.open_nursery() as nursery:
        with live.interruptible() as scope:
            nursery.start_soon(end)
            await trio.sleep_forever()
        assert scope.cancelled_caught
    # What was ended before does not begin to wait.
    with live.interruptible() as scope:
        await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_calls_end_when_they_are_due_and_not_before(autojump_clock: MockClock) -> None:
    calls = LiveCalls(lambda live: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(calls.run)
        lives = [exchanging_call(number)[0] for number in range(4)]
        for live in lives:
            calls.enter(live)
        calls.limit(lives[0], 100.0, "too old")
        calls.limit(lives[1], 10.0, "maxDuration of rule exec")
        calls.limit(lives[1], 50.0, "not so soon")
        calls.limit(lives[2], 10.0 + SWEEP_S / 2, "close behind")
        await trio.sleep(9.9)
        assert [live.ended for live in lives] == [None] * 4
        await trio.sleep(0.1 + 2 * SWEEP_S)
        assert lives[1].ended == Ending(CloseReason.DEADLINE, "maxDuration of rule exec")
        assert lives[2].ended == Ending(CloseReason.DEADLINE, "close behind")
        assert lives[1].ended.code is StreamCode.DEADLINE
        calls.leave(lives[1])
        await trio.sleep(100)
        assert lives[0].ended == Ending(CloseReason.DEADLINE, "too old")
        assert lives[3].ended is None
        assert lives[3].due_at == math.inf
        nursery.cancel_scope.cancel()


async def test_after_a_change_every_call_is_judged_once_and_new_ones_meanwhile_too(
    autojump_clock: MockClock,
) -> None:
    doomed: set[str] = set()
    judged: list[str] = []

    def judge(live: LiveCall) -> Ending | None:
        judged.append(live.eid)
        return REVOKED if live.eid in doomed else None

    calls = LiveCalls(judge)
    lives = [exchanging_call(number)[0] for number in range(600)]
    for live in lives:
        calls.enter(live)
    doomed.update({"eid-0", "eid-300", "eid-599"})
    async with trio.open_nursery() as nursery:
        calls.reconsider()  # also before run's first check
        nursery.start_soon(calls.run)
        await wait_all_tasks_blocked()
        assert len(judged) == 600
        assert {live.eid for live in calls if live.ended is not None} == doomed
        judged.clear()
        calls.reconsider()
        calls.reconsider()
        await wait_all_tasks_blocked()
        assert len(judged) == 597
        nursery.cancel_scope.cancel()


async def test_a_call_that_is_over_is_not_ended() -> None:
    calls = LiveCalls(lambda live: None)
    live, _, relay = exchanging_call()
    calls.enter(live)
    assert calls.count == 1
    calls.leave(live)
    assert await calls.end([(live, REVOKED)]) == []
    assert live.ended is None
    assert relay.cuts == []


@pytest.mark.parametrize(
    ("pass_s", "most"), [(0.0, ENDED_PER_PASS), (100 * END_S, 100), (10.0, ENDED_PER_PASS_MAX)]
)
async def test_of_many_calls_that_are_ended_some_begin_to_end_in_each_pass(
    autojump_clock: MockClock, pass_s: float, most: int
) -> None:
    calls = LiveCalls(lambda live: None)
    doomed = []
    for number in range(3 * most + 1):
        live, _, relay = exchanging_call(number)
        relay.on_cut = lambda: passes.note()
        calls.enter(live)
        doomed.append((live, REVOKED))
    with counted_passes() as passes, passes_that_take(pass_s, autojump_clock):
        assert await calls.end(doomed) == [live for live, _ in doomed]
    assert passes.noted.total() == len(doomed)
    assert passes.most == most


async def test_a_change_ends_thousands_of_calls_within_two_seconds_where_passes_are_long(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunnel.net.fairness.CHUNK_S", math.inf)
    calls = LiveCalls(lambda live: REVOKED)
    lives = []
    for number in range(3000):
        lives.append(exchanging_call(number)[0])
        calls.enter(lives[-1])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(calls.run)
        calls.reconsider()
        with passes_that_take(0.04, autojump_clock), trio.move_on_after(2):
            await trio.sleep_forever()
        assert sum(live.ended is None for live in lives) == 0
        nursery.cancel_scope.cancel()


@contextmanager
def passes_that_take(pass_s: float, clock: MockClock) -> Iterator[None]:
    class Clock(trio.abc.Instrument):
        def after_io_wait(self, timeout: float) -> None:
            clock.jump(pass_s)

    instrument = Clock()
    trio.lowlevel.add_instrument(instrument)
    try:
        yield
    finally:
        trio.lowlevel.remove_instrument(instrument)


async def test_judging_all_calls_lets_other_tasks_run(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunnel.net.fairness.CHUNK_S", 0)

    def judge(live: LiveCall) -> Ending | None:
        passes.note()
        if live is lives[0]:
            # It ends by itself meanwhile.
            calls.leave(lives[3])
        return REVOKED if live in (lives[1], lives[3]) else None

    calls = LiveCalls(judge)
    lives = [exchanging_call(number)[0] for number in range(6)]
    for live in lives:
        calls.enter(live)
    with counted_passes() as passes:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(calls.run)
            calls.reconsider()
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert (passes.noted.total(), passes.most) == (5, 1)
    assert [live.ended for live in lives] == [None, REVOKED, None, None, None, None]


# --- whole calls ---


async def send_without_end(stream: TrioStream) -> NoReturn:
    while True:
        await stream.send_all(bytes(64 * 1024))


async def send_until_reset(stream: TrioStream) -> None:
    with suppress(StreamReset):
        await send_without_end(stream)


def evict(live: LiveCalls) -> None:
    """Take the streams of all calls, as the tunnels' memory does when that is full."""
    for call in live:
        call.show()
        assert call.session is not None
        connection = call.session._connection
        for holder in connection.holdings.holders():
            connection.holdings.evict(holder)


CHANGES: list[tuple[Change, str]] = [
    (lambda store, _: store.lock_agent("ann"), "agent:ann is locked"),
    (lambda store, _: store.retire_agent("ann"), "agent:ann is retired"),
    (lambda store, key_id: store.revoke_key("ann", key_id), "is revoked"),
    (lambda store, _: store.revoke("prod", "sre"), 'cluster "prod" is not granted'),
    (lambda store, _: store.remove_cluster("prod"), 'cluster "prod" is not granted'),
    (lambda store, _: made_again(store), 'the cluster "prod" of this call was removed'),
    (lambda store, _: other_team(store), "agent:ann is no longer in acme/sre"),
    (lambda store, _: store.remove_policy("granted"), "no-rule-allows denies it since bundle 2-"),
]


def made_again(store: Store) -> None:
    keys = store.snapshot().clusters_by_name["prod"].relay_keys
    store.remove_cluster("prod")
    store.add_cluster("prod", teams=["sre"], relay_key=keys[0])


def other_team(store: Store) -> None:
    store.grant("prod", "web")
    store.change_agent_teams("ann", add=["web"], remove=["sre"])


@pytest.mark.parametrize(("change", "why"), CHANGES)
@pytest.mark.parametrize("kind", ["watch", "exec"])
async def test_a_revocation_ends_a_live_stream_with_the_reason(
    bench: Bench, change: Change, why: str, kind: str
) -> None:
    watch = bench.request("GET /clusters/prod/api/v1/pods?watch=1 HTTP/1.1")
    data = watch if kind == "watch" else exec_request(bench)
    credential = bench.credential
    async with relay_of(bench) as relay, trio.open_nursery() as nursery:
        client = await talk(bench, nursery, data)
        stream = await accept(relay)
        await stream.send_head(CHUNKED if kind == "watch" else SWITCHING)
        await stream.send_all(b"first")
        await wait_all_tasks_blocked(0.01)
        await bench.directory.change(lambda store: change(store, credential))
        reset = await expect_reset(stream)
        with trio.fail_after(2):
            await client.ended.wait()
        await stream.aclose()
    assert (reset.code, reset.processed) == (StreamCode.REVOKED, StreamProcessed.YES)
    assert why in reset.reason
    # Nothing was put into the stream: no last chunk, no frame.
    assert client.received.endswith(b"5\r\nfirst\r\n" if kind == "watch" else b"first")
    *intents, closing = await bench.trail()
    assert [event["phase"] for event in intents] == (["intent"] if kind == "exec" else [])
    assert closing["kind"] == "session.killed"
    assert closing["phase"] == "complete"
    assert why in closing["resp"]["reason"]
    assert closing["stream"]["close_reason"] == "revoked"
    assert closing["stream"]["bytes_out"] == 5
    assert len(bench.observed) == 1
    assert bench.calls.live.count == 0


@pytest.mark.parametrize(
    ("kind", "room_kib"),
    [("exec", 64), ("watch", 64), ("watch", 1024**2), ("exec", 32)],
    ids=["exec", "watch", "evicted", "silent"],
)
async def test_a_client_that_reads_nothing_is_ended_when_memory_is_full(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, kind: str, room_kib: int
) -> None:
    monkeypatch.setattr(inflight_memory, "LOOK_S", 0.05)
    live = bench.calls.live
    async with relay_of(bench) as relay, bench.served() as served, trio.open_nursery() as nursery:
        # For all; for its connection, but not for one piece in hand besides; or not even for that.
        memory = Memory(room_kib * 1024)
        client = served.client
        watch = bench.request("GET /clusters/prod/api/v1/pods?watch=1 HTTP/1.1")
        await client.send_all(watch if kind == "watch" else exec_request(bench))
        stream = await accept(relay)
        await stream.send_head(CHUNKED if kind == "watch" else SWITCHING)
        # A look before could end the call before the relay has it.
        assert await client.receive_some()
        nursery.start_soon(HeldUp(memory, live, live.end_for_memory).run)
        if room_kib > 64:
            [call] = live
            # More than sockets take.
            with trio.fail_after(10):
                async with trio.open_nursery() as sending:
                    sending.start_soon(send_without_end, stream)
                    while call.connection.held_bytes <= CONNECTION_BYTES:
                        await wait_all_tasks_blocked(0.01)
                    sending.cancel_scope.cancel()
            # The piece that it sends.
            assert call.held_bytes == call.connection.held_bytes > CONNECTION_BYTES
            evict(live)
        with trio.fail_after(10), pytest.raises(StreamReset) as caught:
            await (stream.receive_some() if room_kib < 64 else send_without_end(stream))
        await stream.aclose()
        # The call has its record before its task ends.
        with trio.fail_after(2):
            await live.wait_drained(math.inf)
        await trio.aclose_forcefully(client)
        nursery.cancel_scope.cancel()
    assert caught.value.code is StreamCode.OVERLOADED
    assert caught.value.reason.startswith("memory is full")
    *_, closing = await bench.trail()
    assert closing["kind"] == "session.killed"
    assert closing["stream"]["close_reason"] == "overloaded"
    assert closing["resp"]["reason"].startswith("memory is full")


async def test_a_stream_evicted_at_the_relay_is_answered_with_the_reason(bench: Bench) -> None:
    async with relay_of(bench) as relay, trio.open_nursery() as nursery:
        await talk(bench, nursery, bench.request("GET /clusters/prod/api/v1/pods?watch=1 HTTP/1.1"))
        stream = await accept(relay)
        await stream.send_head(CHUNKED)
        await wait_all_tasks_blocked(0.01)
        stream.reset(StreamCode.OVERLOADED, processed=StreamProcessed.MAYBE, reason="memory is full")
        with trio.fail_after(2):
            await bench.calls.live.wait_drained(math.inf)
        nursery.cancel_scope.cancel()
    *_, closing = await bench.trail()
    assert (closing["kind"], closing["stream"]["close_reason"]) == ("call", "overloaded")


async def test_a_new_permission_ends_no_call(bench: Bench) -> None:
    async with relay_of(bench) as relay, trio.open_nursery() as nursery:
        client = await talk(bench, nursery, bench.request("GET /clusters/prod/api/v1/pods?watch=1 HTTP/1.1"))
        stream = await accept(relay)
        await stream.send_head(CHUNKED)
        await wait_all_tasks_blocked(0.01)
        await bench.directory.change(lambda store: store.change_agent_teams("ann", add=["web"]))
        await bench.directory.change(lambda store: store.add_api_key("ann", key_hash="h2", key_hint="hws_2"))
        await wait_all_tasks_blocked(0.01)
        await stream.send_all(b"more")
        await stream.send_eof()
        await client.ended.wait()
        await stream.aclose()
    assert client.received.endswith(b"4\r\nmore\r\n0\r\n\r\n")
    [closing] = await bench.trail()
    assert closing["kind"] == "call"


async def test_a_call_evicted_before_its_answer_is_not_answered_as_forbidden(bench: Bench) -> None:
    async with relay_of(bench) as relay, trio.open_nursery() as nursery:
        client = await talk(bench, nursery, bench.request("GET /clusters/prod/api/v1/pods HTTP/1.1"))
        stream = await accept(relay)
        await wait_all_tasks_blocked(0.01)
        await bench.calls.live.end_for_memory(list(bench.calls.live))
        await expect_reset(stream)
        await client.ended.wait()
        await stream.aclose()
    assert client.status == 503
    assert b"memory is full" in client.received


async def test_a_client_without_an_answer_gets_the_reason(bench: Bench) -> None:
    async with relay_of(bench) as relay, trio.open_nursery() as nursery:
        client = await talk(bench, nursery, bench.request("GET /clusters/prod/api/v1/pods HTTP/1.1"))
        stream = await accept(relay)
        await wait_all_tasks_blocked(0.01)
        await bench.directory.change(lambda store: store.lock_agent("ann"))
        reset = await expect_reset(stream)
        await client.ended.wait()
        await stream.aclose()
    assert reset.processed is StreamProcessed.MAYBE
    assert client.status == 403
    assert json.loads(client.received.partition(b"\r\n\r\n")[2])["message"].startswith("agent:ann is locked")
    [closing] = await bench.trail()
    assert (closing["kind"], closing["resp"]["status"]) == ("session.killed", 403)
    assert closing["resp"]["processed"] == "maybe"


async def test_a_client_that_does_not_read_is_cut_all_the_same(bench: Bench) -> None:
    async with relay_of(bench) as relay, bench.served() as served, trio.open_nursery() as nursery:
        await served.client.send_all(exec_request(bench))
        stream = await accept(relay)
        await stream.send_head(SWITCHING)
        nursery.start_soon(send_until_reset, stream)
        await wait_all_tasks_blocked(0.01)
        assert served.server.held_up_bytes > 0
        await bench.directory.change(lambda store: store.lock_agent("ann"))
        with trio.fail_after(2):
            reset = await expect_reset(stream)
            await served.over.wait()
        await stream.aclose()
    assert reset.code is StreamCode.REVOKED
    assert (await bench.trail())[-1]["kind"] == "session.killed"


async def test_a_write_that_waits_for_its_intent_is_not_sent_once_it_is_ended(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, goes_on = trio.Event(), trio.Event()
    intent, begin_intent = Recorder.intent, Recorder.begin_intent

    async def intent_that_takes_long(recorder: Recorder, event: Event) -> None:
        await intent(recorder, event)
        waits.set()
        await goes_on.wait()

    def begin_intent_that_takes_long(recorder: Recorder, event: Event, settled: Settled) -> None:
        async def settle_later(failure: str | None) -> None:
            waits.set()
            await goes_on.wait()
            settled(failure)

        begin_intent(recorder, event, lambda failure: nursery.start_soon(settle_later, failure))

    monkeypatch.setattr(Recorder, "intent", intent_that_takes_long)
    monkeypatch.setattr(Recorder, "begin_intent", begin_intent_that_takes_long)
    async with relay_of(bench) as relay, trio.open_nursery() as nursery:
        data = bench.request("DELETE /clusters/prod/api/v1/namespaces/dev/pods/p HTTP/1.1")
        client = await talk(bench, nursery, data)
        with trio.fail_after(2):
            await waits.wait()
        [live] = bench.calls.live
        await bench.calls.live.end([(live, REVOKED)])
        goes_on.set()
        await client.ended.wait()
        with trio.move_on_after(0.05) as patience:
            await accept(relay)
        assert patience.cancelled_caught
    assert client.status == 403
    _, closing = await bench.trail()
    assert (closing["kind"], closing["resp"]["processed"]) == ("session.killed", "no")


async def test_an_ended_upload_is_not_read_on(bench: Bench) -> None:
    async with relay_of(bench) as relay, trio.open_nursery() as nursery:
        data = bench.request(
            "POST /clusters/prod/api/v1/namespaces/dev/pods HTTP/1.1", "Content-Length: 9", body=b"half"
        )
        client = await talk(bench, nursery, data)
        stream = await accept(relay)
        assert await stream.receive_some() == b"half"
        await bench.directory.change(lambda store: store.lock_agent("ann"))
        reset = await expect_reset(stream)
        # Its end, or the connection would be kept for a while, so that the answer arrives.
        await client.client.send_all(b"later")
        await client.ended.wait()
        await stream.aclose()
    assert reset.code is StreamCode.REVOKED
    assert client.status == 403


async def test_an_operator_lists_live_calls_and_ends_one(bench: Bench, tmp_path: Path) -> None:
    instances = HubInstances(tmp_path / "boots")
    sessions = LiveSessions(bench.calls.live, instances, "new")
    with instances.registered("new"):
        assert await sessions.hubs_beside() == 0
        with instances.registered("old"):
            assert await sessions.hubs_beside() == 1
    async with relay_of(bench) as relay, trio.open_nursery() as nursery:
        client = await talk(bench, nursery, exec_request(bench))
        stream = await accept(relay)
        await stream.send_head(SWITCHING)
        await stream.send_all(b"first")
        await wait_all_tasks_blocked(0.01)
        [seen] = await sessions.sessions(agent="ann", cluster="prod")
        assert await sessions.sessions(agent="bob") == await sessions.sessions(cluster="other") == []
        assert (seen.kind, seen.verb, seen.resource) == ("exec/websocket", "get", "pods/exec")
        assert (seen.namespace, seen.name, seen.relay) == ("dev", "p", "relay-1")
        assert (seen.status, seen.bytes_in, seen.bytes_out) == (101, 0, 5)
        chosen = {"agent": None, "cluster": None, "reason": "killed by the operator local: enough"}
        assert await sessions.kill(session_id="another", **chosen) == []
        [gone] = await sessions.kill(session_id=seen.id, **chosen)
        assert gone.id == seen.id
        reset = await expect_reset(stream)
        await client.ended.wait()
        await stream.aclose()
    assert (reset.code, reset.reason) == (StreamCode.REVOKED, "killed by the operator local: enough")
    _, closing = await bench.trail()
    assert closing["kind"] == "session.killed"
    assert closing["stream"]["close_reason"] == "killed"
    assert closing["eid"] == seen.id


async def test_another_hub_gets_the_live_calls_in_bounded_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {"agent": "ann", "cluster": None}
    async with (
        open_bench(tmp_path, with_task=False, streams=3) as bench,
        relay_of(bench) as relay,
        trio.open_nursery() as nursery,
    ):
        sessions = LiveSessions(bench.calls.live, HubInstances(tmp_path / "boots"), "new", "1f0c3a9e")
        streams = []
        for _ in range(3):
            await talk(bench, nursery, exec_request(bench))
            streams.append(await accept(relay))
            await streams[-1].send_head(SWITCHING)
        await wait_all_tasks_blocked(0.01)
        whole = await sessions.page(**chosen, after="")
        assert [each.hub for each in whole.calls] == ["1f0c3a9e"] * 3
        assert not whole.more
        ids = [each.id for each in whole.calls]
        assert ids == sorted(ids)
        two = sum(len(json.dumps(attrs.asdict(each), separators=(",", ":"))) for each in whole.calls[:2])
        monkeypatch.setattr(live_calls, "PAGE_BYTES_MAX", two + 10)
        first = await sessions.page(**chosen, after="")
        assert ([each.id for each in first.calls], first.more) == (ids[:2], True)
        rest = await sessions.page(**chosen, after=ids[1])
        assert ([each.id for each in rest.calls], rest.more) == (ids[2:], False)
        # A call that does not fit comes by itself.
        monkeypatch.setattr(live_calls, "PAGE_BYTES_MAX", 1)
        for number in range(3):
            killed = await sessions.kill_page(session_id=None, **chosen, reason="enough")
            assert ([each.id for each in killed.calls], killed.more) == ([ids[number]], number < 2)
        assert await sessions.kill_page(session_id=ids[0], **chosen, reason="x") == CallsPage([], more=False)
        for stream in streams:
            assert (await expect_reset(stream)).reason == "enough"
            await stream.aclose()


async def test_a_client_that_leaves_counts_as_a_cancel(bench: Bench) -> None:
    counted: list[str] = []
    bench.calls.limits.cancelled = lambda who: counted.append(who.name)  # type: ignore[method-assign]
    watch = bench.request("GET /clusters/prod/api/v1/pods?watch=1 HTTP/1.1")
    async with relay_of(bench) as relay, trio.open_nursery() as nursery:
        client = await talk(bench, nursery, watch)
        stream = await accept(relay)
        await stream.send_head(CHUNKED)
        await wait_all_tasks_blocked(0.01)
        await trio.aclose_forcefully(client.client)
        assert (await expect_reset(stream)).code is StreamCode.CANCEL
        await stream.aclose()
        await client.served.over.wait()
        assert counted == ["ann"]
        # One that the hub ends has not given up.
        other = await talk(bench, nursery, watch)
        stream = await accept(relay)
        await stream.send_head(CHUNKED)
        await wait_all_tasks_blocked(0.01)
        await bench.directory.change(lambda store: store.lock_agent("ann"))
        await other.ended.wait()
        await stream.aclose()
    assert counted == ["ann"]
