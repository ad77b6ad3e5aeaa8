"""The hub's knowledge while it runs: one snapshot in memory, replaced after every change of the store.

The way of a request reads `current` and never waits. Changes come from the admin API, one at a
time, each on a thread, and return only when the new snapshot stands: an agent that was locked is refused
from the moment that the operator's command returns. What another process changes in the same database is
seen within LOOK_EVERY_S. Whoever has to act on a change, beside reading `current` the next time, is told; but
not of when who was here last, which is written down all the time and changes nothing for anybody.

A revocation does not wait for a disk. Where the store cannot be written, `change_in_memory` makes the change
on a copy of the store in memory, and snapshots are read from that. The changes stay in a list, are written to
the store in their order as soon as it can be written, and until then the store takes no other change.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NoReturn, Protocol, TypeVar

import attrs
import trio

from audit.store import TrailMark
from proxy.hub.store.entities import Agent, Credential, Snapshot
from proxy.hub.store.errors import StoreError, StoreUnavailableError
from proxy.hub.store.store import Store

T = TypeVar("T")

# "Last used" is for an operator who looks for dead credentials; half a minute is exact enough for that,
# and a write per call would be a disk flush per call.
USE_WRITTEN_EVERY_S = 30.0
# Half of the second within which another process's change must be seen; a look costs some 100 µs.
LOOK_EVERY_S = 0.5
# A disk that does not answer must not hold up the end of the hub.
LAST_WRITE_S = 2.0
# Of revocations that wait for the store. Operators make them, one at a time.
PENDING_MAX = 10_000

log = logging.getLogger(__name__)


class Changes(Protocol):
    """What an action needs of the directory."""

    @property
    def current(self) -> Snapshot:
        """The snapshot that stands now."""
        ...

    async def read(self, query: Callable[[Store], T]) -> T:
        """Run a query that the snapshot does not answer."""
        ...

    async def change(self, mutation: Callable[[Store], T]) -> T:
        """Run a change."""
        ...


class Directory:
    """Reads without waiting, changes one at a time; made by `open_directory`."""

    def __init__(self, store: Store, current: Snapshot) -> None:
        self.current = current
        self._store = store
        _tell_faults(current, known=())
        self._limiter = trio.CapacityLimiter(1)
        self._stale = False
        # Something has changed since the listeners were told, other than when who was used.
        self._untold = False
        self._listeners: list[Callable[[], None]] = []
        # Guarded by the limiter: only its one thread touches them.
        self._copy: Store | None = None
        self._pending: deque[tuple[Callable[[Store], object], Callable[[], None]]] = deque()
        self._data_version = store.data_version()
        self._trail: TrailMark | None = None
        self._forget_use()

    async def read(self, query: Callable[[Store], T]) -> T:
        """Run a query that the snapshot does not answer; raises what it raises."""
        return await trio.to_thread.run_sync(self._read, query, limiter=self._limiter)

    def _read(self, query: Callable[[Store], T]) -> T:
        return query(self._copy or self._store)

    def on_change(self, tell: Callable[[], None]) -> None:
        """Have `tell` called after each change, when its snapshot stands; it must neither wait nor raise."""
        self._listeners.append(tell)

    async def change(self, mutation: Callable[[Store], T]) -> T:
        """Run a change and replace the snapshot; raises what the change raises.

        Cancelled while it waits for its turn, nothing has happened; once begun it runs to its end.
        """
        try:
            return await trio.to_thread.run_sync(self._change, mutation, True, limiter=self._limiter)
        finally:
            # Also after a change that failed: the snapshot is new all the same.
            self._tell()

    async def change_in_memory(self, mutation: Callable[[Store], T], settled: Callable[[], None]) -> T:
        """Run a revocation that the store could not take; it is in force when this returns.

        `settled` is called, in a thread, when the store has it. Raises what the change raises, and
        StoreUnavailableError where the store cannot even be read, or too much is pending.
        """
        try:
            return await trio.to_thread.run_sync(
                self._change_in_memory, mutation, settled, limiter=self._limiter
            )
        finally:
            self._tell()

    def _change_in_memory(self, mutation: Callable[[Store], T], settled: Callable[[], None]) -> T:
        if len(self._pending) >= PENDING_MAX:
            raise StoreUnavailableError(f"{PENDING_MAX} revocations wait for the store already")
        if self._copy is None:
            self._copy = self._store.copy_in_memory()
        done = mutation(self._copy)
        self._pending.append((mutation, settled))
        self._refresh(True)
        return done

    def _write_pending(self) -> None:
        """Write what waits for the store; raises StoreUnavailableError, and what is left waits on."""
        while self._pending:
            mutation, settled = self._pending[0]
            try:
                mutation(self._store)
            except StoreUnavailableError:
                raise
            except StoreError as error:
                # Another hub on this folder has written it.
                log.info("the store has a revocation already: %s", error)
            self._pending.popleft()
            settled()
        if self._copy is not None:
            self._copy.close()
            self._copy = None
            self._refresh(True)
            log.warning("the store is written again, and has every revocation")

    def _tell(self) -> None:
        if self._untold:
            self._untold = False
            for tell in self._listeners:
                tell()

    def _change(self, mutation: Callable[[Store], T], news: bool) -> T:
        # A snapshot that could not be read before brings what it would have brought.
        news = news or self._stale
        # On the thread, so that no cancellation can come between the commit and the snapshot.
        self._stale = True
        try:
            self._write_pending()
            return mutation(self._store)
        finally:
            self._refresh(news)

    def _refresh(self, news: bool) -> None:
        before, self.current = self.current, (self._copy or self._store).snapshot()
        self._stale = False
        if news:
            self._untold = True
        _tell_faults(self.current, known=before.faults)

    async def run_look(self) -> NoReturn:
        """See what another process changes; a store that fails is logged and tried again."""
        while True:
            await trio.sleep(LOOK_EVERY_S)
            try:
                await trio.to_thread.run_sync(self._look, limiter=self._limiter)
            except StoreUnavailableError as error:
                log.warning("cannot look for changes: %s", error)
            self._tell()

    def _look(self) -> None:
        # While the disk is full this fails, and nothing else does: it is no news each time.
        with suppress(StoreUnavailableError):
            self._write_pending()
        version = self._store.data_version()
        if self._stale or version != self._data_version:
            self._refresh(True)
            self._data_version = version

    def note_agent_used(self, agent: Agent, credential: Credential, now: float) -> None:
        """Remember that an agent proved itself; written down later."""
        self._agents[agent.id] = now
        self._credentials[credential.id] = now

    def note_admin_token_used(self, token_id: str, now: float) -> None:
        """Remember that an operator's token was shown; written down later."""
        self._admin_tokens[token_id] = now

    def note_relay_seen(self, cluster_id: str, instance: str, now: float) -> None:
        """Remember that a connected relay was heard; written down later."""
        self._relays[cluster_id, instance] = now

    def note_trail(self, mark: TrailMark) -> None:
        """Remember how far the audit trail has come; written down later."""
        self._trail = mark

    def _forget_use(self) -> None:
        # Bounded by what exists: ids of agents, keys, tokens and connected relays.
        self._agents: dict[str, float] = {}
        self._credentials: dict[str, float] = {}
        self._admin_tokens: dict[str, float] = {}
        self._relays: dict[tuple[str, str], float] = {}

    async def write_use(self) -> None:
        """Write down what was used since the last time; raises StoreUnavailableError, and forgets it then."""
        note = partial(
            Store.note_use,
            agents=self._agents,
            credentials=self._credentials,
            admin_tokens=self._admin_tokens,
            relays=self._relays,
            trail=self._trail,
        )
        known = self.current.trail
        grown = known is not None and self._trail is not None and self._trail.highest > known.highest
        if grown or self._stale or self._agents or self._credentials or self._admin_tokens or self._relays:
            self._forget_use()
            try:
                await trio.to_thread.run_sync(self._change, note, False, limiter=self._limiter)
            finally:
                self._tell()

    async def run_use_writer(self) -> NoReturn:
        """Write down use from time to time; a store that fails is logged and tried again."""
        while True:
            await trio.sleep(USE_WRITTEN_EVERY_S)
            try:
                await self.write_use()
            except StoreUnavailableError as error:
                log.warning("cannot write down what was used: %s", error)


