"""Reads as events of the trail. Those of a person's session are merged.

A console that is open reads several times a minute. Each read as an event would fill the trail: 69,000 a day
for one tab. So the first read of the trail is an event at once, and further ones become one event for each
ten minutes, with their filters. All other reads of a session become one event an hour, with their numbers. A
read by a token is an event of its own, and so is each export, which takes data away.

A hub that is killed loses what is merged until then. The session's first read shows that there was one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import attrs
import trio
from msgspec.structs import replace

from audit.ids import new_eid
from audit.record import Event, Kind, Request, Response, utc
from proxy.hub.admin.verbs.callers import Caller
from proxy.hub.admin.verbs.verb import Verb

# The resource of the trail's verbs.
TRAIL = "audit"
TRAIL_MERGED_S = 600.0
OTHERS_MERGED_S = 3600.0
# Different reads that a merged event lists. With their length they stay below the 64 KiB of a note.
ITEMS_MAX = 50
ITEM_CHARACTERS_MAX = 1024
# Two for each session. Beyond it, reads are events of their own.
WINDOWS_MAX = 4096
CHECK_EVERY_S = 10.0


@attrs.define(eq=False)
class _Window:
    """The reads of one session that become one event."""

    ends_s: float
    length_s: float
    items: Counter[str] = attrs.Factory(Counter)
    """The different reads, as far as they are listed, with their numbers."""
    count: int = 0
    last: Event | None = None

    def add(self, item: str, event: Event) -> None:
        """Add a read."""
        self.count += 1
        self.last = event
        item = item if len(item) <= ITEM_CHARACTERS_MAX else f"{item[:ITEM_CHARACTERS_MAX]}…"
        if item in self.items or len(self.items) < ITEMS_MAX:
            self.items[item] += 1

    def merged(self, now: float) -> Event | None:
        """Make the event of all reads; None if there are none."""
        if self.last is None:
            return None
        listed = [f"{count} times {item}" if count > 1 else item for item, count in self.items.items()]
        others = self.count - self.items.total()
        if others:
            listed.append(f"and {others} more")
        last = self.last
        verb, resource = ("read", TRAIL) if last.kind is Kind.AUDIT_READ else ("read", "console")
        return replace(
            last,
            eid=new_eid(),
            ts=utc(now),
            dur_ms=None,
            cluster=None,
            req=Request(verb=verb, resource=resource),
            resp=Response(200),
            count=self.count,
            note="; ".join(listed),
        )


class MergedReads:
    """Records the reads of all callers."""

    def __init__(self, record: Callable[[Event], None], clock: Callable[[], float]) -> None:
        self._record = record
        self._clock = clock
        self._windows: dict[tuple[str, bool], _Window] = {}

    def read(self, caller: Caller, verb: Verb, event: Event) -> None:
        """Record one read, or merge it with others of the same session."""
        of_trail = verb.resource == TRAIL
        if of_trail:
            event = replace(event, kind=Kind.AUDIT_READ)
        status = 0 if event.resp is None else event.resp.status
        key = caller.session, of_trail
        window = self._windows.get(key)
        full = window is None and len(self._windows) >= WINDOWS_MAX
        if not caller.session or status in {401, 403} or verb.verb == "export" or full:
            self._record(event)
            return
        if not of_trail:
            event = replace(event, kind=Kind.CONSOLE_READ)
        if window is None:
            length_s = TRAIL_MERGED_S if of_trail else OTHERS_MERGED_S
            window = self._windows[key] = _Window(trio.current_time() + length_s, length_s)
            if of_trail:
                self._record(event)
                return
        item = event.note if of_trail and status == 200 else f"{verb.verb} {verb.resource}"
        window.add(item if status < 400 else f"{item}: {status}", event)

    def ended(self, person: str) -> None:
        """Record what is merged of a session that has ended."""
        for of_trail in (True, False):
            window = self._windows.pop((person, of_trail), None)
            if window is not None:
                self._write(window)

    async def run(self) -> None:
        """Record what is due until cancelled, and then everything."""
        try:
            while True:
                await trio.sleep(CHECK_EVERY_S)
                self._write_due()
        finally:
            for person, _ in [*self._windows]:
                self.ended(person)

    def _write_due(self) -> None:
        now_s = trio.current_time()
        for key, window in [*self._windows.items()]:
            if window.ends_s > now_s:
                continue
            self._write(window)
            if window.count:
                # The session goes on: its next read is no first one.
                self._windows[key] = _Window(now_s + window.length_s, window.length_s)
            else:
                del self._windows[key]

    def _write(self, window: _Window) -> None:
        event = window.merged(self._clock())
        if event is not None:
            self._record(event)
