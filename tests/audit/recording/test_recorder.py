"""The recorder with its real thread and a real file; so these tests take real milliseconds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
import trio
from msgspec.structs import replace
from trio.testing import wait_all_tasks_blocked

from audit.errors import AuditUnavailable
from audit.record import Decision, Event, Kind, Phase
from audit.recording import recorder as recorder_module
from audit.recording.opening import open_recorder
from audit.recording.recorder import BATCH_BYTES_MAX, BATCH_EVENTS_MAX, Recorder
from audit.shares import Agent
from audit.store import AuditStore
from tests.audit.events import call, failure
from tests.audit.eventually import eventually
from tests.audit.trails import Store, Trail, read


class WatchedStore:
    """A real store, which reports its batches and can be made to fail or to hang."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.close_unknown = store.close_unknown
        self.batches: list[int] = []
        self.failure: AuditUnavailable | None = None
        self.gate: threading.Event | None = None
        self.threads: set[int] = set()

    def append_once(self, batch: Sequence[Event]) -> None:
        if self.failure is not None:
            raise self.failure
        self.store.append_once(batch)

    def append(self, batch: Sequence[Event], *, boot: str = "") -> dict[Agent, int]:
        if self.gate is not None:
            self.gate.wait(5)
        if self.failure is not None:
            raise self.failure
        self.threads.add(threading.get_ident())
        stored = self.store.append(batch, boot=boot)
        self.batches.append(len(batch))
        return stored


@pytest.fixture
def store(trail: Trail) -> Iterator[WatchedStore]:
    with closing(trail.open()) as store:
        yield WatchedStore(store)


@pytest.fixture
def quick_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "RETRY_S", 0.02)


async def test_an_intent_is_on_the_disk_when_it_returns(store: WatchedStore, trail: Trail) -> None:
    async with open_recorder(store) as recorder:
        event = call()
        await recorder.intent(event)
        assert [(row["eid"], row["phase"]) for row in trail.read()] == [(event.eid, "intent")]
        recorder.complete(event.completed(event.ts))
        await recorder.flush()
        assert [row["phase"] for row in trail.read()] == ["intent", "complete"]
    assert store.threads != {threading.get_ident()}
    assert len(store.threads) == 1


async def test_intents_that_come_together_share_a_commit(store: WatchedStore) -> None:
    async with open_recorder(store) as recorder:
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(recorder.intent, call())
    assert sum(store.batches) == 100
    assert len(store.batches) <= 10


async def asleep(recorder: Recorder) -> None:
    """Return once the writer waits for events."""
    await eventually(lambda: bool(recorder._wake._waiters))  # type: ignore[attr-defined]


async def test_a_completion_wakes_a_writer_that_sleeps(store: WatchedStore, trail: Trail) -> None:
    async with open_recorder(store) as recorder:
        for count in range(1, 4):
            await asleep(recorder)
            recorder.complete(call(phase=Phase.COMPLETE))
            await eventually(lambda count=count: len(trail.read()) == count)  # type: ignore[misc]


async def test_completions_linger_for_company_and_nobody_waits(store: WatchedStore, trail: Trail) -> None:
    async with open_recorder(store) as recorder:
        for _ in range(20):
            recorder.complete(call(phase=Phase.COMPLETE))
        assert trail.read() == []
        await eventually(lambda: len(trail.read()) == 20)
    assert store.batches == [20]


async def test_a_full_batch_does_not_linger(
    store: WatchedStore, trail: Trail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "LINGER_S", 60.0)
    async with open_recorder(store) as recorder:
        recorder.complete(call(phase=Phase.COMPLETE))
        await asleep(recorder)
        for _ in range(BATCH_EVENTS_MAX - 1):
            recorder.complete(call(phase=Phase.COMPLETE))
        await eventually(lambda: len(trail.read()) == BATCH_EVENTS_MAX)


async def test_a_batch_is_bounded_in_bytes(store: WatchedStore, trail: Trail) -> None:
    event = replace(call(phase=Phase.COMPLETE), note="x" * 64 * 1024)
    full = BATCH_BYTES_MAX // event.weight_bytes + 1
    async with open_recorder(store) as recorder:
        for _ in range(full + 1):
            recorder.complete(event)
        await eventually(lambda: len(trail.read()) == full + 1)
        assert recorder._queue_bytes == 0
    assert store.batches == [full, 1]


