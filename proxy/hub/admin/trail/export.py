"""Exports of the trail: JSON Lines or CSV, made page by page while they are sent, the oldest event first."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Iterator, Sequence

import attrs
import msgspec

from audit.display import decoded, json_line
from audit.query import Query
from audit.reader import StoredEvent
from audit.record import Event
from audit.search.search import SearchReader
from audit.textsearch import Text
from audit.wording import result_of, why_of
from proxy.hub.admin.streams.cut import CutError
from proxy.hub.admin.trail.rows import time_of
from proxy.hub.admin.trail.searches import BusyError, TrailSearches, TrailUnavailableError

# Some 100 KB of JSON.
EVENTS_AT_ONCE = 200
# A step that finds little ends, and frees its thread for others.
STEP_S = 0.2
# A spreadsheet takes a cell that begins with one of these for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")

_COLUMNS: Sequence[tuple[str, Callable[[Event], object]]] = (
    ("time", lambda event: time_of(event.ts)),
    ("kind", lambda event: event.kind),
    ("phase", lambda event: event.phase),
    ("eid", lambda event: event.eid),
    ("actor", lambda event: event.actor.name),
    ("actor_type", lambda event: event.actor.type),
    ("owner", lambda event: event.actor.owner),
    ("teams", lambda event: " ".join(event.actor.teams)),
    ("cluster", lambda event: event.cluster_name),
    ("verb", lambda event: event.req and event.req.verb),
    ("resource", lambda event: event.req and event.req.resource),
    ("subresource", lambda event: event.req and event.req.subresource),
    ("namespace", lambda event: event.req and event.req.namespace),
    ("name", lambda event: event.req and event.req.name),
    ("method", lambda event: event.req and event.req.method),
    ("target", lambda event: event.req and event.req.raw_target),
    ("command", lambda event: event.stream and " ".join(event.stream.command)),
    ("result", result_of),
    ("took_ms", lambda event: event.dur_ms),
    ("decision", lambda event: event.decision and event.decision.effect),
    ("policy", lambda event: event.decision and event.decision.policy),
    ("rule", lambda event: event.decision and event.decision.rule),
    ("why", why_of),
    ("ip", lambda event: event.client and event.client.ip),
    ("user_agent", lambda event: event.client and event.client.user_agent),
    ("claimed_reason", lambda event: event.client and event.client.claimed_reason),
    ("count", lambda event: event.count),
)


def json_lines(events: Sequence[StoredEvent]) -> bytes:
    """The events as `hawse audit list --json` prints them."""
    return "".join(f"{json_line(stored)}\n" for stored in events).encode()


def csv_header() -> bytes:
    """The names of the columns."""
    return _csv([["number", *(name for name, _ in _COLUMNS)]])


def csv_rows(events: Sequence[StoredEvent]) -> bytes:
    """The events as rows of a table. One of a newer version has its number and its id alone."""
    return _csv(_cells(stored) for stored in events)


def _cells(stored: StoredEvent) -> list[object]:
    event = decoded(stored)
    if event is None:
        eid = msgspec.json.decode(stored.body, type=dict[str, object]).get("eid", "")
        return [stored.number, *(eid if name == "eid" else "" for name, _ in _COLUMNS)]
    return [stored.number, *(value(event) for _, value in _COLUMNS)]


def _csv(rows: Sequence[Sequence[object]] | Iterator[Sequence[object]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([*map(_cell, row)] for row in rows)
    # A file name in another encoding may have lone surrogates.
    return text.getvalue().encode("utf-8", "backslashreplace")


def _cell(value: object) -> str:
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


@attrs.define(eq=False)
class Export:
    """The matches up to the newest at the start, as the chunks of a download."""

    _searches: TrailSearches
    _query: Query
    _text: Text | None
    _encode: Callable[[Sequence[StoredEvent]], bytes]
    _last: int
    """The position of the newest event at the start."""
    _header: bytes = b""
    _read: int = 0
    """The position that is read."""

    async def receive(self) -> bytes:
        """Make the next page; raises CutError if the trail cannot be read."""
        if self._header:
            header, self._header = self._header, b""
            return header
        while self._read < self._last:
            try:
                chunk = await self._searches.step(self._page)
            except (BusyError, TrailUnavailableError) as error:
                raise CutError from error
            if chunk:
                return chunk
        return b""

    async def aclose(self) -> None:
        """Release nothing: the trail is the hub's."""

    def _page(self, reader: SearchReader) -> bytes:
        found = reader.oldest(
            self._query,
            text=self._text,
            after=self._read,
            last=self._last,
            limit=EVENTS_AT_ONCE,
            until_s=time.monotonic() + STEP_S,
        )
        self._read = self._last if found.reached is None else found.reached
        return self._encode(found.rows) if found.rows else b""
