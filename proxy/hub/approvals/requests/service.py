"""The requests of all hubs on one store, for the tasks of this hub.

Each method runs its transaction in a thread. It raises StoreUnavailableError if the store fails, or if it has
waited WAIT_S for others. Cancelled while it waits, it has done nothing; once its transaction has begun, it
returns as if it was not cancelled.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager, closing
from functools import partial
from typing import Final

import trio

from audit.record import Event
from proxy.hub.approvals.request import NewRequest, Request, State
from proxy.hub.approvals.requests.follower import Follower, Revocation
from proxy.hub.approvals.requests.moves import CHANNEL
from proxy.hub.approvals.requests.outbox import Delivery
from proxy.hub.approvals.requests.table import RequestsTable
from proxy.hub.store.engines.engine import Location
from proxy.hub.store.engines.errors import StoreUnavailableError
from proxy.hub.store.engines.listener import listen
from proxy.hub.store.engines.postgres_address import PostgresAddress
from proxy.hub.store.entities import Snapshot

PENDING_MAX: Final = 1000
"""Revocations that wait for the store. Operators make them, one at a time."""


class Requests(Follower):
    """The requests; made by `open_requests`."""

    # -- for the call that waits

    async def find(self, agent_id: str, plan: str) -> Request | None:
        """Return the request that answers a call with this plan.

        That is the open request (`pending`, `approved`, `using`), else one that was denied within DENIED_S,
        else one that was used within USED_S. With None, a new request may be opened.
        """
        return await self._read(partial(self._reader.find, agent_id, plan))

    async def check_limits(self, agent_id: str, policy: str, rule: str) -> None:
        """Raise TooManyRequestsError if `open` would, by what the store says now.

        A hub asks before a preview, which costs requests to the cluster. `open` checks again, since other
        calls may open requests meanwhile.
        """
        await self._read(partial(self._reader.check_limits, agent_id, policy, rule))

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
        self._revocations.append(Revocation(request_id, by, settled))
        self._memory.revoke(request_id)

    # -- for webhooks

    async def claim(self, webhook: str, lease_s: float) -> Delivery | None:
        """Claim a webhook's oldest due message, if any. Unsettled, it is due again after `lease_s`."""
        return await self._write(partial(self._table.claim, webhook, lease_s))

    async def delivered(self, delivery: Delivery) -> None:
        """Note that a claim was sent."""
        await self._write(partial(self._table.delivered, delivery))

    async def retry(self, delivery: Delivery, after_s: float) -> None:
        """Make a claim due again after this time."""
        await self._write(partial(self._table.retry, delivery, after_s))


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
