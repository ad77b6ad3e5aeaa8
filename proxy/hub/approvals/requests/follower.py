"""Follows the requests of all hubs on one store: what they change, and what could not be written.

The writes of a hub share one connection, and its readings another one, so that no reading waits for a commit.
The follower reads every second what has changed, and at once when another hub on PostgreSQL announces it.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, NoReturn, TypeVar

import attrs
import trio

from audit.record import Event
from proxy.hub.approvals.request import Request, State
from proxy.hub.approvals.requests.events import event_of
from proxy.hub.approvals.requests.memory import Listener, RequestsMemory
from proxy.hub.approvals.requests.table import RequestsTable
from proxy.hub.store.engines.errors import StoreError, StoreUnavailableError
from proxy.hub.store.entities import Snapshot
from tunnel.net.loglimit import LogLimit

T = TypeVar("T")

WAITING_MAX: Final = 1000
"""Tasks that wait for one of the two threads. 512 calls may wait for approvals."""
WAIT_S: Final = 10.0
POLL_EVERY_S: Final = 1.0
POLL_GAP_S: Final = 0.1
WINDOW_S: Final = 60.0
"""A reading covers changes from this long before the last one, because a commit may take a while."""
LOOK_FOR_DEAD_S: Final = 5.0
TIDY_EVERY_S: Final = 3600.0

_log = logging.getLogger("hawse.hub.requests")


@attrs.frozen
class Revocation:
    """A revocation that the store could not take."""

    request_id: str
    by: str
    settled: Callable[[], None]


class Follower:
    """The part of the requests that follows other hubs."""

    def __init__(
        self,
        table: RequestsTable,
        reader: RequestsTable,
        *,
        snapshot: Callable[[], Snapshot],
        record: Callable[[Event], None],
        runs_here: Callable[[str], bool],
    ) -> None:
        self._table, self._reader = table, reader
        self._writes, self._reads = trio.CapacityLimiter(1), trio.CapacityLimiter(1)
        self._snapshot, self._record, self._runs_here = snapshot, record, runs_here
        self._memory = RequestsMemory()
        # Grants of this hub that must be spent, since an answer of the store was lost. Bounded by its calls.
        self._unspent: set[str] = set()
        self._revocations: deque[Revocation] = deque()
        self._poll_wanted = trio.Event()
        # The time of the last reading by the database's clock.
        self._read_at = math.inf
        self._failed = LogLimit(_log)

    def changed(self, request: Request) -> trio.Event:
        """Return an event that is set once the request may not be as this one says any more.

        A change at another hub sets it within POLL_EVERY_S, if the store can be read.
        """
        return self._memory.event_of(request)

    def revoked(self, request_id: str) -> bool:
        """Return whether a request is known to be revoked, so that calls by its grant end."""
        return self._memory.is_revoked(request_id)

    # -- from memory

    @property
    def open_states(self) -> Mapping[State, int]:
        """How many requests are pending, approved and using."""
        return self._memory.open_states

    @property
    def oldest_pending(self) -> float | None:
        """When the oldest pending request was opened."""
        return self._memory.oldest_pending

    @property
    def mark(self) -> int:
        """A number that grows with each change that this hub has seen."""
        return self._memory.mark

    def on_change(self, listener: Listener) -> None:
        """Call `listener` after each change, of this hub or another; it must neither wait nor raise."""
        self._memory.on_change(listener)

    # -- the follower

    def poll_soon(self) -> None:
        """Read at once: another hub has announced a change."""
        self._poll_wanted.set()

    async def run(self) -> NoReturn:
        """Follow what other hubs change, and write what could not be written, until cancelled."""
        polled_s = dead_s = tidied_s = -math.inf
        while True:
            with trio.move_on_after(POLL_EVERY_S):
                await self._poll_wanted.wait()
                await trio.sleep_until(polled_s + POLL_GAP_S)
            self._poll_wanted = trio.Event()
            polled_s = trio.current_time()
            try:
                boots = await self._poll()
                if boots and polled_s - dead_s >= LOOK_FOR_DEAD_S:
                    dead_s = polled_s
                    await self._spend_of_dead(boots)
                await self._write_left()
                if polled_s - tidied_s >= TIDY_EVERY_S:
                    tidied_s = polled_s
                    await self._write(self._table.tidy)
            except StoreUnavailableError as error:
                self._failed.warning(f"cannot follow the requests for approval: {error}", trio.current_time())

    async def _poll(self) -> set[str]:
        """Read what has changed; returns the other hub processes that have grants in use."""
        began_s = trio.current_time()
        found, read_at = await self._read(partial(self._reader.look, WINDOW_S, self._read_at))
        lost = self._memory.read(found, began_s)
        if lost:
            _log.error("the database has lost changes of requests for approval: all open ones are cancelled")
            await self._write(self._table.cancel_open)
            self._memory.accept(lost)
            self.poll_soon()
        self._read_at = read_at
        if any(each.overdue for each in found):
            await self._write(self._table.sweep)
        using = {each.hub_boot for each in found if each.state is State.USING and each.hub_boot}
        return using - {self._table.boot}

    async def _spend_of_dead(self, boots: set[str]) -> None:
        def spend() -> None:
            self._table.spend_of([boot for boot in boots if not self._runs_here(boot)])

        await self._write(spend)

    async def _write_left(self) -> None:
        """Write what the store could not take before; raises StoreUnavailableError."""
        for request_id in [*self._unspent]:
            await self._write(partial(self._table.spend, request_id))
            self._unspent.discard(request_id)
        while self._revocations:
            revocation = self._revocations[0]
            try:
                await self._write(partial(self._table.revoke, revocation.request_id, by=revocation.by))
            except StoreUnavailableError:
                raise
            except StoreError as error:
                _log.info("the store has a revocation already: %s", error)
            self._revocations.popleft()
            revocation.settled()

    # -- threads

    async def _read(self, query: Callable[[], T]) -> T:
        return await _in_thread(query, self._reads)

    async def _write(self, change: Callable[[], T]) -> T:
        try:
            return await _in_thread(change, self._writes)
        finally:
            self._note_committed()

    async def _settle(self, change: Callable[[], T]) -> T:
        """Write the end of a use, also for a call that is cancelled; bounded by the store's answer."""
        with trio.CancelScope(shield=True):
            done = await self._write(change)
        return done

    def _note_committed(self) -> None:
        """Record what was committed, by this task or another one."""
        # The thread may add to it meanwhile.
        committed = self._table.committed
        while committed:
            moved = committed.popleft()
            if (event := event_of(moved, self._snapshot())) is not None:
                self._record(event)
            self._memory.moved(moved.request)


async def _in_thread(work: Callable[[], T], limiter: trio.CapacityLimiter) -> T:
    if limiter.statistics().tasks_waiting >= WAITING_MAX:
        raise StoreUnavailableError(f"{WAITING_MAX} requests wait for the store already: try again")
    try:
        # Once the thread has begun, it is not cancelled.
        with trio.fail_after(WAIT_S):
            return await trio.to_thread.run_sync(work, limiter=limiter)
    except trio.TooSlowError as error:
        raise StoreUnavailableError(f"the store has not answered in {WAIT_S:.0f} s: try again") from error
