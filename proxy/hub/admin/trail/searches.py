"""Searches of the trail for the admin API: in threads, two at once, one of each operator, for two seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import attrs
import trio

from audit.errors import AuditUnavailable
from audit.search.search import SearchReader
from proxy.hub.store.engines.errors import StoreError

T = TypeVar("T")

# A search keeps one of two cores busy. Calls of agents need the other one.
SEARCHES_MAX = 2
# A person waits no longer; the next search goes on from there.
SEARCH_S = 2.0
# For the end of the operator's other search, and then for one of SEARCHES_MAX.
WAIT_S = 2.0
# The steps of all followers. Each takes some milliseconds.
FOLLOWERS_AT_ONCE = 2
# For one of these. All streams of a hub (STREAMS_MAX) may have a step to do, each of 0.2 s.
STEP_WAIT_S = 30.0


class BusyError(StoreError):
    """Too many searches are under way."""

    status, code = 429, "busy"


class TrailUnavailableError(StoreError):
    """The trail cannot be read."""

    status, code = 503, "audit_unavailable"


@attrs.define(eq=False)
class TrailSearches:
    """The searches of one hub's trail."""

    _open: Callable[[], SearchReader]
    """Opens the trail for reading; for any thread. Raises AuditUnavailable."""
    _reader: SearchReader | None = None
    _opening: threading.Lock = attrs.Factory(threading.Lock)
    _threads: trio.CapacityLimiter = attrs.Factory(lambda: trio.CapacityLimiter(SEARCHES_MAX))
    _follower_threads: trio.CapacityLimiter = attrs.Factory(lambda: trio.CapacityLimiter(FOLLOWERS_AT_ONCE))
    _of: dict[str, trio.CapacityLimiter] = attrs.Factory(dict)
    """For each operator who searches or waits: the limiter of one search."""

    async def search(self, operator: str, function: Callable[[SearchReader, float], T]) -> T:
        """Call a function with the trail and its deadline; raises BusyError, TrailUnavailableError.

        `operator` is whose search it is; "" is the hub's own, which waits for no other search of its own.
        """
        async with self._slot(operator):
            return await self._call(
                lambda: function(self._opened(), time.monotonic() + SEARCH_S), self._threads, WAIT_S
            )

    async def step(self, function: Callable[[SearchReader], T]) -> T:
        """Call a function that takes some milliseconds; raises BusyError, TrailUnavailableError."""
        return await self._call(lambda: function(self._opened()), self._follower_threads, STEP_WAIT_S)

    def close(self) -> None:
        """Close the trail."""
        if self._reader is not None:
            self._reader.close()

    @asynccontextmanager
    async def _slot(self, operator: str) -> AsyncIterator[None]:
        if not operator:
            yield
            return
        one = self._of.setdefault(operator, trio.CapacityLimiter(1))
        waiting = object()
        try:
            with trio.move_on_after(WAIT_S) as bounded:
                await one.acquire_on_behalf_of(waiting)
            if bounded.cancelled_caught:
                raise BusyError("another search of yours is under way: wait for its end, and search again")
            try:
                yield
            finally:
                one.release_on_behalf_of(waiting)
        finally:
            if not one.statistics().borrowed_tokens and not one.statistics().tasks_waiting:
                self._of.pop(operator, None)

    async def _call(self, function: Callable[[], T], threads: trio.CapacityLimiter, wait_s: float) -> T:
        task = object()
        with trio.move_on_after(wait_s) as bounded:
            await threads.acquire_on_behalf_of(task)
        if bounded.cancelled_caught:
            raise BusyError("too many readers of the trail are under way: ask again in a moment")
        try:
            # Its own limiter: the thread is counted already.
            return await trio.to_thread.run_sync(function, limiter=trio.CapacityLimiter(1))
        except AuditUnavailable as error:
            raise TrailUnavailableError(str(error)) from error
        finally:
            threads.release_on_behalf_of(task)

    def _opened(self) -> SearchReader:
        with self._opening:
            if self._reader is None:
                self._reader = self._open()
            return self._reader
