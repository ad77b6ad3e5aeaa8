"""One call as a page for people: who, what, where, by which rule, with what result and duration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from audit.calls import FoundCall
from audit.display import decoded, json_line
from audit.escape import escape
from audit.kubectl import kubectl_line, kubectl_words
from audit.record import Approval, Event, Phase, Tunnel
from audit.wording import actor_of, ending_of, request_of, took, why_of

_WIDTH = 10


def page_lines(call: FoundCall) -> list[str]:
    """The page's lines, safe for a terminal."""
    events = [decoded(row) for row in call.rows]
    known = [event for event in events if event is not None]
    if len(known) < len(events):
        # A newer version wrote an event that this one cannot parse, so the page shows the raw rows.
        return [escape(json_line(row)) for row in call.rows]
    fields = _fields(_numbered(call, known), is_open=call.open)
    return [f"{name:<{_WIDTH}}{escape(text)}".rstrip() for name, text in fields]


def page_fields(call: FoundCall) -> list[tuple[str, list[str]]]:
    """The page's names, each with its texts, which are not escaped; nothing for rows of a newer version."""
    events = [event for row in call.rows if (event := decoded(row)) is not None]
    if len(events) < len(call.rows):
        return []
    fields: list[tuple[str, list[str]]] = []
    for name, text in _fields(_numbered(call, events), is_open=call.open):
        if name:
            fields.append((name, [text]))
        else:
            fields[-1][1].append(text)
    return fields


def _numbered(call: FoundCall, events: Sequence[Event]) -> list[tuple[str, Event]]:
    return [(row.number, event) for row, event in zip(call.rows, events, strict=True)]


def _fields(rows: Sequence[tuple[str, Event]], *, is_open: bool) -> Iterator[tuple[str, str]]:
    """The page's names and texts in order; a continuation has an empty name."""
    # The last row repeats the first one and adds the result, except for an end that is unknown.
    event = rows[-1][1]
    yield "event", f"{event.eid}, {event.kind}"
    yield from _request(event)
    yield from _people(event)
    yield from _places(event)
    if event.decision is not None and event.decision.effect:
        yield "decision", _decision(event)
    if event.approval is not None:
        yield "approval", _approval(event.approval)
    if event.serves:
        yield "serves", f"the call {event.serves}"
    yield from _result(event, is_open=is_open)
    yield from _times(rows)
    yield from _sizes(event)
    if event.stream is not None and event.stream.proto:
        yield "stream", _stream(event)
    if event.tunnel is not None:
        yield from _tunnel(event.tunnel)
    if event.note:
        yield "note", event.note
    yield "rows", " and ".join(f"{number} ({row.phase})" for number, row in rows)


def _request(event: Event) -> Iterator[tuple[str, str]]:
    req = event.req
    if req is None:
        return
    name = "request"
    if words := kubectl_words(event):
        yield name, kubectl_line(["kubectl", "--context", event.cluster_name, *words])
        name = ""
    elif req.resource:
        yield name, request_of(event)
        name = ""
    yield name, f"{req.method} {req.raw_target}".strip()
    if req.target_bytes is not None:
        yield "", f"the target had {req.target_bytes} bytes, sha256={req.target_sha256}"


def _people(event: Event) -> Iterator[tuple[str, str]]:
    actor, shown = event.actor, event.impersonated
    yield "who", _listed(actor_of(event), ("owner", actor.owner), ("teams", ", ".join(actor.teams)))
    if actor.id:
        yield "", f"id {actor.id}"
    if actor.credential or actor.jti:
        yield "", " ".join(filter(None, ("by", actor.credential or "a token", actor.jti)))
    if shown is not None:
        yield "as", _listed(shown.user, ("groups", ", ".join(shown.groups)))


