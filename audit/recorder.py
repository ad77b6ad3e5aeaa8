"""Records events durably without making calls wait longer than one commit.

Theory of operation. Tasks put events into a deque; one writer thread takes what is there and commits it
as one batch. Whoever waits for an intent is woken through trio's token, once a batch. While one batch
is being committed the next one gathers, so the commit's own latency is what groups intents: they never
linger. Completions are waited for by nobody and linger up to LINGER_S for a fuller batch. No thread is
started and no `to_thread` hop taken per event; the writer is one such hop that lasts as long as the recorder.

When the store fails, the recorder is *down*: intents are refused at once, and a refused write is a write
that never happened. Completions are kept, up to the queue's bounds. Each RETRY_S the writer tries to
commit them together with an event that tells of the gap; when that succeeds the recorder is up again.
What may be done without the trail is durable elsewhere and given to `keep`, whose events come first then.
Whether reads go on meanwhile is the caller's decision: it looks at `healthy`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeAlias

import attrs
import trio

from audit.errors import AuditUnavailable
from audit.flood import Floods, counts
from audit.ids import new_eid
from audit.record import Actor, ActorType, Event, Kind, Phase, Response, utc
from audit.shares import Agent
from audit.store import AuditStore

# A completion waits this long for company: a commit that carries 16 and more costs 8 µs an event, alone 137.
LINGER_S = 0.020
# A larger batch saves nothing and keeps the intents in it waiting.
BATCH_EVENTS_MAX = 256
# What may wait for the disk: some seconds of a busy hub, and not more memory than it can spare.
QUEUE_EVENTS_MAX = 20_000
QUEUE_BYTES_MAX = 64 * 1024 * 1024
# How often a store that is down is tried again.
RETRY_S = 1.0

_STOPPED = "the recorder has stopped"

_log = logging.getLogger("hawse.audit")


@attrs.define(eq=False)
class _Waiter:
    """Someone who waits until what they queued is on the disk."""

    event: Event | None
    """None: a flush, which only waits for what is before it."""
    settled: trio.Event = attrs.Factory(trio.Event)
    failure: str | None = None


# An event by itself is waited for by nobody.
_Item: TypeAlias = Event | _Waiter


@attrs.define(eq=False)
class _Gap:
    """The time the store is down, and what has no row because of it."""

    reason: str
    began: float
    retry_at_s: float
    refused: int = 0
    lost: int = 0
    began_s: float = attrs.Factory(time.monotonic)
    """By a clock that nobody sets, for how long it lasted."""


class Recorder:
    """The way into the trail; made by `open_recorder`. All methods belong to the trio thread."""

    def __init__(
        self,
        store: AuditStore,
        *,
        org: str,
        boot: str,
        clock: Callable[[], float],
        place_of: Callable[[str], str],
    ) -> None:
        self._store = store
        self._org = org
        self._boot = boot
        self._clock = clock
        self._token = trio.lowlevel.current_trio_token()
        # A plain lock, taken by itself for every event; the condition is entered only to wait.
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        # All below is guarded by the lock.
        self._queue: deque[_Item] = deque()
        self._queue_bytes = 0
        self._waiters = 0
        self._linger_until_s = 0.0
        self._floods = Floods(new_eid, place_of)
        self._gap: _Gap | None = None
        self._kept: list[tuple[Event, Callable[[], None]]] = []
        self._stopping = False
        # Bounded by the agents.
        self._stored: dict[Agent, int] = {}

    @property
    def healthy(self) -> bool:
        """Whether events reach the disk; while not, intents are refused."""
        return self._gap is None

    @property
    def down_s(self) -> float:
        """For how many seconds events have not reached the disk; 0 while they do."""
        gap = self._gap
        return 0.0 if gap is None else time.monotonic() - gap.began_s

    async def intent(self, event: Event) -> None:
        """Return once the intent of a write or an upgrade is durable; only then may the call be forwarded.

        Raises AuditUnavailable: the call must be refused. When cancelled, the intent is ended by a
        completion that says that nothing was forwarded.
        """
        if event.phase is not Phase.INTENT:
            raise ValueError(f"event {event.eid} is no intent but {event.phase}")
        try:
            await self._durable(event)
        except trio.Cancelled:
            self.complete(
                event.completed(
                    utc(self._clock()),
                    resp=Response(0, "the client left before the call was forwarded", processed="no"),
                )
            )
            raise

    async def flush(self) -> None:
        """Return once everything that was queued before is durable. Raises AuditUnavailable."""
        await self._durable(None)

    async def _durable(self, event: Event | None) -> None:
        waiter = _Waiter(event)
        weight_bytes = _weight_bytes(waiter)
        with self._lock:
            if self._stopping:
                raise AuditUnavailable(_STOPPED)
            if self._gap is None and not self._fits(weight_bytes):
                self._overflow()
            if self._gap is not None:
                self._gap.refused += event is not None
                raise AuditUnavailable(self._gap.reason)
            self._queue.append(waiter)
            self._queue_bytes += weight_bytes
            self._waiters += 1
            self._wake.notify()
        await waiter.settled.wait()
        if waiter.failure is not None:
            raise AuditUnavailable(waiter.failure)

    def complete(self, event: Event) -> None:
        """Queue the end of a call, or any event that nobody waits for; floods of failures are counted.

        Never raises: what cannot be kept while the store is down is counted by the event of the gap.
        """
        weight_bytes = event.weight_bytes
        failure = counts(event)
        with self._lock:
            if self._stopping:
                _log.error(
                    "audit: event %s came after the recorder had stopped and is lost",
                    event.eid, extra={"eid": event.eid},
                )  # fmt: skip
                return
            # The first of a flood is stored, so the writer is awake and knows when the flood's window ends.
            if failure and not self._floods.admit(event, time.monotonic()):
                return
            queue = self._queue
            held_bytes = self._queue_bytes + weight_bytes
            if len(queue) >= QUEUE_EVENTS_MAX or held_bytes > QUEUE_BYTES_MAX:
                (self._gap or self._overflow()).lost += 1
                return
            queue.append(event)
            self._queue_bytes = held_bytes
            # The writer sleeps until the first comes, then until it has lingered; others need not wake it.
            if len(queue) == 1:
                self._linger_until_s = time.monotonic() + LINGER_S
                self._wake.notify()
            elif len(queue) == BATCH_EVENTS_MAX:
                self._wake.notify()

    def keep(self, event: Event, settled: Callable[[], None]) -> None:
        """Write an event that is durable elsewhere as soon as the trail can be written, before all else.

        `settled` is called in the writer's thread when it is in the trail; it must not raise. At the
        recorder's end it may not have been called: who keeps the event gives it again at the next start. The
        bound on these events is that of the place which keeps them.
        """
        with self._lock:
            self._kept.append((event, settled))
            self._wake.notify()

    def take_stored(self) -> dict[Agent, int]:
        """How many bytes each agent has added to the trail since this was asked last."""
        with self._lock:
            stored, self._stored = self._stored, {}
        return stored

    def _fits(self, weight_bytes: int) -> bool:
        return len(self._queue) < QUEUE_EVENTS_MAX and self._queue_bytes + weight_bytes <= QUEUE_BYTES_MAX

    def _overflow(self) -> _Gap:
        """Begin a gap because the store, though it works, is slower than what comes; a commit ends it."""
        reason = f"{len(self._queue)} events wait for the audit trail, which is too slow"
        self._gap = _Gap(reason, self._clock(), retry_at_s=0.0)
        _log.error("audit: %s; writes are refused", reason)
        return self._gap

    # What follows runs in the writer thread.

    def run_writer(self) -> None:
        """Commit batches until `stop`; the body of the one writer thread."""
        batch: list[_Item] = []
        try:
            while (found := self._next_batch()) is not None:
                batch = found
                self._write(batch)
                batch = []
        finally:
            # After a bug nobody must wait for ever; the exception itself ends the hub.
            with self._lock:
                self._stopping = True
                left = _waiters([*batch, *self._queue])
            self._settle(left, _STOPPED)

    def stop(self) -> None:
        """Let the writer end after one last batch of everything."""
        with self._lock:
            self._stopping = True
            self._wake.notify()

    def _next_batch(self) -> list[_Item] | None:
        """Wait until there is something to commit; None when it is time to end."""
        with self._lock:
            while True:
                now_s = time.monotonic()
                for event in self._floods.due(float("inf") if self._stopping else now_s):
                    self._queue.append(event)
                    self._queue_bytes += event.weight_bytes
                wait_until_s = self._writes_at_s()
                if wait_until_s is not None and wait_until_s <= now_s:
                    return self._take()
                if self._stopping and wait_until_s is None:
                    return None
                due_s = self._floods.next_due_s()
                if due_s is not None and (wait_until_s is None or due_s < wait_until_s):
                    wait_until_s = due_s
                self._wake.wait(None if wait_until_s is None else wait_until_s - now_s)

    def _writes_at_s(self) -> float | None:
        """Tell when the next batch is to be written, on the monotonic clock; None: nothing is to write."""
        if self._stopping:
            return 0.0 if self._queue or self._kept or self._gap is not None else None
        if self._gap is not None:
            return self._gap.retry_at_s
        if self._kept or self._waiters or len(self._queue) >= BATCH_EVENTS_MAX:
            return 0.0
        return self._linger_until_s if self._queue else None

    def _take(self) -> list[_Item]:
        if len(self._queue) <= BATCH_EVENTS_MAX:
            batch = list(self._queue)
            self._queue.clear()
            self._queue_bytes = self._waiters = 0
            return batch
        batch = [self._queue.popleft() for _ in range(BATCH_EVENTS_MAX)]
        self._queue_bytes -= sum(map(_weight_bytes, batch))
        self._waiters -= len(_waiters(batch))
        return batch

    def _write(self, batch: list[_Item]) -> None:
        with self._lock:
            gap = attrs.evolve(self._gap) if self._gap is not None else None
            kept = list(self._kept)
        events = [event for item in batch if (event := _event(item)) is not None]
        try:
            if kept:
                self._write_kept(kept)
            stored = self._store.append(
                [self._gap_event(gap), *events] if gap is not None else events, boot=self._boot
            )
        except AuditUnavailable as error:
            self._went_down(batch, str(error))
            return
        with self._lock:
            for agent, size in stored.items():
                self._stored[agent] = self._stored.get(agent, 0) + size
        if gap is not None:
            self._came_up(gap)
        self._settle(_waiters(batch), None)

    def _write_kept(self, kept: Sequence[tuple[Event, Callable[[], None]]]) -> None:
        self._store.append_once([event for event, _ in kept])
        for _, settled in kept:
            settled()
        with self._lock:
            del self._kept[: len(kept)]

    def _came_up(self, told: _Gap) -> None:
        with self._lock:
            assert self._gap is not None
            # What was refused while the gap's event was being committed is the next gap's.
            refused, lost = self._gap.refused - told.refused, self._gap.lost - told.lost
            rest = _Gap(told.reason, self._clock(), 0.0, refused, lost) if refused or lost else None
            self._gap = rest
        _log.warning("audit: the trail is written again after %.1f s", time.monotonic() - told.began_s)

    def _went_down(self, batch: list[_Item], reason: str) -> None:
        """Refuse what waits, keep what nobody waits for; at the end, give up."""
        with self._lock:
            pending = [*batch, *self._queue]
            kept: list[_Item] = [item for item in pending if isinstance(item, Event)]
            waiting = _waiters(pending)
            if self._gap is None:
                self._gap = _Gap(reason, self._clock(), 0.0)
                _log.error("audit: %s; writes are refused until it is back", reason)
            self._gap.reason = reason
            self._gap.retry_at_s = time.monotonic() + RETRY_S
            self._gap.refused += sum(item.event is not None for item in waiting)
            if self._stopping:
                _log.error("audit: events lost at the end: %d (%s)", len(kept) + self._gap.lost, reason)
                self._gap = None
                self._kept.clear()
                kept = []
            self._queue = deque(kept)
            self._queue_bytes = sum(map(_weight_bytes, kept))
            self._waiters = 0
        self._settle(waiting, reason)

    def _gap_event(self, gap: _Gap) -> Event:
        return Event(
            eid=new_eid(),
            kind=Kind.AUDIT_GAP,
            phase=Phase.COMPLETE,
            ts=utc(gap.began),
            dur_ms=round((time.monotonic() - gap.began_s) * 1000, 3),
            org=self._org,
            actor=Actor(ActorType.HUB),
            count=max(1, gap.refused + gap.lost),
            note=f"writes refused: {gap.refused}, events lost: {gap.lost} ({gap.reason})",
        )

    def _settle(self, waiters: list[_Waiter], failure: str | None) -> None:
        if waiters:
            self._token.run_sync_soon(partial(_settle_all, waiters, failure))


def _event(item: _Item) -> Event | None:
    return item if isinstance(item, Event) else item.event


def _waiters(items: Iterable[_Item]) -> list[_Waiter]:
    return [item for item in items if isinstance(item, _Waiter)]


def _weight_bytes(item: _Item) -> int:
    event = _event(item)
    return event.weight_bytes if event is not None else 0


def _settle_all(waiters: list[_Waiter], failure: str | None) -> None:
    for waiter in waiters:
        waiter.failure = failure
        waiter.settled.set()


@asynccontextmanager
async def open_recorder(
    store: AuditStore,
    *,
    org: str = "",
    boot: str = "",
    clock: Callable[[], float] = time.time,
    lives: Callable[[str], bool] | None = None,
    place_of: Callable[[str], str] = str,
) -> AsyncIterator[Recorder]:
    """Open the recorder; on leaving, everything that is queued is written if the store lets it.

    At the start, intents that an earlier boot left without an end are ended as `unknown`; not those of a boot
    of which `lives` says, on a thread, that it is still there to end them. For `place_of` see audit.flood.
    Raises AuditUnavailable when the store is down already. The store stays the caller's to close.
    """
    boot = boot or new_eid()
    closed = await trio.to_thread.run_sync(partial(store.close_unknown, boot, utc(clock()), lives=lives))
    if closed:
        _log.warning("audit: calls of an earlier run without a known end: %d", closed)
    recorder = Recorder(store, org=org, boot=boot, clock=clock, place_of=place_of)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_run_in_thread, recorder.run_writer)
        try:
            yield recorder
        finally:
            recorder.stop()


async def _run_in_thread(run_writer: Callable[[], None]) -> None:
    # Shielded, or a cancellation that comes before the thread has started would lose what is queued; `stop`
    # ends it, after one last batch that the store's own busy timeout bounds. Its own limiter, because it
    # keeps its thread for good and must not take one of the shared ones.
    with trio.CancelScope(shield=True):
        await trio.to_thread.run_sync(run_writer, limiter=trio.CapacityLimiter(1))
