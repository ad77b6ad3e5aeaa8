"""Events for operators: one table line each in a terminal, or one line of JSON.

Clients choose much of an event's text, so all of it is escaped for the terminal.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import msgspec

from audit.escape import escape
from audit.reader import StoredEvent
from audit.record import ActorType, Event
from audit.wording import actor_of, ending_of, request_of, result_of, took, why_of

_COLUMNS = (
    ("SEQ", 6),
    ("TIME", 24),
    ("PHASE", 8),
    ("ACTOR", 20),
    ("CLUSTER", 12),
    ("RESULT", 6),
    ("TOOK", 9),
    ("WHAT", 0),
)
# On a narrower terminal, lines wrap.
_TERMINAL_COLUMNS_MIN = 80
# Marks truncated text. ASCII, since some terminals support nothing else.
_CUT = ".."


def json_line(stored: StoredEvent) -> str:
    """Return the event as one line of JSON in printable ASCII, for programs and for people."""
    return json.dumps(json.loads(stored.line), ensure_ascii=True, separators=(",", ":"))


def header_line() -> str:
    """The column names of `table_line`."""
    return _row([name for name, _ in _COLUMNS], [width for _, width in _COLUMNS])


def table_line(stored: StoredEvent) -> str:
    """Return the event as one line of the table; it needs no further escaping."""
    event = decoded(stored)
    if event is None:
        return _raw(stored)
    cells = [
        stored.number,
        f"{event.ts:%Y-%m-%dT%H:%M:%S}.{event.ts.microsecond // 1000:03d}Z",
        event.phase,
        actor_of(event),
        event.cluster_name or "-",
        result_of(event),
        f"{event.dur_ms:.1f}ms" if event.dur_ms is not None else "-",
        _what(event),
    ]
    return _row([*map(escape, cells)], [width for _, width in _COLUMNS])


class TerminalTable:
    """The table for a terminal of a given width. A failed call has a second line with the reason.

    No line exceeds the width. Truncated text is complete in a table that is written to a file, and in `audit
    show`. Each day's first event has a line with the date before it.
    """

    def __init__(self, columns: int) -> None:
        self._columns = columns = max(columns, _TERMINAL_COLUMNS_MIN)
        wider = columns - _TERMINAL_COLUMNS_MIN
        self._widths = [6, 8, min(24, 12 + wider // 4), min(16, 8 + wider // 8), 6, 6]
        self._day = ""

    def header(self) -> str:
        """The column names."""
        return self._row(["SEQ", "UTC", "ACTOR", "CLUSTER", "RESULT", "TOOK", "WHAT"])

    def lines(self, stored: StoredEvent) -> str:
        """The event as one to three lines."""
        event = decoded(stored)
        if event is None:
            return _cut(_raw(stored), self._columns)
        result = result_of(event)
        # For `local:USER`, which is always an operator, the type is omitted: the user would be cut off.
        short = event.actor.type is ActorType.AGENT or event.actor.name.startswith("local:")
        actor = event.actor.name if short else actor_of(event)
        cells = [
            stored.number,
            f"{event.ts:%H:%M:%S}",
            actor,
            event.cluster_name or "-",
            # No result yet: an intent, or the start of a long read.
            event.phase if event.phase.opens and result == "-" else result,
            took(event.dur_ms),
            _what(event, request_of(event), why=False),
        ]
        line = self._row(cells)
        if why := why_of(event):
            line += "\n" + _cut(" " * (self._widths[0] + 1) + escape(why), self._columns)
        if (day := f"{event.ts:%Y-%m-%d}") != self._day:
            self._day, line = day, f"{day}\n{line}"
        return line

    def _row(self, cells: Sequence[str]) -> str:
        # The number is never cut; the last cell is cut with the line.
        number, *others, last = map(escape, cells)
        kept = [_cut(cell, width) for cell, width in zip(others, self._widths[1:], strict=True)]
        return _cut(_row([number, *kept, last], [*self._widths, 0]), self._columns)


def decoded(stored: StoredEvent) -> Event | None:
    """The event, or None if a newer hawse wrote it in a form that this one cannot decode."""
    try:
        return msgspec.json.decode(stored.body, type=Event)
    except msgspec.ValidationError:
        return None


def _raw(stored: StoredEvent) -> str:
    # A newer version's event is shown raw.
    return escape(f"{stored.number} {json_line(stored)}")


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
    return " ".join(padded).rstrip()


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - len(_CUT)] + _CUT


def _what(event: Event, request: str | None = None, *, why: bool = True) -> str:
    parts = [] if event.kind == "call" else [f"[{event.kind}]"]
    if event.count > 1:
        parts.append(f"{event.count} times")
    if event.req is not None:
        parts.append(f"{event.req.method} {event.req.raw_target}".strip() if request is None else request)
    if ending := ending_of(event):
        parts.append(f"({ending})")
    if why and (reason := why_of(event)):
        parts.append(f"- {reason}")
    if event.client is not None and event.client.claimed_reason:
        parts.append(f"(claimed: {event.client.claimed_reason})")
    return " ".join(parts)