async def test_an_intent_takes_lingering_completions_with_it(
    store: WatchedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "LINGER_S", 60.0)
    async with open_recorder(store) as recorder:
        recorder.complete(call(phase=Phase.COMPLETE))
        recorder.complete(call(phase=Phase.COMPLETE))
        await recorder.intent(call())
    assert store.batches == [3]


async def test_leaving_writes_what_is_queued(
    store: WatchedStore, trail: Trail, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_recorder(store) as recorder:
        for _ in range(BATCH_EVENTS_MAX + 10):
            recorder.complete(call(phase=Phase.COMPLETE))
    assert len(trail.read()) == BATCH_EVENTS_MAX + 10
    with pytest.raises(AuditUnavailable, match="stopped"):
        await recorder.intent(call())
    late = call(phase=Phase.COMPLETE)
    recorder.complete(late)
    assert f"{late.eid} came after the recorder had stopped and is lost" in caplog.text


async def test_cancelling_the_surroundings_still_writes_what_is_queued(
    store: WatchedStore, trail: Trail
) -> None:
    with trio.CancelScope() as scope:
        async with open_recorder(store) as recorder:
            recorder.complete(call(phase=Phase.COMPLETE))
            scope.cancel()
            await trio.sleep_forever()
    assert len(trail.read()) == 1


async def test_a_cancelled_intent_is_ended_as_never_forwarded(store: WatchedStore, trail: Trail) -> None:
    store.gate = threading.Event()
    forwarded = False

    async def forward() -> None:
        nonlocal forwarded
        await recorder.intent(call())
        forwarded = True

    async with open_recorder(store) as recorder:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(forward)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert not forwarded
        store.gate.set()
        await recorder.flush()
    first, second = trail.read()
    assert first["eid"] == second["eid"]
    assert (first["phase"], second["phase"]) == ("intent", "complete")
    assert second["resp"] == {
        "status": 0,
        "reason": "the client left before the call was forwarded",
        "processed": "no",
    }


async def test_only_an_intent_is_taken_as_one(store: WatchedStore) -> None:
    async with open_recorder(store) as recorder:
        with pytest.raises(ValueError, match="no intent"):
            await recorder.intent(call(phase=Phase.COMPLETE))


@pytest.mark.usefixtures("quick_retry")
async def test_a_store_that_fails_refuses_writes_and_its_gap_becomes_an_event(
    store: WatchedStore, trail: Trail, caplog: pytest.LogCaptureFixture
) -> None:
    now = [1e9]
    async with open_recorder(store, org="acme", clock=lambda: now[0]) as recorder:
        begun = call()
        await recorder.intent(begun)
        store.failure = AuditUnavailable("database or disk is full")
        with pytest.raises(AuditUnavailable, match="full"):
            await recorder.intent(call())
        assert not recorder.healthy
        now[0] -= 3600
        for _ in range(3):
            with pytest.raises(AuditUnavailable, match="full"):
                await recorder.intent(call())
        # A call that was accepted before still gets its end, once the store is back.
        recorder.complete(begun.completed(begun.ts))
        store.failure = None
        await eventually(lambda: recorder.healthy)
        await recorder.intent(call())
    assert [(row["kind"], row["phase"]) for row in trail.read()] == [
        ("call", "intent"),
        ("audit.gap", "complete"),
        ("call", "complete"),
        ("call", "intent"),
    ]
    gap = trail.read()[1]
    assert gap["count"] == 4
    assert gap["note"] == "writes refused: 4, events lost: 0 (database or disk is full)"
    assert recorder.last_gap is not None
    assert 0 < recorder.last_gap[1] < 60
    assert gap["org"] == "acme"
    # Measured by a monotonic clock.
    assert 0 < float(str(gap["dur_ms"])) < 60_000
    # Once each, in spite of many retries.
    assert [record.message.split(" after")[0] for record in caplog.records] == [
        "audit: database or disk is full; writes are refused until it is back",
        "audit: the trail is written again",
    ]


@pytest.mark.usefixtures("quick_retry")
async def test_intents_that_wait_behind_a_failing_batch_are_refused_at_once(store: WatchedStore) -> None:
    store.gate = threading.Event()
    refused = 0

    async def one() -> None:
        nonlocal refused
        try:
            await recorder.intent(call())
        except AuditUnavailable:
            refused += 1

    async with open_recorder(store) as recorder:
        async with trio.open_nursery() as nursery:
            for _ in range(2 * BATCH_EVENTS_MAX):
                nursery.start_soon(one)
            await wait_all_tasks_blocked()
            store.failure = AuditUnavailable("disk I/O error")
            store.gate.set()
        assert refused == 2 * BATCH_EVENTS_MAX
        with pytest.raises(AuditUnavailable):
            await recorder.flush()


@pytest.mark.usefixtures("quick_retry")
async def test_what_does_not_fit_the_queue_is_counted_by_the_gap(
    store: WatchedStore, trail: Trail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "QUEUE_EVENTS_MAX", 10)
    async with open_recorder(store) as recorder:
        store.failure = AuditUnavailable("disk I/O error")
        with pytest.raises(AuditUnavailable):
            await recorder.intent(call())
        for _ in range(25):
            recorder.complete(call(phase=Phase.COMPLETE))
        store.failure = None
        await eventually(lambda: recorder.healthy)
    kinds = [row["kind"] for row in trail.read()]
    assert kinds.count("call") == 10
    (gap,) = [row for row in trail.read() if row["kind"] == "audit.gap"]
    assert gap["note"] == "writes refused: 1, events lost: 15 (disk I/O error)"
    assert gap["count"] == 16


async def test_a_store_slower_than_the_calls_refuses_writes_until_the_next_commit(
    store: WatchedStore, trail: Trail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "QUEUE_BYTES_MAX", 50_000)
    store.gate = threading.Event()
    async with open_recorder(store) as recorder:
        accepted = 0
        while recorder.healthy:
            recorder.complete(call(phase=Phase.COMPLETE))
            accepted += 1
        assert accepted < 50
        with pytest.raises(AuditUnavailable, match="too slow"):
            await recorder.intent(call())
        store.gate.set()
        await eventually(lambda: recorder.healthy)
        await recorder.intent(call())
    notes = [str(row["note"]) for row in trail.read() if row["kind"] == Kind.AUDIT_GAP]
    assert sum(int(note.split()[2].rstrip(",")) for note in notes) == 1
    assert sum(int(note.split()[5]) for note in notes) == 1
    assert len(trail.read()) - len(notes) == accepted - 1 + 1


@pytest.mark.usefixtures("quick_retry")
async def test_a_write_that_finds_the_queue_full_is_refused_and_counted(
    store: WatchedStore, trail: Trail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "QUEUE_EVENTS_MAX", 3)
    store.gate = threading.Event()
    async with open_recorder(store) as recorder, trio.open_nursery() as nursery:
        nursery.start_soon(recorder.intent, call())
        # The writer has it, and waits for the disk.
        await eventually(lambda: recorder._waiters == 0)
        for _ in range(3):
            recorder.complete(call(phase=Phase.COMPLETE))
        assert recorder.healthy
        with pytest.raises(AuditUnavailable, match="3 events wait"):
            await recorder.intent(call())
        store.gate.set()
        await eventually(lambda: recorder.healthy)
    (gap,) = [row for row in trail.read() if row["kind"] == Kind.AUDIT_GAP]
    assert str(gap["note"]).startswith("writes refused: 1, events lost: 0 (3 events wait")
    assert len(trail.read()) == 1 + 3 + 1


class Turnstile(threading.Event):
    """A gate that lets a given number of batches through."""

    def __init__(self) -> None:
        super().__init__()
        self._passes = threading.Semaphore(0)
        self.reached = False

    def wait(self, timeout: float | None = None) -> bool:
        self.reached = True
        return self._passes.acquire(timeout=timeout)

    def let_through(self, batches: int) -> None:
        self._passes.release(batches)


async def test_intents_weigh_until_they_are_taken_and_no_longer(
    store: WatchedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = 2 * BATCH_EVENTS_MAX + 1
    monkeypatch.setattr(recorder_module, "QUEUE_BYTES_MAX", room * call().weight_bytes)
    store.gate = gate = Turnstile()
    async with open_recorder(store) as recorder, trio.open_nursery() as nursery:

        async def put(count: int) -> None:
            for _ in range(count):
                nursery.start_soon(recorder.intent, call())
            await wait_all_tasks_blocked()

        try:
            await put(1)
            await eventually(lambda: not recorder._queue)
            await put(room)
            # The writer never empties the queue.
            for batch in range(1, 5):
                gate.let_through(1)
                await eventually(lambda batch=batch: len(store.batches) == batch)  # type: ignore[misc]
                await eventually(lambda: len(recorder._queue) == room - BATCH_EVENTS_MAX)
                await put(BATCH_EVENTS_MAX)
                assert recorder.healthy
            with pytest.raises(AuditUnavailable, match="too slow"):
                await recorder.intent(call())
        finally:
            gate.let_through(100)
    # One of them is the event of the gap.
    assert sum(store.batches) == 1 + room + 4 * BATCH_EVENTS_MAX + 1


@pytest.mark.usefixtures("quick_retry")
async def test_what_is_refused_takes_no_room_from_what_is_kept(
    store: WatchedStore, trail: Trail, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = 20
    monkeypatch.setattr(recorder_module, "QUEUE_BYTES_MAX", room * call(phase=Phase.COMPLETE).weight_bytes)
    store.gate = threading.Event()

    async def refused() -> None:
        with pytest.raises(AuditUnavailable):
            await recorder.intent(call())

    async with open_recorder(store) as recorder:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refused)
            await eventually(lambda: not recorder._queue)
            for _ in range(room):
                nursery.start_soon(refused)
            await wait_all_tasks_blocked()
            assert recorder.healthy
            store.failure = AuditUnavailable("disk I/O error")
            store.gate.set()
        for _ in range(room):
            recorder.complete(call(phase=Phase.COMPLETE))
        store.failure = None
        await eventually(lambda: recorder.healthy)
    gap, *kept = trail.read()
    assert gap["note"] == f"writes refused: {1 + room}, events lost: 0 (disk I/O error)"
    assert len(kept) == room


async def test_a_flush_of_nothing_writes_nothing(store: WatchedStore, trail: Trail) -> None:
    async with open_recorder(store) as recorder:
        await recorder.flush()
    assert trail.read() == []


async def test_a_store_that_stays_down_does_not_hold_up_the_end(
    store: WatchedStore, caplog: pytest.LogCaptureFixture
) -> None:
    with trio.fail_after(2):
        async with open_recorder(store) as recorder:
            store.failure = AuditUnavailable("disk I/O error")
            for _ in range(3):
                recorder.complete(call(phase=Phase.COMPLETE))
    assert "events lost at the end: 3" in caplog.text


async def test_a_bug_in_the_writer_ends_the_recorder_and_whoever_waits(store: WatchedStore) -> None:
    gate = threading.Event()

    def broken(batch: Sequence[Event], *, boot: str = "") -> dict[Agent, int]:
        gate.wait(5)
        raise ZeroDivisionError

    store.append = broken  # type: ignore[method-assign]
    refused: list[str] = []

    async def begin() -> None:
        with trio.CancelScope(shield=True), pytest.raises(AuditUnavailable) as caught:
            await recorder.intent(call())
        refused.append(str(caught.value))

    with trio.fail_after(5), pytest.RaisesGroup(ZeroDivisionError):
        async with open_recorder(store) as recorder, trio.open_nursery() as nursery:
            nursery.start_soon(begin)
            # The writer has the first one; the second is still in the queue.
            await eventually(lambda: not recorder._queue)
            nursery.start_soon(begin)
            await wait_all_tasks_blocked()
            gate.set()
            await trio.sleep_forever()
    assert refused == ["the recorder has stopped"] * 2
    with pytest.raises(AuditUnavailable, match="stopped"):
        await recorder.intent(call())


async def test_a_gap_is_told_though_the_recorder_ends_before_the_next_try(
    store: WatchedStore, trail: Trail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "RETRY_S", 60.0)
    async with open_recorder(store) as recorder:
        store.failure = AuditUnavailable("disk I/O error")
        with pytest.raises(AuditUnavailable):
            await recorder.intent(call())
        store.failure = None
    (gap,) = trail.read()
    assert gap["note"] == "writes refused: 1, events lost: 0 (disk I/O error)"


@pytest.mark.usefixtures("quick_retry")
async def test_what_a_gap_has_while_it_is_being_told_is_told_by_another(
    store: WatchedStore, trail: Trail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "QUEUE_EVENTS_MAX", 2)

    async def refuse() -> None:
        with pytest.raises(AuditUnavailable):
            await recorder.intent(call())

    for refused, lost in ((1, 0), (0, 1), (3, 2)):
        async with open_recorder(store) as recorder:
            store.failure = AuditUnavailable("disk I/O error")
            await refuse()
            store.gate = gate = Turnstile()
            store.failure = None
            # The writer is committing, and has already made the gap's event.
            await eventually(lambda gate=gate: gate.reached)  # type: ignore[misc]
            for _ in range(refused):
                await refuse()
            for _ in range(2 + lost if lost else 0):
                recorder.complete(call(phase=Phase.COMPLETE))
            gate.let_through(10)
            await eventually(lambda: recorder.healthy)
        told = [str(row["note"]) for row in trail.read() if row["kind"] == Kind.AUDIT_GAP][-2:]
        assert told == [
            "writes refused: 1, events lost: 0 (disk I/O error)",
            f"writes refused: {refused}, events lost: {lost} (disk I/O error)",
        ]


async def test_a_flood_that_is_counted_holds_up_no_other_event(store: WatchedStore, trail: Trail) -> None:
    async with open_recorder(store) as recorder:
        for _ in range(20):
            recorder.complete(failure())
        await eventually(lambda: len(trail.read()) == 10)
        await asleep(recorder)
        recorder.complete(call(phase=Phase.COMPLETE))
        await eventually(lambda: len(trail.read()) == 11)


async def test_a_flood_of_failures_is_one_event_with_a_count(store: WatchedStore, trail: Trail) -> None:
    async with open_recorder(store) as recorder:
        for _ in range(1000):
            recorder.complete(failure())
        await recorder.flush()
        assert len(trail.read()) == 10
    assert len(trail.read()) == 11
    assert sum(int(str(row.get("count", 1))) for row in trail.read()) == 1000


async def test_a_floods_window_ends_while_the_hub_is_idle(
    store: WatchedStore, trail: Trail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audit.recording.flood.WINDOW_S", 0.1)
    async with open_recorder(store) as recorder:
        for _ in range(50):
            recorder.complete(failure())
        await eventually(lambda: len(trail.read()) == 11)


# C44, with a real process and a real signal; the child prints when its intent is durable.
CHILD = """
import sys, trio
from contextlib import closing
from pathlib import Path
from audit.recording.opening import open_recorder
from audit.store import AuditStore
from tests.audit.events import call

async def main():
    async with open_recorder(AuditStore(Path(sys.argv[1]))) as recorder:
        ended = call()
        await recorder.intent(ended)
        recorder.complete(ended.completed(ended.ts))
        await recorder.flush()
        event = call()
        await recorder.intent(event)
        print(event.eid, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


def killed_between_intent_and_completion(path: Path) -> str:
    """Run the child until its second intent is durable, and kill it; returns that intent's eid."""
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    eid = child.stdout.readline().strip()
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    return eid


async def test_a_hub_killed_between_intent_and_completion_leaves_an_intent_closed_as_unknown(
    path: Path,
) -> None:
    eid = killed_between_intent_and_completion(path)
    assert [row["phase"] for row in read(path)] == ["intent", "complete", "intent"]
    store = AuditStore(path)
    async with open_recorder(store):
        pass
    async with open_recorder(store):
        pass
    store.close()
    assert [row["phase"] for row in read(path)] == ["intent", "complete", "intent", "unknown"]
    assert [row["eid"] for row in read(path)][2:] == [eid, eid]


@pytest.mark.usefixtures("quick_retry")
async def test_a_really_full_disk_refuses_writes_and_recovers_when_there_is_room(path: Path) -> None:
    """The file's bound makes SQLite return SQLITE_FULL, as a full disk does; raising it frees space."""
    refused: list[int] = []

    class Watched(AuditStore):
        def append(self, batch: Sequence[Event], *, boot: str = "") -> dict[Agent, int]:
            try:
                return super().append(batch, boot=boot)
            except AuditUnavailable:
                refused.append(len(batch))
                raise

    store = Watched(path, bytes_max=256 * 1024)
    async with open_recorder(store) as recorder:
        written = 0

        async def fill() -> None:
            nonlocal written
            while True:
                await recorder.intent(call())
                written += 1

        # The event of the gap may still fit after an intent did not; then the disk is not full yet.
        while recorder.healthy:
            with pytest.raises(AuditUnavailable, match="full"):
                await fill()
            refused.clear()
            await eventually(lambda: recorder.healthy or bool(refused))
        calls = [row for row in read(path) if row["kind"] == "call"]
        assert len(calls) == written
        store._bytes_max = None
        await eventually(lambda: recorder.healthy)
        await recorder.intent(call())
    store.close()
    assert [row["kind"] for row in read(path)][-2:] == ["audit.gap", "call"]


@pytest.mark.parametrize("kind", list(Kind))
async def test_whatever_happens_once_is_exactly_one_event(
    store: WatchedStore, trail: Trail, kind: Kind
) -> None:
    event = replace(failure(), kind=kind, decision=Decision("deny"))
    async with open_recorder(store) as recorder:
        recorder.complete(event)
    assert [(row["kind"], row["eid"]) for row in trail.read()] == [(kind, event.eid)]


@pytest.mark.usefixtures("quick_retry")
async def test_what_is_kept_elsewhere_comes_first_when_the_trail_is_back(
    store: WatchedStore, trail: Trail
) -> None:
    settled: list[str] = []
    kept, other = replace(call(), phase=Phase.COMPLETE), replace(call(), phase=Phase.COMPLETE)
    async with open_recorder(store) as recorder:
        store.failure = AuditUnavailable("database or disk is full")
        with pytest.raises(AuditUnavailable):
            await recorder.intent(call())
        assert recorder.down_s > 0
        recorder.complete(other)
        recorder.keep(kept, lambda: settled.append("kept"))
        await trio.sleep(0.1)
        assert settled == []
        store.failure = None
        await eventually(lambda: recorder.healthy)
        assert settled == ["kept"]
        assert recorder.down_s == 0
        # Also if the trail was never down.
        recorder.keep(call(), lambda: settled.append("later"))
        await eventually(lambda: settled == ["kept", "later"])
    rows = trail.read()
    assert [row["eid"] for row in rows if row["kind"] == "call"][:2] == [kept.eid, other.eid]


async def test_what_is_kept_elsewhere_is_not_lost_at_the_end_of_a_trail_that_is_down(
    store: WatchedStore, trail: Trail
) -> None:
    settled: list[str] = []
    async with open_recorder(store) as recorder:
        store.failure = AuditUnavailable("database or disk is full")
        recorder.keep(call(), lambda: settled.append("kept"))
    assert settled == []
    assert trail.read() == []


# -- intents of callers without a task -----------------------------------------------------------------------


async def test_an_intent_without_a_task_is_settled_once_it_is_durable(
    store: WatchedStore, trail: Trail
) -> None:
    store.gate = threading.Event()
    settled: list[tuple[str | None, list[object], int]] = []
    event = call()

    def note(failure: str | None) -> None:
        settled.append((failure, [row["eid"] for row in trail.read()], threading.get_ident()))

    async with open_recorder(store) as recorder:
        recorder.begin_intent(event, note)
        await eventually(lambda: not recorder._queue)
        await trio.sleep(0.05)
        assert settled == []
        store.gate.set()
        await eventually(lambda: bool(settled))
    assert settled == [(None, [event.eid], threading.get_ident())]


async def test_intents_without_a_task_share_a_commit_and_are_settled_in_their_order(
    store: WatchedStore, trail: Trail
) -> None:
    store.gate = gate = Turnstile()
    settled: list[int] = []
    events = [call() for _ in range(2 * BATCH_EVENTS_MAX)]

    async def begin(number: int) -> None:
        await recorder.intent(events[number])
        settled.append(number)

    async with open_recorder(store) as recorder, trio.open_nursery() as nursery:
        for number, event in enumerate(events[:-1]):
            recorder.begin_intent(event, lambda _, number=number: settled.append(number))  # type: ignore[misc]
        nursery.start_soon(begin, len(events) - 1)
        gate.let_through(10)
        await eventually(lambda: len(settled) == len(events))
    assert settled == list(range(len(events)))
    assert [row["eid"] for row in trail.read()] == [event.eid for event in events]
    assert len(store.batches) <= 4


@pytest.mark.usefixtures("quick_retry")
async def test_an_intent_without_a_task_is_settled_with_the_reason_if_the_store_fails(
    store: WatchedStore, trail: Trail
) -> None:
    store.gate = threading.Event()
    settled: list[str | None] = []
    async with open_recorder(store) as recorder:
        # The second one is still in the queue when the first one's batch fails.
        recorder.begin_intent(call(), settled.append)
        await eventually(lambda: not recorder._queue)
        recorder.begin_intent(call(), settled.append)
        store.failure = AuditUnavailable("disk I/O error")
        store.gate.set()
        await eventually(lambda: len(settled) == 2)
        assert settled == ["disk I/O error"] * 2
        store.failure = None
        await eventually(lambda: recorder.healthy)
        recorder.begin_intent(call(), settled.append)
        await eventually(lambda: len(settled) == 3)
        assert settled[2] is None
    gap, intent = trail.read()
    assert gap["note"] == "writes refused: 2, events lost: 0 (disk I/O error)"
    assert intent["phase"] == "intent"


async def test_an_intent_without_a_task_is_refused_at_once_while_the_recorder_is_down(
    store: WatchedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "RETRY_S", 60.0)
    settled: list[str | None] = []
    async with open_recorder(store) as recorder:
        store.failure = AuditUnavailable("disk I/O error")
        with pytest.raises(AuditUnavailable):
            await recorder.intent(call())
        with pytest.raises(AuditUnavailable, match="disk I/O error"):
            recorder.begin_intent(call(), settled.append)
        store.failure = None
    with pytest.raises(AuditUnavailable, match="stopped"):
        recorder.begin_intent(call(), settled.append)
    assert settled == []
    assert store.batches == [1]


async def test_an_intent_without_a_task_that_does_not_fit_the_queue_is_refused(
    store: WatchedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "QUEUE_EVENTS_MAX", 3)
    store.gate = threading.Event()
    settled: list[str | None] = []
    async with open_recorder(store) as recorder:
        recorder.begin_intent(call(), settled.append)
        await eventually(lambda: not recorder._queue)
        for _ in range(3):
            recorder.begin_intent(call(), settled.append)
        with pytest.raises(AuditUnavailable, match="3 events wait"):
            recorder.begin_intent(call(), settled.append)
        store.gate.set()
        await eventually(lambda: len(settled) == 4)
    assert settled == [None] * 4


async def test_intents_without_a_task_are_settled_when_the_recorder_stops(
    store: WatchedStore, trail: Trail
) -> None:
    store.gate = threading.Event()
    settled: list[str | None] = []
    async with open_recorder(store) as recorder:
        for _ in range(3):
            recorder.begin_intent(call(), settled.append)
        store.gate.set()
    await trio.lowlevel.checkpoint()
    assert settled == [None] * 3
    assert len(trail.read()) == 3


async def test_intents_without_a_task_are_refused_when_the_writer_has_a_bug(store: WatchedStore) -> None:
    gate = threading.Event()

    def broken(batch: Sequence[Event], *, boot: str = "") -> dict[Agent, int]:
        gate.wait(5)
        raise ZeroDivisionError

    store.append = broken  # type: ignore[method-assign]
    settled: list[str | None] = []
    with trio.fail_after(5), pytest.RaisesGroup(ZeroDivisionError):
        async with open_recorder(store) as recorder:
            recorder.begin_intent(call(), settled.append)
            await eventually(lambda: not recorder._queue)
            recorder.begin_intent(call(), settled.append)
            gate.set()
            await trio.sleep_forever()
    await trio.lowlevel.checkpoint()
    assert settled == ["the recorder has stopped"] * 2


@pytest.mark.parametrize("durable", [False, True])
async def test_a_withdrawn_intent_is_ended_as_never_forwarded(
    store: WatchedStore, trail: Trail, durable: bool
) -> None:
    store.gate = threading.Event()
    settled: list[str | None] = []
    event, other = call(), call()
    async with open_recorder(store) as recorder:
        recorder.begin_intent(event, settled.append)
        if durable:
            store.gate.set()
            await eventually(lambda: bool(settled))
        recorder.withdraw(event)
        recorder.begin_intent(other, settled.append)
        store.gate.set()
        await eventually(lambda: len(settled) == 2)
    intent, end, following = trail.read()
    assert (intent["eid"], intent["phase"]) == (event.eid, "intent")
    assert (end["eid"], end["phase"]) == (event.eid, "complete")
    assert end["resp"] == {
        "status": 0,
        "reason": "the client left before the call was forwarded",
        "processed": "no",
    }
    assert following["eid"] == other.eid
    assert settled == [None, None]


@pytest.mark.parametrize("phase", [Phase.COMPLETE, Phase.UNKNOWN])
async def test_only_an_intent_is_begun_without_a_task(
    store: WatchedStore, trail: Trail, phase: Phase
) -> None:
    settled: list[str | None] = []
    async with open_recorder(store) as recorder:
        with pytest.raises(ValueError, match="no intent"):
            recorder.begin_intent(call(phase=phase), settled.append)
        await recorder.flush()
    assert settled == []
    assert trail.read() == []
