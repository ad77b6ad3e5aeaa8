from __future__ import annotations

from msgspec.structs import replace

from audit.calls import FoundCall
from audit.page import page_lines
from audit.reader import StoredEvent
from audit.record import (
    Approval,
    Client,
    Decision,
    Event,
    Kind,
    Phase,
    Relay,
    Request,
    Response,
    Stream,
    Tunnel,
    encode,
    utc,
)
from tests.audit.events import HOSTILE, NOW_S, call, failure


def found(*events: Event, still: bool = False) -> FoundCall:
    return FoundCall([StoredEvent(7 + number, encode(event)) for number, event in enumerate(events)], still)


def page(*events: Event, still: bool = False) -> list[str]:
    return page_lines(found(*events, still=still))


def test_a_page_says_who_did_what_where_by_which_rule_and_how_it_went() -> None:
    intent = call()
    end = intent.completed(
        utc(NOW_S + 0.0123),
        resp=Response(200, "", 120, 3.5, "yes"),
        relay=Relay("relay-1", "hawse/0.1.0"),
        tunnel=Tunnel(2, 1200.0, 5, "relay-0"),
    )
    assert page(intent, end) == [
        f"event     {intent.eid}, call",
        "request   kubectl --context prod delete pods web -n app",
        "          DELETE /api/v1/namespaces/app/pods/web",
        "who       agent:robot, owner ann, teams sre",
        "          id a-1",
        "          by key-1",
        "as        agent:robot, groups acme/sre",
        "from      10.0.0.9, kubectl/v1.37.0",
        "cluster   prod, relay relay-1 hawse/0.1.0",
        "decision  allow by rule all of policy granted",
        "status    200, the API server received it",
        "began     2026-09-21 14:13:20.000 UTC",
        "ended     2026-09-21 14:13:20.012 UTC, after 12ms, of which 3.5ms at the relay and behind it",
        "bytes     120 answered",
        "tunnel    away 2 times, 1.2s in all; frames sent again: 5",
        "          moved from relay relay-0, which fell silent",
        "rows      7 (intent) and 8 (complete)",
    ]


def test_a_stream_says_how_it_ended() -> None:
    req = Request("GET", "/api/v1/namespaces/app/pods?watch=1", "watch", "", "v1", "pods", "", "app")
    start = replace(call(phase=Phase.START), req=req, stream=Stream("http"))
    assert "status    still open" in page(start, still=True)
    assert "status    no end is recorded" in page(start)
    assert "began     2026-09-21 14:13:20.000 UTC" in page(start, still=True)
    stream = Stream("http", bytes_out=2779, close_reason="client gone")
    end = start.completed(
        utc(NOW_S + 5400), resp=Response(200, "the client is gone", 2779, processed="yes"), stream=stream
    )
    lines = page(start, end)
    assert "request   kubectl --context prod get pods -n app --watch" in lines
    assert "ended     2026-09-21 15:43:20.000 UTC, after 1h30m" in lines
    assert "stream    http, ended by the client" in lines
    assert "bytes     0 sent, 2779 answered" in lines


def test_what_is_denied_failed_or_not_known_says_so() -> None:
    denied = replace(call(phase=Phase.COMPLETE), decision=Decision("deny", "no-kill", "sre", "4-ab"))
    lines = page(replace(denied, resp=Response(403, processed="no")))
    assert "decision  deny by rule no-kill of policy sre (bundle 4-ab)" in lines
    assert lines[lines.index("status    403, the API server did not receive it") + 1] == (
        "          denied by sre: no-kill"
    )
    unknown = replace(call(phase=Phase.UNKNOWN), note="the hub ended before it could record how this went")
    assert "status    unknown: the hub ended before the call did" in page(call(), unknown)
    assert page(failure())[1:4] == ["who       10.0.0.9", "from      10.0.0.9", "status    401"]


def test_a_cut_target_says_how_long_it_was() -> None:
    req = Request("GET", "/api?x…", "get", target_bytes=9000, target_sha256="ab")
    assert "          the target had 9000 bytes, sha256=ab" in page(replace(call(), req=req))


def test_hostile_text_is_escaped() -> None:
    event = replace(
        call(agent=HOSTILE, cluster=HOSTILE),
        client=Client("::1", HOSTILE, claimed_reason=HOSTILE),
        req=Request("GET", HOSTILE, "get", "", "v1", "pods", "exec", HOSTILE, HOSTILE),
        stream=Stream("websocket", (HOSTILE,), HOSTILE, close_reason=HOSTILE),
        note=HOSTILE,
    )
    for line in page(event):
        assert line.isascii()
        assert line.isprintable()


def test_a_stated_reason_is_shown_as_a_claim() -> None:
    assert not [line for line in page(call()) if line.startswith("claimed")]
    stated = replace(call(), client=Client("::1", "kubectl", claimed_reason="the pod hangs"))
    assert "claimed   the pod hangs" in page(stated)


def test_an_event_of_a_newer_hawse_is_shown_raw() -> None:
    newer = FoundCall([StoredEvent(3, b'{"v":2,"kind":"\\u001b"}')])
    assert page_lines(newer) == [r'{"seq":3,"v":2,"kind":"\\u001b"}']


def test_the_context_is_no_argument_of_what_an_exec_runs() -> None:
    req = Request("GET", "/x", "get", "", "v1", "pods", "exec", "app", "web")
    event = replace(call(), req=req, stream=Stream("websocket", ("sh", "-c", "id")))
    assert "request   kubectl --context prod exec web -n app -- sh -c id" in page(event)


def test_a_page_names_the_request_for_approval_and_the_call_that_it_belongs_to() -> None:
    decided = replace(
        call(phase=Phase.COMPLETE),
        kind=Kind.REQUEST_DECIDED,
        approval=Approval("0f0f", "ab12", "ann@example.com"),
    )
    assert "approval  request 0f0f, by ann@example.com, shown as ab12" in page(decided)
    preview = replace(
        call(phase=Phase.COMPLETE), kind=Kind.PREVIEW, serves="01a22e87-d308-7059-90bb-09f80b601f9a"
    )
    assert "serves    the call 01a22e87-d308-7059-90bb-09f80b601f9a" in page(preview)
