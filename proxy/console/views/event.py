"""One event of the trail, as its page shows it: what was asked, by whom, by which rule, with what result.

The API's answer has the stored JSON, the lines of `hawse audit show` and the neighbours. The page takes the
event apart; an event that a newer hub wrote in another form is shown by its JSON alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import attrs
import msgspec

from audit.record import ActorType, Event, Phase
from audit.wording import actor_of, ending_of, resource_of, took, why_of
from proxy.console.base.api import at
from proxy.console.base.templating import size
from proxy.console.views.decision import Question, rule_path
from proxy.console.views.rows import Row, event_path, row_of, without_begun

# Shares of the time bar are in thousandths of its width.
BAR_WIDTH = 1000
# The shortest part that is still seen.
_BAR_PART_MIN = 12
_PROCESSED = {
    "yes": "The API server received it.",
    "no": "The API server did not receive it.",
    "maybe": "The API server may have received it.",
}


@attrs.frozen
class Field:
    """A line of a section: a name and a text, which may lead to another page."""

    name: str
    text: str
    href: str = ""
    code: bool = True
    """Whether a client, an agent or a relay chose the text."""


@attrs.frozen
class Step:
    """A part of the chain of identities."""

    title: str
    name: str
    href: str
    notes: Sequence[Field]


@attrs.frozen
class Decision:
    """The hub's decision, and where the text of its rule is."""

    effect: str
    rule: str
    policy: str
    href: str
    """The rule's text at the version that decided; empty for a decision without a policy."""
    bundle: str
    ask: str
    """The page that asks for the decision of today; empty for a request that is none of Kubernetes."""


@attrs.frozen
class Timing:
    """The call's time at the hub, and behind the tunnel."""

    began: str
    ended: str
    lasted: str
    behind: str
    """The part at the relay and behind it; empty if it is unknown."""
    hub_width: int
    behind_width: int


@attrs.frozen
class View:
    """The page of one event."""

    eid: str
    title: str
    row: Row
    """The newer row of the call, as the table has it."""
    open: bool
    status: str
    """What the result means, as a sentence."""
    why: str
    request: Sequence[Field]
    target: str
    kubectl: str
    decision: Decision | None
    approval: Sequence[Field]
    """The request for approval that it belongs to."""
    chain: Sequence[Step]
    timing: Timing | None
    path: Sequence[Field]
    stream: Sequence[Field]
    command: Sequence[str]
    """The arguments of an exec."""
    note: str
    records: Sequence[tuple[str, str, str]]
    """Each stored row: its number, its phase, and its JSON on several lines."""
    show_command: str
    list_command: str
    before: Sequence[Row]
    after: Sequence[Row]
    """Both with the newest first."""
    neighbours_of: str


def view_of(found: Mapping[str, Any]) -> View:
    """Make the page's view of the API's answer."""
    listed = found["rows"]
    first, last = _event(listed[0]["event"]), _event(listed[-1]["event"])
    row = row_of(listed[-1])
    neighbours = found["neighbours"]
    parts = (
        _parts(first, last, found["issued"], is_open=found["open"])
        if first is not None and last is not None
        else _NO_PARTS
    )
    return View(
        eid=found["eid"],
        title=row.what or row.kind or found["eid"],
        row=row,
        open=found["open"],
        kubectl=found["kubectl"],
        records=[(each["number"], each["phase"], _indented(each["event"])) for each in listed],
        show_command=found["command"],
        list_command=found["list_command"],
        before=without_begun(map(row_of, neighbours["before"])),
        after=without_begun(map(row_of, reversed(neighbours["after"]))),
        neighbours_of=neighbours["by"],
        **attrs.asdict(parts, recurse=False),
    )


@attrs.frozen
class _Parts:
    """What only an event that can be read has."""

    status: str = ""
    why: str = ""
    request: Sequence[Field] = ()
    target: str = ""
    decision: Decision | None = None
    approval: Sequence[Field] = ()
    chain: Sequence[Step] = ()
    timing: Timing | None = None
    path: Sequence[Field] = ()
    stream: Sequence[Field] = ()
    command: Sequence[str] = ()
    note: str = ""


