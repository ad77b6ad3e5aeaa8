from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from audit.record import (
    Actor,
    ActorType,
    Approval,
    Event,
    Kind,
    Phase,
    Response,
    Stream,
    Tunnel,
    encode,
    utc,
)
from proxy.console.views.event import BAR_WIDTH, View, view_of
from tests.console.trail_events import made_up_events
from tests.console.views.listed import listed

NOW = 1_800_000_000.0
EVENTS = made_up_events(NOW, 200)
ENDED = next(event for event in EVENTS if event.phase is Phase.COMPLETE and event.relay is not None)
DENIED = next(event for event in EVENTS if event.decision is not None and event.decision.effect == "deny")
WRITE = next(event for event in EVENTS if event.phase is Phase.INTENT)


def detail(*events: Event, is_open: bool = False, **changed: Any) -> dict[str, Any]:
    """Return the API's answer about a call."""
    stored = [{"seq": seq, **json.loads(encode(event))} for seq, event in enumerate(events, 17)]
    rows = [
        listed(eid=body["eid"], number=str(body["seq"]), phase=body["phase"], event=body) for body in stored
    ]
    return {
        "eid": events[-1].eid,
        "open": is_open,
        "rows": rows,
        "fields": [],
        "kubectl": "kubectl get pods",
        "command": f"hawse audit show {events[-1].eid}",
        "list_command": "hawse audit list",
        "neighbours": {"by": "session", "before": [], "after": []},
        "issued": None,
        **changed,
    }


def view(*events: Event, **changed: Any) -> View:
    return view_of(detail(*events, **changed))


def test_the_identities_are_a_chain_from_the_owner_to_the_cluster() -> None:
    shown = view(ENDED)
    assert [step.title for step in shown.chain] == ["Owner", "Agent", "In the cluster"]
    assert ENDED.impersonated is not None
    assert [step.name for step in shown.chain] == [
        ENDED.actor.owner, ENDED.actor.name, ENDED.impersonated.user,
    ]  # fmt: skip
    assert shown.chain[1].href == f"/agents/{ENDED.actor.name}"
    notes = [(note.name, note.text) for note in shown.chain[1].notes]
    assert ("team", "platform") in notes
    assert ("access-token", ENDED.actor.jti) in notes


@pytest.mark.parametrize(
    ("credential", "title", "name"),
    [
        ("federation:github", "Federation", "github"),
        ("key:k-1", "Key", "k-1"),
        ("api-key:a-1", "API key", "a-1"),
        ("", "Credential", ""),
    ],
)
def test_the_chain_names_what_the_agent_has_shown(credential: str, title: str, name: str) -> None:
    body = {"actor": {"credential": credential}, "client": {"ip": "192.0.2.7"}}
    shown = view(ENDED, issued=listed(eid="t", kind="token.issued", event=body))
    assert [step.title for step in shown.chain] == ["Owner", title, "Agent", "In the cluster"]
    step = shown.chain[1]
    assert (step.name, step.notes[0].text, step.notes[0].href) == (name, "2026-12-01 15:00:00", "/audit/t")
    assert (step.notes[1].name, step.notes[1].text) == ("to", "192.0.2.7")


def test_a_denied_call_has_no_identity_in_the_cluster() -> None:
    shown = view(DENIED)
    assert [step.title for step in shown.chain] == ["Owner", "Agent"]
    assert shown.decision is not None
    assert shown.decision.effect == "deny"


def test_a_call_leads_to_its_request_and_a_preview_to_its_call() -> None:
    shown = view(replace(ENDED, approval=Approval("r-1", "ab12", "ada@example.com")))
    assert [(field.name, field.text, field.href) for field in shown.approval] == [
        ("request", "r-1", "/requests/r-1"),
        ("by", "ada@example.com", ""),
        ("shown as", "ab12", ""),
    ]
    preview = view(replace(ENDED, kind=Kind.PREVIEW, serves="0199-a"))
    assert [(field.name, field.href) for field in preview.approval] == [("for", "/audit/0199-a")]
    assert view(ENDED).approval == []


def test_an_operator_and_an_unknown_client_have_a_step() -> None:
    operator = replace(
        ENDED, actor=Actor(ActorType.OPERATOR, "ops", credential="admin-token"), impersonated=None
    )
    assert [(step.title, step.name) for step in view(operator).chain] == [("Operator", "ops")]
    unknown = replace(operator, actor=Actor(ActorType.ANONYMOUS), kind=Kind.AUTH_FAILED)
    assert unknown.client is not None
    assert [(step.title, step.name) for step in view(unknown).chain] == [("Anonymous", unknown.client.ip)]


