"""Followers of the trail: one poll for all of them, and a step of each when there are new events."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext

import attrs
import msgspec
import trio

from audit.query import Query
from audit.search.cursors import BadCursor, Mark
from audit.search.search import Next, SearchReader
from audit.textsearch import Text
from proxy.hub.admin.trail.rows import rows_of
from proxy.hub.admin.trail.searches import BusyError, TrailSearches, TrailUnavailableError
from proxy.hub.admin.verbs.answers import Gap, ServerEvent

# A person sees an event within half a second. The poll of an idle hub costs 0.1 % of a core.
POLL_S = 0.2
# Some 200 KB of JSON, which a browser shows within a frame or two.
EVENTS_AT_ONCE = 200
# A step that finds nothing to send moves the mark, so that a far older one does not block a thread.
STEP_S = 0.2
# A client that goes on later reads from its last cursor.
POSITION_EVERY_S = 15.0

_encode = msgspec.json.Encoder().encode


class TrailPoll:
    """Sees new events for all followers; it reads the trail only while one of them waits."""

    def __init__(self, searches: TrailSearches) -> None:
        self._searches = searches
        self._waiting = 0
        self._wanted = trio.Event()
        self._moved = trio.Event()
        self._mark: Mark | None = None
        self.version = 0
        """Becomes another number with each change of the trail that a poll has seen."""

    async def run(self) -> None:
        """Poll until cancelled."""
        while True:
            await self._wanted.wait()
            try:
                mark = await self._searches.step(SearchReader.now)
            except (TrailUnavailableError, BusyError):
                # Wakes the followers, whose own steps say why.
                mark = None
            if mark is None or mark != self._mark:
                self._mark = mark
                self.version += 1
                self._moved.set()
                self._moved = trio.Event()
            await trio.sleep(POLL_S)

    async def wait(self, version: int) -> None:
        """Return when the trail has changed since it had this version."""
        if self.version != version:
            await trio.lowlevel.checkpoint()
            return
        self._waiting += 1
        self._wanted.set()
        try:
            await self._moved.wait()
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._wanted = trio.Event()


@attrs.define(eq=False)
class Follower:
    """The events after a mark, as the source of a stream."""

    _searches: TrailSearches
    _poll: TrailPoll
    _query: Query
    _text: Text | None
    _mark: Mark
    _told: Mark | None = None
    """The mark that the client has."""
    _told_at: float = 0.0

    async def receive(self) -> Sequence[ServerEvent]:
        """Wait for the next matches; raises Gap if the trail cannot be read."""
        if self._told is None:
            return [self._event("start")]
        while True:
            # Before the step, so that no event after it is missed.
            version = self._poll.version
            found, encoded = await self._next()
            self._mark = found.mark
            if found.rows:
                return [self._event("events", encoded)]
            due = self._told_at + POSITION_EVERY_S
            if self._mark != self._told and trio.current_time() >= due:
                return [self._event("position")]
            if not found.more:
                with trio.move_on_at(due) if self._mark != self._told else nullcontext():
                    await self._poll.wait(version)

    async def aclose(self) -> None:
        """Release nothing: the trail is the hub's."""

    async def _next(self) -> tuple[Next, bytes]:
        def read(reader: SearchReader) -> tuple[Next, bytes]:
            until_s = time.monotonic() + STEP_S
            found = reader.after(
                self._mark, self._query, text=self._text, limit=EVENTS_AT_ONCE, until_s=until_s
            )
            # In the thread too: it takes longer than reading.
            return found, _encode({"events": rows_of(found.rows)}) if found.rows else b""

        try:
            return await self._searches.step(read)
        except (TrailUnavailableError, BusyError, BadCursor) as error:
            raise Gap(str(error)) from error

    def _event(self, name: str, data: bytes = b"{}") -> ServerEvent:
        self._told, self._told_at = self._mark, trio.current_time()
        return ServerEvent(data, name, self._mark.text)
