"""The requests of all hubs on one store, for the tasks of this hub.

Each method runs its transaction in a thread. The writes of a hub share one connection, and its readings
another one, so that no reading waits for a commit. A method raises StoreUnavailableError if the store fails,
or if it has waited WAIT_S for others. Cancelled while it waits, it has done nothing; once its transaction has
begun, it returns as if it was not cancelled.

The follower reads every second what has changed, and at once when another hub on PostgreSQL announces it.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from functools import partial
from typing import Final, NoReturn, TypeVar

import attrs
import trio

from audit.record import Event
from proxy.hub.approvals.request import NewRequest, Request, State
from proxy.hub.approvals.requests.events import event_of
from proxy.hub.approvals.requests.memory import Listener, RequestsMemory
from proxy.hub.approvals.requests.moves import CHANNEL
from proxy.hub.approvals.requests.outbox import Delivery
from proxy.hub.approvals.requests.table import RequestsTable
from proxy.hub.store.engines.engine import Location
from proxy.hub.store.engines.errors import StoreError, StoreUnavailableError
from proxy.hub.store.engines.listener import listen
from proxy.hub.store.engines.postgres_address import PostgresAddress
from proxy.hub.store.entities import Snapshot
from tunnel.net.loglimit import LogLimit

T = TypeVar("T")

WAITING_MAX: Final = 1000
"""Tasks that wait for one of the two threads. 512 calls may wait for approvals."""
WAIT_S: Final = 10.0
POLL_EVERY_S: Final = 1.0
POLL_GAP_S: Final = 0.1
WINDOW_S: Final = 60.0
"""A reading has what has changed since the last one, and this much longer."""
LOOK_FOR_DEAD_S: Final = 5.0
TIDY_EVERY_S: Final = 3600.0
PENDING_MAX: Final = 1000
"""Revocations that wait for the store. Operators make them, one at a time."""

_log = logging.getLogger("hawse.hub.requests")


@attrs.frozen
class _Revocation:
    """A revocation that the store could not take."""

    request_id: str
    by: str
    settled: Callable[[], None]


class Requests:
    """The requests; made by `open_requests`."""

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
        self._revocations: deque[_Revocation] = deque()
        self._poll_wanted = trio.Event()
        self._failed = LogLimit(_log)

    # -- for the call that waits

    async def find(self, agent_id: str, plan: str) -> Request | None:
        """Return what a call with this plan meets.

        The open request (`pending`, `approved`, `using`), else one that was denied within DENIED_S, else one
        that was used within USED_S. With None, a new request may be opened.
        """
        return await self._read(partial(self._reader.find, agent_id, plan))

    async def open(self, new: NewRequest, *, eid: str = "") -> Request:
        """Open a request, or return what `find` returns, if that is not None.

        `eid` is the id of the call, for the trail. Raises TooManyRequestsError, and NotFoundError if the
        agent or the cluster was removed.
        """
        return await self._write(partial(self._table.open, new, serves=eid))

    async def use(self, request_id: str) -> bool:
        """Take an approved request's grant for a call of this hub: `approved` → `using`.

        False if another call has it, or it does not count any more. True only after the commit. If the
        answer of the store is lost, the grant may be lost too, and is spent.
        """
        known = self._memory.changes_of(request_id)
        try:
            used = await self._write(partial(self._table.use, request_id, known))
        except StoreUnavailableError:
            self._unspent.add(request_id)
            raise
        if used:
            self._unspent.discard(request_id)
        return used

    async def give_back(self, request_id: str) -> bool:
        """Return a grant that this hub has used, and by which nothing was done: `using` → `approved`.

        False if it was given back USES_RETURNED_MAX times before, was revoked, or the store is away: then it
        is spent. Never raises StoreError.
        """
        try:
            return await self._settle(partial(self._table.give_back, request_id))
        except StoreUnavailableError:
            self._unspent.add(request_id)
            return False

    async def spend(self, request_id: str) -> None:
        """Note that a grant which this hub has used is used up: `using` → `used`.

        If the store is away, that is written later. No call can use the grant meanwhile. Never raises
        StoreError.
        """
        try:
            await self._settle(partial(self._table.spend, request_id))
        except StoreUnavailableError:
            self._unspent.add(request_id)

    async def end(self, request_id: str, state: State, why: str) -> bool:
        """End a request that is pending or approved, or in use at this hub, as STALE or CANCELLED.

        False if it was none of these. `why` is a sentence for people.
        """
        return await self._write(partial(self._table.end, request_id, state, why))

    def changed(self, request: Request) -> trio.Event:
        """Return an event that is set once the request may not be as this one says any more.

        A change at another hub sets it within POLL_EVERY_S, if the store can be read.
        """
        return self._memory.event_of(request)

    def revoked(self, request_id: str) -> bool:
        """Return whether a request is known to be revoked, so that calls by its grant end."""
        return self._memory.is_revoked(request_id)

    # -- for approvers

    async def get(self, request_id: str) -> Request:
        """Return a request; raises NotFoundError."""
        return await self._read(partial(self._reader.get, request_id))

    async def find_all(
        self,
        *,
        states: Collection[State] = (),
        agent_id: str | None = None,
        cluster_id: str | None = None,
        offset: int = 0,
        limit: int = 100,
    ) -> Sequence[Request]:
        """Return requests, the newest first; no states are all. Views lack `changes`, `left_out`, `body`."""
        find = partial(self._reader.find_all, states=states, agent_id=agent_id, cluster_id=cluster_id)
        return await self._read(partial(find, offset=offset, limit=limit))

    async def every_open(self) -> Sequence[Request]:
        """Return all requests that are pending or approved, to be decided again; see `find_all`."""
        return await self._read(self._reader.every_open)

    async def decide(self, request_id: str, *, approve: bool, by: str, answer: str, shown: str) -> Request:
        """Decide a pending request. The caller has checked that `by` may, and that the trail has the intent.

        `shown` counts for an approval alone. Raises NotFoundError, NotOpenError, ShownDiffersError and
        TooLargeError.
        """
        decide = partial(self._table.decide, request_id, approve=approve, by=by, answer=answer, shown=shown)
        return await self._write(decide)

    async def revoke(self, request_id: str, *, by: str) -> Request:
        """Revoke a request that is pending, approved, using or used. A call by its grant ends.

        Raises NotFoundError and NotOpenError.
        """
        return await self._write(partial(self._table.revoke, request_id, by=by))

    def revoke_in_memory(self, request_id: str, *, by: str, settled: Callable[[], None]) -> None:
        """Revoke a request while the store is away: calls of this hub by its grant end now.

        It is written once the store is back, and then `settled` is called in the loop. Raises
        StoreUnavailableError if PENDING_MAX wait already.
        """
        if len(self._revocations) >= PENDING_MAX:
            raise StoreUnavailableError(f"{PENDING_MAX} revocations wait for the store already")
        self._revocations.append(_Revocation(request_id, by, settled))
        self._memory.revoke(request_id)

    # -- for webhooks

    async def claim(self, webhook: str, lease_s: float) -> Delivery | None:
        """Claim what is due for a webhook, if anything is. Unsettled, it is due again after `lease_s`."""
        return await self._write(partial(self._table.claim, webhook, lease_s))

    async def delivered(self, delivery: Delivery) -> None:
        """Note that a claim was sent."""
        await self._write(partial(self._table.delivered, delivery))

    async def retry(self, delivery: Delivery, after_s: float) -> None:
        """Make a claim due again after this time."""
        await self._write(partial(self._table.retry, delivery, after_s))

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
        """Another number after each change that this hub has seen."""
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
        polled_s = dead_s = tidied_s = read_s = -math.inf
        while True:
            with trio.move_on_after(POLL_EVERY_S):
                await self._poll_wanted.wait()
                await trio.sleep_until(polled_s + POLL_GAP_S)
            self._poll_wanted = trio.Event()
            polled_s = trio.current_time()
            window_s = WINDOW_S + (0.0 if math.isinf(read_s) else polled_s - read_s)
            try:
                boots = await self._poll(window_s)
                read_s = polled_s
                if boots and polled_s - dead_s >= LOOK_FOR_DEAD_S:
                    dead_s = polled_s
                    await self._spend_of_dead(boots)
                await self._write_left()
                if polled_s - tidied_s >= TIDY_EVERY_S:
                    tidied_s = polled_s
                    await self._write(self._table.tidy)
            except StoreUnavailableError as error:
                self._failed.warning(f"cannot follow the requests for approval: {error}", trio.current_time())

    async def _poll(self, window_s: float) -> set[str]:
        """Read what has changed; returns the other hub processes that have grants in use."""
        began_s = trio.current_time()
        found = await self._read(partial(self._reader.look, window_s))
        lost = self._memory.read(found, began_s)
        if lost:
            _log.error("the database has lost changes of requests for approval: all open ones are cancelled")
            await self._write(self._table.cancel_open)
            self._memory.accept(lost)
            self.poll_soon()
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
            self._unspent.discard(request_id)
            try:
                await self._write(partial(self._table.spend, request_id))
            except BaseException:
                self._unspent.add(request_id)
                raise
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


@asynccontextmanager
async def open_requests(
    location: Location,
    *,
    org: str,
    boot: str,
    snapshot: Callable[[], Snapshot],
    record: Callable[[Event], None],
    runs_here: Callable[[str], bool],
    webhooks: Sequence[str] = (),
) -> AsyncIterator[Requests]:
    """Open the requests for the block, and follow them meanwhile; raises StoreUnavailableError.

    `runs_here` says, in any thread, whether a process of this data folder runs; on PostgreSQL the table of
    hubs says it. `record` takes the events of transitions. `webhooks` are the names of those to be sent.
    """
    opened = partial(RequestsTable, location, org=org, boot=boot, clock=time.time, webhooks=webhooks)
    with (
        closing(await trio.to_thread.run_sync(opened)) as table,
        closing(table.reader()) as reader,
    ):
        requests = Requests(table, reader, snapshot=snapshot, record=record, runs_here=runs_here)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(requests.run)
            if isinstance(location, PostgresAddress):
                nursery.start_soon(listen, location, CHANNEL, requests.poll_soon)
            yield requests
            nursery.cancel_scope.cancel()