def test_a_decision_leads_to_its_rule_at_the_version_that_decided() -> None:
    shown = view(DENIED)
    assert shown.decision is not None
    assert DENIED.decision is not None
    policy, rule = DENIED.decision.policy, DENIED.decision.rule
    assert shown.decision.href == f"/policies/{policy}?version=3#rule-{rule}"
    no_rule = replace(DENIED, decision=replace(DENIED.decision, policy="", rule="no-rule-allows"))
    decision = view(no_rule).decision
    assert decision is not None
    assert (decision.href, decision.rule) == ("", "no-rule-allows")


def test_a_decision_can_be_asked_for_again() -> None:
    exec_call = next(event for event in EVENTS if event.req is not None and event.req.subresource == "exec")
    decision = view(exec_call).decision
    assert decision is not None
    assert (
        f"agent={exec_call.agent}&cluster={exec_call.cluster_name}&verb=get&resource=pods%2Fexec"
        in decision.ask
    )
    assert decision.ask.endswith("&upgrade=true")


def test_times_show_the_part_behind_the_hub() -> None:
    ended = replace(ENDED, dur_ms=100.0, resp=Response(200, upstream_ms=75.0))
    timing = view(ended).timing
    assert timing is not None
    assert (timing.lasted, timing.behind) == ("100ms", "75ms")
    assert (timing.hub_width, timing.behind_width) == (BAR_WIDTH // 4, BAR_WIDTH * 3 // 4)


@pytest.mark.parametrize("behind_ms", [0.0, 1e-9, 99.9999, 100.0, 1e9])
def test_both_parts_of_a_time_are_seen(behind_ms: float) -> None:
    timing = view(replace(ENDED, dur_ms=100.0, resp=Response(200, upstream_ms=behind_ms))).timing
    assert timing is not None
    assert timing.hub_width > 0
    assert timing.behind_width > 0
    assert timing.hub_width + timing.behind_width == BAR_WIDTH


def test_a_call_with_two_rows_began_at_the_first() -> None:
    end = WRITE.completed(WRITE.ts + timedelta(seconds=2), resp=Response(201), dur_ms=1990.0)
    shown = view(WRITE, end)
    assert shown.timing is not None
    assert shown.timing.began == f"{WRITE.ts:%Y-%m-%d %H:%M:%S}.{WRITE.ts.microsecond // 1000:03d}"
    assert shown.timing.lasted == "2.0s"
    assert [(number, phase) for number, phase, _ in shown.records] == [("17", "intent"), ("18", "complete")]
    assert json.loads(shown.records[1][2])["eid"] == end.eid


def test_one_row_of_a_read_began_before_it_was_written() -> None:
    ended = replace(ENDED, ts=utc(NOW), dur_ms=1500.0)
    timing = view(ended).timing
    assert timing is not None
    assert (timing.began[-6:], timing.ended[-6:]) == ("58.500", "00.000")


def test_what_is_not_known_is_said() -> None:
    assert view(WRITE, is_open=True).status == "The call is still open."
    assert view(WRITE).status == "No end is recorded."
    assert "unknown" in view(WRITE, replace(WRITE, phase=Phase.UNKNOWN)).status
    assert view(ENDED).status == "The API server received it."


def test_a_stream_shows_its_bytes_and_its_end_and_the_tunnel_its_breaks() -> None:
    stream = Stream("http", bytes_in=0, bytes_out=2048, close_reason="client gone")
    shown = view(replace(ENDED, stream=stream, tunnel=Tunnel(2, 4210.0, 17, "relay-b")))
    texts = {field.name: field.text for field in [*shown.stream, *shown.path]}
    assert (texts["answered"], texts["end"]) == ("2.0 KiB", "ended by the client")
    assert texts["tunnel"] == "away 2 times, 4.2s in all; frames sent again: 17"
    assert texts["moved"] == "from relay relay-b, which fell silent"


def test_an_event_of_a_newer_hub_shows_its_json_alone() -> None:
    found = detail(ENDED)
    found["rows"][0] |= {"kind": "", "request": "", "event": {"v": 9, "eid": ENDED.eid}}
    shown = view_of(found)
    assert (shown.chain, shown.decision, shown.timing, shown.target) == ((), None, None, "")
    assert json.loads(shown.records[0][2]) == {"v": 9, "eid": ENDED.eid}


def test_neighbours_have_the_newest_first_and_one_row_for_a_call() -> None:
    begun, end = listed(eid="x", number="19", phase="intent", result="-"), listed(eid="x", number="20")
    older = [listed(eid="b", number="16"), listed(eid="a", number="15")]
    shown = view(ENDED, neighbours={"by": "actor", "before": older, "after": [begun, end, listed(eid="z")]})
    assert [row.key for row in shown.after] == ["z", "x"]
    assert shown.after[1].result == "200"
    assert [row.key for row in shown.before] == ["b", "a"]
    assert shown.neighbours_of == "actor"


def test_every_made_up_event_has_a_view() -> None:
    for event in [*EVENTS, *made_up_events(NOW, 100, hostile=True)]:
        assert view(event).eid == event.eid
