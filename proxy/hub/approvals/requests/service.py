"""The requests of all hubs on one store, for the tasks of this hub.

A method that writes raises StoreUnavailableError if the store cannot be written, or WAITING_MAX others wait
for it. Once its transaction has begun, a cancelled method still ends it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import trio

from proxy.hub.approvals.request import NewRequest, Request, State

Listener = Callable[[frozenset[str]], None]
"""Called with the ids of the requests that have changed."""


class Requests:
    """The requests; made by `open_requests`."""

    # -- for the call that waits

    async def find(self, agent_id: str, plan: str) -> Request | None:
        """Return what a call with this plan meets.

        The open request (`pending`, `approved`, `using`), else one that was denied within DENIED_S, else one
        that was used within USED_S. With None, a new request may be opened. Raises StoreUnavailableError.
        """
        raise NotImplementedError

    async def open(self, new: NewRequest, *, eid: str = "") -> Request:
        """Open a request, or return what `find` returns, if that is not None.

        `eid` is the id of the call, for the trail. Raises TooManyRequestsError, NotFoundError if the agent
        or the cluster was removed, and StoreUnavailableError.
        """
        raise NotImplementedError

    async def use(self, request_id: str) -> bool:
        """Take an approved request's grant for a call of this hub: `approved` → `using`.

        False if another call has it, or it is not valid any more. True only after the commit. With
        StoreUnavailableError or a cancellation, the grant may be lost: it is spent once the store is back.
        """
        raise NotImplementedError

    async def give_back(self, request_id: str) -> bool:
        """Return a grant that this hub has used, and by which nothing was done: `using` → `approved`.

        False if it was given back USES_RETURNED_MAX times before, was revoked, or the store is away: then it
        is spent. Never raises.
        """
        raise NotImplementedError

    async def spend(self, request_id: str) -> None:
        """Note that a grant which this hub has used is used up: `using` → `used`.

        If the store is away, that is written later, and nobody can use the grant meanwhile. Never raises.
        """
        raise NotImplementedError

    async def end(self, request_id: str, state: State, why: str) -> bool:
        """End a request that is `pending` or `approved`: STALE or CANCELLED. False if it was neither.

        `why` is one sentence for people. Raises StoreUnavailableError.
        """
        raise NotImplementedError

    def changed(self, request: Request) -> trio.Event:
        """Return an event that is set once the request is not as this one says any more.

        It is set at once if that is known. Within RECHECK_S of a change at another hub at most.
        """
        raise NotImplementedError

    def revoked(self, request_id: str) -> bool:
        """Return whether a request is known to be revoked, so that calls by its grant end. From memory."""
        raise NotImplementedError

    # -- for approvers

    async def get(self, request_id: str) -> Request:
        """Return a request; raises NotFoundError, StoreUnavailableError."""
        raise NotImplementedError

    async def find_all(
        self,
        *,
        states: Collection[State] = (),
        agent_id: str | None = None,
        cluster_id: str | None = None,
        offset: int = 0,
        limit: int = 100,
    ) -> Sequence[Request]:
        """Return requests, the newest first. Their views lack `changes`, `left_out` and `body`.

        No states are all states. Raises StoreUnavailableError.
        """
        raise NotImplementedError

    async def every_open(self) -> Sequence[Request]:
        """Return all requests that are `pending` or `approved`, to be decided again; see `find_all`."""
        raise NotImplementedError

    async def decide(self, request_id: str, *, approve: bool, by: str, answer: str, shown: str) -> Request:
        """Decide a pending request. The caller has checked that `by` may, and that the trail has the intent.

        `shown` counts for an approval alone. Raises NotFoundError, NotOpenError, ShownDiffersError,
        TooLargeError, StoreUnavailableError.
        """
        raise NotImplementedError

    async def revoke(self, request_id: str, *, by: str) -> Request:
        """Revoke a request that is `pending`, `approved`, `using` or `used`. A call by its grant ends.

        Raises NotFoundError, NotOpenError, StoreUnavailableError.
        """
        raise NotImplementedError

    def revoke_in_memory(self, request_id: str, *, by: str, settled: Callable[[], None]) -> None:
        """Revoke a request while the store is away: calls of this hub by its grant end now.

        It is written once the store is back, and then `settled` is called in the loop. Raises
        StoreUnavailableError if PENDING_MAX wait already.
        """
        raise NotImplementedError

    # -- from memory, at most a second old

    @property
    def open_states(self) -> Mapping[State, int]:
        """How many requests are pending, approved and using."""
        raise NotImplementedError

    @property
    def oldest_pending(self) -> float | None:
        """When the oldest pending request was opened."""
        raise NotImplementedError

    mark: int = 0
    """Another number after each change that this hub has seen."""

    def on_change(self, listener: Listener) -> None:
        """Call `listener` after each change, of this hub or another; it must neither wait nor raise."""
        raise NotImplementedError