@attrs.frozen
class InMemory:
    """The directory for one revocation that its store cannot take (its Changes)."""

    directory: Directory
    settled: Callable[[], None]

    @property
    def current(self) -> Snapshot:
        """The snapshot that stands now."""
        return self.directory.current

    async def read(self, query: Callable[[Store], T]) -> T:
        """Run a query that the snapshot does not answer."""
        return await self.directory.read(query)

    async def change(self, mutation: Callable[[Store], T]) -> T:
        """Run the revocation."""
        return await self.directory.change_in_memory(mutation, self.settled)


def _tell_faults(snapshot: Snapshot, *, known: Collection[str]) -> None:
    for fault in snapshot.faults:
        if fault not in known:
            log.error("the store holds what must not be used, and it is left out: %s", fault)


@asynccontextmanager
async def open_directory(
    path: Path, *, org: str, clock: Callable[[], float], shared: bool = False
) -> AsyncIterator[Directory]:
    """Open the store (making or migrating it) and read the first snapshot; raises StoreUnavailableError.

    `shared`: another hub still runs on it. At the end what was used is written down, within a deadline, and
    the store is closed.
    """
    store = await trio.to_thread.run_sync(partial(Store, path, org=org, clock=clock, shared=shared))
    try:
        directory = Directory(store, await trio.to_thread.run_sync(store.snapshot))
        try:
            yield directory
        finally:
            with trio.move_on_after(LAST_WRITE_S, shield=True):
                try:
                    await directory.write_use()
                except StoreUnavailableError as error:
                    log.warning("cannot write down what was used: %s", error)
    finally:
        store.close()
