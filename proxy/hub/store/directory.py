"""The running hub's view of the store: one snapshot in memory, replaced after every change.

Requests read `current` and never wait. The admin API makes changes, one at a time, each on a thread. A change
returns only when the new snapshot is in place: a locked agent is refused from the moment that the operator's
command returns. Changes by other processes in the same database are seen within POLL_EVERY_S. Listeners are
called after each change. Updates of the last-used times are no changes: nothing is read for them.

Snapshots are read on a connection of their own. A change may wait for another hub's, or for a server that
does not answer, and changes may queue behind it. Meanwhile the poll still sees what others change, and still
confirms the snapshot's age (proxy/hub/store/versions/applied.py).

A revocation does not wait for a disk. If the store cannot be written, `change_in_memory` makes the change on
a copy of the store in memory, and snapshots are read from that. The changes are queued, and written to the
store in order as soon as that works. Until then the store takes no other change.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, closing, suppress
from functools import partial
from typing import NoReturn, Protocol, TypeVar

import attrs
import trio

from audit.store import TrailMark
from proxy.hub.store.engines.engine import Location
from proxy.hub.store.engines.errors import StoreError, StoreUnavailableError
from proxy.hub.store.entities import Agent, Credential, Snapshot
from proxy.hub.store.store import Store
from proxy.hub.store.versions.applied import Applied
from proxy.hub.store.versions.lineage import Lineage
from proxy.hub.store.versions.snapshot_age import STALE_S, STALE_STREAMS_S, SnapshotAge
from proxy.hub.store.versions.version import Version

T = TypeVar("T")

# "Last used" helps an operator find unused credentials; half a minute is exact enough for that, and a write
# per call would be a disk flush per call.
USE_WRITTEN_EVERY_S = 30.0
# Half of the second within which another process's change must be seen. A poll takes 300 µs of CPU, 600 in
# PostgreSQL.
POLL_EVERY_S = 0.5
# Between two polls, however many changes are announced: a reading takes up to 20 ms of CPU.
POLL_GAP_S = 0.1
# A disk that does not answer must not delay the hub's exit.
LAST_WRITE_S = 2.0
# Revocations that wait for the store. Operators make them, one at a time.
PENDING_MAX = 10_000

log = logging.getLogger(__name__)


class Changes(Protocol):
    """The part of the directory that an action uses."""

    @property
    def current(self) -> Snapshot:
        """The current snapshot."""
        ...

    async def read(self, query: Callable[[Store], T]) -> T:
        """Run a query that the snapshot does not answer."""
        ...

    async def change(self, mutation: Callable[[Store], T]) -> T:
        """Run a change."""
        ...


class Directory:
    """Immediate reads, and changes one at a time; made by `open_directory`."""

    def __init__(
        self,
        store: Store,
        reader: Store,
        current: Snapshot,
        age: SnapshotAge,
        monotonic: Callable[[], float] = time.monotonic,
        lineage: Lineage | None = None,
    ) -> None:
        self.current = current
        self.age = age
        """The age of `current`, on the clock `monotonic`."""
        self.fault = ""
        """Why the last poll has failed; "" if it has not, or is under way."""
        self.applied = Applied(age, current.version)
        self._monotonic = monotonic
        _log_faults(current, known=())
        self._listeners: list[Callable[[], None]] = []
        self._poll_wanted = trio.Event()
        # Guarded by the limiter: one thread at a time uses them.
        self._limiter = trio.CapacityLimiter(1)
        self._store = store
        self._copy: Store | None = None
        self._pending: deque[tuple[Callable[[Store], object], Callable[[], None]]] = deque()
        # Guarded by the lock, as is any replacement of the snapshot. A thread holds it for some answers.
        self._reading = threading.Lock()
        self._reader = reader
        self._lineage = lineage
        self._copied: Version | None = None
        # What a thread has done and the loop has not: the listeners are to be called, and then the version
        # in `applied.found` is applied. Set in this order.
        self._unnotified = False
        self._poll_thread = trio.CapacityLimiter(1)
        self.used = LastUsed(current.trail)
        """What was used, to be written later."""

    def refusal(self) -> str:
        """Return why nothing new may be decided by the snapshot now; "" if it may."""
        return self.age.refusal(self._monotonic())

    @property
    def age_s(self) -> float:
        """The age of the snapshot now."""
        return self.age.age_s(self._monotonic())

    async def read(self, query: Callable[[Store], T]) -> T:
        """Run a query that the snapshot does not answer; raises what it raises."""
        return await trio.to_thread.run_sync(self._read, query, limiter=self._limiter)

    def _read(self, query: Callable[[Store], T]) -> T:
        return query(self._copy or self._store)

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each change, when `current` is new; it must neither wait nor raise."""
        self._listeners.append(listener)

    async def change(self, mutation: Callable[[Store], T]) -> T:
        """Run a change and replace the snapshot; raises what the change raises.

        Cancelled while it waits for another change, nothing has changed; once begun it runs to its end.
        """
        try:
            return await trio.to_thread.run_sync(self._change, mutation, limiter=self._limiter)
        finally:
            # Also after a failed change: a part of it may be committed.
            self._notify()

    async def change_in_memory(self, mutation: Callable[[Store], T], settled: Callable[[], None]) -> T:
        """Run a revocation that the store could not take; it is in force when this returns.

        `settled` is called, in a thread, when the store has it. Raises what the change raises, and
        StoreUnavailableError if the store cannot be read either, or PENDING_MAX revocations wait.
        """
        try:
            return await trio.to_thread.run_sync(
                self._change_in_memory, mutation, settled, limiter=self._limiter
            )
        finally:
            self._notify()

    def _change_in_memory(self, mutation: Callable[[Store], T], settled: Callable[[], None]) -> T:
        if len(self._pending) >= PENDING_MAX:
            raise StoreUnavailableError(f"{PENDING_MAX} revocations wait for the store already")
        with self._reading:
            if self._copy is None:
                copy = self._store.copy_in_memory()
                self._copied = copy.version()
                self._copy = copy
            done = mutation(self._copy)
            self._pending.append((mutation, settled))
            if self._copy.version() != self.current.version:
                self._replace(self._copy)
        return done

    def _write_pending(self) -> None:
        """Write the queued revocations; raises StoreUnavailableError, and then the rest stays queued."""
        while self._pending:
            mutation, settled = self._pending[0]
            try:
                mutation(self._store)
            except StoreUnavailableError:
                raise
            except StoreError as error:
                # Another hub on this folder has written it already.
                log.info("the store has a revocation already: %s", error)
            self._pending.popleft()
            settled()
        if self._copy is not None:
            with self._reading:
                self._copy.close()
                self._copy = None
            self._refresh()
            log.warning("the store can be written again, and has all revocations")

    def _notify(self) -> None:
        """Call the listeners if the snapshot is new, and then count it as confirmed."""
        # Read before the listeners are called: a thread may replace the snapshot during that.
        found = self.applied.found
        if self._unnotified:
            self._unnotified = False
            for listener in self._listeners:
                listener()
        self.applied.apply(found)

    def _change(self, mutation: Callable[[Store], T]) -> T:
        # On the thread, so that no cancellation separates the commit from the new snapshot.
        try:
            self._write_pending()
            return mutation(self._store)
        finally:
            self._refresh()

    def _refresh(self) -> None:
        """Replace the snapshot if the store has another version; raises StoreUnavailableError."""
        with self._reading:
            sent_s = self._monotonic()
            version = self._reader.version()
            if self._copy is None:
                if version != self.current.version:
                    self._replace(self._reader)
            elif version != self._copied:
                # The copy lacks what others have changed.
                return
            self.applied.find(version, sent_s, self._reader.keeps)

    def _replace(self, store: Store) -> None:
        snapshot = store.snapshot(self.current)
        if store is self._reader and self._lineage is not None:
            self._lineage.follow(store, snapshot.version)
        # A snapshot after a loss decides nothing, and the one before its acceptance does not serve again.
        refusal = "" if self._lineage is None else self._lineage.refusal
        if refusal:
            self._withhold(refusal)
        before, self.current = self.current, snapshot
        self._withhold(refusal)
        self._unnotified = True
        _log_faults(self.current, known=before.faults)

    def _withhold(self, reason: str) -> None:
        if reason != self.age.withheld:
            trio.from_thread.run_sync(self.age.withhold, reason)

    def poll_soon(self) -> None:
        """Poll at once: another process has announced a change."""
        self._poll_wanted.set()

    async def run_poll(self) -> NoReturn:
        """Poll for other processes' changes, and write queued revocations, until cancelled.

        A failing store is tried again. `fault` has the reason, and the age of the snapshot grows.
        """
        polled_at = -math.inf
        async with trio.open_nursery() as nursery:
            while True:
                with trio.move_on_after(POLL_EVERY_S):
                    await self._poll_wanted.wait()
                    await trio.sleep_until(polled_at + POLL_GAP_S)
                self._poll_wanted = trio.Event()
                polled_at = trio.current_time()
                self.fault = ""
                try:
                    await trio.to_thread.run_sync(self._refresh, limiter=self._poll_thread)
                except StoreUnavailableError as error:
                    self.fault = str(error)
                self._notify()
                # A change that is under way writes them first.
                if self._copy is not None and self._limiter.available_tokens:
                    nursery.start_soon(self._try_pending)

    async def _try_pending(self) -> None:
        # Fails after each poll while the disk is full, which was logged before.
        with suppress(StoreUnavailableError):
            await trio.to_thread.run_sync(self._write_pending, limiter=self._limiter)
        self._notify()

    async def write_use(self) -> None:
        """Write what was noted as used since the last write.

        Raises StoreUnavailableError, and then these times are lost.
        """
        await self.used.write(self)

    async def run_use_writer(self) -> NoReturn:
        """Write the last-used times regularly; a failing store is logged and tried again."""
        while True:
            await trio.sleep(USE_WRITTEN_EVERY_S)
            try:
                await self.write_use()
            except StoreUnavailableError as error:
                log.warning("cannot write the last-used times: %s", error)


