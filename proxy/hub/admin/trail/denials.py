"""The last denied calls, for the overview."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

import trio

from audit.members import Members
from audit.query import Query
from audit.record import Kind
from audit.search.cursors import BadCursor, Mark
from audit.search.search import SearchReader
from proxy.hub.admin.trail.rows import Row, rows_of
from proxy.hub.admin.trail.searches import BusyError, TrailSearches, TrailUnavailableError

DENIALS_MAX = 10

# A denial by the hub, or by the API server.
_DENIED = Query(kinds=[Kind.CALL], members=Members(statuses=["403"]))


class LastDenials:
    """Searches the trail once, and then only what is new in it: pages ask every few seconds."""

    def __init__(self, searches: TrailSearches) -> None:
        self._searches = searches
        self._rows: deque[Row] = deque(maxlen=DENIALS_MAX)
        self._mark: Mark | None = None
        self._one = trio.Lock()

    async def denials(self, count: int) -> Sequence[Row]:
        """Return the newest first, as rows of a search; the last known ones if the trail cannot be read."""
        async with self._one:
            # The overview has its own line for a trail that is down.
            with suppress(BusyError, TrailUnavailableError):
                await self._searches.search("", self._update)
        return list(self._rows)[:count]

    def _update(self, reader: SearchReader, until_s: float) -> None:
        mark = self._mark
        while mark is not None:
            try:
                found = reader.after(mark, _DENIED, limit=DENIALS_MAX, until_s=until_s)
            except BadCursor:
                break
            self._rows.extendleft(rows_of(found.rows))
            self._mark = mark = found.mark
            if not found.more or time.monotonic() >= until_s:
                return
        page = reader.newest(_DENIED, limit=DENIALS_MAX, until_s=until_s)
        self._rows.clear()
        self._rows.extend(rows_of(page.rows))
        self._mark = page.mark
