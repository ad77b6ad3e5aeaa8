"""Short texts about an event: who, with what result, how it ended, and why."""

from __future__ import annotations

from audit.kubectl import kubectl_line, kubectl_words
from audit.record import ActorType, Event, Phase, Request

# The recorded reason if the client's side of a stream ended first.
_CLIENT_GONE = "client gone"
_LONG_S = ((3600, "h", 60, "m"), (60, "m", 1, "s"))


def actor_of(event: Event) -> str:
    """The actor with its type."""
    if event.actor.type is ActorType.ANONYMOUS:
        return event.client.ip if event.client is not None and event.client.ip else "anonymous"
    return f"{event.actor.type}:{event.actor.name}" if event.actor.name else str(event.actor.type)


def result_of(event: Event) -> str:
    """The status, `none` without an answer, `?` if it is unknown; `-` before the end."""
    if event.resp is not None:
        return str(event.resp.status or "none")
    if event.phase is Phase.UNKNOWN:
        return "?"
    return event.decision.effect if event.decision is not None and event.decision.effect == "deny" else "-"


def ended_by_client(event: Event) -> bool:
    """Whether the client ended the stream after the answer had begun, as most streams end.

    kubectl leaves a watch, a followed log and a finished `cp` by closing its connection. A Ctrl-C looks the
    same: the stream's bytes belong to the client, and the hub does not interpret them.
    """
    gone = event.stream is not None and event.stream.close_reason == _CLIENT_GONE
    return gone and event.resp is not None and bool(event.resp.status)


def ending_of(event: Event) -> str:
    """How a stream ended; empty if it is not a stream, or is still open."""
    if event.stream is None or not event.stream.close_reason:
        return ""
    if ended_by_client(event):
        return "ended by the client"
    reason = event.stream.close_reason
    return "client gone before the answer" if reason == _CLIENT_GONE else reason


def why_of(event: Event) -> str:
    """Why a call failed or was ended, or which rule denied it; empty if it succeeded."""
    if event.note:
        return event.note
    if event.resp is not None and event.resp.reason:
        return "" if ended_by_client(event) else event.resp.reason
    decision = event.decision
    if decision is not None and decision.effect == "deny" and decision.policy:
        return f"denied by {decision.policy}: {decision.rule}"
    return ""


def request_of(event: Event) -> str:
    """The request in the terms of kubectl and of policies."""
    req = event.req
    if req is None:
        return ""
    if event.stream is not None and req.subresource and (words := kubectl_words(event)):
        return kubectl_line(words)
    if not req.verb or not req.resource:
        return f"{req.method} {req.raw_target}".strip()
    where = f"-n {req.namespace}" if req.namespace else ""
    return " ".join(filter(None, (req.verb, resource_of(req), req.name, where)))


def resource_of(req: Request) -> str:
    """The resource, with its group and its subresource."""
    qualified = f"{req.resource}.{req.group}" if req.group else req.resource
    return f"{qualified}/{req.subresource}" if req.subresource else qualified


def took(dur_ms: float | None) -> str:
    """A duration in at most six characters."""
    if dur_ms is None:
        return "-"
    if dur_ms < 999.5:
        return f"{dur_ms:.0f}ms" if dur_ms >= 9.95 else f"{dur_ms:.1f}ms"
    seconds = dur_ms / 1000
    if seconds < 99.95:
        return f"{seconds:.1f}s"
    for length_s, unit, rest_s, rest_unit in _LONG_S:
        if seconds >= length_s and seconds < 100 * length_s:
            return f"{int(seconds // length_s)}{unit}{int(seconds % length_s // rest_s):02d}{rest_unit}"
    return f"{int(seconds // 86400)}d"