class LastUsed:
    """The last-used times that are not written yet. No snapshot has them."""

    def __init__(self, trail: TrailMark | None) -> None:
        self._trail_written = trail
        self._trail: TrailMark | None = None
        self._forget()

    def note_agent(self, agent: Agent, credential: Credential, now: float) -> None:
        """Note that an agent has authenticated."""
        self._agents[agent.id] = now
        self._credentials[credential.id] = now

    def note_admin_token(self, token_id: str, now: float) -> None:
        """Note that an operator's token was used."""
        self._admin_tokens[token_id] = now

    def note_relay(self, cluster_id: str, instance: str, now: float) -> None:
        """Note when a connected relay was last heard from."""
        self._relays[cluster_id, instance] = now

    def note_trail(self, mark: TrailMark) -> None:
        """Note the audit trail's highest number."""
        self._trail = mark

    def _forget(self) -> None:
        # Bounded by the existing agents, keys, tokens and connected relays.
        self._agents: dict[str, float] = {}
        self._credentials: dict[str, float] = {}
        self._admin_tokens: dict[str, float] = {}
        self._relays: dict[tuple[str, str], float] = {}

    async def write(self, changes: Changes) -> None:
        """Write what is noted; raises StoreUnavailableError, and then these times are lost."""
        note = partial(
            Store.note_use,
            agents=self._agents,
            credentials=self._credentials,
            admin_tokens=self._admin_tokens,
            relays=self._relays,
            trail=self._trail,
        )
        trail = self._trail
        grown = trail is not None and trail != self._trail_written
        if grown or self._agents or self._credentials or self._admin_tokens or self._relays:
            self._forget()
            await changes.change(note)
            self._trail_written = trail