def _places(event: Event) -> Iterator[tuple[str, str]]:
    client = event.client
    if client is not None and (client.ip or client.user_agent or client.mode):
        # A mode says how the hub reaches the cluster; `admin` and `local` say how the operator reached the
        # hub.
        yield "from", ", ".join(filter(None, (client.ip, client.user_agent))) or client.mode
    if client is not None and client.claimed_reason:
        yield "claimed", client.claimed_reason
    if event.cluster_name:
        relay = event.relay
        mode = client.mode if client is not None else ""
        by = f"{relay.instance} {relay.version}".strip() if relay is not None else ""
        yield "cluster", _listed(event.cluster_name, ("mode", mode), ("relay", by))


def _decision(event: Event) -> str:
    decision = event.decision
    assert decision is not None
    rule = f"rule {decision.rule}" if decision.rule else ""
    policy = f"of policy {decision.policy}" if decision.policy else ""
    bundle = f"(bundle {decision.bundle})" if decision.bundle else ""
    return " ".join(filter(None, (decision.effect, "by" if rule or policy else "", rule, policy, bundle)))


def _approval(approval: Approval) -> str:
    return _listed(f"request {approval.request}", ("by", approval.by), ("shown as", approval.shown))


def _result(event: Event, *, is_open: bool) -> Iterator[tuple[str, str]]:
    if is_open:
        yield "status", "still open"
    elif event.phase is Phase.UNKNOWN:
        yield "status", "unknown: the hub ended before the call did"
    elif event.resp is not None:
        processed = {
            "yes": "the API server received it",
            "no": "the API server did not receive it",
            "maybe": "the API server may have received it",
        }.get(event.resp.processed, "")
        yield "status", ", ".join(filter(None, (str(event.resp.status or "none"), processed)))
    elif event.phase.opens:
        yield "status", "no end is recorded"
    why = why_of(event)
    if why and why != event.note:
        yield "", why


def _times(rows: Sequence[tuple[str, Event]]) -> Iterator[tuple[str, str]]:
    first, last = rows[0][1], rows[-1][1]
    if len(rows) > 1 or first.phase.opens:
        yield "began", _moment(first.ts)
    if last.phase.opens:
        return
    answered = ""
    if last.resp is not None and last.resp.upstream_ms not in {None, last.dur_ms}:
        answered = f", of which {took(last.resp.upstream_ms)} at the relay and behind it"
    lasted = f", after {took(last.dur_ms)}{answered}" if last.dur_ms is not None else ""
    yield "ended" if last.dur_ms is not None else "at", f"{_moment(last.ts)}{lasted}"


def _sizes(event: Event) -> Iterator[tuple[str, str]]:
    req, resp, stream = event.req, event.resp, event.stream
    sent = stream.bytes_in if stream is not None else req.body_bytes if req is not None else None
    answered = resp.bytes if resp is not None else None
    if stream is not None and not event.phase.opens:
        answered = stream.bytes_out
    sizes = [f"{size} {way}" for size, way in ((sent, "sent"), (answered, "answered")) if size is not None]
    if sizes and not event.phase.opens:
        yield "bytes", ", ".join(sizes)


def _stream(event: Event) -> str:
    stream = event.stream
    assert stream is not None
    container = f"container {stream.container}" if stream.container else ""
    return ", ".join(
        filter(None, (stream.proto, container, "a terminal" if stream.tty else "", ending_of(event)))
    )


def _tunnel(tunnel: Tunnel) -> Iterator[tuple[str, str]]:
    name = "tunnel"
    if tunnel.detaches:
        away = f"away {tunnel.detaches} times, {took(tunnel.gap_ms)} in all"
        yield name, f"{away}; frames sent again: {tunnel.replayed}"
        name = ""
    if tunnel.moved_from:
        yield name, f"moved from relay {tunnel.moved_from}, which fell silent"


def _listed(first: str, *others: tuple[str, str]) -> str:
    return ", ".join([first, *(f"{name} {text}" for name, text in others if text)])


def _moment(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M:%S}.{when.microsecond // 1000:03d} UTC"