_NO_PARTS = _Parts()


def _event(body: Mapping[str, Any]) -> Event | None:
    try:
        return msgspec.convert(body, Event)
    except msgspec.ValidationError:
        return None


def _indented(body: Mapping[str, Any]) -> str:
    return json.dumps(body, indent=2, ensure_ascii=True)


def _parts(first: Event, last: Event, issued: Mapping[str, Any] | None, *, is_open: bool) -> _Parts:
    why = why_of(last)
    return _Parts(
        status=_status(last, is_open=is_open),
        why="" if why == last.note else why,
        request=[*_request(last)],
        target=f"{last.req.method} {last.req.raw_target}".strip() if last.req is not None else "",
        decision=_decision(last),
        approval=[*_approval(last)],
        chain=[*_chain(last, issued)],
        timing=_timing(first, last),
        path=[*_path(last)],
        stream=[*_stream(last)],
        command=last.stream.command if last.stream is not None else (),
        note=last.note,
    )


def _status(event: Event, *, is_open: bool) -> str:
    if is_open:
        return "The call is still open."
    if event.phase is Phase.UNKNOWN:
        return "The hub ended before the call did: its result is unknown."
    if event.resp is not None:
        return _PROCESSED.get(event.resp.processed, "")
    return "No end is recorded." if event.phase.opens else ""


def _request(event: Event) -> Iterable[Field]:
    req = event.req
    if req is None:
        return
    for name, text in (
        ("verb", req.verb),
        ("resource", resource_of(req) if req.resource else ""),
        ("namespace", req.namespace),
        ("name", req.name),
        ("dry run", "yes" if req.dry_run else ""),
    ):
        if text:
            yield Field(name, text)
    if req.body_bytes is not None:
        yield Field("body", size(req.body_bytes), code=False)
    if req.target_bytes is not None:
        yield Field("target", f"{req.target_bytes} bytes, cut; sha256={req.target_sha256}", code=False)


def _decision(event: Event) -> Decision | None:
    decision = event.decision
    if decision is None or not decision.effect:
        return None
    return Decision(
        effect=decision.effect,
        rule=decision.rule,
        policy=decision.policy,
        href=rule_path(decision.policy, decision.rule, decision.bundle),
        bundle=decision.bundle,
        ask=_ask(event),
    )


def _approval(event: Event) -> Iterable[Field]:
    """The request of the call, and the call that a preview or an opened request serves."""
    approval = event.approval
    if approval is not None:
        yield Field("request", approval.request, at("/requests/{}", approval.request))
        if approval.by:
            yield Field("by", approval.by)
        if approval.shown:
            yield Field("shown as", approval.shown)
    if event.serves:
        yield Field("for", event.serves, event_path(event.serves))


def _ask(event: Event) -> str:
    """The page that asks for this decision again."""
    req = event.req
    if req is None or not event.agent or not event.cluster_name or not req.verb:
        return ""
    question = Question(
        agent=event.agent,
        cluster=event.cluster_name,
        verb=req.verb if req.resource else req.method.lower(),
        resource=resource_of(req) if req.resource else req.raw_target.partition("?")[0],
        name=req.name,
        namespace=req.namespace,
        upgrade="true" if event.stream is not None and event.stream.upgraded else "",
    )
    return question.path


def _chain(event: Event, issued: Mapping[str, Any] | None) -> Iterable[Step]:
    """The identities, from the person or platform behind the agent to the user that the cluster saw."""
    actor = event.actor
    by = [Field("credential", actor.credential)] if actor.credential else []
    if actor.jti:
        by = [Field(actor.credential or "token", actor.jti)]
    if actor.type is ActorType.AGENT:
        if actor.owner:
            yield Step("Owner", actor.owner, "", ())
        if issued is not None:
            yield _credential(issued)
        teams = [Field("team", team, at("/teams/{}", team)) for team in actor.teams]
        ids = [Field("id", actor.id)] if actor.id else []
        yield Step("Agent", actor.name, at("/agents/{}", actor.name), [*teams, *by, *ids])
    else:
        yield Step(str(actor.type).capitalize(), actor.name or actor_of(event), "", by)
    shown = event.impersonated
    if shown is not None:
        groups = [Field("group", group) for group in shown.groups]
        extra = [Field(name, ", ".join(values)) for name, values in shown.extra.items()]
        yield Step("In the cluster", shown.user, "", [*groups, *extra])