@attrs.frozen
class InMemory:
    """A directory's `Changes` for one revocation that the store cannot take."""

    directory: Directory
    settled: Callable[[], None]

    @property
    def current(self) -> Snapshot:
        """The current snapshot."""
        return self.directory.current

    async def read(self, query: Callable[[Store], T]) -> T:
        """Run a query that the snapshot does not answer."""
        return await self.directory.read(query)

    async def change(self, mutation: Callable[[Store], T]) -> T:
        """Run the revocation."""
        return await self.directory.change_in_memory(mutation, self.settled)


def _log_faults(snapshot: Snapshot, *, known: Collection[str]) -> None:
    for fault in snapshot.faults:
        if fault not in known:
            log.error("the store holds an invalid row, which is ignored: %s", fault)


@asynccontextmanager
async def open_directory(
    location: Location,
    *,
    org: str,
    clock: Callable[[], float],
    shared: bool = False,
    stale_s: float = STALE_S,
    stale_streams_s: float = STALE_STREAMS_S,
    monotonic: Callable[[], float] = time.monotonic,
    lineage: Lineage | None = None,
) -> AsyncIterator[Directory]:
    """Open the store (making or migrating it) and read the first snapshot; raises StoreUnavailableError.

    `shared`: another hub still runs on it. `lineage`: a loss withholds the snapshot. `monotonic` is read in
    threads too. At the end the last-used times are written, within LAST_WRITE_S, and the store is closed.
    """
    store = await trio.to_thread.run_sync(partial(Store, location, org=org, clock=clock, shared=shared))
    with closing(store), closing(store.reader()) as reader:
        age = SnapshotAge(monotonic(), stale_s, stale_streams_s)
        current = await trio.to_thread.run_sync(reader.snapshot)
        if lineage is not None:
            await trio.to_thread.run_sync(lineage.follow, reader, current.version)
            age.withhold(lineage.refusal)
        directory = Directory(store, reader, current, age, monotonic, lineage)
        try:
            yield directory
        finally:
            with trio.move_on_after(LAST_WRITE_S, shield=True):
                try:
                    await directory.write_use()
                except StoreUnavailableError as error:
                    log.warning("cannot write the last-used times: %s", error)
