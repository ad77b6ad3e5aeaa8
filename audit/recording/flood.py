"""Aggregates a flood of failures into one event with a count, so that floods neither fill the disk nor hide.

The first FIRST failures of one kind from one source within WINDOW_S are stored individually. Further ones are
counted, and at the window's end one event has their count and shows the last of them. Allowed calls are never
aggregated: each has its own row. So has each change by an operator, while reads of the admin API are
aggregated like failures.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import attrs
from msgspec.structs import replace

from audit.record import Event, Kind

WINDOW_S = 10.0
# Enough examples for an operator; a client that retries by hand stays below this.
FIRST = 10
# Maximum sources (address, agent, cluster, status) that are counted separately. Above it, all share one
# source per kind, so a sender with many addresses cannot exhaust the memory.
SOURCES_MAX = 1024

# HTTP's status for an exceeded limit.
_TOO_MANY = 429

_FLOODING = frozenset({Kind.AUTH_FAILED, Kind.MALFORMED, Kind.HEADER_SMUGGLING})
# Reads of the admin API: a read-only token must not be able to fill the disk.
_READS = frozenset({"GET", "HEAD"})

Source = tuple[str, ...]


@attrs.define(eq=False)
class _Window:
    ends_s: float
    count: int = 1
    suppressed: int = 0
    first_ts: datetime | None = None
    """Of the suppressed events, like `last`."""
    last: Event | None = None


class Floods:
    """Counts failures by source; the caller passes the time as `now_s`.

    `source_of` maps an address to the address block that counts as one client: an IPv6 client has 2^64
    addresses, and would get FIRST rows for each.
    """

    def __init__(self, new_eid: Callable[[], str], source_of: Callable[[str], str] = str) -> None:
        self._new_eid = new_eid
        self._source_of = source_of
        self._windows: dict[Source, _Window] = {}

    def admit(self, event: Event, now_s: float) -> bool:
        """Return whether the event is stored by itself; if not, it has been counted."""
        if not counts(event):
            return True
        source = self._source(event)
        window = self._windows.get(source)
        if window is None and len(self._windows) >= SOURCES_MAX:
            source = (event.kind,)
            window = self._windows.get(source)
        if window is None:
            self._windows[source] = _Window(now_s + WINDOW_S)
            return True
        window.count += 1
        if window.count <= FIRST:
            return True
        window.suppressed += 1
        if window.first_ts is None:
            window.first_ts = event.ts
        window.last = event
        return False

    def next_due_s(self) -> float | None:
        """Return when the earliest window ends; None if there is no window."""
        # All windows are equally long, so the oldest ends first.
        for window in self._windows.values():
            return window.ends_s
        return None

    def due(self, now_s: float) -> list[Event]:
        """Remove the windows that have ended by now, and return their aggregated events (infinity: all
        windows).
        """
        events = []
        while (ends_s := self.next_due_s()) is not None and ends_s <= now_s:
            window = self._windows.pop(next(iter(self._windows)))
            if window.first_ts is not None and window.last is not None:
                events.append(self._aggregate(window.first_ts, window.last, window.suppressed))
        return events

    def _source(self, event: Event) -> Source:
        if event.resp is not None and event.resp.status == _TOO_MANY and event.agent:
            # The limit is the agent's, across addresses and clusters. Aggregating all its refusals keeps
            # their rows few, even if the agent has used up its share of the trail.
            return event.kind, "", event.agent, "", str(_TOO_MANY)
        return (
            event.kind,
            self._source_of(event.client.ip) if event.client is not None else "",
            event.actor.name,
            event.cluster_name,
            str(event.resp.status) if event.resp is not None else "",
        )

    def _aggregate(self, first_ts: datetime, last: Event, count: int) -> Event:
        # Zero if the clock was set back meanwhile.
        spread_ms = round(max(0.0, (last.ts - first_ts).total_seconds() * 1000), 3)
        note = f"{count} of this kind within {spread_ms / 1000:.1f} s, aggregated; the last one is shown"
        return replace(
            last,
            eid=self._new_eid(),
            ts=first_ts,
            dur_ms=spread_ms,
            count=count,
            note=f"{note}: {last.note}" if last.note else note,
        )


def counts(event: Event) -> bool:
    """Whether the event may flood, and changes nothing; any other event always has its own row."""
    decision = event.decision
    # First the test that settles nearly all events.
    if decision is not None and decision.effect == "allow":
        return False
    if event.kind is Kind.CALL:
        return decision is not None and decision.effect == "deny"
    if event.kind is Kind.ADMIN:
        reads = event.req is not None and event.req.method in _READS
        return reads or (decision is not None and decision.effect == "deny")
    return event.kind in _FLOODING