def _credential(issued: Mapping[str, Any]) -> Step:
    """What the agent has shown for the token of the call: an API key, its own key, or a platform's token."""
    row, event = row_of(issued), issued["event"]
    kind, _, name = str(event.get("actor", {}).get("credential", "")).partition(":")
    title = {"api-key": "API key", "key": "Key", "federation": "Federation"}.get(kind, "Credential")
    notes = [Field("token issued", row.time[:19].replace("T", " "), row.href)]
    if address := str(event.get("client", {}).get("ip", "")):
        notes.append(Field("to", address))
    return Step(title, name or kind, "", notes)


def _timing(first: Event, last: Event) -> Timing | None:
    began = first.ts
    if last.phase.opens or last.dur_ms is None:
        return Timing(began=_time(began), ended="", lasted="", behind="", hub_width=0, behind_width=0)
    behind_ms = last.resp.upstream_ms if last.resp is not None else None
    if first == last:
        # The one row of a read is written at its end.
        began = last.ts - timedelta(milliseconds=last.dur_ms)
    behind_width = hub_width = 0
    if behind_ms is not None and last.dur_ms > 0:
        share = round(BAR_WIDTH * min(1.0, behind_ms / last.dur_ms))
        behind_width = min(max(share, _BAR_PART_MIN), BAR_WIDTH - _BAR_PART_MIN)
        hub_width = BAR_WIDTH - behind_width
    return Timing(
        began=_time(began),
        ended=_time(last.ts),
        lasted=took(last.dur_ms),
        behind="" if behind_ms is None else took(behind_ms),
        hub_width=hub_width,
        behind_width=behind_width,
    )


def _time(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M:%S}.{when.microsecond // 1000:03d}"


def _path(event: Event) -> Iterable[Field]:
    """The way of the call: client, hub, relay, and what happened to the tunnel."""
    client, relay, tunnel = event.client, event.relay, event.tunnel
    if client is not None:
        if client.ip:
            yield Field("address", client.ip)
        if client.user_agent:
            yield Field("client", client.user_agent)
        if client.claimed_reason:
            yield Field("claimed reason", client.claimed_reason)
    if event.cluster_name:
        yield Field("cluster", event.cluster_name, at("/clusters/{}", event.cluster_name))
    if relay is not None and (relay.instance or relay.version):
        yield Field("relay", f"{relay.instance} {relay.version}".strip())
    if client is not None and client.mode:
        # `admin`, `console` and `local`: how an operator reached the hub.
        yield Field("mode", client.mode)
    if tunnel is not None and tunnel.detaches:
        away = f"away {tunnel.detaches} times, {took(tunnel.gap_ms)} in all"
        yield Field("tunnel", f"{away}; frames sent again: {tunnel.replayed}", code=False)
    if tunnel is not None and tunnel.moved_from:
        yield Field("moved", f"from relay {tunnel.moved_from}, which fell silent")


def _stream(event: Event) -> Iterable[Field]:
    """The sizes, and for a stream its protocol and its end."""
    req, resp, stream = event.req, event.resp, event.stream
    if stream is not None and stream.proto:
        yield Field("protocol", stream.proto)
    if stream is not None and stream.container:
        yield Field("container", stream.container)
    if stream is not None and stream.tty:
        yield Field("terminal", "yes", code=False)
    if event.phase.opens:
        return
    sent = stream.bytes_in if stream is not None else req.body_bytes if req is not None else None
    answered = stream.bytes_out if stream is not None else resp.bytes if resp is not None else None
    if sent is not None:
        yield Field("sent", size(sent), code=False)
    if answered is not None:
        yield Field("answered", size(answered), code=False)
    if ending := ending_of(event):
        yield Field("end", ending)
