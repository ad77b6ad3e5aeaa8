"""Records events durably. A call waits for at most one commit.

Theory of operation. Tasks append events to a deque. One writer thread takes all queued events and commits
them as one batch. The senders of intents are called through trio's token, once per batch. While one
batch is being committed the next one gathers, so the commit's latency groups the intents, and they never
linger. No task waits for completions; they linger up to LINGER_S for a fuller batch.

A store in PostgreSQL may wait for its database: then all intents wait behind its batch, and the recorder is
not down yet. If the store does not know whether a batch was committed, it keeps the batch. The intents in it
are refused, and get an end that says so.

When the store fails, the recorder is *down*. Intents are refused at once, so the refused write never happens.
Completions are kept, up to the queue's bounds. Every RETRY_S the writer tries to commit them together with an
event about the gap; when that succeeds the recorder is up again. Operations that may proceed without the
trail store their events elsewhere, and pass them to `keep`; those events are written first. The caller
decides whether reads continue meanwhile, by `healthy`.

Both threads change the queue and the gap, under one lock. So both sides are one class.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import attrs
import trio

from audit.errors import AuditUnavailable, CommitUnknown, ContentRefused
from audit.ids import new_eid
from audit.record import Event, Kind, Phase, Response, utc
from audit.recording.flood import Floods, counts
from audit.recording.gap import Gap
from audit.recording.queued import Item, Parked, Settled, Waiter, events_of, settle_all, waiters_of, weight_of
from audit.shares import Agent
from audit.stores import TrailStore

# A completion waits this long for others: commits of 16 and more cost 8 µs per event, of one event 137 µs.
LINGER_S = 0.020
# A larger batch saves nothing and delays the intents in it.
BATCH_EVENTS_MAX = 256
# PostgreSQL has 5 s for a batch, which is sent again if that is too short. On busy cores, 2 MiB took 0.5 s,
# and 34 MiB 20 s, as of 256 execs with a script of 48 KiB.
BATCH_BYTES_MAX = 2 * 1024 * 1024
# Maximum events that wait for the disk: some seconds of a busy hub, within its memory.
QUEUE_EVENTS_MAX = 20_000
QUEUE_BYTES_MAX = 64 * 1024 * 1024
# How often the recorder retries a store that is down.
RETRY_S = 1.0

_STOPPED = "the recorder has stopped"
_CALL = Kind.CALL

_log = logging.getLogger("hawse.audit")


class Recorder:
    """Accepts events for the trail; made by `open_recorder`. All methods belong to the trio thread."""

    def __init__(
        self,
        store: TrailStore,
        *,
        org: str,
        boot: str,
        clock: Callable[[], float],
        source_of: Callable[[str], str],
    ) -> None:
        self._store = store
        self._org = org
        self._boot = boot
        self._clock = clock
        self._token = trio.lowlevel.current_trio_token()
        # A plain lock, taken directly for every event; the condition is entered only to wait.
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        # The lock guards everything below.
        self._queue: deque[Item] = deque()
        self._queue_bytes = 0
        self._waiters = 0
        self._linger_until_s = 0.0
        self._floods = Floods(new_eid, source_of)
        self._gap: Gap | None = None
        self._kept: list[tuple[Event, Callable[[], None]]] = []
        self._stopping = False
        # Bounded by the number of agents.
        self._stored: dict[Agent, int] = {}
        # Intents that were refused although they may be in the trail, until their senders are called. Their
        # ends are queued already.
        self._ended: set[str] = set()
        self.kinds = dict.fromkeys(Kind, 0)
        """How many events of each kind but calls have ended, for the metrics."""
        self.last_gap: tuple[float, float] | None = None
        """The last gap that has ended: its end in epoch seconds, and its length in seconds."""

    @property
    def healthy(self) -> bool:
        """Whether events reach the disk; if not, intents are refused."""
        return self._gap is None

    @property
    def down_s(self) -> float:
        """For how many seconds events have not reached the disk; 0 while they do."""
        gap = self._gap
        return 0.0 if gap is None else gap.lasts_s

    @property
    def queued(self) -> int:
        """How many events wait for the disk."""
        return len(self._queue)

    async def intent(self, event: Event) -> None:
        """Return once the intent of a write or an upgrade is durable; only then may the call be forwarded.

        Raises AuditUnavailable: the call must be refused. If cancelled, a completion ends the intent and
        states that nothing was forwarded.
        """
        _check_intent(event)
        try:
            await self._durable(event)
        except trio.Cancelled:
            self.withdraw(event)
            raise

    def begin_intent(self, event: Event, settled: Settled) -> None:
        """Queue the intent of a write or an upgrade, for a caller without a task.

        `settled` is called in the trio thread, but never before this returns.
        The call may be forwarded only after `settled(None)`. Up to BATCH_EVENTS_MAX calls are made in a row,
        so it must neither wait nor raise. A caller that gives up meanwhile calls `withdraw`. Raises
        AuditUnavailable: the call must be refused.
        """
        _check_intent(event)
        self._enqueue(Waiter(event, settled))

    def withdraw(self, event: Event) -> None:
        """End an intent whose client left before the call was forwarded."""
        with self._lock:
            if event.eid in self._ended:
                return
        left = Response(0, "the client left before the call was forwarded", processed="no")
        self.complete(event.completed(utc(self._clock()), resp=left))

    async def flush(self) -> None:
        """Return once all events queued before are durable. Raises AuditUnavailable."""
        await self._durable(None)

    async def _durable(self, event: Event | None) -> None:
        parked = Parked()
        self._enqueue(Waiter(event, parked))
        await parked.woken.wait()
        if parked.failure is not None:
            raise AuditUnavailable(parked.failure)

    def _enqueue(self, waiter: Waiter) -> None:
        event, weight_bytes = waiter.event, weight_of(waiter)
        with self._lock:
            if self._stopping:
                raise AuditUnavailable(_STOPPED)
            held_bytes = self._queue_bytes + weight_bytes
            full = len(self._queue) >= QUEUE_EVENTS_MAX or held_bytes > QUEUE_BYTES_MAX
            if full and self._gap is None:
                self._overflow()
            if self._gap is not None:
                self._gap.refused += event is not None
                raise AuditUnavailable(self._gap.reason)
            self._queue.append(waiter)
            self._queue_bytes = held_bytes
            self._waiters += 1
            self._wake.notify()

    def complete(self, event: Event) -> None:
        """Queue the end of a call, or any event that no task waits for; floods of failures are counted.

        Never raises: events that do not fit while the store is down are counted in the gap's event.
        """
        weight_bytes = event.weight_bytes
        failure = counts(event)
        if event.kind is not _CALL:
            self.kinds[event.kind] += event.count
        with self._lock:
            if self._stopping:
                _log.error(
                    "audit: event %s came after the recorder had stopped and is lost",
                    event.eid, extra={"eid": event.eid},
                )  # fmt: skip
                return
            # The first event of a flood is stored, so the writer is awake and knows when the flood's window
            # ends.
            if failure and not self._floods.admit(event, time.monotonic()):
                return
            queue = self._queue
            held_bytes = self._queue_bytes + weight_bytes
            if len(queue) >= QUEUE_EVENTS_MAX or held_bytes > QUEUE_BYTES_MAX:
                (self._gap or self._overflow()).lost += 1
                return
            queue.append(event)
            self._queue_bytes = held_bytes
            # The writer sleeps until the first event comes, then lingers; further events need not wake it.
            if len(queue) == 1:
                self._linger_until_s = time.monotonic() + LINGER_S
                self._wake.notify()
            elif len(queue) == BATCH_EVENTS_MAX:
                self._wake.notify()

    def keep(self, event: Event, settled: Callable[[], None]) -> None:
        """Write an event that is durable elsewhere as soon as the trail is writable, before all others.

        `settled` is called in the writer's thread when the event is in the trail; it must not raise. The
        recorder may end before it is called: the owner of the event passes it again at the next start. The
        owner also bounds the number of these events.
        """
        with self._lock:
            self._kept.append((event, settled))
            self._wake.notify()

    def take_stored(self) -> dict[Agent, int]:
        """How many bytes each agent has added to the trail since the last call."""
        with self._lock:
            stored, self._stored = self._stored, {}
        return stored

    def _overflow(self) -> Gap:
        """Begin a gap because the store works, but is slower than the incoming events; a commit ends it."""
        reason = f"{len(self._queue)} events wait for the audit trail, which is too slow"
        self._gap = Gap(reason, self._clock(), retry_at_s=0.0)
        _log.error("audit: %s; writes are refused", reason)
        return self._gap

    # The methods below run in the writer thread.

    def run_writer(self) -> None:
        """Commit batches until `stop`; the body of the one writer thread."""
        batch: list[Item] = []
        try:
            while (found := self._next_batch()) is not None:
                batch = found
                self._write(batch)
                batch = []
        finally:
            # After a bug no task must wait forever; the exception itself ends the hub.
            with self._lock:
                self._stopping = True
                left = waiters_of([*batch, *self._queue])
            self._settle(left, _STOPPED)

    def stop(self) -> None:
        """Make the writer commit all remaining events and then end."""
        with self._lock:
            self._stopping = True
            self._wake.notify()

    def _next_batch(self) -> list[Item] | None:
        """Wait until there is something to commit; None means that the writer must end."""
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
        """When the next batch is due, on the monotonic clock; None if there is nothing to write."""
        if self._stopping:
            return 0.0 if self._queue or self._kept or self._gap is not None else None
        if self._gap is not None:
            return self._gap.retry_at_s
        if self._kept or self._waiters or len(self._queue) >= BATCH_EVENTS_MAX:
            return 0.0
        return self._linger_until_s if self._queue else None

    def _take(self) -> list[Item]:
        if len(self._queue) <= BATCH_EVENTS_MAX and self._queue_bytes <= BATCH_BYTES_MAX:
            batch = list(self._queue)
            self._queue.clear()
            self._queue_bytes = self._waiters = 0
            return batch
        batch = []
        left_bytes = BATCH_BYTES_MAX
        while self._queue and len(batch) < BATCH_EVENTS_MAX and left_bytes > 0:
            item = self._queue.popleft()
            batch.append(item)
            left_bytes -= weight_of(item)
        self._queue_bytes -= BATCH_BYTES_MAX - left_bytes
        self._waiters -= len(waiters_of(batch))
        return batch

    def _write(self, batch: list[Item]) -> None:
        with self._lock:
            gap = attrs.evolve(self._gap) if self._gap is not None else None
            kept = list(self._kept)
        events = events_of(batch)
        refused: Mapping[str, str] = {}
        stored: Mapping[Agent, int]
        try:
            if kept:
                self._write_kept(kept)
            stored = self._store.append(
                [gap.event(self._org), *events] if gap is not None else events, boot=self._boot
            )
        except ContentRefused as error:
            _log.error("audit: %s", error)
            stored, refused = error.stored, error.refused
        except CommitUnknown as error:
            self._commit_unknown(batch, gap, str(error))
            return
        except AuditUnavailable as error:
            self._store_failed(batch, str(error))
            return
        with self._lock:
            for agent, size in stored.items():
                self._stored[agent] = self._stored.get(agent, 0) + size
        if gap is not None:
            self._store_recovered(gap)
        waiting = waiters_of(batch)
        if refused:
            lost = [waiter for waiter in waiting if waiter.event is not None and waiter.event.eid in refused]
            self._settle(lost, "the audit trail cannot record this call")
            waiting = [waiter for waiter in waiting if waiter not in lost]
        self._settle(waiting, None)

    def _write_kept(self, kept: Sequence[tuple[Event, Callable[[], None]]]) -> None:
        self._store.append_once([event for event, _ in kept])
        for _, settled in kept:
            settled()
        with self._lock:
            del self._kept[: len(kept)]

    def _store_recovered(self, gap: Gap) -> None:
        with self._lock:
            assert self._gap is not None
            self._gap = self._gap.rest(gap, self._clock())
        took_s = gap.lasts_s
        self.last_gap = self._clock(), took_s
        _log.warning("audit: the trail is written again after %.1f s", took_s)

    def _commit_unknown(self, batch: list[Item], gap: Gap | None, reason: str) -> None:
        """Refuse the intents of a batch that the store keeps, and queue ends of those that may be written."""
        waiting = waiters_of(batch)
        begun = [waiter.event for waiter in waiting if waiter.event is not None]
        response = Response(0, "the audit trail did not confirm the intent in time", processed="no")
        with self._lock:
            # The clients of these intents have left, so their ends are in the batch or queued already.
            ended = {item.eid for item in [*batch, *self._queue] if isinstance(item, Event)}
            ends = [
                event.completed(utc(self._clock()), resp=response)
                for event in begun
                if event.eid not in ended
            ]
            withdrawn = {event.eid for event in ends}
            self._ended |= withdrawn
            if gap is not None and self._gap is not None:
                # The batch, which the store keeps, has the event of the gap up to now.
                self._gap.refused -= gap.refused
                self._gap.lost -= gap.lost
        self._store_failed([*ends], reason, refused=len(begun))
        self._settle(waiting, reason)
        self._token.run_sync_soon(self._forget_ended, withdrawn)

    def _forget_ended(self, eids: set[str]) -> None:
        # Their senders have been called before this, so none withdraws its intent any more.
        with self._lock:
            self._ended -= eids

    def _store_failed(self, batch: list[Item], reason: str, *, refused: int = 0) -> None:
        """Refuse waiting events and keep the others; on shutdown, give up."""
        with self._lock:
            pending = [*batch, *self._queue]
            kept: list[Item] = [item for item in pending if isinstance(item, Event)]
            waiting = waiters_of(pending)
            if self._gap is None:
                self._gap = Gap(reason, self._clock(), 0.0)
                _log.error("audit: %s; writes are refused until it is back", reason)
            self._gap.reason = reason
            self._gap.retry_at_s = time.monotonic() + RETRY_S
            self._gap.refused += refused + sum(item.event is not None for item in waiting)
            if self._stopping:
                _log.error("audit: events lost at the end: %d (%s)", len(kept) + self._gap.lost, reason)
                self._gap = None
                self._kept.clear()
                kept = []
            self._queue = deque(kept)
            self._queue_bytes = sum(map(weight_of, kept))
            self._waiters = 0
        self._settle(waiting, reason)

    def _settle(self, waiters: list[Waiter], failure: str | None) -> None:
        if waiters:
            self._token.run_sync_soon(partial(settle_all, waiters, failure))


def _check_intent(event: Event) -> None:
    if event.phase is not Phase.INTENT:
        raise ValueError(f"event {event.eid} is no intent but {event.phase}")
