"""The closing event of a call: how it ended, for its record."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import attrs
from msgspec.structs import replace

from audit.record import Decision, Event, Kind, Response, Tunnel
from proxy.exchange.server import ServerConnection
from proxy.hub.authorize.events import GUARDRAILS
from proxy.hub.calls.live import LiveCall
from proxy.hub.calls.outcome import CloseReason, Outcome, failed
from proxy.message.failure import Failure, Processed, StreamCode
from tunnel import Interruptions, Session

# The record has only this text. The log has the traceback, because an exception's text may contain secrets.
_FAULT = "the hub failed by a fault of its own"


def closing_event(live: LiveCall, opening: Event, outcome: Outcome, elapsed_ms: float) -> Event:
    """Return the call's closing event."""
    ended = live.ended
    failure = outcome.failure
    # An answer that was complete before the end took effect is recorded as complete.
    if ended is not None and failure is not None:
        failure = Failure(ended.code, failure.processed, ended.reason)
        outcome = attrs.evolve(outcome, failure=failure, close_reason=ended.close_reason)
        opening = replace(opening, kind=Kind.SESSION_KILLED)
    elif failure is not None and failure.code is StreamCode.OVERLOADED:
        outcome = attrs.evolve(outcome, close_reason=CloseReason.OVERLOADED)
    response = Response(
        outcome.status or 0,
        failure.reason if failure is not None else "",
        outcome.bytes_out,
        round(elapsed_ms, 3),
        failure.processed.name.lower() if failure is not None else "yes",
    )
    if live.guardrail:
        opening = replace(opening, decision=Decision("deny", live.guardrail, GUARDRAILS))
        response = replace(response, processed="no")
    stream = opening.stream
    if stream is not None:
        stream = replace(
            stream,
            bytes_in=outcome.bytes_in,
            bytes_out=outcome.bytes_out,
            close_reason=outcome.close_reason.value,
        )
    elif outcome.bytes_in and opening.req is not None:
        opening = replace(opening, req=replace(opening.req, body_bytes=outcome.bytes_in))
    return opening.completed(
        datetime.now(UTC),
        resp=response,
        stream=stream,
        tunnel=recorded_tunnel(live.session, live.before, live.moved_from),
        relay=live.relay,
        impersonated=live.impersonated,
        dur_ms=(time.monotonic() - live.began_s) * 1000,
    )


def recorded_tunnel(session: Session | None, before: Interruptions, moved_from: str = "") -> Tunnel | None:
    """Return the interruptions of a call's tunnel; None without any."""
    # Nearly every tunnel has none.
    if session is None or not session.detaches or (now := session.interruptions) == before:
        return Tunnel(moved_from=moved_from) if moved_from else None
    through = now.since(before)
    return Tunnel(through.detaches, round(through.away_s * 1000, 3), through.replayed_frames, moved_from)


def hub_failed(connection: ServerConnection, live: LiveCall) -> Outcome:
    """Return the outcome of a call that a bug has ended."""
    processed = live.failure.processed if live.failure is not None else _seen(live)
    outcome = failed(Failure(StreamCode.INTERNAL, processed, _FAULT), CloseReason.HUB_FAILED, live.tally)
    # The front answers a client that still waits.
    return attrs.evolve(outcome, status=500) if connection.awaits_answer else outcome


def went_away(live: LiveCall) -> Outcome:
    """Return the outcome of a call whose client or hub went away."""
    stopped = Failure(StreamCode.CANCEL, _seen(live), "the client or the hub went away")
    return failed(live.failure or stopped, CloseReason.CLIENT_GONE, live.tally)


def _seen(live: LiveCall) -> Processed:
    return Processed.YES if live.tally.status else Processed.MAYBE
