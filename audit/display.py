"""Events as an operator reads them: one line each in a terminal, or one line of JSON.

Much of an event was chosen by whoever made the request, so nothing of it reaches the terminal as it is.
"""

from __future__ import annotations

import json

import msgspec

from audit.escape import escape
from audit.reader import StoredEvent
from audit.record import ActorType, Event, Phase

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


def json_line(stored: StoredEvent) -> str:
    """Write the event as one line of JSON in printable ASCII, fit to be parsed and to be looked at."""
    return json.dumps(json.loads(stored.line), ensure_ascii=True, separators=(",", ":"))


def header_line() -> str:
    """The names of the columns of `table_line`."""
    return _row([name for name, _ in _COLUMNS])


def table_line(stored: StoredEvent) -> str:
    """Write the event as one line of the table; nothing in it needs further escaping."""
    try:
        event = msgspec.json.decode(stored.body, type=Event)
    except msgspec.ValidationError:
        # Of a newer hawse, most likely: better shown raw than not at all.
        return escape(f"{stored.seq} {json_line(stored)}")
    return _row(
        [
            str(stored.seq),
            f"{event.ts:%Y-%m-%dT%H:%M:%S}.{event.ts.microsecond // 1000:03d}Z",
            event.phase,
            _actor(event),
            event.cluster_name or "-",
            _result(event),
            f"{event.dur_ms:.1f}ms" if event.dur_ms is not None else "-",
            _what(event),
        ]
    )


def _row(cells: list[str]) -> str:
    padded = [escape(cell).ljust(width) for cell, (_, width) in zip(cells, _COLUMNS, strict=True)]
    return " ".join(padded).rstrip()


def _actor(event: Event) -> str:
    if event.actor.type is ActorType.ANONYMOUS:
        return event.client.ip if event.client is not None and event.client.ip else "anonymous"
    return f"{event.actor.type}:{event.actor.name}" if event.actor.name else str(event.actor.type)


def _result(event: Event) -> str:
    if event.resp is not None:
        return str(event.resp.status or "none")
    if event.phase is Phase.UNKNOWN:
        return "?"
    return event.decision.effect if event.decision is not None and event.decision.effect == "deny" else "-"


def _what(event: Event) -> str:
    parts = [] if event.kind == "call" else [f"[{event.kind}]"]
    if event.count > 1:
        parts.append(f"{event.count} times")
    if event.req is not None:
        parts.append(f"{event.req.method} {event.req.raw_target}".strip())
    if event.stream is not None and event.stream.close_reason:
        parts.append(f"({event.stream.close_reason})")
    if why := event.note or _why(event):
        parts.append(f"- {why}")
    return " ".join(parts)


def _why(event: Event) -> str:
    """Why a call failed or was ended, or which rule denied it, where no note says so."""
    if event.resp is not None and event.resp.reason:
        return event.resp.reason
    decision = event.decision
    if decision is not None and decision.effect == "deny" and decision.policy:
        return f"denied by {decision.policy}: {decision.rule}"
    return ""
